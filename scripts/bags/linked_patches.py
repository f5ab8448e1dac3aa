"""A picture of linked patches, which shows what a row of a bag is."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.bags.bag import Bag

__all__ = ["linked_patches", "linked_rows"]


def linked_patches(bag: Bag, num_rows: int) -> NDArray[np.uint8]:
    """:func:`linked_rows` as one image, RGB ``[rows * H, S * W, 3]``."""
    return np.concatenate([np.concatenate(patches, axis=1) for patches in linked_rows(bag, num_rows)])


def linked_rows(bag: Bag, num_rows: int) -> list[list[NDArray[np.uint8]]]:
    """The patches of up to ``num_rows`` rows of a bag, spread evenly: S of each, RGB ``[H, W, 3]``.

    Patches run from low to high magnification; a frame on each shows the area of the next.
    """
    grid = bag.grid
    chosen = np.unique(np.linspace(0, grid.num_rows - 1, num_rows).round().astype(int))
    return [_framed(bag, row) for row in chosen]


def _framed(bag: Bag, row: int) -> list[NDArray[np.uint8]]:
    scales, rows = bag.grid.scales, bag.grid.rows
    corners = [coords[rows[row, s]] for s, coords in enumerate(bag.grid.coords)]
    patches = [bag.read_patch(s, int(rows[row, s])) for s in range(len(scales))]
    for s in range(len(scales) - 1):
        left, top = np.round((corners[s + 1] - corners[s]) / scales[s].pixel_level0).astype(int).tolist()
        side = round(scales[s + 1].patch_level0 / scales[s].pixel_level0)
        cv2.rectangle(patches[s], (left, top), (left + side - 1, top + side - 1), (0, 160, 0), 2)
    return patches
