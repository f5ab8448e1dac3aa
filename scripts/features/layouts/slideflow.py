"""slideflow 3: bags ``<slide>.pt`` ``[n, F]`` with ``<slide>.index.npz`` (or ``.npy``), and ``bags_config.json``.

The index has (x, y) of the tiles' centres in level-0 pixels, as ``arr_0`` ``[n, 2]``. A tile's side in level-0 pixels
is ``tile_um`` divided by the slide's um/px, without what follows the point; its centre is its corner and half of that
side, without what follows the point. ``tile_um`` may be a magnification (``"20x"``). Read in
``slideflow/model/features.py``, ``slideflow/util/tfrecord2idx.py`` and ``slideflow/slide/wsi.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import SettingsError, SlideError, reason_of
from scripts.core.files import refuse_special
from scripts.features.layouts.foreign import (
    EXTRACT_AGAIN,
    UNREADABLE,
    ForeignFile,
    Layout,
    Stated,
    by_slide,
    checked_positions,
    file_of,
    files_of,
    load_tensor,
    number_of,
    text_of,
    whole_of,
)

__all__ = ["SLIDEFLOW"]

CONFIG = "bags_config.json"
INDEX = (".npz", ".npy")


def _find(folder: Path) -> dict[str, Path]:
    indices = (path for suffix in INDEX for path in files_of(folder, suffix) if path.stem.endswith(".index"))
    is_slideflow = (folder / CONFIG).is_file() or any(indices)
    return by_slide(files_of(folder, ".pt")) if is_slideflow else {}


def _index_of(path: Path) -> Path | None:
    found = (file_of(path.parent, f"{path.stem}.index", suffix) for suffix in INDEX)
    return next((file for file in found if file is not None), None)


def _read(path: Path, _: Path | None) -> ForeignFile:
    count, arguments = load_tensor(path)
    index = _index_of(path)
    if index is None:
        cause = f"a bag has no positions, and there is no {path.stem}.index{INDEX[0]} beside it"
        raise SlideError(path, cause, "Copy it there, or make the bags again.")
    try:
        refuse_special(index)
        loaded = np.load(index, allow_pickle=False)
        # An index of tiles that are stored as images has their places in the file first.
        positions = (
            loaded if isinstance(loaded, np.ndarray) else loaded["locations" if "locations" in loaded else "arr_0"]
        )
    except SettingsError as error:
        raise SlideError(error.subject, error.cause, error.remedy) from error
    except UNREADABLE as error:
        raise SlideError(index, f"cannot be read ({reason_of(error)})", EXTRACT_AGAIN) from error
    centres = checked_positions(index, positions, count)
    return ForeignFile(path, centres, stated=_stated(path.parent / CONFIG), is_centre=True, **arguments)


def _stated(path: Path) -> Stated:
    if not path.is_file():
        return Stated()
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SlideError(path, f"cannot be read as JSON ({reason_of(error)})", "Copy it again.") from error
    extractor, normalizer = (_part(path, config, name) for name in ("extractor", "normalizer"))
    encoder = text_of(path, extractor, "class")
    # Features of normalised patches are others.
    method = text_of(path, normalizer, "method")
    if encoder is not None:
        encoder = encoder.rsplit(".", 1)[-1]
        # The same class may be given another model, or other weights, wherever these lie.
        if isinstance(arguments := extractor.get("kwargs"), Mapping) and arguments:
            files = {key: value.rsplit("/", 1)[-1] for key, value in arguments.items() if isinstance(value, str)}
            text = json.dumps({**arguments, **files}, sort_keys=True, default=str)
            encoder += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    side = config.get("tile_um")
    is_magnification = isinstance(side, str) and side.lower().endswith("x")
    return Stated(
        encoder=None if encoder is None else encoder + (f"+{method}" if method else ""),
        patch_size=whole_of(path, config, "tile_px"),
        magnification=number_of(path, {"tile_um": side[:-1]}, "tile_um") if is_magnification else None,
        patch_um=None if is_magnification else number_of(path, config, "tile_um"),
    )


def _part(path: Path, config: Any, name: str) -> Mapping[str, Any]:
    part = (config.get(name) or {}) if isinstance(config, Mapping) else config
    if not isinstance(part, Mapping):
        raise SlideError(path, f"does not have `{name}` as slideflow writes it", "Copy it again.")
    return part


SLIDEFLOW = Layout("slideflow", f"SLIDE.pt with SLIDE.index.npz beside it, and {CONFIG}", _find, _read)
