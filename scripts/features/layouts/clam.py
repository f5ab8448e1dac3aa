"""CLAM: ``h5_files/<slide>.h5`` and ``pt_files/<slide>.pt`` of its extraction; ``patches/<slide>.h5`` of its patching.

``features`` ``[n, F]`` and ``coords`` ``[n, 2]``, (x, y) of the top left corners in level-0 pixels, in the order of the
patches' file, whose ``coords`` have the attributes ``patch_size`` (in pixels of ``patch_level``) and ``downsample``. A
``.pt`` file has the features alone. A grid starts at each contour. Read in ``wsi_core/WholeSlideImage.py`` and
``extract_features_fp.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import SlideError
from scripts.features.layouts.foreign import (
    ForeignFile,
    Layout,
    Stated,
    by_slide,
    file_of,
    files_of,
    h5_array,
    h5_features,
    h5_positions,
    load_tensor,
    number_of,
    reading_h5,
    text_of,
    whole_of,
)
from scripts.features.layouts.h5_kinds import h5_kind

__all__ = ["CLAM"]

H5, PT, PATCHES = "h5_files", "pt_files", "patches"


def _find(folder: Path) -> dict[str, Path]:
    tensors = by_slide(files_of(folder / PT, ".pt") or (files_of(folder, ".pt") if folder.name == PT else []))
    files = files_of(folder / H5, ".h5") or files_of(folder, ".h5")
    if files:
        # A folder of TRIDENT's or ours may have tensors for CLAM's training beside its own files.
        return tensors | by_slide(files) if h5_kind(files) == "clam" else {}
    return tensors


def _read(path: Path, patches: Path | None) -> ForeignFile:
    found = (file_of(folder, path.stem, ".h5") for folder in _places(path, patches))
    beside = next((file for file in found if file is not None), None)
    if beside is None and patches is not None:
        cause = f"its slide is not in {patches}, which `features_are` names"
        raise SlideError(path, cause, "Put its positions there, or name the folder that has them.")
    if path.suffix.lower() == ".h5":
        with reading_h5(path) as file:
            features, coords = h5_array(file, "features"), h5_array(file, "coords")
            arguments = h5_features(path, "features", features)
            positions = h5_positions(coords, len(features))
            # A later version of CLAM, or a fork of it, may describe the positions here.
            attributes = dict(coords.attrs)
        tensor = file_of(_root(path) / PT, path.stem, ".pt")
        if tensor is not None and (count := load_tensor(tensor)[0]) != len(positions):
            cause = f"has {len(positions)} patches, and {tensor} has {count}"
            raise SlideError(path, cause, "Extract the features of this slide again, or remove one of the two.")
        if beside is not None:
            with reading_h5(beside) as file:
                coords = h5_array(file, "coords")
                if not np.array_equal(h5_positions(coords, len(coords)), positions):
                    cause = f"has other positions than {beside}"
                    raise SlideError(path, cause, "Give the `patches` that these features are of, or remove others.")
                attributes |= dict(coords.attrs)
    else:
        count, arguments = load_tensor(path)
        if beside is None:
            folder = _root(path) / PATCHES
            cause = f"a tensor has no positions, and there is neither {folder / path.stem}.h5 nor {H5}/{path.stem}.h5"
            remedy = "Put CLAM's `patches` there, or name it: --features_are \"{'patches': 'PATH'}\"."
            raise SlideError(path, cause, remedy)
        with reading_h5(beside) as file:
            coords = h5_array(file, "coords")
            positions, attributes = h5_positions(coords, count), dict(coords.attrs)
    return ForeignFile(path, positions, stated=_stated(beside or path, attributes), **arguments)


def _stated(path: Path, attributes: Mapping[str, Any]) -> Stated:
    size = whole_of(path, attributes, "patch_size")
    downsample = number_of(path, attributes, "downsample", may_be_pair=True)
    # As CLAM computes the side of a patch: with the downsample as a whole number.
    level0 = None if size is None or downsample is None else size * int(downsample)
    return Stated(patch_size=size, patch_level0=level0, slide=text_of(path, attributes, "name"))


def _root(path: Path) -> Path:
    return path.parent.parent if path.parent.name in (H5, PT) else path.parent


def _places(path: Path, patches: Path | None) -> Iterator[Path]:
    """The folders in which the positions of a slide's patches may be."""
    if patches is not None:
        yield from (patches, patches / PATCHES)
        return  # positions of another patching may be in the others
    root = _root(path)
    yield from (root / PATCHES, root.parent / PATCHES)
    if path.suffix.lower() != ".h5":
        yield root / H5


CLAM = Layout(
    "clam", "h5_files/SLIDE.h5 with features and coords, or pt_files/SLIDE.pt and patches/SLIDE.h5", _find, _read
)
