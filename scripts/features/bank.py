"""The feature bank: one HDF5 file for each slide, with the features of each patch once, and the rows that link them."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from scripts.bags.grid import of_rows, row_log_weight
from scripts.core.errors import SettingsError, reason_of
from scripts.core.files import refuse_special
from scripts.core.imported import IMPORTED
from scripts.core.magnification import scale_name

__all__ = [
    "BANK_FORMAT",
    "MAKE_FIRST",
    "BankedBag",
    "bank_datasets",
    "bank_path",
    "bank_slides",
    "geometry_crc32",
    "patch_sides",
    "read_bank",
    "stored_level0",
    "stored_settings",
]

MAKE_FIRST = "Run `extracting` first with the same datalist, or `importing` for features of another tool."
"""What to do where there is no bank."""

# Raised when the same settings would give other contents: banks of an older format are then made again.
BANK_FORMAT = 1


@dataclass(frozen=True)
class BankedBag:
    """A slide's bag as features.

    Args:
        features: per scale, from low to high, ``[n_s, F]`` float32 of the unique patches.
        coords: per scale ``[n_s, 2]`` float64, (x, y) of the patches' top left corners in level-0 pixels.
        patch_level0: per scale, side of a patch in level-0 pixels, not rounded.
        rows: ``[N, S]`` int64, the patch of each scale that each row goes through.
        base_mpp: micrometres per pixel of level 0.
    """

    features: tuple[NDArray[np.float32], ...]
    coords: tuple[NDArray[np.float64], ...]
    patch_level0: tuple[float, ...]
    rows: NDArray[np.int64]
    base_mpp: float

    def row_features(self) -> NDArray[np.float32]:
        """``[N, S, F]``: the features of each row's patches.

        It is a view of ``[S, N, F]``: a network looks at one scale at a time, whose rows are then one block.
        """
        scales = np.empty((len(self.features), len(self.rows), self.features[0].shape[1]), dtype=np.float32)
        for out, features, patches in zip(scales, self.features, self.rows.T, strict=True):
            # With another mode numpy fills a buffer and copies it. read_bank has checked that the rows are in range.
            np.take(features, patches, axis=0, out=out, mode="clip")
        return scales.transpose(1, 0, 2)

    def row_corners(self) -> NDArray[np.float64]:
        """``[N, S, 2]``: (x, y) of the top left corners of each row's patches in level-0 pixels."""
        return of_rows(self.coords, self.rows)

    @property
    def nbytes(self) -> int:
        """The memory that the arrays take, in bytes."""
        return sum(a.nbytes for a in self.features) + sum(a.nbytes for a in self.coords) + self.rows.nbytes

    def log_weight(self) -> NDArray[np.float32]:
        """``[N, S]``: see :func:`scripts.bags.grid.row_log_weight`."""
        return row_log_weight(self.rows)


def bank_path(feature_dir: str | Path, slide: str, view: int = 0) -> Path:
    """The bank file of a view of a slide, by the slide's name in the datalist; view 0 are the plain patches."""
    return Path(feature_dir) / (f"views/{slide}/{view:03d}.h5" if view else f"{slide}.h5")


def bank_slides(feature_dir: str | Path) -> dict[str, Path]:
    """The banks of a folder by the names of their slides, in order; without those of augmented views."""
    paths = sorted(Path(feature_dir).glob("*.h5"))
    # Files that begin with a dot are being written.
    return {path.name.removesuffix(".h5"): path for path in paths if not path.name.startswith(".")}


def read_bank(path: Path, magnifications: tuple[float, ...]) -> BankedBag:
    """A slide's bank.

    Args:
        path: the bank file.
        magnifications: the scales to read, from low to high; all that the bank was made for.

    Raises:
        SettingsError: if there is no bank, it is damaged or something else, or was made for other magnifications.
    """
    if not path.exists():
        raise SettingsError(path, "there is no feature bank of this slide", MAKE_FIRST)
    with _opened(path) as (bank, settings):
        made_for = tuple(settings["magnifications"])
        if made_for != magnifications:
            raise SettingsError(
                path,
                f"was made for magnifications {list(made_for)}, asked for are {list(magnifications)}",
                "Set `magnifications` to the same, or choose another `feature_dir`.",
            )
        # Each look into the file costs, and a training reads thousands of banks an epoch.
        datasets = bank_datasets(bank, [scale_name(m) for m in magnifications])
        # A damaged file may claim terabytes. Nothing in it is compressed.
        if sum(dataset.nbytes for dataset in datasets) > os.path.getsize(path):
            raise ValueError("it claims to contain more than it does")
        arrays = [dataset[:] for dataset in datasets]
        rows, coords, features = arrays[0], tuple(arrays[1::2]), tuple(map(_float32, arrays[2::2]))
        banked = BankedBag(features, coords, patch_sides(datasets), rows, float(bank.attrs["mpp"]))
        _check_shapes(banked)
        for dataset, array in zip(datasets, arrays, strict=True):
            written = dataset.attrs.get("crc32")
            if written is None:  # as in banks of before version 0.3
                if not np.isfinite(array).all():
                    raise ValueError(f"its {dataset.name[1:]} are not all finite numbers")
            elif written != zlib.crc32(np.ascontiguousarray(array).data):
                raise ValueError(f"its {dataset.name[1:]} are not those that were written")
        if bank.attrs.get("crc32", (crc := geometry_crc32(banked.base_mpp, banked.patch_level0))) != crc:
            raise ValueError("its resolution or the size of its patches is not what was written")
        return banked


def stored_settings(path: Path) -> dict[str, Any]:
    """The settings that a bank was made with.

    Raises:
        SettingsError: if it is damaged, or no bank.
    """
    with _opened(path) as (_, settings):
        return settings


def stored_level0(path: Path) -> tuple[tuple[int, int] | None, str]:
    """Level 0 of a bank's slide.

    Returns:
        (width, height) in pixels, ``None`` of imported features that do not say it; and where its resolution was
        found, in words.

    Raises:
        SettingsError: if it is damaged, or no bank.
    """
    with _opened(path) as (bank, settings):
        source = str(bank.attrs.get("mpp_source", ""))
        if "size_level0" not in bank.attrs and settings.get("backbone") == IMPORTED:
            return None, source
        width, height = map(int, bank.attrs["size_level0"])
        return (width, height), source


def bank_datasets(bank: h5py.File, scales: Sequence[str]) -> list[h5py.Dataset]:
    """The rows, then the coordinates and the features of each scale."""
    groups = [bank[scale] for scale in scales]
    return [bank["rows"], *(group[name] for group in groups for name in ("coords", "features"))]


def _float32(features: NDArray[Any]) -> NDArray[Any]:
    """Features in float32 if they are in float16; what is neither is refused later."""
    return features.astype(np.float32) if features.dtype == np.float16 else features


def patch_sides(datasets: Sequence[h5py.Dataset]) -> tuple[float, ...]:
    """The side of a patch of each scale in level-0 pixels, from :func:`bank_datasets`."""
    return tuple(float(coords.attrs["patch_level0"]) for coords in datasets[1::2])


def geometry_crc32(base_mpp: float, patch_level0: Sequence[float]) -> int:
    """The checksum of what decides where a bank's patches lie."""
    return zlib.crc32(np.array([base_mpp, *patch_level0], dtype=np.float64).tobytes())


def _check_shapes(banked: BankedBag) -> None:
    rows, features, coords = banked.rows, banked.features, banked.coords
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != len(features) or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"its rows are {rows.dtype} {list(rows.shape)}")
    if any(f.ndim != 2 or f.dtype != np.float32 or f.shape[1] != features[0].shape[1] for f in features):
        raise ValueError(f"its features are {[f'{f.dtype} {list(f.shape)}' for f in features]}")
    if any(c.shape != (len(f), 2) for c, f in zip(coords, features, strict=True)):
        raise ValueError("the numbers of its patches and their positions differ")
    if (rows < 0).any() or (rows >= [len(f) for f in features]).any():
        raise ValueError("its rows go through patches that it does not contain")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, dict[str, Any]]]:
    """A bank and its settings; whatever is wrong with it is one error."""
    refuse_special(path)
    try:
        with h5py.File(path, "r") as bank:
            yield bank, dict(json.loads(bank.attrs["settings"]))
    # Anything in a damaged file may be of another kind than was written.
    except (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, MemoryError) as error:
        reason = reason_of(error)
        remedy = "Delete it, and run `extracting` again, or `importing` if its features are of another tool."
        raise SettingsError(path, f"is not a feature bank ({reason})", remedy) from error
