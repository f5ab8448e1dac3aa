"""Which tool wrote HDF5 files: three tools store features so, under two pairs of names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py

__all__ = ["h5_kind", "h5_names"]

# TRIDENT describes its arrays; the files of CLAM's extraction have no attributes.
OF_TRIDENT = {"target_magnification", "level0_magnification", "patch_size_level0"}
# Files that are tried before nothing can be said of a folder.
MOST_TRIED = 20


def h5_kind(paths: Sequence[Path]) -> str | None:
    """``"trident"``, ``"clam"``, ``"stamp"``, or ``None``: by the first of the files that can be read."""
    for path in paths[:MOST_TRIED]:
        if not path.is_file():  # a pipe would be waited for
            continue
        try:
            with h5py.File(path, "r") as file:
                if {"feats", "coords"} <= file.keys():
                    return "stamp"
                if not {"features", "coords"} <= file.keys():
                    return None
                is_described = OF_TRIDENT & file["coords"].attrs.keys() or "encoder" in file["features"].attrs
                return "trident" if is_described else "clam"
        except (OSError, RuntimeError, KeyError, AttributeError):
            continue
    return None


def h5_names(paths: Sequence[Path]) -> list[str] | None:
    """The names in the first of the files that can be read; ``None`` if none of them can."""
    for path in paths[:MOST_TRIED]:
        if not path.is_file():  # a pipe would be waited for
            continue
        try:
            with h5py.File(path, "r") as file:
                return sorted(file.keys())
        except (OSError, RuntimeError):
            continue
    return None
