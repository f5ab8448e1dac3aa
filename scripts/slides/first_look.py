"""What is known of a slide's file before a reader shows it: faults that readers do not report, and what else it is."""

from __future__ import annotations

import os
from pathlib import Path

import tifffile

from scripts.slides.backends import subifd_levels
from scripts.slides.dicom_faults import dicom_fault, series_gaps
from scripts.slides.opened import CONVERT, Opened
from scripts.slides.resolution import tiff_pixel_sizes
from scripts.slides.tiff_faults import tiff_fault

__all__ = ["kind_of", "look_at"]

# How files begin that are often taken for slides; a MIRAX slide begins as a JPEG, its thumbnail.
IMAGES = {
    **{b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP"},
    b"\0\0\0\x0cjP": "JPEG 2000",
}
OTHERS = {b"%PDF": "a PDF", b"PK\3\4": "a ZIP archive", b"\x1f\x8b": "a gzip archive"}
# How TIFFs are compressed that cuCIM or OpenSlide read.
READ = {"NONE", "LZW", "JPEG", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "ZSTD"}
READ |= {"APERIO_JP2000_YCBC", "APERIO_JP2000_RGB"}


def look_at(path: str | Path) -> Opened:
    """What a TIFF or DICOM slide says of itself before a reader opens it; nothing of other files.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            first = tiff.pages.first
            if (fault := tiff_fault(tiff)) is not None:
                return Opened(fault)
            size_px = (first.imagewidth, first.imagelength)
            return Opened(None, None, len(subifd_levels(tiff)), size_px, tiff_pixel_sizes(first))
    except (tifffile.TiffFileError, IndexError):
        fault = dicom_fault(path)
        return Opened(fault) if fault is not None else Opened(*series_gaps(path))


def kind_of(path: str | Path) -> tuple[str, str] | None:
    """What a file is that no reader opens, and how to make a slide of it; ``None`` where that is not known.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    if str(path).lower().endswith(".mrxs"):
        folder = os.path.splitext(path)[0]
        cause = "is the thumbnail of a MIRAX slide, whose data lies in the folder of its name beside it"
        return None if os.path.isdir(folder) else (f"{cause}, which is not there", f"Copy {folder}, too.")
    for start, name in IMAGES.items():
        if head.startswith(start):
            remedy = f"Convert it ({CONVERT}), and set its `mpp` in the datalist."
            return f"is a {name} image, no slide that can be read in parts", remedy
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
