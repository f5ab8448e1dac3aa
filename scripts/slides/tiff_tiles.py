"""The tiles of a TIFF slide: whether they are all there, and whether they can be decoded without a doubt.

cuCIM fills a tile that it cannot decode with the one that it decoded before, and says nothing. So what it reads is
decoded here first, as coarsely as the codec can: it goes through all of the compressed data and makes few pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from scripts.core.errors import reason_of

__all__ = ["TiffTiles", "check_complete", "tiles_under"]

JPEG = tifffile.COMPRESSION.JPEG
JPEG_BEGINS, JPEG_ENDS = b"\xff\xd8", b"\xff\xd9"
# Segments between them: tables of quantisation and of Huffman codes, restarts, application data, comments.
JPEG_TABLES = {bytes((0xFF, kind)) for kind in (0xDB, 0xC4, 0xDD, *range(0xE0, 0xF0), 0xFE)}
RGB, YCBCR = tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR

Sizes = Sequence[tuple[int, int]]


def check_complete(path: str | Path, level_sizes: Sizes) -> None:
    """Check that all tiles of a TIFF's levels, given by their (width, height) in pixels, are in the file.

    Raises:
        ValueError: if the file ends before them, lists more or fewer, stores them turned, or has not these levels.
    """
    with tifffile.TiffFile(path) as tiff:
        for page in _pages(tiff, level_sizes):
            _places(page, os.path.getsize(path))


class TiffTiles:
    """The tiles of the levels of a pyramid.

    Args:
        path: the slide's file.
        level_sizes: (width, height) in pixels of the levels whose tiles are wanted.
        any_predictor: whether the reader knows predictors, which cuCIM ignores.

    Raises:
        ValueError: as :func:`check_complete`, or if a tile is not stored, or pixels are stored in a way in which the
            readers differ.
    """

    def __init__(self, path: str | Path, level_sizes: Sizes, any_predictor: bool = False) -> None:
        with tifffile.TiffFile(path) as tiff:
            pages, size = _pages(tiff, level_sizes), os.path.getsize(path)
            self._levels = [_level(page, size, any_predictor) for page in pages]
        self._file = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def check(self, left: int, top: int, width: int, height: int, level: int) -> None:
        """Decode the tiles under a region, given in pixels of the level, each once.

        Raises:
            ValueError: if one cannot be decoded, or only with doubts.
        """
        of_level = self._levels[level]
        for tile, x, y in tiles_under(of_level.page, left, top, width, height):
            if of_level.checked[tile]:
                continue
            data = os.pread(self._file, int(of_level.counts[tile]), int(of_level.offsets[tile]))
            try:
                _decode(of_level, data)
            except Exception as error:  # each codec raises its own kind
                reason = reason_of(error)
                raise ValueError(f"the tile at ({x}, {y}) is damaged: {reason}") from error
            of_level.checked[tile] = True


def tiles_under(
    page: tifffile.TiffPage, left: int, top: int, width: int, height: int
) -> Iterator[tuple[int, int, int]]:
    """Index and corner (x, y) of each tile under a region; places and sizes are in pixels of the page."""
    across = -(-page.imagewidth // page.tilewidth)
    for row in range(top // page.tilelength, -(-(top + height) // page.tilelength)):
        for column in range(left // page.tilewidth, -(-(left + width) // page.tilewidth)):
            yield row * across + column, column * page.tilewidth, row * page.tilelength


class _Level(NamedTuple):
    page: tifffile.TiffPage
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tables: bytes
    checked: NDArray[np.bool_]


def _level(page: tifffile.TiffPage, file_size: int, any_predictor: bool) -> _Level:
    problem = _unlike_others(page, any_predictor)
    if problem is not None:
        raise ValueError(problem)
    offsets, counts = _places(page, file_size)
    missing = int((counts == 0).sum())
    if missing:
        raise ValueError(f"{missing} of the {len(counts)} tiles of a level are not stored")
    return _Level(page, offsets, counts, _tables(page), np.zeros(len(counts), dtype=bool))


def _decode(level: _Level, data: bytes) -> None:
    page, tables = level.page, level.tables
    if page.compression == JPEG:
        if tables and data[:2] != JPEG_BEGINS:
            raise ValueError("it does not begin as a JPEG")
        jpeg = tables + data[2:] if tables else data
        height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
        if (height, width) != (page.tilelength, page.tilewidth):
            raise ValueError(f"it is {width} x {height} px")
        simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=1, min_width=1, strict=True)
        return
    decoded = tifffile.TIFF.DECOMPRESSORS[page.compression](data)
    values = decoded.size if isinstance(decoded, np.ndarray) else len(decoded)
    wanted = page.tilelength * page.tilewidth * page.samplesperpixel
    if values < wanted:
        raise ValueError(f"it has {values} of {wanted} values")


def _tables(page: tifffile.TiffPage) -> bytes:
    """What comes before the data of each tile that is a JPEG, if the page has it for all of them."""
    tables = bytes(page.jpegtables or b"") if page.compression == JPEG else b""
    place = len(JPEG_BEGINS)
    # Where cuCIM does not get through them it takes the tiles for decoded.
    while tables and tables[place:] != JPEG_ENDS:
        size = int.from_bytes(tables[place + 2 : place + 4])
        if tables[:2] != JPEG_BEGINS or tables[place : place + 2] not in JPEG_TABLES or size < 2:
            raise ValueError("the JPEG tables of a level are damaged")
        place += 2 + size
    return tables[:place]


def _places(page: tifffile.TiffPage, file_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each tile of a page begins, and how many bytes it has; a strip counts as one."""
    offsets = np.asarray(page.dataoffsets, dtype=np.int64)
    counts = np.asarray(page.databytecounts, dtype=np.int64)
    if len(offsets) != len(counts):
        raise ValueError(f"{len(offsets)} tiles have a place, {len(counts)} a length")
    width, height = page.tilewidth or page.imagewidth, page.tilelength or page.rowsperstrip
    tiles = -(-page.imagewidth // width) * -(-page.imagelength // height)
    if page.planarconfig != tifffile.PLANARCONFIG.CONTIG:
        tiles *= page.samplesperpixel
    if len(offsets) != tiles:
        raise ValueError(f"{tiles} tiles are wanted, {len(offsets)} are listed")
    beyond = int((offsets + counts > file_size).sum())
    if beyond:
        raise ValueError(f"the file ends before {beyond} of the {len(offsets)} tiles of a level: it is cut off")
    return offsets, counts


def _pages(tiff: tifffile.TiffFile, level_sizes: Sizes) -> list[tifffile.TiffPage]:
    """The page of each level: the tiled one of its size, or else the first."""
    pages: dict[tuple[int, int], tifffile.TiffPage] = {}
    for page in (sub for top in tiff.pages for sub in (top, *(top.pages or ()))):
        if not isinstance(page, tifffile.TiffPage):
            continue
        size = (page.imagewidth, page.imagelength)
        if size not in pages or (page.is_tiled and not pages[size].is_tiled):
            pages[size] = page
    missing = [f"{width} x {height}" for width, height in level_sizes if (width, height) not in pages]
    if missing:
        raise ValueError(f"no page of the TIFF is {' or '.join(missing)} px")
    wanted = [pages[size] for size in level_sizes]
    for page in wanted:
        orientation = page.tags.valueof("Orientation", 1)
        if orientation != 1:
            raise ValueError(f"it is stored turned (Orientation {orientation})")
    return wanted


def _unlike_others(page: tifffile.TiffPage, any_predictor: bool) -> str | None:
    """How a page is stored, if the readers disagree on what it then shows."""
    if page.samplesperpixel != 3 or page.bitspersample != 8:
        return f"it stores {page.samplesperpixel} channels of {page.bitspersample} bits"
    if page.photometric != RGB and not (page.photometric == YCBCR and page.compression == JPEG):
        return f"its pixels are stored as {tifffile.PHOTOMETRIC(page.photometric).name}"
    if page.planarconfig != tifffile.PLANARCONFIG.CONTIG:
        return "its channels are stored apart"
    if page.predictor != 1 and not any_predictor:
        return "its tiles are stored with a predictor"
    return None if page.is_tiled else "it is stored in strips"
