"""A slide's file against the checksum that the datalist gives of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.errors import SettingsError, SlideError
from scripts.files import file_sha256

__all__ = ["check_sha256"]


def check_sha256(entry: Mapping[str, Any]) -> None:
    """Compare a slide's file with its entry's ``sha256``; an entry without one is not looked at.

    Args:
        entry: with ``image``, a path, and perhaps ``sha256``, 64 hexadecimal digits.

    Raises:
        SlideError: if the file is another one, or cannot be read.
    """
    given = entry.get("sha256")
    if given is None:
        return
    try:
        found = file_sha256(entry["image"])
    except SettingsError as error:
        raise SlideError(error.subject, error.cause, "Copy it again, or leave it out of the datalist.") from error
    if found != str(given).strip().lower():
        raise SlideError(
            entry["image"], f"its SHA-256 is {found}, the datalist says {given}", "Copy it again, or correct `sha256`."
        )
