"""TRIDENT 0.3.0: ``features_<encoder>/<slide>.h5`` in a folder for each magnification, patch size and overlap.

``features`` ``[n, F]``; ``coords`` ``[n, 2]``, (x, y) of the top left corners in level-0 pixels, with attributes. Its
``target_magnification`` and ``level0_magnification`` are classes of resolution (10x is 0.6 to 1.2 um/px), not
resolutions. ``exporting`` writes the same, and adds ``level0_mpp``, which is exact, ``rounded`` where positions
were, and ``weights_sha256`` of the features. Read in ``trident/IO.py`` and ``trident/wsi_objects/WSI.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.features.layouts.foreign import (
    ForeignFile,
    Layout,
    Stated,
    by_slide,
    files_of,
    h5_array,
    h5_features,
    h5_positions,
    number_of,
    reading_h5,
    text_of,
    whole_of,
)
from scripts.features.layouts.h5_kinds import h5_kind

__all__ = ["TRIDENT"]


def _find(folder: Path) -> dict[str, Path]:
    inner = [path for path in folder.glob("features_*") if path.is_dir()]
    found = files_of(folder, ".h5") or (files_of(inner[0], ".h5") if len(inner) == 1 else [])
    return by_slide(found) if h5_kind(found) == "trident" else {}


def _read(path: Path, _: Path | None) -> ForeignFile:
    with reading_h5(path) as file:
        features, coords = h5_array(file, "features"), h5_array(file, "coords")
        arguments = h5_features(path, "features", features)
        attributes = dict(coords.attrs)
        width, height = (whole_of(path, attributes, f"level0_{side}") for side in ("width", "height"))
        stated = Stated(
            encoder=text_of(path, features.attrs, "encoder"),
            weights_sha256=text_of(path, features.attrs, "weights_sha256"),
            patch_size=whole_of(path, attributes, "patch_size"),
            magnification=number_of(path, attributes, "target_magnification"),
            patch_level0=number_of(path, attributes, "patch_size_level0"),
            mpp=number_of(path, attributes, "level0_mpp"),
            level0_magnification=number_of(path, attributes, "level0_magnification"),
            size_level0=None if width is None or height is None else (width, height),
            slide=text_of(path, features.attrs, "name") or text_of(path, attributes, "name"),
            is_apart=np.array_equal(attributes.get("overlap", np.nan), 0),
            is_rounded=np.array_equal(attributes.get("rounded", False), True),
        )
        return ForeignFile(path, h5_positions(coords, len(features)), stated=stated, **arguments)


TRIDENT = Layout(
    "trident", "SLIDE.h5 with features and coords and their attributes, in features_<encoder>", _find, _read
)
