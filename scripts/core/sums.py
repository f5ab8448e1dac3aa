"""The checksums that packing writes into a bundle.

They tell a damaged or mixed-up file from a whole one. Whoever can change a file can change its checksum, too: only the
checksum of the zip shows whether a bundle comes from where it should (docs/security.md).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from scripts.core.errors import SettingsError
from scripts.core.files import file_sha256, refuse_special, replacing

__all__ = ["SUMS", "check_sum", "format_sums", "read_sums", "unlist"]

SUMS = "SHA256SUMS"
"""The file at a bundle's root with the checksums of all others, as ``sha256sum -c`` reads them."""

logger = logging.getLogger(__name__)

WEIGHTS_FOLDER = "models"
# Training leaves it beside the weights that it replaces, and packing never takes it.
TRAINED_HERE = "last.ckpt"


def format_sums(sums: Mapping[str, str]) -> str:
    """The content of a file of checksums, SHA-256 in hexadecimal by the file's name from the bundle's root."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def read_sums(path: str | Path) -> dict[str, str]:
    """The checksums in a file, SHA-256 in hexadecimal by name.

    Raises:
        SettingsError: if it cannot be read, a line of it is not a checksum and a name, or a name occurs twice.
    """
    refuse_special(path)
    remedy = "Unpack the bundle again."
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SettingsError(path, f"cannot be read ({error})", remedy) from error
    sums: dict[str, str] = {}
    for line in lines:
        if (found := re.fullmatch("([0-9a-f]{64})  (.*)", line)) is None:
            raise SettingsError(path, f"has the line {line[:80]!r}, which is not a checksum and a name", remedy)
        if found[2] in sums:
            raise SettingsError(path, f"lists {found[2]} more than once", remedy)
        sums[found[2]] = found[1]
    return sums


def check_sum(path: str | Path) -> None:
    """Refuse a file of weights in a packed bundle that is not the file that was packed.

    Nothing is compared where a training wrote weights into the bundle: they have a checksum of their own
    (:mod:`scripts.weights.record`). Nor is a file that is not listed, or that does not exist.

    Raises:
        SettingsError: if its checksum differs, or the list cannot be read.
    """
    listed = _list_of(path)
    if listed is None:
        return
    wanted = read_sums(listed).get(f"{WEIGHTS_FOLDER}/{os.path.basename(path)}")
    is_trained_here = (listed.parent / WEIGHTS_FOLDER / TRAINED_HERE).exists()
    if wanted is None or is_trained_here or (found := file_sha256(path)) == wanted:
        return
    raise SettingsError(
        path,
        f"its SHA-256 begins with {found[:12]}, and {listed} has {wanted[:12]}, so it is not the file that was packed",
        f"Unpack the bundle again; or, if you put this file there yourself, remove its line from {SUMS}.",
    )


def unlist(path: str | Path) -> None:
    """Take a file of weights that is no longer the one that was packed out of its bundle's list; errors as above."""
    listed = _list_of(path)
    sums = {} if listed is None else read_sums(listed)
    if listed is not None and sums.pop(f"{WEIGHTS_FOLDER}/{os.path.basename(path)}", None) is not None:
        with replacing(listed) as part:
            part.write_text(format_sums(sums), encoding="utf-8")
        logger.info("%s is no longer the file that was packed: its line in %s is removed", path, listed)


def _list_of(path: str | Path) -> Path | None:
    """The list of checksums of the bundle with this file of weights; ``None`` where there is no such list or file."""
    # A link to the folder leads to the bundle; one to the file alone leads away from it.
    folder = Path(os.path.realpath(os.path.dirname(os.path.abspath(path))))
    listed = folder.parent / SUMS
    return listed if folder.name == WEIGHTS_FOLDER and os.path.lexists(listed) and os.path.isfile(path) else None
