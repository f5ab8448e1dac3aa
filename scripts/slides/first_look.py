"""A first look at a slide's file: faults that no reader reports, levels that they do not see; what else a file is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import tifffile

from scripts.slides.dicom_gaps import series_gaps
from scripts.slides.dicom_pixels import dicom_fault
from scripts.slides.tiff_images import images_fault
from scripts.slides.tiff_levels import subifd_levels
from scripts.slides.tiff_pixels import pixel_fault

__all__ = ["CONVERT", "Look", "kind_of", "look_at"]

CONVERT = "vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --Q 85 --bigtiff"
"""The command that makes a pyramid of an image; with a ``Q`` from 90 up OpenSlide shows false colours (pyvips 483)."""

# How files begin that are often taken for slides; a MIRAX slide begins as a JPEG, its thumbnail.
IMAGES = {
    **{b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP"},
    b"\0\0\0\x0cjP": "JPEG 2000",
}
# How TIFFs are compressed that cuCIM or OpenSlide read.
READ = (
    "NONE",
    "LZW",
    "JPEG",
    "ADOBE_DEFLATE",
    "DEFLATE",
    "PACKBITS",
    "ZSTD",
    "APERIO_JP2000_YCBC",
    "APERIO_JP2000_RGB",
)
OTHERS = {b"%PDF": "a PDF", b"PK\3\4": "a ZIP archive", b"\x1f\x8b": "a gzip archive"}


class Look(NamedTuple):
    """What a first look shows.

    Args:
        fault: what is wrong with the pixels though a reader may show them, and what to do; ``None`` for a slide's.
        subifd_levels: levels of a TIFF with SubIFDs, level 0 included, which cuCIM and OpenSlide do not see; or 0.
        doubt: what may be missing of a slide that can be read, and what to do; ``None`` where nothing seems to be.
    """

    fault: tuple[str, str] | None
    subifd_levels: int = 0
    doubt: tuple[str, str] | None = None


def look_at(path: str | Path) -> Look:
    """Look at a TIFF or DICOM slide; of other files, and of those that cannot be opened, readers know what to say.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            fault = pixel_fault(tiff) or images_fault(tiff)
            return Look(fault, 0 if fault else len(subifd_levels(tiff)))
    except (tifffile.TiffFileError, IndexError):
        if (fault := dicom_fault(path)) is not None:
            return Look(fault)
        gaps = series_gaps(path)
        return Look(gaps.fault, doubt=gaps.doubt)


def kind_of(path: str | Path) -> tuple[str, str] | None:
    """What a file is that no reader opens, and how to make a slide of it; ``None`` where that is not known.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    to_slide = f"Convert it ({CONVERT}), and set its `mpp` in the datalist."
    if str(path).lower().endswith(".mrxs"):
        folder = os.path.splitext(path)[0]
        cause = "is the thumbnail of a MIRAX slide, whose data lies in the folder of its name beside it"
        return None if os.path.isdir(folder) else (f"{cause}, which is not there", f"Copy {folder}, too.")
    for start, name in IMAGES.items():
        if head.startswith(start):
            return f"is a {name} image, no slide that can be read in parts", to_slide
    for start, name in OTHERS.items():
        if head.startswith(start):
            return f"is {name}, no slide", "Unpack or export the slide that is in it, or leave it out."
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            name = tifffile.COMPRESSION(page.compression).name
            if page.is_tiled and name in READ:
                return None
            rows = min(page.rowsperstrip, page.imagelength)
            kind = f"compressed as {name}" if page.is_tiled else f"in strips of {rows} rows, not in tiles"
            return f"is a TIFF {kind}, which no reader takes", f"Convert it: {CONVERT}."
    except (tifffile.TiffFileError, IndexError):
        return None
