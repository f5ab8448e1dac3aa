"""STAMP 2: ``<slide>.h5``, in the folders in which the slides are, with ``feats`` ``[n, F]`` float16 and ``coords``.

``coords`` ``[n, 2]`` are (x, y) of the top left corners in micrometres. Attributes of the file: ``extractor``,
``tile_size_um``, ``tile_size_px`` and ``unit``; before version 2.1 ``tile_size`` in micrometres. Read in
``stamp/preprocessing/__init__.py`` and ``stamp/modeling/data.py``.
"""

from __future__ import annotations

from pathlib import Path

from scripts.core.errors import SlideError
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

__all__ = ["STAMP"]


def _find(folder: Path) -> dict[str, Path]:
    files = files_of(folder, ".h5", is_deep=True)
    return by_slide(files) if h5_kind(files) == "stamp" else {}


def _read(path: Path, _: Path | None) -> ForeignFile:
    with reading_h5(path) as file:
        if (kind := text_of(path, file.attrs, "feat_type")) not in (None, "tile"):
            raise SlideError(path, f"has features of a {kind}, not of tiles", "Give what `stamp preprocess` wrote.")
        unit = text_of(path, file.attrs, "unit")
        if unit not in (None, "um"):
            raise SlideError(path, f"has positions in {unit}, not in um", "Extract the features again with STAMP 2.")
        side = number_of(path, file.attrs, "tile_size_um")
        if side is None and unit == "um":
            side = number_of(path, file.attrs, "tile_size")
        if side is None:
            cause = "does not say the unit of its positions, as files of STAMP before version 2"
            raise SlideError(path, cause, "Extract the features again with STAMP 2.")
        feats, coords = h5_array(file, "feats"), h5_array(file, "coords")
        stated = Stated(
            encoder=text_of(path, file.attrs, "extractor"),
            patch_size=whole_of(path, file.attrs, "tile_size_px"),
            patch_um=side,
        )
        arguments = h5_features(path, "feats", feats)
        return ForeignFile(path, h5_positions(coords, len(feats)), stated=stated, is_um=True, **arguments)


STAMP = Layout("stamp", "SLIDE.h5 with feats and coords", _find, _read)
