"""The answer to the one question that opens a slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scripts.slides.resolution import PixelSize

__all__ = ["CONVERT", "Opened"]

CONVERT = "vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg --Q 85 --bigtiff"
"""The command that makes a pyramid of an image; with a ``Q`` from 90 up OpenSlide shows false colours (pyvips 483)."""


class Opened(NamedTuple):
    """All that is known of a slide once its file was opened. Texts in pairs are a cause and what to do.

    Args:
        fault: why it must not be shown as a slide, though a reader may show it.
        doubt: what may be missing of a slide that can be read.
        subifd_levels: levels of a TIFF with SubIFDs, level 0 included, which cuCIM and OpenSlide do not see; or 0.
        tiff_size_px: (width, height) of a TIFF's first image.
        tiff_pixel_sizes: what a TIFF says of that image's pixels.
        refusal: why no reader opens it.
        backend: the reader that opens it.
        passed: why those before it do not, each reason after its name.
        level_sizes: (width, height) of its levels in pixels, finest first.
        properties: by OpenSlide; none of a format that OpenSlide does not know.
    """

    fault: tuple[str, str] | None = None
    doubt: tuple[str, str] | None = None
    subifd_levels: int = 0
    tiff_size_px: tuple[int, int] = (0, 0)
    tiff_pixel_sizes: Sequence[PixelSize] = ()
    refusal: tuple[str, str] | None = None
    backend: str = ""
    passed: Sequence[str] = ()
    level_sizes: Sequence[tuple[int, int]] = ()
    properties: Mapping[str, str] = {}
