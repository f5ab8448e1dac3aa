"""The tiles of a TIFF slide: whether they are all there, and whether they can be decoded without a doubt.

cuCIM fills a tile that it cannot decode with the one that it decoded before, and says nothing. So what it reads is
decoded here first, as coarsely as the codec can: all of the compressed data has to be gone through, few pixels made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

__all__ = ["TiffTiles", "check_complete"]

JPEG = tifffile.COMPRESSION.JPEG
JPEG_BEGINS, JPEG_ENDS = b"\xff\xd8", b"\xff\xd9"
# What may stand between them: tables of quantisation and of Huffman codes, restarts, applications' data, comments.
JPEG_TABLES = {bytes((0xFF, kind)) for kind in (0xDB, 0xC4, 0xDD, *range(0xE0, 0xF0), 0xFE)}
RGB, YCBCR = tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR


def check_complete(path: str | Path, level_sizes: list[tuple[int, int]]) -> None:
    """Refuse a file that ends before its tiles do, lists more or fewer than its levels have, or stores them turned.

    Args:
        path: the slide's file.
        level_sizes: (width, height) in pixels of the levels whose tiles are wanted.

    Raises:
        ValueError: if it does, or is no TIFF with these levels.
    """
    with _opened(path) as tiff:
        for page in _pages(tiff, level_sizes):
            _places(page, os.path.getsize(path))


class TiffTiles:
    """The tiles of the levels of a pyramid.

    Args:
        path: the slide's file.
        level_sizes: (width, height) in pixels of the levels whose tiles are wanted.
        any_predictor: whether the reader knows predictors, which cuCIM passes over.

    Raises:
        ValueError: if the file is no TIFF, has a level whose tiles are not known or are not all in the file, or
            stores pixels in a way in which the readers differ.
    """

    def __init__(self, path: str | Path, level_sizes: list[tuple[int, int]], any_predictor: bool = False) -> None:
        self.file = os.open(path, os.O_RDONLY)
        try:
            with _opened(path) as tiff:
                self.levels = [_Level(page, self.file, any_predictor) for page in _pages(tiff, level_sizes)]
        except BaseException:
            os.close(self.file)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)

    def check(self, left: int, top: int, width: int, height: int, level: int) -> None:
        """Decode the tiles under a region, each once.

        Args:
            left: of its first column, in pixels of the level.
            top: of its first row, in pixels of the level.
            width: in pixels of the level.
            height: in pixels of the level.
            level: the index of the level.

        Raises:
            ValueError: if one cannot be decoded, or only with doubts.
        """
        self.levels[level].check(left, top, width, height)


class _Level:
    def __init__(self, page: tifffile.TiffPage, file: int, any_predictor: bool) -> None:
        problem = _unlike_others(page, any_predictor)
        if problem:
            raise ValueError(problem)
        self.file, self.page = file, page
        self.tile_width, self.tile_height = _tile_size(page)
        self.across, self.down = -(-page.imagewidth // self.tile_width), -(-page.imagelength // self.tile_height)
        self.offsets, self.counts = _places(page, os.fstat(file).st_size)
        missing = int((self.counts == 0).sum())
        if missing:
            raise ValueError(f"{missing} of the {len(self.counts)} tiles of a level are not stored")
        self.tables = _tables(page)
        self.checked = np.zeros(len(self.counts), dtype=bool)

    def check(self, left: int, top: int, width: int, height: int) -> None:
        rows = range(top // self.tile_height, min(-(-(top + height) // self.tile_height), self.down))
        columns = range(left // self.tile_width, min(-(-(left + width) // self.tile_width), self.across))
        for row in rows:
            for column in columns:
                tile = row * self.across + column
                if not self.checked[tile]:
                    try:
                        self._decode(tile, row)
                    except Exception as error:  # each codec raises its own kind
                        reason = next(iter(str(error).splitlines()), type(error).__name__)
                        x, y = column * self.tile_width, row * self.tile_height
                        raise ValueError(f"the tile at ({x}, {y}) is damaged: {reason}") from error
                    self.checked[tile] = True

    def _decode(self, tile: int, row: int) -> None:
        raw = os.pread(self.file, int(self.counts[tile]), int(self.offsets[tile]))
        # The last strip is as high as what is left; tiles are always whole.
        whole = self.page.is_tiled or row + 1 < self.down
        height = self.tile_height if whole else self.page.imagelength - row * self.tile_height
        if self.page.compression == JPEG:
            if self.tables and raw[:2] != JPEG_BEGINS:
                raise ValueError("it does not begin as a JPEG")
            jpeg = self.tables + raw[2:] if self.tables else raw
            size = simplejpeg.decode_jpeg_header(jpeg)[:2]
            if size != (height, self.tile_width):
                raise ValueError(f"it is {size[1]} x {size[0]} px")
            simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=1, min_width=1, strict=True)
            return
        wanted = height * self.tile_width * self.page.samplesperpixel
        decoded = np.asarray(_decompressed(self.page, raw, wanted))
        if decoded.size < wanted:
            raise ValueError(f"it holds {decoded.size} of {wanted} values")


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


def _decompressed(page: tifffile.TiffPage, raw: bytes, wanted: int) -> NDArray[np.uint8]:
    if page.compression == tifffile.COMPRESSION.NONE:
        return np.frombuffer(raw, dtype=np.uint8)
    decompress = tifffile.TIFF.DECOMPRESSORS[page.compression]
    decoded = decompress(raw)
    return decoded if isinstance(decoded, np.ndarray) else np.frombuffer(decoded, dtype=np.uint8)


@contextmanager
def _opened(path: str | Path) -> Iterator[tifffile.TiffFile]:
    try:
        with tifffile.TiffFile(path) as tiff:
            yield tiff
    except tifffile.TiffFileError as error:
        raise ValueError(f"it is no TIFF that can be read ({error})") from error


def _tile_size(page: tifffile.TiffPage) -> tuple[int, int]:
    """(width, height) in pixels of a page's tiles; a strip counts as one."""
    return page.tilewidth or page.imagewidth, page.tilelength or page.rowsperstrip


def _places(page: tifffile.TiffPage, file_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each tile of a page begins, and how many bytes it has."""
    offsets = np.asarray(page.dataoffsets, dtype=np.int64)
    counts = np.asarray(page.databytecounts, dtype=np.int64)
    if len(offsets) != len(counts):
        raise ValueError(f"{len(offsets)} tiles have a place, {len(counts)} a length")
    width, height = _tile_size(page)
    tiles = -(-page.imagewidth // width) * -(-page.imagelength // height)
    if page.planarconfig != tifffile.PLANARCONFIG.CONTIG:
        tiles *= page.samplesperpixel
    if len(offsets) != tiles:
        raise ValueError(f"{tiles} tiles are wanted, {len(offsets)} are listed")
    beyond = int((offsets + counts > file_size).sum())
    if beyond:
        raise ValueError(f"the file ends before {beyond} of the {len(offsets)} tiles of a level: it is cut off")
    return offsets, counts


def _pages(tiff: tifffile.TiffFile, level_sizes: list[tuple[int, int]]) -> list[tifffile.TiffPage]:
    """The page of each level: the tiled one of its size, or else the first."""
    pages: dict[tuple[int, int], tifffile.TiffPage] = {}
    for page in _all_pages(tiff):
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


def _all_pages(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    for number in range(len(tiff.pages)):
        page = tiff.pages[number]
        if isinstance(page, tifffile.TiffPage):
            yield page
            for sub in page.pages or ():
                if isinstance(sub, tifffile.TiffPage):
                    yield sub


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
    return None
