"""A folder that another process has locked."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked_by_another"]


@contextmanager
def locked_by_another(folder: Path) -> Iterator[None]:
    """Lock a folder as another process would: a file that is opened twice has two locks.

    Raises:
        BlockingIOError: if it is locked already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
