"""Pyramids whose levels are SubIFDs of the first page, as in OME-TIFF: cuCIM and OpenSlide see level 0 alone."""

from __future__ import annotations

import numpy as np
import tifffile
from numpy.typing import NDArray

from scripts.core.magnification import MPP_RTOL, squeezed_levels
from scripts.slides.tiff_tiles import TiffTiles

__all__ = ["TiffLevels", "subifd_levels"]

WHITE = 255


def subifd_levels(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The first page of a TIFF and the levels in its SubIFDs, finest first; none if it has no such levels.

    Images of another proportion are photographs of the label or of the glass, and no levels.
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


class TiffLevels:
    """A slide whose levels are SubIFDs, read with tifffile.

    Tiles are decoded by the codecs that tifffile takes, after :class:`TiffTiles` has checked them. Those that a scanner
    has left out are an error, as in the other readers.
    """

    def __init__(self, path: str) -> None:
        self._tiff = tifffile.TiffFile(path)
        try:
            self._pages = subifd_levels(self._tiff)
            if not self._pages:
                raise ValueError("it has no levels in SubIFDs")
            self.level_sizes = [(page.imagewidth, page.imagelength) for page in self._pages]
            self._tiles = TiffTiles(path, self.level_sizes, any_predictor=True)
        except BaseException:
            self._tiff.close()
            raise

    def read(self, left: int, top: int, level: int, out: NDArray[np.uint8]) -> None:
        height, width = out.shape[:2]
        self._tiles.check(left, top, width, height, level)
        page = self._pages[level]
        for y in range(top // page.tilelength, -(-(top + height) // page.tilelength)):
            for x in range(left // page.tilewidth, -(-(left + width) // page.tilewidth)):
                tile = self._decode(page, y * -(-page.imagewidth // page.tilewidth) + x)
                tile_left, tile_top = x * page.tilewidth - left, y * page.tilelength - top
                x0, y0 = max(tile_left, 0), max(tile_top, 0)
                part = tile[y0 - tile_top : height - tile_top, x0 - tile_left : width - tile_left]
                out[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part

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
