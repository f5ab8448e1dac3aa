"""Batches that are made while the network trains on the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.data import DataLoader, Dataset

from scripts.training.datasets import pad_bags

__all__ = ["PrefetchLoader"]


class PrefetchLoader(DataLoader):
    """MONAI's :class:`DataLoader` with a thread that makes the next batch meanwhile.

    A thread and no process: what a bag needs is copying and reading, which run beside Python, and a process would
    have to send each batch. The batches and their order are those of MONAI's loader. MONAI's own
    ``ThreadDataLoader`` ends an epoch early and in silence where making a batch fails; here the error is raised.

    Args:
        dataset: of bags.
        collate_fn: makes a batch; by default :func:`scripts.training.datasets.pad_bags`.
        settings: further arguments of MONAI's loader.
    """

    def __init__(self, dataset: Dataset, collate_fn: Callable = pad_bags, **settings: Any) -> None:
        super().__init__(dataset, collate_fn=collate_fn, **settings)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        with ThreadPoolExecutor(1, "next batch") as thread:
            waiting = thread.submit(next, batches, None)
            while (batch := waiting.result()) is not None:
                waiting = thread.submit(next, batches, None)
                yield batch
