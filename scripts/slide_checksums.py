"""A slide's file against the checksum that the datalist gives of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.errors import SettingsError, SlideError
from scripts.files import file_sha256

__all__ = ["check_sha256", "given_sha256", "slide_sha256"]


def given_sha256(entry: Mapping[str, Any]) -> str | None:
    """An entry's ``sha256`` as :mod:`hashlib` writes it; ``None`` without one."""
    given = entry.get("sha256")
    return None if given is None else str(given).strip().lower()


def check_sha256(entry: Mapping[str, Any]) -> None:
    """Compare a slide's file with its entry's ``sha256``; an entry without one is not looked at.

    Args:
        entry: with ``image``, a path, and perhaps ``sha256``, 64 hexadecimal digits.

    Raises:
        SlideError: if the file is another one, or cannot be read.
    """
    if given_sha256(entry) is not None:
        slide_sha256(entry)


def slide_sha256(entry: Mapping[str, Any]) -> str:
    """The SHA-256 of a slide's file in hexadecimal, after it was compared with its entry's ``sha256``, if that has one.

    Raises:
        SlideError: as :func:`check_sha256`.
    """
    given = given_sha256(entry)
    try:
        found = file_sha256(entry["image"])
    except SettingsError as error:
        raise SlideError(error.subject, error.cause, "Copy it again, or leave it out of the datalist.") from error
    if given not in (None, found):
        cause = f"its SHA-256 is {found}, the datalist says {entry['sha256']}"
        raise SlideError(entry["image"], cause, "Copy it again, or correct `sha256`.")
    return found
