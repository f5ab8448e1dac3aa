"""cuCIM, OpenSlide and tifffile: opening a slide, reading pixels of a level. Only the reader's process loads them."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray

from scripts.core.magnification import MPP_RTOL, mean_downsamples, squeezed_levels
from scripts.slides.tiff_tiles import TiffTiles, check_complete, tiles_under

__all__ = ["BACKENDS", "Backend", "load_library", "openslide_properties", "subifd_levels"]

WHITE = 255
# OpenSlide's formats that are plain TIFFs.
TIFF_VENDORS = ("aperio", "generic-tiff")


class Backend(Protocol):
    """An open slide; ``level_sizes`` are the (width, height) in pixels of its levels, finest first."""

    level_sizes: list[tuple[int, int]]

    def read(self, left: int, top: int, level: int, out: NDArray[np.uint8]) -> None:
        """Read a region within the border into ``out``, RGB ``[height, width, 3]``; all is in pixels of the level.

        Raises:
            Exception: of the library, if it cannot be read; ``ValueError`` if it cannot be trusted.
        """

    def close(self) -> None:
        """Close the file."""


class CuCIM:
    """A slide opened with cuCIM, which shows something else in place of damaged tiles: each is checked before."""

    def __init__(self, path: str) -> None:
        from cucim import CuImage  # type: ignore[attr-defined]

        self._image = CuImage(path)
        self.level_sizes = [(int(width), int(height)) for width, height in self._image.resolutions["level_dimensions"]]
        self._tiles = TiffTiles(path, self.level_sizes)
        self._downsamples = mean_downsamples(self.level_sizes)

    def read(self, left: int, top: int, level: int, out: NDArray[np.uint8]) -> None:
        height, width = out.shape[:2]
        self._tiles.check(left, top, width, height, level)
        # cuCIM divides positions by the downsample, and truncates.
        x, y = (math.ceil(round(v * self._downsamples[level], 3)) for v in (left, top))
        out[:] = self._image.read_region(location=(x, y), size=(width, height), level=level)

    def close(self) -> None:
        self._tiles.close()
        self._image.close()


class OpenSlide:
    """A slide opened with OpenSlide."""

    def __init__(self, path: str) -> None:
        import openslide

        self._slide = openslide.OpenSlide(path)
        self.level_sizes = list(self._slide.level_dimensions)
        if self._slide.properties["openslide.vendor"] in TIFF_VENDORS:
            check_complete(path, self.level_sizes)
        self._downsamples = mean_downsamples(self.level_sizes)

    def read(self, left: int, top: int, level: int, out: NDArray[np.uint8]) -> None:
        height, width = out.shape[:2]
        # OpenSlide interpolates where a level does not divide level 0: the nearest position keeps that within
        # 1 / (2 * downsample) of a pixel.
        x, y = (round(round(v * self._downsamples[level], 3)) for v in (left, top))
        pixels = np.asarray(self._slide.read_region((x, y), level, (width, height)))
        out[:] = pixels[..., :3]
        # Where a scanner has seen nothing OpenSlide is transparent, and black underneath.
        out[pixels[..., 3] == 0] = WHITE

    def close(self) -> None:
        self._slide.close()


class SubIFDs:
    """A pyramid whose levels are SubIFDs of the first page, as in OME-TIFF: cuCIM and OpenSlide see only level 0.

    Read with tifffile, once :class:`TiffTiles` has checked a tile. Tiles that a scanner has left out are an error.
    """

    def __init__(self, path: str) -> None:
        self._tiff = tifffile.TiffFile(path)
        self._pages = subifd_levels(self._tiff)
        self.level_sizes = [(page.imagewidth, page.imagelength) for page in self._pages]
        self._tiles = TiffTiles(path, self.level_sizes, any_predictor=True)

    def read(self, left: int, top: int, level: int, out: NDArray[np.uint8]) -> None:
        height, width = out.shape[:2]
        self._tiles.check(left, top, width, height, level)
        page = self._pages[level]
        for index, tile_left, tile_top in tiles_under(page, left, top, width, height):
            x0, y0 = max(tile_left, left), max(tile_top, top)
            tile = self._decode(page, index)[y0 - tile_top :, x0 - tile_left :]
            part = out[y0 - top :, x0 - left :][: tile.shape[0], : tile.shape[1]]
            part[:] = tile[: part.shape[0], : part.shape[1]]

    def close(self) -> None:
        self._tiles.close()
        self._tiff.close()

    def _decode(self, page: tifffile.TiffPage, index: int) -> NDArray[np.uint8]:
        file = self._tiff.filehandle
        file.seek(page.dataoffsets[index])
        data = file.read(page.databytecounts[index])
        tile = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader, _fullsize=True)[0]
        if tile is None or tile.shape != (1, page.tilelength, page.tilewidth, 3):
            raise ValueError(f"a tile is decoded to {None if tile is None else list(tile.shape)}")
        return tile[0]


BACKENDS: dict[str, Callable[[str], Backend]] = {"cucim": CuCIM, "openslide": OpenSlide, "tifffile": SubIFDs}


def subifd_levels(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The first page of a TIFF and the levels in its SubIFDs, finest first; none if it has no such levels.

    SubIFDs of another proportion are photographs of the label or of the glass.
    """
    first = tiff.pages.first
    alike = [
        page
        for page in first.pages or ()
        if isinstance(page, tifffile.TiffPage)
        and page.is_tiled
        and page.samplesperpixel == first.samplesperpixel
        and not squeezed_levels([(each.imagewidth, each.imagelength) for each in (first, page)], MPP_RTOL)
    ]
    levels = sorted(alike, key=lambda page: page.imagewidth, reverse=True)
    return [first, *levels] if levels and first.is_tiled else []


def load_library(name: str) -> None:
    """Import a library by its name.

    Raises:
        Exception: whatever the library raises while it is imported.
    """
    # cuCIM imports CuPy where it is installed, which takes time and memory, and decodes slides without it.
    sys.modules.setdefault("cupy", None)  # type: ignore[arg-type]
    library = importlib.import_module(name)
    if name == "cucim":
        # It loads its plugins with the first file that it is asked for, even if there is no such file.
        # Which error it raises for that depends on its version, and says nothing of a slide: raised here, it would
        # keep cuCIM from all slides. A plugin that does not load fails again with the slide that is opened next.
        with contextlib.suppress(Exception):
            library.CuImage("")


def openslide_properties(path: str | Path) -> dict[str, str]:
    """What a file says of itself, by OpenSlide; nothing of a format that OpenSlide does not know."""
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            return dict(slide.properties)
    except openslide.OpenSlideError:
        return {}  # it may still be a TIFF that cuCIM or tifffile knows
