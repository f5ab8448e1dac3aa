"""The pixels of a mask or a label image as its file stores them, or a refusal where a viewer shows something else."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray

from scripts.bags.mask_values import distinct_values
from scripts.core.errors import SlideError
from scripts.core.interrupts import interrupts_wait

__all__ = ["MaskPixels", "read_file_of_slide", "read_image_of_slide", "read_mask_pixels"]

T = TypeVar("T")

TIFF_SUFFIXES = (".tif", ".tiff")
LOSSY_FORMATS = ("JPEGImageIO", "JPEG2000ImageIO")
# tifffile's names of those that keep every value; others may change some.
LOSSLESS_COMPRESSIONS = (
    *("NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "LZMA", "ZSTD", "PIXTIFF"),
    *("CCITTRLE", "CCITTRLEW", "CCITT_T4", "CCITT_T6"),
)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The proportions of a pyramid's levels differ by the rounding of their sizes, up to one pixel of the level.
ROUNDING_PX = 1.0


class MaskPixels(NamedTuple):
    """A mask's pixels, ``[h, w]`` or ``[h, w, 3 or 4]``, and whether its format changes values to save space."""

    pixels: NDArray[Any]
    is_lossy: bool


def read_image_of_slide(path: str | Path, subject: object, image: str, key: str, remedy: str) -> MaskPixels:
    """Read the mask or the label image of a slide.

    Args:
        path: of the image.
        subject: the slide, to begin an error with.
        image: what the image is called in an error.
        key: of the datalist, which names it.
        remedy: what to do about an image that cannot be read.

    Raises:
        SlideError: if it does not exist, or cannot be read or trusted.
    """
    return read_file_of_slide(path, subject, image, key, remedy, read_mask_pixels)


def read_file_of_slide(
    path: str | Path, subject: object, image: str, key: str, remedy: str, read: Callable[[Path], T]
) -> T:
    """What ``read`` makes of a slide's mask or regions, whatever it raises; see :func:`read_image_of_slide`."""
    if not isinstance(path, str | Path):
        raise SlideError(subject, f"its {image} is no path", f"Give the path of a file, or remove the key `{key}`.")
    if Path(path).is_dir():
        raise SlideError(subject, f"its {image} is a folder", f"Give a file as `{key}`.")
    if not Path(path).is_file():
        raise SlideError(subject, f"its {image} does not exist", f"Correct the key `{key}` in the datalist.")
    try:
        return read(Path(path))
    # Each library raises its own kinds of error for a file that it cannot read; none is lost.
    except Exception as error:
        reason = next(iter(reversed(str(error).strip().splitlines())), type(error).__name__)
        raise SlideError(subject, f"its {image} cannot be read ({reason})", remedy) from error


@interrupts_wait()
def read_mask_pixels(path: Path) -> MaskPixels:
    """Read a mask: of an image with a palette its stored indices, of a pyramid its first page.

    Raises:
        ValueError: if it has several pages or channels, is no image of numbers, or is displayed other than stored.
        RuntimeError: if it cannot be read.
    """
    read = _read_tiff if path.suffix.lower() in TIFF_SUFFIXES else _read_itk
    pixels, is_lossy = read(path)
    pixels = np.squeeze(pixels)
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[-1] in (3, 4)):
        raise ValueError(f"it has the shape {pixels.shape}, and a mask is one 2D image")
    if not np.isfinite(pixels).all():
        raise ValueError("some of its values are no numbers")
    return MaskPixels(pixels, is_lossy)


@cache
def _itk() -> Any:
    """ITK, loaded when it is first used: it takes three seconds, and most runs read no mask.

    It loads its parts one by one, and meanwhile changes the working folder of the whole process, where other threads
    then do not find a slide or a bank by a relative path. Only Windows needs that.
    """
    import itk

    if sys.platform != "win32":
        # Another version of ITK may load in another way.
        with suppress(ImportError):
            from itk.support.base import LibraryLoader

            LibraryLoader.setup, LibraryLoader.cleanup = _extend_path, _restore_path
    return itk


def _extend_path(loader: Any) -> None:
    from itk.support.base import itkConfig

    loader.old_path = sys.path
    sys.path = [itkConfig.swig_lib, itkConfig.swig_py, *sys.path]


def _restore_path(loader: Any) -> None:
    sys.path = loader.old_path


def _read_itk(path: Path) -> MaskPixels:
    itk = _itk()
    image_io = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if image_io is None:
        raise ValueError("it is of no format that can be read")
    image_io.SetFileName(str(path))
    # By default ITK gives the colours of a palette, and calls them values.
    image_io.SetExpandRGBPalette(False)
    image_io.ReadImageInformation()
    channels = image_io.GetNumberOfComponents()
    if channels not in (1, 3, 4):
        raise ValueError(f"it has {channels} channels, and a mask is grey, RGB or RGBA")
    pixels: NDArray[Any] = itk.array_from_image(itk.imread(str(path), imageio=image_io))
    if image_io.GetIsReadAsScalarPlusPalette():
        _check_palette(pixels, _palette(path))
    return MaskPixels(pixels, image_io.GetNameOfClass() in LOSSY_FORMATS)


def _read_tiff(path: Path) -> MaskPixels:
    # Not by ITK, which converts stored values to displayed ones: it inverts boolean masks, whose zeros are white.
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        _check_pages(tiff)
        photometric = getattr(page.photometric, "name", str(page.photometric))
        if photometric == "SEPARATED":
            raise ValueError("its colours are stored as CMYK")
        if photometric not in ("RGB", "YCBCR") and page.samplesperpixel > 1:
            raise ValueError(f"it has {page.samplesperpixel} channels that are not RGB")
        # Only tifffile, which writes arrays as they are, is known to mean 0 by a zero that is displayed white.
        if photometric == "MINISWHITE" and not page.software.startswith("tifffile"):
            raise ValueError("its zeros are shown white, so that it is uncertain whether 0 or white is tissue")
        pixels = page.asarray()
        if photometric == "PALETTE" and page.colormap is not None:
            _check_palette(pixels, page.colormap.T // 256)
        return MaskPixels(pixels, getattr(page.compression, "name", "") not in LOSSLESS_COMPRESSIONS)


def _check_pages(tiff: tifffile.TiffFile) -> None:
    """Refuse several images: other pages must be levels of a pyramid, smaller and of the same proportion."""
    first = tiff.pages.first
    width, height = first.imagewidth, first.imagelength
    images = tiff.series[0].size // max(1, first.size)
    for page in (*tiff.pages[1:], *(first.pages or ())):
        # tifffile stores the size of pages that differ only in their data once, in their key frame.
        keyframe = page.keyframe
        scale = keyframe.imagewidth / width
        if scale >= 1 or abs(keyframe.imagelength - height * scale) > ROUNDING_PX + height / width:
            images = max(images, len(tiff.pages) + len(first.pages or ()))
    if images > 1:
        raise ValueError(f"it has {images} pages that are no levels of a pyramid, and a mask is one 2D image")


def _palette(path: Path) -> NDArray[np.uint8]:
    """RGB ``[n, 3]`` of the palette of a PNG or BMP, which ITK's Python wrappers do not expose."""
    data = path.read_bytes()
    if data.startswith(PNG_SIGNATURE):
        start = len(PNG_SIGNATURE)
        while start + 8 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, start)
            if kind == b"PLTE":
                return np.frombuffer(data, np.uint8, length, start + 8).reshape(-1, 3)
            start += 12 + length
    if data.startswith(b"BM"):
        (pixels_at,), (header,) = struct.unpack_from("<I", data, 10), struct.unpack_from("<I", data, 14)
        count = (pixels_at - 14 - header) // 4
        return np.frombuffer(data, np.uint8, 4 * count, 14 + header).reshape(-1, 4)[:, 2::-1]
    raise ValueError("its palette cannot be found")


def _check_palette(pixels: NDArray[Any], palette: NDArray[Any]) -> None:
    """Refuse indices that may not be the values: programs that save space number colours in any order.

    In the file of a tool that means the indices, greys increase with them; of colours only index 0 may be black.
    """
    indices = distinct_values(pixels)
    if len(indices) == 1:
        return  # a slide without annotations
    if indices[-1] >= len(palette):
        raise ValueError("it has values for which its palette has no colour")
    colours = palette[indices].astype(np.int64)
    greys = colours[:, 0]
    if len(np.unique(colours, axis=0)) < len(colours):
        return  # two values look the same, so the colours cannot be meant
    if (colours == greys[:, None]).all():
        is_certain = np.array_equal(greys, indices * max(1, greys[-1] // max(1, indices[-1])))
    else:
        black = indices[~colours.any(axis=1)]
        is_certain = not len(black) or black[0] == 0
    if not is_certain:
        shown = ", ".join(f"{i} as {tuple(c)}" for i, c in zip(indices[:3].tolist(), colours[:3].tolist(), strict=True))
        raise ValueError(f"its palette shows the stored values in other colours ({shown}), so that either may be meant")
