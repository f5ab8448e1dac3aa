"""Which slides are synthetic: weights that were trained on such slides are a demonstration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tifffile

__all__ = ["SOFTWARE", "count_slides", "is_synthetic"]

SOFTWARE = "MuSTMIL demonstration slide"
"""The value that synthetic slides have in the tag for the scanner's software (TIFF tag 305)."""


def is_synthetic(path: str | Path) -> bool:
    """Whether a slide's tag says that it is synthetic; a file that is no TIFF has none."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.pages.first.software == SOFTWARE)
    except (OSError, ValueError):  # tifffile's own error is a ValueError
        return False


def count_slides(training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """``training_slides``, ``validation_slides`` and, of both, ``drawn_slides`` (synthetic), for a weights' record."""
    synthetic = sum(is_synthetic(entry["image"]) for entry in [*training, *validation])
    return {"training_slides": len(training), "validation_slides": len(validation), "drawn_slides": synthetic}
