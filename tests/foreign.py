"""Small files of features in the layouts of other tools, written as their own code writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from scripts.core.errors import BundleError
from scripts.features.importing import Importer

__all__ = [
    "grid",
    "importing",
    "random_features",
    "refusal",
    "write_clam",
    "write_slideflow",
    "write_stamp",
    "write_trident",
]


def importing(
    folders: Any, out: Path, given: Mapping[str, Any] | None = None, strict: bool = True, **places: Any
) -> Path:
    """Import, ending with the first slide that fails; returns the folder of the banks."""
    Importer(folders, out / "features", out, given, strict=strict, **places).run()
    return out / "features"


def refusal(folders: Any, out: Path, given: Mapping[str, Any] | None = None, **places: Any) -> str:
    """The one line with which an import ends."""
    with pytest.raises(BundleError) as error:
        importing(folders, out, given, **places)
    assert "\n" not in str(error.value)
    return str(error.value)


def banks_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def grid(columns: int, rows: int, side: int, start: tuple[int, int] = (0, 0)) -> np.ndarray:
    """``[n, 2]`` int64: corners of a grid, column by column as TRIDENT and CLAM give them."""
    x, y = (s + side * np.arange(n) for s, n in zip(start, (columns, rows), strict=True))
    return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)


def random_features(number: int, length: int = 8, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, length)).astype(dtype)


def write_trident(
    path: Path,
    coords: ArrayLike,
    features: np.ndarray,
    magnification: float = 10,
    patch_size: int = 64,
    level0: int = 20,
    encoder: str | None = "uni_v1",
    size: tuple[int, int] | None = (1024, 512),
    **others: Any,
) -> Path:
    """``SLIDE.h5`` of TRIDENT's ``save_h5`` and ``coords_to_h5``: a chunk a row, attributes on both arrays."""
    coords = np.asarray(coords)
    attributes: dict[str, Any] = {
        "patch_size": patch_size,
        "patch_size_level0": patch_size * level0 // magnification,
        "level0_magnification": level0,
        "target_magnification": magnification,
        "overlap": 0,
        "name": path.stem,
        "savetodir": "job",
        **({} if size is None else {"level0_width": size[0], "level0_height": size[1]}),
        **others,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in (("features", features), ("coords", coords)):
            chunks = (1, *array.shape[1:]) if len(array) else None
            file.create_dataset(name, data=array, chunks=chunks, maxshape=(None, *array.shape[1:]) if chunks else None)
        file["features"].attrs.update({"encoder": encoder or "None", "name": path.stem, "savetodir": "job"})
        file["coords"].attrs.update({key: value for key, value in attributes.items() if value is not None})
    return path


def write_clam(
    root: Path,
    slide: str,
    coords: ArrayLike,
    features: np.ndarray,
    patch_size: int = 64,
    downsample: float = 2.0,
    files: tuple[str, ...] = ("h5", "pt", "patches"),
) -> Path:
    """``patches/SLIDE.h5`` of ``process_contours``; ``h5_files/SLIDE.h5`` and ``pt_files/SLIDE.pt`` of extraction."""
    coords = np.asarray(coords)
    for folder in ("patches", "h5_files", "pt_files"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if "patches" in files:
        with h5py.File(root / "patches" / f"{slide}.h5", "w") as file:
            file.create_dataset("coords", data=coords, chunks=(32, 2), maxshape=(None, 2))
            file["coords"].attrs.update(
                {
                    "patch_size": patch_size, "patch_level": 1, "downsample": (downsample, downsample),
                    "downsampled_level_dim": (512, 256), "level_dim": (512, 256), "name": slide, "save_path": "patches",
                }
            )  # fmt: skip
    if "h5" in files:
        with h5py.File(root / "h5_files" / f"{slide}.h5", "w") as file:
            for name, array in (("features", features.astype(np.float32)), ("coords", coords.astype(np.int32))):
                file.create_dataset(name, data=array, chunks=(32, array.shape[1]), maxshape=(None, array.shape[1]))
    if "pt" in files:
        torch.save(torch.from_numpy(features.astype(np.float32)), root / "pt_files" / f"{slide}.pt")
    return root


def write_stamp(
    path: Path,
    coords_um: ArrayLike,
    features: np.ndarray,
    tile_um: float = 64.0,
    tile_px: int = 64,
    extractor: str | None = "uni",
    **others: Any,
) -> Path:
    """``SLIDE.h5`` of ``stamp preprocess``: float16 features, positions as float32 in micrometres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = np.asarray(coords_um, dtype=np.float32)
        file["feats"] = features.astype(np.float16)
        attributes = {
            "stamp_version": "2.4.0", "extractor": extractor, "unit": "um", "tile_size_um": tile_um,
            "tile_size_px": tile_px, "code_hash": "0" * 8, "feat_type": "tile", **others,
        }  # fmt: skip
        file.attrs.update({key: value for key, value in attributes.items() if value is not None})
    return path


def write_slideflow(
    folder: Path,
    slide: str,
    corners: ArrayLike,
    features: np.ndarray,
    mpp: float = 0.5,
    tile_um: int | str = 64,
    tile_px: int = 64,
    config: Mapping[str, Any] | None = None,
    ending: str = ".npz",
) -> Path:
    """``SLIDE.pt`` and ``SLIDE.index.npz`` of ``DatasetFeatures.to_torch``, with the tiles' centres."""
    folder.mkdir(parents=True, exist_ok=True)
    full_extract_px = int(float(tile_um) / mpp) if not isinstance(tile_um, str) else 128
    centres = np.array([[int(x + full_extract_px / 2), int(y + full_extract_px / 2)] for x, y in np.asarray(corners)])
    torch.save(torch.from_numpy(features.astype(np.float32)), folder / f"{slide}.pt")
    if ending == ".npz":
        np.savez(folder / f"{slide}.index", arr_0=centres)
    elif ending == ".npy":
        np.save(folder / f"{slide}.index.npy", centres)
    described = {
        "extractor": {"class": "slideflow.model.extractors.uni.UNIFeatures", "kwargs": {"weights": "uni.bin"}},
        "normalizer": None, "num_features": features.shape[1], "tile_px": tile_px, "tile_um": tile_um,
        **(config or {}),
    }  # fmt: skip
    (folder / "bags_config.json").write_text(json.dumps(described))
    return folder
