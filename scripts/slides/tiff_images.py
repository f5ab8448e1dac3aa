"""TIFFs of several images, such as OME-TIFF: readers show the first, be it a photograph or one plane of a stack."""

from __future__ import annotations

import os

import tifffile

__all__ = ["images_fault"]

# Of OpenSlide's formats the one that takes the first image for the slide; the others know where the slide is.
GENERIC = "generic-tiff"
REDUCED = 1  # a bit of NewSubfileType: a page that is a level of another


def images_fault(tiff: tifffile.TiffFile) -> tuple[str, str] | None:
    """What is wrong with the first image of a tiled TIFF, and what to do; ``None`` if it is the slide, and one plane.

    Raises:
        IndexError: if the file has no page.
    """
    first = tiff.pages.first
    if not first.is_tiled:
        return None
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    images = [page for page in pages[1:] if not page.subfiletype & REDUCED]
    area = first.imagewidth * first.imagelength
    largest = max(images, key=lambda page: page.imagewidth * page.imagelength, default=first)
    alike = [page for page in images if page.shape == first.shape]
    is_small = largest.imagewidth * largest.imagelength > area
    if not (is_small or alike) or not _is_generic(tiff.filehandle.path):
        return None
    if is_small:
        cause = (
            f"begins with an image of {_size(first)} px, which readers take for the slide; "
            f"image {largest.index + 1} of the file has {_size(largest)} px"
        )
        return cause, "Write the slide as the first image of the file, or as a file of its own."
    cause = (
        f"has {len(alike) + 1} images of {_size(first)} px, planes of a stack or points in time, "
        "of which readers show the first alone"
    )
    return cause, "Write the plane that is in focus as a file of its own, or leave the slide out."


def _size(page: tifffile.TiffPage) -> str:
    return f"{page.imagewidth} x {page.imagelength}"


def _is_generic(path: str | os.PathLike[str]) -> bool:
    import openslide  # of most files it is not asked

    return openslide.OpenSlide.detect_format(path) in (GENERIC, None)
