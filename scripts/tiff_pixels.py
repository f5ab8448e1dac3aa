"""What the pixels of a TIFF are: what a reader makes of those that are no RGB looks like tissue, and is not."""

from __future__ import annotations

from pathlib import Path

import tifffile

__all__ = ["pixel_fault"]

RGB = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
# A slide has tens of pages at most. Readers go through all of a file that claims more, for minutes.
MOST_PAGES = 1000


def pixel_fault(path: str | Path) -> tuple[str, str] | None:
    """What is wrong with a TIFF's pages or with what its pixels are, and what to do; ``None`` for a slide's.

    Nothing is said of other formats, and of a file that cannot be opened: readers know what to say of these.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            kind, channels, bits = page.photometric, page.samplesperpixel, page.bitspersample
            number = page.sampleformat
            try:
                tiff.pages[MOST_PAGES]
            except IndexError:
                pass
            else:
                return f"is a TIFF of more than {MOST_PAGES} pages", "Is it a slide? Leave it out."
    except (tifffile.TiffFileError, IndexError):
        return None
    if kind in RGB and channels in (3, 4) and bits == 8 and number == tifffile.SAMPLEFORMAT.UINT:
        return None
    of_channels = "1 channel" if channels == 1 else f"{channels} channels"
    name = getattr(kind, "name", kind)
    of_numbers = "" if number == tifffile.SAMPLEFORMAT.UINT else f", {getattr(number, 'name', number)}"
    cause = f"is no RGB image of 8 bits: {of_channels} of {bits} bits, {name}{of_numbers}"
    return cause, "Convert it to RGB of 8 bits, or leave the slide out."
