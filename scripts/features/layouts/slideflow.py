"""slideflow 3: bags ``<slide>.pt`` ``[n, F]`` with ``<slide>.index.npz`` (or ``.npy``), and ``bags_config.json``.

The index has (x, y) of the tiles' centres in level-0 pixels, as ``arr_0`` ``[n, 2]``. A tile's side in level-0 pixels
is ``tile_um`` divided by the slide's um/px, without what follows the point; its centre is its corner and half of that
side, without what follows the point. ``tile_um`` may be a magnification (``"20x"``). Read in
``slideflow/model/features.py``, ``slideflow/util/tfrecord2idx.py`` and ``slideflow/slide/wsi.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import SlideError
from scripts.features.layouts.foreign import (
    EXTRACT_AGAIN,
    UNREADABLE,
    ForeignFile,
    Layout,
    Stated,
    checked_positions,
    load_tensor,
    number_of,
    whole,
)

__all__ = ["SLIDEFLOW"]

CONFIG = "bags_config.json"
INDEX = (".index.npz", ".index.npy")


def _find(folder: Path) -> dict[str, Path]:
    found = {path.stem: path for path in sorted(folder.glob("*.pt"))}
    is_slideflow = (folder / CONFIG).is_file() or any(_index_of(path) is not None for path in found.values())
    return found if is_slideflow else {}


def _index_of(path: Path) -> Path | None:
    places = (path.with_name(path.stem + ending) for ending in INDEX)
    return next((place for place in places if place.is_file()), None)


def _read(path: Path, _: Path | None) -> ForeignFile:
    count, arguments = load_tensor(path)
    index = _index_of(path)
    if index is None:
        cause = f"a bag has no positions, and there is no {path.stem}{INDEX[0]} beside it"
        raise SlideError(path, cause, "Copy it there, or make the bags again.")
    try:
        loaded = np.load(index, allow_pickle=False)
        # An index of tiles that are stored as images has their places in the file first.
        positions = (
            loaded if isinstance(loaded, np.ndarray) else loaded["locations" if "locations" in loaded else "arr_0"]
        )
    except UNREADABLE as error:
        raise SlideError(index, f"cannot be read ({type(error).__name__})", EXTRACT_AGAIN) from error
    centres = checked_positions(index, positions, count)
    return ForeignFile(path, centres, stated=_stated(path.parent / CONFIG), is_centre=True, **arguments)


def _stated(path: Path) -> Stated:
    if not path.is_file():
        return Stated()
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
        encoder = str(config["extractor"]["class"]).rsplit(".", 1)[-1]
        # Features of normalised patches are others.
        normalizer = config.get("normalizer") or {}
        method = f"+{normalizer['method']}" if normalizer.get("method") else ""
        size, side = number_of(config, "tile_px"), config.get("tile_um")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SlideError(path, f"is not what slideflow writes ({type(error).__name__})", "Copy it again.") from error
    is_magnification = isinstance(side, str) and side.lower().endswith("x")
    return Stated(
        encoder=encoder + method,
        patch_size=whole(size),
        magnification=number_of({"side": side[:-1]}, "side") if is_magnification else None,
        patch_um=None if is_magnification else number_of(config, "tile_um"),
    )


SLIDEFLOW = Layout("slideflow", f"SLIDE.pt with SLIDE.index.npz beside it, and {CONFIG}", _find, _read)
