"""The stamp of a slide's files, by which another that takes their place while they are read is noticed."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.slides.dicom_series import slide_parts

__all__ = ["Stamp", "stamp_of"]

# Device, inode, size, time of the last change; of each file, where a slide is known to consist of several.
Stamp = tuple[int, ...]


def stamp_of(path: str | Path) -> Stamp:
    """The stamp of a slide's file as it is now; of a DICOM slide that of all its files.

    Raises:
        OSError: if there is none, or it may not be looked at.
    """
    os.stat(path)  # what is not there is no part of anything
    parts = [os.stat(part) for part in slide_parts(path)]
    return tuple(n for part in parts for n in (part.st_dev, part.st_ino, part.st_size, part.st_mtime_ns))
