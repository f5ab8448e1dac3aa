"""A picture of linked patches, which shows what a row of a bag is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.bags.bag import Bag
from scripts.bags.grid import of_rows
from scripts.core.magnification import Scale

__all__ = ["framed_patches", "linked_patches", "linked_rows"]


def linked_patches(bag: Bag, num_rows: int) -> NDArray[np.uint8]:
    """:func:`linked_rows` as one image, RGB ``[rows * H, S * W, 3]``."""
    return np.concatenate([np.concatenate(patches, axis=1) for patches in linked_rows(bag, num_rows)])


def linked_rows(bag: Bag, num_rows: int) -> list[list[NDArray[np.uint8]]]:
    """The patches of up to ``num_rows`` rows of a bag, spread evenly: S of each, RGB ``[H, W, 3]``.

    Patches run from low to high magnification; a frame on each shows the area of the next.
    """
    grid, slide = bag.grid, bag.slide
    chosen = np.unique(np.linspace(0, grid.num_rows - 1, num_rows).round().astype(int))
    corners = of_rows(grid.coords, grid.rows[chosen])

    def read(s: int, corner_level0: tuple[float, float]) -> NDArray[np.uint8]:
        return slide.read_patch(grid.scales[s], corner_level0)

    return [framed_patches(read, grid.scales, row) for row in corners]


def framed_patches(
    read: Callable[[int, tuple[float, float]], NDArray[np.uint8]],
    scales: Sequence[Scale],
    corners: NDArray[np.float64],
) -> list[NDArray[np.uint8]]:
    """The patches of one row from low to high magnification, RGB ``[H, W, 3]`` each, a frame marking the next.

    Args:
        read: gives a patch from the scale's index and the corner (x, y) in level-0 pixels; it is not drawn on.
        scales: from low to high.
        corners: ``[S, 2]``, (x, y) of the row's patches in level-0 pixels.
    """
    patches = [read(s, (float(x), float(y))).copy() for s, (x, y) in enumerate(corners)]
    for s in range(len(scales) - 1):
        left, top = np.round((corners[s + 1] - corners[s]) / scales[s].pixel_level0).astype(int).tolist()
        side = round(scales[s + 1].patch_level0 / scales[s].pixel_level0)
        cv2.rectangle(patches[s], (left, top), (left + side - 1, top + side - 1), (0, 160, 0), 2)
    return patches
