"""The stamp of a slide's file, which tells it from another that takes its name while it is read."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["Stamp", "stamp_of"]

# Device, inode, size, time of the last change.
Stamp = tuple[int, int, int, int]


def stamp_of(path: str | Path) -> Stamp:
    """The stamp of a file as it is now.

    Raises:
        OSError: if there is none, or it may not be looked at.
    """
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
