"""Small pyramidal slides, written for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

# 8000 x 9000 px at 0.5 um/px with OpenSlide's bounds at (4000, 5000): see its README.
BOUNDS_SLIDE = Path(__file__).parents[2] / "shared" / "cases" / "bounds.scn"
BOUNDS, BOUNDS_SIZE = (4000, 5000, 3072, 3584), (8000, 9000)

WHITE, PINK, PURPLE = (255, 255, 255), (230, 120, 180), (110, 60, 150)


def write_pyramid(
    path: Path,
    image: NDArray[np.uint8],
    mpp: float | tuple[float, float] | None = 0.5,
    downsamples: Sequence[int] = (1,),
    compression: str | None = None,
    tile: int | None = 128,
) -> Path:
    """Write an RGB image ``[H, W, 3]`` as a tiled TIFF with a level for each downsample.

    Lossless by default, so that what is read can be compared to the last digit. ``mpp`` None writes a file
    without a resolution.
    """
    x_mpp, y_mpp = (None, None) if mpp is None else mpp if isinstance(mpp, tuple) else (mpp, mpp)
    with tifffile.TiffWriter(path) as tiff:
        for index, downsample in enumerate(downsamples):
            size = (image.shape[1] // downsample, image.shape[0] // downsample)
            level = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if downsample > 1 else image
            resolution = {}
            if x_mpp is not None and y_mpp is not None:
                per_cm = (1e4 / (x_mpp * downsample), 1e4 / (y_mpp * downsample))
                resolution = {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
            tiff.write(
                level,
                photometric="rgb",
                tile=(tile, tile) if tile else None,
                compression=compression,
                subfiletype=1 if index else 0,
                metadata=None,
                **resolution,  # type: ignore[arg-type]
            )
    return path


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """An RGB image in which every pixel differs."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def with_tissue(
    height: int, width: int, boxes: Sequence[tuple[int, int, int, int]], colour: tuple[int, int, int] = PINK
) -> NDArray[np.uint8]:
    """A white image with boxes (left, top, right, bottom) of a stain."""
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    for left, top, right, bottom in boxes:
        image[top:bottom, left:right] = colour
    return image
