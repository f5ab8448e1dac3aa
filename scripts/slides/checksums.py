"""A slide's content against the checksum that the datalist gives of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.core.errors import SettingsError, SlideError
from scripts.core.files import file_sha256
from scripts.slides.dicom_series import slide_parts
from scripts.slides.stamp import Stamp, stamp_of

__all__ = ["check_sha256", "content_sha256", "given_sha256", "slide_sha256"]


def given_sha256(entry: Mapping[str, Any]) -> str | None:
    """An entry's ``sha256`` as :mod:`hashlib` writes it; ``None`` without one."""
    given = entry.get("sha256")
    return None if given is None else str(given).strip().lower()


def content_sha256(path: str | Path) -> str:
    """The SHA-256 of a slide's file in hexadecimal; of a DICOM slide of several files, that of the list of theirs.

    The list has their checksums, one a line, sorted: so it is the same whichever file is named, and whatever the files
    are called. For a folder with one slide the shell gives it, too: ``sha256sum * | cut -c 1-64 | sort | sha256sum``
    (with ``LC_ALL=C``).

    Raises:
        SettingsError: if one cannot be read, or is no file.
        OSError: if the folder cannot be read.
    """
    sums = [file_sha256(part) for part in slide_parts(path)]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("".join(f"{sha256}\n" for sha256 in sorted(sums)).encode()).hexdigest()


def check_sha256(entry: Mapping[str, Any]) -> Stamp | None:
    """Compare a slide's file with its entry's ``sha256``; an entry without one is not looked at.

    Args:
        entry: with ``image``, a path, and perhaps ``sha256``, 64 hexadecimal digits.

    Returns:
        The stamp of the file that was compared, for :meth:`scripts.slides.slide.Slide.check_unchanged`.

    Raises:
        SlideError: if the file is another one, or cannot be read.
    """
    return None if given_sha256(entry) is None else slide_sha256(entry)[1]


def slide_sha256(entry: Mapping[str, Any]) -> tuple[str, Stamp]:
    """The SHA-256 of a slide's file in hexadecimal, after it was compared with its entry's ``sha256``, if that has one.

    Returns:
        It, and the stamp that the file had before.

    Raises:
        SlideError: as :func:`check_sha256`.
    """
    remedy = "Copy it again, or leave it out of the datalist."
    try:
        stamp = stamp_of(entry["image"])
        found = content_sha256(entry["image"])
    except OSError as error:
        raise SlideError(entry["image"], f"cannot be read ({error.strerror})", remedy) from error
    except SettingsError as error:
        raise SlideError(error.subject, error.cause, remedy) from error
    if given_sha256(entry) not in (None, found):
        cause = f"its SHA-256 is {found}, the datalist says {entry['sha256']}"
        raise SlideError(entry["image"], cause, "Copy it again, or correct `sha256`.")
    return found, stamp
