"""Linked grids: which patches of each scale are in a bag, and which belong together. Geometry alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.bags.pieces import LaidGrid, Lay, lay_pieces
from scripts.core.errors import SettingsError
from scripts.core.magnification import Scale

__all__ = ["LinkedGrid", "link_grids", "of_rows", "row_log_weight", "tissue_thresholds"]

# The area of a square that is all tissue, summed in floats, may be slightly below 1.
SLACK = 1e-9

TissueFraction = Callable[[NDArray[np.float64], float], NDArray[np.float64]]


@dataclass(frozen=True)
class LinkedGrid:
    """The patches of one slide at every scale, and the rows that link them.

    A row is one patch of the highest magnification and its ancestor at each lower one. Every patch is in at least one
    row, and each scale contains a patch once, however many rows share it.

    Args:
        scales: from low to high magnification, S of them.
        coords: per scale ``[n_s, 2]`` float64, (x, y) of the patches' top left corners in level-0 pixels,
            ordered from top to bottom and left to right.
        rows: ``[N, S]`` int64; ``rows[j, s]`` is the patch of scale s that row j goes through.
        orphans: patches of the highest magnification with enough tissue, left out because an ancestor has too little.
    """

    scales: tuple[Scale, ...]
    coords: tuple[NDArray[np.float64], ...]
    rows: NDArray[np.int64]
    orphans: int

    @property
    def num_rows(self) -> int:
        """N, the number of rows."""
        return len(self.rows)

    @property
    def num_patches(self) -> int:
        """The number of unique patches of all scales."""
        return sum(len(coords) for coords in self.coords)

    def log_weight(self) -> NDArray[np.float32]:
        """``[N, S]``: see :func:`row_log_weight`."""
        return row_log_weight(self.rows)


def row_log_weight(rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """``-log(c)`` for each entry of ``rows`` ``[N, S]``, where c rows go through that patch of that scale.

    Added to attention logits it makes the softmax over linked rows equal to the softmax over unique patches.
    """
    counts = [np.bincount(patches)[patches] for patches in rows.T] if len(rows) else [np.ones(0)] * rows.shape[1]
    return -np.log(np.stack(counts, axis=1)).astype(np.float32)


def of_rows(values: Sequence[NDArray[Any]], rows: NDArray[np.int64]) -> NDArray[Any]:
    """``[N, S, ...]``: the values of the patches of each row of ``rows`` ``[N, S]``.

    Args:
        values: per scale ``[n_s, ...]``: features, corners or pixels of its unique patches.
    """
    return np.stack([scale[rows[:, s]] for s, scale in enumerate(values)], axis=1)


def tissue_thresholds(min_tissue: float | Sequence[float], num_scales: int) -> tuple[float, ...]:
    """The fraction of tissue that a patch needs at each scale, from low to high magnification.

    One number is for the highest magnification alone: a lower patch that contains a kept one contains tissue.

    Raises:
        SettingsError: if a fraction is outside 0..1 or their number is not that of the scales.
    """
    fractions: list[Any] = [0.0] * (num_scales - 1) + [min_tissue]
    if isinstance(min_tissue, Sequence) and not isinstance(min_tissue, str):
        fractions = list(min_tissue)
    are_numbers = all(isinstance(value, Real) and not isinstance(value, bool) for value in fractions)
    if len(fractions) != num_scales or not are_numbers or not all(0 <= float(value) <= 1 for value in fractions):
        raise SettingsError(
            "min_tissue",
            f"got {min_tissue!r} for {num_scales} magnifications",
            "Give one fraction of tissue in 0..1, or one for each magnification from low to high.",
        )
    return tuple(float(value) for value in fractions)


def link_grids(
    scales: Sequence[Scale],
    size_level0: tuple[int, int],
    tissue_fraction: TissueFraction,
    min_tissue: float | Sequence[float] = 0.7,
    overlap: float = 0.0,
    pieces_level0: NDArray[np.float64] | None = None,
    quick_fraction: TissueFraction | None = None,
) -> LinkedGrid:
    """Lay a regular grid at each scale and link its patches.

    All grids start at the slide's corner, or at that of a piece of tissue: see :mod:`scripts.bags.pieces`. A patch's
    ancestor is the patch of the lower grid that contains its centre; of several, where they overlap, the one whose
    centre is nearest. Without overlap and for integer ratios (5x, 10x) it contains the whole patch; else (5x, 12.5x)
    the patch may reach into a neighbour.

    Args:
        scales: one for each magnification, from low to high.
        size_level0: (width, height) of the slide in level-0 pixels.
        tissue_fraction: gives the fraction of tissue of squares, see :meth:`scripts.bags.tissue.TissueMask.fraction`.
        min_tissue: see :func:`tissue_thresholds`.
        overlap: fraction of a patch's side that neighbours share, at least 0 and below 1.
        pieces_level0: ``[n, 4]``, (left, top, right, bottom) of the pieces of tissue that have a grid of their own;
            ``None`` for one grid from the slide's corner.
        quick_fraction: as ``tissue_fraction``, and perhaps less exact, to find the place of a piece's grid.

    Returns:
        The linked grid; it may have no rows.
    """
    thresholds = tissue_thresholds(min_tissue, len(scales))

    def laying(fraction: TissueFraction) -> Lay:
        return lambda start, stop: _lay(scales, start, stop, fraction, thresholds, overlap)

    lay = laying(tissue_fraction)
    if pieces_level0 is None:
        laid = [lay((0.0, 0.0), size_level0)]
    else:
        try_out = None if quick_fraction is None else laying(quick_fraction)
        laid = lay_pieces(pieces_level0, lay, scales[0].patch_level0, scales[-1].patch_level0, overlap, try_out)

    coords, rows = [], []
    for s in range(len(scales)):
        # Sorted by y first, patches are read in the order in which a file is stored.
        corners = np.concatenate([grid.corners[s][:, ::-1] for grid in laid] or [np.zeros((0, 2))])
        unique, index = np.unique(corners, axis=0, return_inverse=True)
        coords.append(np.ascontiguousarray(unique[:, ::-1]))
        rows.append(index.reshape(-1))
    linked = np.stack(rows, axis=1).astype(np.int64)
    return LinkedGrid(
        scales=tuple(scales),
        coords=tuple(coords),
        rows=linked[np.argsort(linked[:, -1], kind="stable")],
        orphans=sum(grid.orphans for grid in laid),
    )


def _lay(
    scales: Sequence[Scale],
    start: tuple[float, float],
    stop: tuple[float, float],
    tissue_fraction: TissueFraction,
    thresholds: Sequence[float],
    overlap: float,
) -> LaidGrid:
    """The linked patches of one grid that starts at (x, y), and has as many patches as reach the stop."""
    sides = [scale.patch_level0 for scale in scales]
    steps = [side * (1 - overlap) for side in sides]

    def corners(cells: NDArray[np.int64], s: int) -> NDArray[np.float64]:
        return np.multiply(cells, steps[s], dtype=np.float64) + start

    counts = [1 + max(0, math.ceil(round((stop[axis] - start[axis] - sides[-1]) / steps[-1], 9))) for axis in range(2)]
    # Cells are (column, row), row by row.
    cells = np.stack(np.meshgrid(*map(np.arange, counts)), axis=-1).reshape(-1, 2)
    fraction = tissue_fraction(corners(cells, -1), sides[-1])
    # A threshold of 0 asks for some tissue.
    kept = (fraction > 0) & (fraction >= thresholds[-1] - SLACK)
    cells, fraction = cells[kept], fraction[kept]
    # Of the patches that contain a centre, the one whose centre is nearest; there is none before the first.
    centres = (cells + 0.5 / (1 - overlap)) * steps[-1]
    ancestors = [
        np.maximum(np.floor((centres - (side - step) / 2) / step).astype(np.int64), 0)
        for side, step in zip(sides[:-1], steps[:-1], strict=True)
    ]
    linked = np.ones(len(cells), dtype=bool)
    for s, lower_cells in enumerate(ancestors):
        if thresholds[s] > 0:
            linked &= tissue_fraction(corners(lower_cells, s), sides[s]) >= thresholds[s] - SLACK
    return LaidGrid(
        corners=tuple(corners(of_scale[linked], s) for s, of_scale in enumerate([*ancestors, cells])),
        orphans=int((~linked).sum()),
        tissue=float(fraction[linked].sum()),
    )
