"""The checksums that packing writes into a bundle: whether its weights are still the ones that were packed.

They tell a damaged or mixed-up file from a whole one. Whoever can change a file can change its sum, too: whether a
bundle comes from where it should, the checksum of its zip tells (docs/security.md).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from scripts.core.errors import SettingsError
from scripts.core.files import file_sha256, refuse_special, replacing

__all__ = ["SUMS", "check_sum", "drop_sum", "format_sums", "read_sums"]

SUMS = "SHA256SUMS"
"""The file at a bundle's root with the checksums of all others, as ``sha256sum -c`` reads them."""

WEIGHTS_FOLDER = "models"
SHOWN_DIGITS = 12

logger = logging.getLogger(__name__)


def format_sums(sums: Mapping[str, str]) -> str:
    """The content of a file of checksums, in the format of ``sha256sum``.

    Args:
        sums: SHA-256 in hexadecimal, by the file's name from the bundle's root.
    """
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def read_sums(path: str | Path) -> dict[str, str]:
    """The checksums in a file, SHA-256 in hexadecimal by name.

    Raises:
        SettingsError: if it cannot be read, a line of it is no checksum and name, or a name is there twice.
    """
    refuse_special(path)
    remedy = "Unpack the bundle again."
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingsError(path, f"cannot be read ({error})", remedy) from error
    sums: dict[str, str] = {}
    for line in text.splitlines():
        sha256, separator, name = line.partition("  ")
        if not separator or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise SettingsError(path, f"has the line {line[:80]!r}, which is no checksum and name", remedy)
        if name in sums:
            raise SettingsError(path, f"lists {name} more than once", remedy)
        sums[name] = sha256
    return sums


def check_sum(path: str | Path) -> None:
    """Refuse a file of weights, in a bundle that was packed, that is not the one that was packed.

    Nothing is compared of a file that is not in ``models`` beside a list of checksums, that the list does not name
    (training wrote it, see :func:`drop_sum`), or that is not there, which its reader tells better.

    Raises:
        SettingsError: if its checksum differs, or the list cannot be read.
    """
    listed, name = _place(path)
    if listed is None or not os.path.isfile(path):
        return
    wanted = read_sums(listed).get(name)
    if wanted is not None and (found := file_sha256(path)) != wanted:
        raise SettingsError(
            path,
            f"its SHA-256 begins with {found[:SHOWN_DIGITS]}, and {listed} has {wanted[:SHOWN_DIGITS]}, so it is not "
            "the file that was packed",
            f"Unpack the bundle again; or, if you put this file there yourself, remove its line from {SUMS}.",
        )


def drop_sum(path: str | Path) -> None:
    """Take a file of weights that is about to be replaced off its bundle's list of checksums.

    What training writes was never packed. It carries a record with a checksum of its own
    (:mod:`scripts.weights.record`), and the list goes on telling of files that are still as they were packed.
    Called before the file is replaced, so that a run that is killed in between leaves weights that load.

    Raises:
        SettingsError: if the list cannot be read or replaced.
    """
    listed, name = _place(path)
    if listed is None:
        return
    sums = read_sums(listed)
    if sums.pop(name, None) is None:
        return
    try:
        with replacing(listed) as part:
            part.write_text(format_sums(sums), encoding="utf-8")
    except (OSError, SettingsError) as error:
        cause = f"cannot be changed, and it has the checksum of {name}, which training replaces ({error})"
        raise SettingsError(listed, cause, "Make its folder writable, or set `ckpt_dir` to another one.") from error
    logger.info("training replaces %s: it is no longer listed in %s", name, listed)


def _place(path: str | Path) -> tuple[Path | None, str]:
    """The list of checksums that a file could be named in, ``None`` if there is none, and the name there."""
    # A link to the folder leads to the bundle; one to the file alone leads away from it.
    folder = Path(os.path.realpath(os.path.dirname(os.path.abspath(path))))
    listed = folder.parent / SUMS
    name = f"{WEIGHTS_FOLDER}/{os.path.basename(path)}"
    return (listed if folder.name == WEIGHTS_FOLDER and os.path.lexists(listed) else None), name
