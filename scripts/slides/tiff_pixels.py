"""What the pixels of a TIFF are: what readers make of those that are no RGB, or not as they say, looks like tissue."""

from __future__ import annotations

import tifffile

from scripts.slides.codestreams import AS_RGB, AS_YCBCR, jpeg_colours

__all__ = ["pixel_fault"]

RGB = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
# A slide has tens of pages at most. Readers go through all of a file that claims more, for minutes.
MOST_PAGES = 1000
# Of a tile, where its markers end.
HEAD_BYTES = 1 << 16


def pixel_fault(tiff: tifffile.TiffFile) -> tuple[str, str] | None:
    """What is wrong with a TIFF's pages or with what its pixels are, and what to do; ``None`` for a slide's.

    Raises:
        tifffile.TiffFileError: if it cannot be read, or an ``IndexError`` if it has no page.
    """
    page = tiff.pages.first
    kind, channels, bits = page.photometric, page.samplesperpixel, page.bitspersample
    number = page.sampleformat
    try:
        tiff.pages[MOST_PAGES]
    except IndexError:
        pass
    else:
        return f"is a TIFF of more than {MOST_PAGES} pages", "Is it a slide? Leave it out."
    if kind in RGB and channels in (3, 4) and bits == 8 and number == tifffile.SAMPLEFORMAT.UINT:
        return _false_colours(page)
    of_channels = "1 channel" if channels == 1 else f"{channels} channels"
    name = getattr(kind, "name", kind)
    of_numbers = "" if number == tifffile.SAMPLEFORMAT.UINT else f", {getattr(number, 'name', number)}"
    cause = f"is no RGB image of 8 bits: {of_channels} of {bits} bits, {name}{of_numbers}"
    return cause, "Convert it to RGB of 8 bits, or leave the slide out."


def _false_colours(page: tifffile.TiffPage) -> tuple[str, str] | None:
    """Where the tag that readers believe says otherwise than the JPEG data does, by its first tile."""
    if page.compression != tifffile.COMPRESSION.JPEG or not page.is_tiled or not page.dataoffsets:
        return None
    file = page.parent.filehandle
    file.seek(page.dataoffsets[0])
    stored = jpeg_colours(file.read(min(page.databytecounts[0], HEAD_BYTES))) or jpeg_colours(page.jpegtables or b"")
    if stored in (None, AS_RGB if page.photometric == tifffile.PHOTOMETRIC.RGB else AS_YCBCR):
        return None
    name = tifffile.PHOTOMETRIC(page.photometric).name
    cause = f"says that its pixels are {name}, and stores them {stored}: its colours would be false"
    return cause, "Convert the slide again from the scanner's file, or leave it out."
