"""Batches that are made while the network trains on the one before."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.data import DataLoader

__all__ = ["PrefetchLoader"]


class PrefetchLoader(DataLoader):
    """MONAI's :class:`DataLoader` with a thread that makes the next batch meanwhile.

    A thread and no process: what a bag needs is copying and reading, which run beside Python, and a process would
    have to send each batch. The batches and their order are those of MONAI's loader. MONAI's own
    ``ThreadDataLoader`` ends an epoch early and in silence where making a batch fails; here the error is raised.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        with ThreadPoolExecutor(1, "next batch") as thread:
            waiting = thread.submit(next, batches, None)
            while (batch := waiting.result()) is not None:
                waiting = thread.submit(next, batches, None)
                yield batch
