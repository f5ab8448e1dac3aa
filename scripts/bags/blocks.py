"""Which regions of a slide are read at once, and which patches are cut from each. Geometry alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.bags.grid import LinkedGrid

__all__ = ["Block", "BlockPart", "plan_blocks"]

# Files store tiles of 256 px or so, which are decoded whole. For a region of this side few pixels are decoded in vain
# or twice, and what is read ahead of the encoder stays small.
BLOCK_PX = 1536


@dataclass(frozen=True)
class BlockPart:
    """The patches of one scale that are cut from a block.

    Args:
        scale_index: the scale, counted from low to high.
        patches: ``[n]``, their numbers in the grid.
        corners_px: ``[n, 2]``, (x, y) of their top left corners, in pixels of the block.
    """

    scale_index: int
    patches: NDArray[np.int64]
    corners_px: NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """A region of one level of the pyramid, in pixels of that level.

    Args:
        level: the level.
        corner_px: (x, y) of the top left corner; it may lie beyond the border.
        size_px: (width, height).
        parts: what is cut from it, from low to high magnification.
    """

    level: int
    corner_px: tuple[int, int]
    size_px: tuple[int, int]
    parts: tuple[BlockPart, ...]


def plan_blocks(grid: LinkedGrid, block_px: int = BLOCK_PX) -> list[Block]:
    """Lay blocks over the patches of a bag, so that each patch is cut from one block.

    Scales that are read from the same level share their blocks, so that their pixels are decoded once. A block reaches
    as far as its patches do.

    Args:
        grid: the bag's grid.
        block_px: a block contains whole patches of the lowest magnification that is read from its level: one, or as
            many as fit into a square of this side.

    Returns:
        The blocks, level by level from low to high magnification, in each from top to bottom and left to right.
    """
    blocks: list[Block] = []
    if grid.num_rows == 0:
        return blocks
    for level in dict.fromkeys(scale.level for scale in grid.scales):
        of_level = [s for s, scale in enumerate(grid.scales) if scale.level == level]
        largest = grid.scales[of_level[0]]
        step_level0 = largest.patch_level0 * max(1, block_px // largest.patch_read_px)
        # By their centres, so that rounding moves no patch into the next block. (row, column) sort in reading order.
        centres = [grid.coords[s] + grid.scales[s].patch_level0 / 2 for s in of_level]
        cells = [np.floor(of_scale[:, ::-1] / step_level0).astype(np.int64) for of_scale in centres]
        _, numbers = np.unique(np.concatenate(cells), axis=0, return_inverse=True)
        numbers = numbers.reshape(-1)
        of_scales = np.split(numbers, np.cumsum([len(c) for c in cells])[:-1])
        members = (_groups(of_scale, numbers.max() + 1) for of_scale in of_scales)
        for patches in zip(*members, strict=True):
            blocks.append(_block(grid, level, dict(zip(of_level, patches, strict=True))))
    return blocks


def _groups(numbers: NDArray[np.int64], num_groups: int) -> list[NDArray[np.int64]]:
    """The places of each number from 0 up, in order."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, num_groups)))


def _block(grid: LinkedGrid, level: int, members: dict[int, NDArray[np.int64]]) -> Block:
    corners = {
        s: np.rint(grid.coords[s][patches] / grid.scales[s].downsample).astype(np.int64)
        for s, patches in members.items()
        if len(patches)
    }
    start = np.min([of_scale.min(axis=0) for of_scale in corners.values()], axis=0)
    stop = np.max([of_scale.max(axis=0) + grid.scales[s].patch_read_px for s, of_scale in corners.items()], axis=0)
    return Block(
        level=level,
        corner_px=(int(start[0]), int(start[1])),
        size_px=(int(stop[0] - start[0]), int(stop[1] - start[1])),
        parts=tuple(BlockPart(s, members[s], of_scale - start) for s, of_scale in corners.items()),
    )
