"""Folders that take long to make, made by the first of pytest's processes that needs one, and read by all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

__all__ = ["made_once"]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that no test changes, but for a copy of its own.

    Args:
        factory: of temporary folders.
        name: of the folder, the same for all who share it.
        make: fills the empty folder. While one process does, the others wait; if it fails, the next one tries.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = factory.mktemp(name)
        make(folder)
        return folder
    # Each process of pytest-xdist has its folders in one of its own, beside those of the others.
    folder = factory.getbasetemp().parent / name
    complete = folder.with_suffix(".complete")
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
