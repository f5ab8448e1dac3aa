"""Slides to measure on, made from synthetic ones: as if scanned at 40x, or many times as large."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from scripts.datalists.datalist import list_slides
from scripts.synthetic.cohort import ensure_cohort

__all__ = ["synthetic_slides", "write_40x", "write_tiled"]

TILE_PX = 256


def synthetic_slides(dataset_dir: Path, num_slides: int) -> list[dict[str, Any]]:
    """Entries of the first synthetic slides, 0.5 um/px (20x) with levels of 1, 4 and 16; made if they are absent."""
    ensure_cohort(dataset_dir)
    return list_slides(dataset_dir / "slides")[:num_slides]


def write_40x(slide: Path, path: Path) -> Path:
    """Write a synthetic slide as if scanned at 40x: enlarged twofold, 0.25 um/px, levels of 1, 4 and 16."""
    with tifffile.TiffFile(slide) as source:
        image = source.series[0].levels[0].asarray()
    image = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    with tifffile.TiffWriter(path, bigtiff=True) as target:
        for index, downsample in enumerate((1, 4, 16)):
            size = (image.shape[1] // downsample, image.shape[0] // downsample)
            level = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if index else image
            target.write(level, **_page(0.25 * downsample, index))
    return path


def write_tiled(slide: Path, path: Path, times: int, mpp: float = 0.5) -> Path:
    """Write a slide of ``mpp`` um/px repeated ``times`` x ``times``, tile by tile, with its own levels."""
    with tifffile.TiffFile(slide) as source, tifffile.TiffWriter(path, bigtiff=True) as target:
        levels = source.series[0].levels
        full = levels[0].shape
        for index, level in enumerate(levels):
            image = level.asarray()
            target.write(
                _tiles(image, times),
                shape=(image.shape[0] * times, image.shape[1] * times, 3),
                dtype=np.uint8,
                **_page(mpp * round(full[0] / image.shape[0]), index),
            )
    return path


def _page(mpp: float, index: int) -> dict[str, Any]:
    return {
        "tile": (TILE_PX, TILE_PX),
        "photometric": "rgb",
        "compression": "jpeg",
        "resolution": (1e4 / mpp, 1e4 / mpp),
        "resolutionunit": "CENTIMETER",
        "subfiletype": 1 if index else 0,
        "metadata": None,
    }


def _tiles(image: NDArray[np.uint8], times: int) -> Iterator[NDArray[np.uint8]]:
    """The tiles of a repeated image, row by row."""
    height, width = image.shape[:2]
    for top in range(0, height * times, TILE_PX):
        for left in range(0, width * times, TILE_PX):
            rows = np.arange(top, top + TILE_PX) % height
            columns = np.arange(left, left + TILE_PX) % width
            yield image[rows[:, None], columns[None, :]]
