"""Telling drawn slides from scanned ones: weights that were trained on drawn slides are a demonstration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tifffile

__all__ = ["DRAWN_SOFTWARE", "count_slides", "is_drawn"]

DRAWN_SOFTWARE = "MuSTMIL demonstration slide"
"""What drawn slides have in the tag in which scanners name their software (TIFF tag 305)."""


def is_drawn(path: str | Path) -> bool:
    """Whether a slide says of itself that it was drawn; a file that is no TIFF says nothing."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.pages.first.software == DRAWN_SOFTWARE)
    except (OSError, ValueError):  # tifffile's own error is a ValueError
        return False


def count_slides(training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What weights were trained on, for their record.

    Args:
        training: the entries of the training partition.
        validation: those of the validation partition, which choose the weights that are kept.

    Returns:
        ``training_slides``, ``validation_slides`` and, of both, ``drawn_slides``.
    """
    drawn = sum(is_drawn(entry["image"]) for entry in [*training, *validation])
    return {"training_slides": len(training), "validation_slides": len(validation), "drawn_slides": drawn}
