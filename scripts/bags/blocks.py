"""Which regions of a slide are read at once, and which patches are cut from each. Geometry alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.bags.grid import LinkedGrid

__all__ = ["Block", "BlockPart", "plan_blocks"]

# Files hold tiles, of 256 px or so, which are decoded whole: of a region of this side few pixels are decoded in
# vain, or again for its neighbour. What is read ahead of the encoding stays small all the same.
BLOCK_PX = 1536


@dataclass(frozen=True)
class BlockPart:
    """The patches of one scale that are cut from a block.

    Args:
        scale_index: the scale, counted from low to high.
        patches: ``[n]``, the patches, as they are numbered in the grid.
        corners_px: ``[n, 2]``, (x, y) of their top left corners, in pixels of the block.
    """

    scale_index: int
    patches: NDArray[np.int64]
    corners_px: NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """A region of one level.

    Args:
        level: the level of the pyramid.
        corner_px: (x, y) of the top left corner, in pixels of the level; it may lie beyond the border.
        size_px: (width, height), in pixels of the level.
        parts: what is cut from it, from low to high magnification.
    """

    level: int
    corner_px: tuple[int, int]
    size_px: tuple[int, int]
    parts: tuple[BlockPart, ...]


def plan_blocks(grid: LinkedGrid, block_px: int = BLOCK_PX) -> list[Block]:
    """Lay blocks over the patches of a bag, so that each patch is cut from one block.

    Scales that are read from the same level share their blocks: a patch of 5x and its children of 10x are cut from
    the same pixels, which were decoded once. A block reaches as far as its patches do.

    Args:
        grid: the bag's grid.
        block_px: a block holds whole patches of the lowest magnification that is read from its level: one, or as many
            as fit into so many pixels.

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
        # By centres, so that a hair's breadth of rounding moves no patch into the next block.
        cells = [_cells(grid.coords[s] + grid.scales[s].patch_level0 / 2, step_level0) for s in of_level]
        _, numbers = np.unique(np.concatenate(cells), axis=0, return_inverse=True)  # in reading order
        numbers = numbers.reshape(-1)
        members = [_groups(share, numbers) for share in np.split(numbers, np.cumsum([len(c) for c in cells])[:-1])]
        for of_block in zip(*members, strict=True):
            blocks.append(
                _block(grid, level, {s: some for s, some in zip(of_level, of_block, strict=True) if len(some)})
            )
    return blocks


def _cells(points_level0: NDArray[np.float64], step_level0: float) -> NDArray[np.int64]:
    """``[n, 2]``, (row, column): sorted, they run from top to bottom and left to right."""
    return np.floor(points_level0[:, ::-1] / step_level0).astype(np.int64)


def _groups(numbers: NDArray[np.int64], of_all: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Where each number from 0 up to the largest of all stands, in order."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, of_all.max() + 1)))


def _block(grid: LinkedGrid, level: int, members: dict[int, NDArray[np.int64]]) -> Block:
    corners = {
        index: np.rint(grid.coords[index][patches] / grid.scales[index].downsample).astype(np.int64)
        for index, patches in members.items()
    }
    start = np.min([of_scale.min(axis=0) for of_scale in corners.values()], axis=0)
    stop = np.max(
        [of_scale.max(axis=0) + grid.scales[index].patch_read_px for index, of_scale in corners.items()], axis=0
    )
    return Block(
        level=level,
        corner_px=(int(start[0]), int(start[1])),
        size_px=(int(stop[0] - start[0]), int(stop[1] - start[1])),
        parts=tuple(BlockPart(index, patches, corners[index] - start) for index, patches in members.items()),
    )
