"""The encoders that have a name, and the lines that list them."""

from __future__ import annotations

from difflib import get_close_matches

from scripts.core.errors import SettingsError
from scripts.encoders.baselines import BASELINES
from scripts.encoders.entry import EncoderEntry
from scripts.encoders.network_files import FILE_KINDS
from scripts.encoders.pathology import PATHOLOGY

__all__ = ["ENCODERS", "encoder_entry", "list_encoders"]

ENCODERS: dict[str, EncoderEntry] = {entry.name: entry for entry in (*BASELINES, *PATHOLOGY)}

LIST = "python -m monai.bundle run encoders --config_file configs/extract.json"
OTHERS = f"timm/NAME, {', '.join(FILE_KINDS)}, or the dotted name of a Python function"


def encoder_entry(name: str) -> EncoderEntry:
    """The entry of an encoder.

    Raises:
        SettingsError: if none has this name.
    """
    if isinstance(name, str) and name in ENCODERS:
        return ENCODERS[name]
    known = (*ENCODERS, *FILE_KINDS)
    # Of a repository's name, MahmoodLab/UNI2-h, what follows its owner.
    wanted = str(name).lower().replace("-", "_").rpartition("/")[2]
    near = get_close_matches(wanted, known, n=2)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    remedy = f"{meant}`{LIST}` lists those with a name; others are {OTHERS} (docs/encoders.md)."
    raise SettingsError("backbone", f"got {name!r}", remedy)


def list_encoders() -> str:
    """A table of the encoders, for people."""
    columns = ("backbone", "features", "input px", "magnification", "weights", "licence")
    rows = [
        (
            entry.name,
            str(entry.num_features),
            str(entry.input_px or "any"),
            entry.magnification,
            _access(entry),
            entry.licence,
        )
        for entry in ENCODERS.values()
    ]
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (columns, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def _access(entry: EncoderEntry) -> str:
    if entry.hub is None:
        return "installed" if entry.url is None else "download.pytorch.org"
    return f"{entry.hub}{' (gated)' if entry.is_gated else ''}"
