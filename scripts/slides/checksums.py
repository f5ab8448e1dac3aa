"""Whether a slide's files are the ones that are meant: checksums against the datalist, stamps against a replacement."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.core.errors import SettingsError, SlideError
from scripts.core.files import file_sha256
from scripts.slides.dicom_series import slide_parts

__all__ = ["Stamp", "content_sha256", "given_sha256", "slide_sha256", "stamp_of"]

# Device, inode, size and time of the last change of each of a slide's files.
Stamp = tuple[int, ...]


def stamp_of(path: str | Path) -> Stamp:
    """The stamp of a slide's file as it is now; of a DICOM slide that of all its files.

    Raises:
        OSError: if there is none, or it may not be looked at.
    """
    os.stat(path)  # a file that does not exist has no parts
    parts = [os.stat(part) for part in slide_parts(path)]
    return tuple(n for part in parts for n in (part.st_dev, part.st_ino, part.st_size, part.st_mtime_ns))


def given_sha256(entry: Mapping[str, Any]) -> str | None:
    """An entry's ``sha256`` as :mod:`hashlib` writes it; ``None`` without one."""
    given = entry.get("sha256")
    return None if given is None else str(given).strip().lower()


def content_sha256(path: str | Path) -> str:
    """The SHA-256 of a slide's file in hexadecimal; of a DICOM slide of several files, that of the list of theirs.

    The list has their checksums, one a line, sorted: so it is the same whichever file is named, and whatever the files
    are called. In a folder with one slide the shell gives the same:
    ``sha256sum * | cut -c 1-64 | LC_ALL=C sort | sha256sum``.

    Raises:
        SettingsError: if one cannot be read, or is no file.
        OSError: if the folder cannot be read.
    """
    checksums = [file_sha256(part) for part in slide_parts(path)]
    if len(checksums) == 1:
        return checksums[0]
    return hashlib.sha256("".join(f"{checksum}\n" for checksum in sorted(checksums)).encode()).hexdigest()


def slide_sha256(entry: Mapping[str, Any]) -> tuple[str, Stamp]:
    """The SHA-256 of a slide's file in hexadecimal, and the stamp that it had before, for ``Slide.check_unchanged``.

    Args:
        entry: with ``image``, a path, and perhaps ``sha256``, 64 hexadecimal digits.

    Raises:
        SlideError: if the file has another checksum than the entry gives, or cannot be read.
    """
    remedy = "Copy it again, or leave it out of the datalist."
    try:
        stamp, found = stamp_of(entry["image"]), content_sha256(entry["image"])
    except OSError as error:
        raise SlideError(entry["image"], f"cannot be read ({error.strerror})", remedy) from error
    except SettingsError as error:
        raise SlideError(error.subject, error.cause, remedy) from error
    if given_sha256(entry) not in (None, found):
        cause = f"its SHA-256 is {found}, the datalist says {entry['sha256']}"
        raise SlideError(entry["image"], cause, "Copy it again, or correct `sha256`.")
    return found, stamp
