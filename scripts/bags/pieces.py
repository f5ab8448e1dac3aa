"""A grid for each piece of tissue, where the slide's corner would cut thin pieces badly. Geometry alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["LaidGrid", "Lay", "lay_pieces"]

# A grid may start at multiples of this part of the step of the highest magnification.
PHASES = 8


@dataclass(frozen=True)
class LaidGrid:
    """The rows of one grid.

    Args:
        corners: per scale, from low to high magnification, ``[N, 2]``: (x, y) of the top left corner of each row's
            patch in level-0 pixels.
        orphans: see :class:`scripts.bags.grid.LinkedGrid`.
        tissue: sum of the fractions of tissue of the rows' patches of the highest magnification.
    """

    corners: tuple[NDArray[np.float64], ...]
    orphans: int
    tissue: float


Lay = Callable[[tuple[float, float], tuple[float, float]], LaidGrid]
"""Lays a grid from (x, y) as far as (x, y), in level-0 pixels."""


def lay_pieces(
    pieces_level0: NDArray[np.float64],
    lay: Lay,
    lowest_level0: float,
    highest_level0: float,
    overlap: float,
    try_out: Lay | None = None,
) -> list[LaidGrid]:
    """One grid for each piece of tissue.

    Pieces share a grid if they are so near that a patch of the lowest magnification covers parts of both, or if
    their grids would overlap: so no patch is in two grids, and no two patches overlap by more than ``overlap``. A grid
    starts where the piece's bounding box is centred on whole patches of the lowest magnification, moved to the
    one of 81 nearby positions where its rows contain most tissue. Without overlap they contain at
    least as much as those of one grid from the slide's corner.

    Args:
        pieces_level0: ``[n, 4]``, (left, top, right, bottom) of each piece.
        lay: lays one grid.
        lowest_level0, highest_level0: side of the patches of the lowest and the highest magnification.
        overlap: fraction of a patch's side that neighbours share.
        try_out: lays the grids that are compared, where ``lay`` is too slow for many; by default ``lay``.
    """
    if not len(pieces_level0):
        return []
    steps = lowest_level0 * (1 - overlap), highest_level0 * (1 - overlap)

    @cache
    def best(left: float, top: float, right: float, bottom: float) -> LaidGrid:
        across, down = _starts(left, right, lowest_level0, *steps), _starts(top, bottom, lowest_level0, *steps)
        laid: LaidGrid | None = None
        start = across[0], down[0]
        # The centred start comes first, and stays where others are no better.
        for x, y in sorted(itertools.product(range(len(across)), repeat=2), key=sum):
            other = (try_out or lay)((across[x], down[y]), (right, bottom))
            if laid is None or other.tissue > laid.tissue + 1e-6:
                laid, start = other, (across[x], down[y])
        return laid if laid is not None and try_out is None else lay(start, (right, bottom))

    boxes = _joined(pieces_level0, pieces_level0, lowest_level0)
    while True:
        grids = [best(*box) for box in boxes.tolist()]
        extents = [_extent(grid, lowest_level0, highest_level0) for grid in grids]
        joined = _joined(boxes, np.array(extents).reshape(-1, 4), -1e-6)
        if len(joined) == len(boxes):
            return grids
        boxes = _joined(joined, joined, lowest_level0)


def _starts(start: float, stop: float, lowest: float, lowest_step: float, highest_step: float) -> list[float]:
    """Where a grid that covers all from start to stop may start along one axis: the centred place first.

    The last one continues the grid of the slide's corner, so that the best is no worse than that.
    """
    count = 1 + max(0, math.ceil(round((stop - start - lowest) / lowest_step, 9)))
    centred = (start + stop - lowest - (count - 1) * lowest_step) / 2
    shifts = sorted(range(-PHASES // 2, PHASES - PHASES // 2), key=abs)
    places = [_inside(centred + shift * highest_step / PHASES, start, lowest_step, highest_step) for shift in shifts]
    return [*places, math.floor(start / lowest_step) * lowest_step]


def _inside(place: float, start: float, lowest_step: float, highest_step: float) -> float:
    """The place, or one that is whole steps away: not outside of the slide, and not within the piece if that can be."""
    if place > start and place >= lowest_step:
        return place - lowest_step
    return place if place >= 0 else place + math.ceil(-place / highest_step) * highest_step


def _joined(boxes: NDArray[np.float64], extents: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """The bounding boxes of groups of boxes whose extents are less than the reach apart, until none can be joined."""
    if reach > 0:
        # Those that start in one cell of this size are near each other: else a noisy mask has millions of pairs.
        cells = np.floor(extents[:, :2] / reach)
        _, first, labels = np.unique(cells, axis=0, return_index=True, return_inverse=True)
        labels = np.argsort(np.argsort(first))[labels]  # in the order of the boxes
        boxes, extents = (_enclosing(of, labels) for of in (boxes, extents))
    while True:
        number, labels = connected_components(_near(extents, reach), directed=False)
        if number == len(boxes):
            return boxes
        boxes, extents = (_enclosing(of, labels) for of in (boxes, extents))


def _near(extents: NDArray[np.float64], reach: float) -> coo_array:
    """``[n, n]``: which extents are less than the reach apart."""
    known = np.flatnonzero(~np.isnan(extents).any(axis=1))
    start, stop = extents[known, :2], extents[known, 2:]
    one, other = known[
        shapely.STRtree(shapely.box(*start.T, *stop.T)).query(shapely.box(*(start - reach).T, *(stop + reach).T))
    ]
    # The tree also finds those that are as far apart as the reach.
    is_near = (extents[one, :2] < extents[other, 2:] + reach) & (extents[other, :2] < extents[one, 2:] + reach)
    pairs = one[is_near.all(axis=1)], other[is_near.all(axis=1)]
    return coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(len(extents),) * 2)


def _enclosing(boxes: NDArray[np.float64], labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """The bounding box of each group of boxes."""
    groups = np.empty((labels.max() + 1, 4))
    groups[:, :2], groups[:, 2:] = np.inf, -np.inf
    np.minimum.at(groups[:, :2], labels, boxes[:, :2])
    np.maximum.at(groups[:, 2:], labels, boxes[:, 2:])
    return groups


def _extent(grid: LaidGrid, lowest_level0: float, highest_level0: float) -> NDArray[np.float64]:
    """(left, top, right, bottom) of a grid's patches; NaN, which is near nothing, for none."""
    if not len(grid.corners[-1]):
        return np.full(4, np.nan)
    starts = np.min([corners.min(axis=0) for corners in grid.corners], axis=0)
    sides = [lowest_level0] * (len(grid.corners) - 1) + [highest_level0]
    stops = np.max([corners.max(axis=0) + side for corners, side in zip(grid.corners, sides, strict=True)], axis=0)
    return np.concatenate([starts, stops])
