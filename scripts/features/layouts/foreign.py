"""What the features of a slide are, whichever tool stored them, and reading files that somebody else wrote."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from scripts.core.errors import SettingsError, SlideError, reason_of
from scripts.core.files import refuse_special
from scripts.datalists.keys import composed

__all__ = [
    "EXTRACT_AGAIN",
    "UNREADABLE",
    "ForeignFile",
    "Layout",
    "Stated",
    "by_slide",
    "checked_positions",
    "file_of",
    "files_of",
    "h5_array",
    "h5_features",
    "h5_positions",
    "load_tensor",
    "number_of",
    "reading_h5",
    "text_of",
    "whole_of",
]

PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EXTRACT_AGAIN = "Copy it again, or extract the features of this slide again."
MOST_PIXELS = 2**31
LEAVE_OUT = "Extract the features of this slide again, or leave it out."
# What a damaged file makes h5py, numpy and torch raise: anything in it may be of another kind than was written.
UNREADABLE = (
    *(OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, MemoryError, EOFError),
    BadZipFile,
)


@dataclass(frozen=True)
class Stated:
    """What the files of a tool say of its patches; what they do not say is ``None``.

    Args:
        encoder: the name of what made the features.
        weights_sha256: SHA-256 of its weights.
        patch_size: side of a patch in pixels, as the encoder's patches were cut.
        magnification: which the user of the tool asked for; nominal, as the tool understands it.
        patch_um: side of a patch in micrometres.
        patch_level0: side of a patch in level-0 pixels.
        mpp: micrometres per pixel of level 0, not rounded.
        level0_magnification: of level 0, rounded, as ``40``.
        size_level0: (width, height) of level 0.
        slide: the name of the slide.
        is_apart: whether it says that no two patches overlap.
        is_rounded: whether it says that positions were rounded to whole pixels.
    """

    encoder: str | None = None
    weights_sha256: str | None = None
    patch_size: int | None = None
    magnification: float | None = None
    patch_um: float | None = None
    patch_level0: float | None = None
    mpp: float | None = None
    level0_magnification: float | None = None
    size_level0: tuple[int, int] | None = None
    slide: str | None = None
    is_apart: bool = False
    is_rounded: bool = False


@dataclass(frozen=True)
class ForeignFile:
    """The features of one slide at one magnification.

    Args:
        path: the file with the features.
        positions: ``[n, 2]`` float64, (x, y) of each patch.
        num_features: F.
        dtype: of the features in the file.
        read_features: reads the features, ``[n, F]``.
        stated: what the files say of the patches.
        is_um: whether positions are in micrometres, else in level-0 pixels.
        is_centre: whether they are those of the patches' centres, else of their top left corners.
    """

    path: Path
    positions: NDArray[np.float64]
    num_features: int
    dtype: np.dtype[Any]
    read_features: Callable[[], NDArray[Any]]
    stated: Stated
    is_um: bool = False
    is_centre: bool = False


@dataclass(frozen=True)
class Layout:
    """How one tool stores features.

    Args:
        tool: its name.
        expects: what a folder of it contains, in words.
        find: the file of each slide in a folder, by the slide's name; nothing in a folder that is not of this tool.
        read: reads the file of a slide; also gets the folder that the user names for the positions, or ``None``.
    """

    tool: str
    expects: str
    find: Callable[[Path], dict[str, Path]]
    read: Callable[[Path, Path | None], ForeignFile]


def files_of(folder: Path, suffix: str, is_deep: bool = False) -> list[Path]:
    """The files of a folder, or also of those in it, that end in a suffix, in whatever case; sorted, none hidden."""
    paths = folder.rglob("*") if is_deep else folder.glob("*")
    # macOS leaves files like ._a.h5 beside a.h5 on other file systems.
    return sorted(path for path in paths if path.suffix.lower() == suffix and not path.name.startswith("."))


def by_slide(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by the names of their slides, in which each accent is one character with its letter.

    Raises:
        SettingsError: if two have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if (other := found.setdefault(composed(path.stem), path)) != path:
            cause = f"{other} and {path} are of slides of the same name"
            raise SettingsError("features", cause, "Give the folder of one of them, or rename one.")
    return found


def file_of(folder: Path, slide: str, suffix: str) -> Path | None:
    """The file of a slide in a folder, as :func:`by_slide` would find it; ``None`` if there is none."""
    path = folder / f"{slide}{suffix}"
    if os.path.isfile(path):  # unlike the method of a path, of any length
        return path
    return next((path for path in files_of(folder, suffix) if composed(path.stem) == composed(slide)), None)


@contextlib.contextmanager
def reading_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file.

    Raises:
        SlideError: if there is none, it is damaged, or what is read from it meanwhile is not there.
    """
    with _one_line(path), h5py.File(path, "r") as file:
        yield file


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        refuse_special(path)
        yield
    except SettingsError as error:
        raise SlideError(error.subject, error.cause, error.remedy) from error
    except UNREADABLE as error:
        raise SlideError(path, f"cannot be read ({reason_of(error)})", EXTRACT_AGAIN) from error


def h5_array(file: h5py.File, name: str) -> h5py.Dataset:
    """An array of an HDF5 file, all of which is in this file: what another one contains may change unseen.

    Raises:
        SlideError: if it is none.
    """
    is_elsewhere = isinstance(file.get(name, getlink=True), h5py.ExternalLink)
    array = None if is_elsewhere else file[name]
    if array is not None and not isinstance(array, h5py.Dataset):
        raise SlideError(file.filename, f"its `{name}` is a group, not an array", EXTRACT_AGAIN)
    if array is None or array.external or array.is_virtual:
        raise SlideError(file.filename, f"its `{name}` is stored in another file", "Copy the array into this file.")
    return array


def h5_positions(dataset: h5py.Dataset, num_patches: int) -> NDArray[np.float64]:
    """The positions of a file, ``[n, 2]``.

    Raises:
        SlideError: if they are of another shape, or not as many as the features.
    """
    return checked_positions(Path(dataset.file.filename), dataset[()], num_patches)


def checked_positions(path: Path, positions: Any, num_patches: int) -> NDArray[np.float64]:
    """Positions as float64 ``[n, 2]``; raises as :func:`h5_positions`."""
    array = np.asarray(positions)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise SlideError(path, f"its positions are {array.dtype} {list(array.shape)}, not [n, 2]", EXTRACT_AGAIN)
    if len(array) != num_patches:
        raise SlideError(path, f"has features of {num_patches} patches and positions of {len(array)}", EXTRACT_AGAIN)
    if array.dtype == np.float16:
        cause = "its positions are float16, which rounds whole pixels above 2048"
        raise SlideError(path, cause, "Store them as integers or float32.")
    return array.astype(np.float64)


def h5_features(path: Path, name: str, dataset: h5py.Dataset) -> dict[str, Any]:
    """The arguments of :class:`ForeignFile` that say what the features of an HDF5 file are.

    Raises:
        SlideError: if they are not ``[n, F]`` numbers, there are none, or the file is cut off.
    """
    shape, dtype = dataset.shape, dataset.dtype
    num_features = _checked_shape(path, shape, str(dtype), dtype.kind == "f")
    # A damaged file may claim terabytes.
    if dataset.compression is None and dataset.nbytes > os.path.getsize(path):
        raise SlideError(path, "claims to contain more features than it does", EXTRACT_AGAIN)

    def read_features() -> NDArray[Any]:
        with reading_h5(path) as file:
            features: NDArray[Any] = file[name][()]
            return features

    return {"num_features": num_features, "dtype": dtype, "read_features": read_features}


def load_tensor(path: Path) -> tuple[int, dict[str, Any]]:
    """The features of a ``.pt`` file, which is not read into memory before they are needed.

    No code in the file is run: whatever is not a plain tensor is refused.

    Returns:
        the number of patches, and the arguments of :class:`ForeignFile` that say what the features are.

    Raises:
        SlideError: if it is no such file, or not ``[n, F]`` numbers.
    """

    def load_it() -> torch.Tensor:
        with _one_line(path):
            try:
                try:
                    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                except RuntimeError:  # PyTorch's format of before version 1.6 cannot be mapped into memory
                    loaded = torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, MemoryError):  # no fault of the file's content
                raise
            except Exception as error:  # Of bytes that are no pickle, unpickling may raise anything.
                raise ValueError("no file of one plain tensor") from error
        if not isinstance(loaded, torch.Tensor):
            raise SlideError(path, f"contains a {type(loaded).__name__}, not a tensor", EXTRACT_AGAIN)
        if loaded.is_meta or loaded.layout != torch.strided or loaded.dtype not in PLAIN:
            cause = f"contains a tensor of {loaded.dtype}, {loaded.layout}, on {loaded.device}, not plain numbers"
            raise SlideError(path, cause, EXTRACT_AGAIN)
        loaded = loaded.detach().resolve_neg()  # a view whose sign is a flag has no numpy array
        return loaded.float() if loaded.dtype == torch.bfloat16 else loaded

    features = load_it()
    kind = str(features.dtype).removeprefix("torch.")
    num_features = _checked_shape(path, tuple(features.shape), kind, features.is_floating_point())
    arguments = {"num_features": num_features, "dtype": np.dtype(kind), "read_features": lambda: load_it().numpy()}
    return len(features), arguments


def number_of(path: Path, attributes: Mapping[str, Any], name: str, may_be_pair: bool = False) -> float | None:
    """A number of a file's attributes, or the first of a pair; ``None`` if there is none, or it says so.

    Raises:
        SlideError: if it is something else than a finite number above 0.
    """
    if (value := _said(attributes, name)) is None:
        return None
    try:
        numbers = np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if not 1 <= len(numbers) <= (2 if may_be_pair else 1) or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise _unusable(path, name, value, "a number above 0")
    return float(numbers[0])


def whole_of(path: Path, attributes: Mapping[str, Any], name: str) -> int | None:
    """A number of pixels of a file's attributes; as :func:`number_of`, and it has to be a whole one."""
    number = number_of(path, attributes, name)
    if number is not None and not (number.is_integer() and number < MOST_PIXELS):
        raise _unusable(path, name, number, "a whole number of pixels")
    return None if number is None else int(number)


def text_of(path: Path, attributes: Mapping[str, Any], name: str) -> str | None:
    """A text of a file's attributes; ``None`` if there is none, or it says so.

    Raises:
        SlideError: if it is no text.
    """
    value = _said(attributes, name)
    if value is not None and not isinstance(value, str):
        raise _unusable(path, name, value, "a text")
    return value


def _said(attributes: Mapping[str, Any], name: str) -> Any:
    value = attributes.get(name)
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    if not isinstance(value, str):
        return None if isinstance(value, h5py.Empty) else value
    return None if value.strip() in ("", "None") else value.strip()


def _unusable(path: Path, name: str, value: Any, wanted: str) -> SlideError:
    shown = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return SlideError(path, f"its `{name}` is {str(shown)[:50]!r}, not {wanted}", LEAVE_OUT)


def _checked_shape(path: Path, shape: tuple[int, ...], dtype: str, is_float: bool) -> int:
    if len(shape) > 0 and shape[0] == 0:
        raise SlideError(path, "has no patches", LEAVE_OUT)
    if len(shape) != 2 or not shape[1] or not is_float:
        raise SlideError(path, f"its features are {dtype} {list(shape)}, not [n, F] floats", EXTRACT_AGAIN)
    return int(shape[1])
