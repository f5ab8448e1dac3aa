"""TIFFs that readers show and should not: no RGB, false colours, or a first image that is not the slide."""

from __future__ import annotations

import tifffile

from scripts.slides.codestreams import AS_RGB, AS_YCBCR, jpeg_colours

__all__ = ["tiff_fault"]

RGB = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
# A slide has tens of pages. Readers go through all pages of a file that claims more, for minutes.
MOST_PAGES = 1000
# The markers of a tile end within so many bytes.
HEAD_BYTES = 1 << 16
# OpenSlide's format in which the first image is the slide; in others OpenSlide knows where the slide is.
GENERIC = "generic-tiff"
REDUCED = 1  # a bit of NewSubfileType: a page that is a level of another


def tiff_fault(tiff: tifffile.TiffFile) -> tuple[str, str] | None:
    """Why a TIFF must not be shown as a slide, and what to do; ``None`` for a slide.

    Raises:
        tifffile.TiffFileError: if it cannot be read, or an ``IndexError`` if it has no page.
    """
    try:
        tiff.pages[MOST_PAGES]
    except IndexError:
        return _not_rgb(tiff.pages.first) or _false_colours(tiff.pages.first) or _other_images(tiff)
    return f"is a TIFF of more than {MOST_PAGES} pages", "Is it a slide? Leave it out."


def _not_rgb(page: tifffile.TiffPage) -> tuple[str, str] | None:
    """Readers show grey, palettes and CMYK as RGB."""
    kind, channels, bits, numbers = page.photometric, page.samplesperpixel, page.bitspersample, page.sampleformat
    is_uint = numbers == tifffile.SAMPLEFORMAT.UINT
    if kind in RGB and channels in (3, 4) and bits == 8 and is_uint:
        return None
    cause = f"is no RGB image of 8 bits: {channels} channel{'s' * (channels != 1)} of {bits} bits, "
    cause += getattr(kind, "name", str(kind)) + ("" if is_uint else f", {getattr(numbers, 'name', numbers)}")
    return cause, "Convert it to RGB of 8 bits, or leave the slide out."


def _false_colours(page: tifffile.TiffPage) -> tuple[str, str] | None:
    """Readers believe the tag, where the JPEG data of the first tile says otherwise."""
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


def _other_images(tiff: tifffile.TiffFile) -> tuple[str, str] | None:
    """Readers take the first image of a tiled TIFF for the slide: a photograph, or one plane of a stack."""
    first = tiff.pages.first
    if not first.is_tiled:
        return None
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    images = [page for page in pages[1:] if not page.subfiletype & REDUCED]
    largest = max([first, *images], key=lambda page: page.imagewidth * page.imagelength)
    alike = sum(page.shape == first.shape for page in images)
    if (largest is first and not alike) or not _is_generic(tiff):
        return None
    size = f"{first.imagewidth} x {first.imagelength} px"
    if largest is not first:
        cause = f"begins with an image of {size}, which readers take for the slide; image {largest.index + 1} of the "
        cause += f"file has {largest.imagewidth} x {largest.imagelength} px"
        return cause, "Write the slide as the first image of the file, or as a file of its own."
    cause = (
        f"has {alike + 1} images of {size}, planes of a stack or points in time, of which readers show only the first"
    )
    return cause, "Write the plane that is in focus as a file of its own, or leave the slide out."


def _is_generic(tiff: tifffile.TiffFile) -> bool:
    import openslide  # rarely needed

    return openslide.OpenSlide.detect_format(tiff.filehandle.path) in (GENERIC, None)
