"""The feature bank: one HDF5 file for each slide, with the features of each patch once, and the rows that link them."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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
    "BankReader",
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

    def row_features(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """``[N, S, F]``: the features of the patches of each row, of the bag's rows or of others of its patches.

        It is a view of ``[S, N, F]``: a network looks at one scale at a time, whose rows are then one block.
        """
        rows = self.rows if rows is None else rows
        scales = np.empty((len(self.features), len(rows), self.features[0].shape[1]), dtype=np.float32)
        for out, features, patches in zip(scales, self.features, rows.T, strict=True):
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
    """A slide's bank, as :meth:`BankReader.read` reads it."""
    return BankReader(magnifications).read(path)


class BankReader:
    """Reads banks, and looks up only once where the arrays of each lie in its file.

    For a bank that the system has cached, HDF5 takes longer to find the arrays than the system to read them, and keeps
    Python's lock meanwhile, for which a thread that trains has to wait.

    Args:
        magnifications: the scales to read, from low to high; all that the banks were made for.
    """

    def __init__(self, magnifications: tuple[float, ...]) -> None:
        self.magnifications = magnifications
        self._layouts: dict[Path, _Layout] = {}

    def read(self, path: Path) -> BankedBag:
        """A slide's bank, its arrays compared with their checksums.

        Raises:
            SettingsError: if there is no bank, it is damaged or something else, or was made for other magnifications.
        """
        if not path.exists():
            raise SettingsError(path, "there is no feature bank of this slide", MAKE_FIRST)
        refuse_special(path)
        with _named(path), path.open("rb") as file:
            stamp = _stamp(file)
            layout = self._layouts.get(path)
            if layout is None or layout.stamp != stamp:
                layout = self._layouts[path] = self._look_up(path, stamp)
            arrays = [_read_array(file, array) for array in layout.arrays]
            rows, coords, features = arrays[0], tuple(arrays[1::2]), tuple(map(_float32, arrays[2::2]))
            banked = BankedBag(features, coords, layout.patch_level0, rows, layout.base_mpp)
            _check_shapes(banked)
            for stored, array in zip(layout.arrays, arrays, strict=True):
                stored.check(array)
            return banked

    def _look_up(self, path: Path, stamp: tuple[int, ...]) -> _Layout:
        with _opened(path) as (bank, settings):
            made_for = tuple(settings["magnifications"])
            if made_for != self.magnifications:
                raise SettingsError(
                    path,
                    f"was made for magnifications {list(made_for)}, asked for are {list(self.magnifications)}",
                    "Set `magnifications` to the same, or choose another `feature_dir`.",
                )
            datasets = bank_datasets(bank, [scale_name(m) for m in self.magnifications])
            # A damaged file may claim terabytes. Nothing in it is compressed.
            if sum(dataset.nbytes for dataset in datasets) > os.path.getsize(path):
                raise ValueError("it claims to contain more than it does")
            base_mpp, patch_level0 = float(bank.attrs["mpp"]), patch_sides(datasets)
            if bank.attrs.get("crc32", (crc := geometry_crc32(base_mpp, patch_level0))) != crc:
                raise ValueError("its resolution or the size of its patches is not what was written")
            return _Layout(stamp, tuple(map(_stored_array, datasets)), patch_level0, base_mpp)


@dataclass(frozen=True)
class _StoredArray:
    """An array of a bank.

    Args:
        name: ``"5x/features"``.
        offset: where it begins in the file, in bytes; ``None`` if it is not there in one piece.
        crc32: its checksum; ``None`` in banks of before version 0.3.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None
    crc32: int | None

    def check(self, array: NDArray[Any]) -> None:
        """Raise a :class:`ValueError` if the array is not what was written."""
        if self.crc32 is None:
            if not np.isfinite(array).all():
                raise ValueError(f"its {self.name} are not all finite numbers")
        elif self.crc32 != zlib.crc32(np.ascontiguousarray(array).data):
            raise ValueError(f"its {self.name} are not those that were written")


@dataclass(frozen=True)
class _Layout:
    """Where a bank's arrays lie, and what else is read of it, as long as its file has this stamp."""

    stamp: tuple[int, ...]
    arrays: tuple[_StoredArray, ...]
    patch_level0: tuple[float, ...]
    base_mpp: float


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _stored_array(dataset: h5py.Dataset) -> _StoredArray:
    is_plain = dataset.dtype.kind in "iuf"
    offset = dataset.id.get_offset() if is_plain else None
    return _StoredArray(dataset.name[1:], dataset.shape, dataset.dtype, offset, dataset.attrs.get("crc32"))


def _read_array(file: BinaryIO, stored: _StoredArray) -> NDArray[Any]:
    if stored.offset is None:
        with h5py.File(file.name, "r") as bank:
            return bank[stored.name][:]
    array = np.empty(stored.shape, stored.dtype)
    file.seek(stored.offset)
    # It lets go of Python's lock.
    if file.readinto(array.reshape(-1).view(np.uint8)) < array.nbytes:  # type: ignore[attr-defined]
        raise ValueError(f"it ends before its {stored.name} do")
    return array


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
    with _named(path), h5py.File(path, "r") as bank:
        yield bank, dict(json.loads(bank.attrs["settings"]))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever is wrong with a bank is one error, which names it."""
    try:
        yield
    # Anything in a damaged file may be of another kind than was written.
    except (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, MemoryError) as error:
        remedy = "Delete it, and run `extracting` again, or `importing` if its features are of another tool."
        raise SettingsError(path, f"is not a feature bank ({reason_of(error)})", remedy) from error
