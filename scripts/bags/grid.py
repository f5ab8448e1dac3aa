"""Linked grids: which patches of each scale are in a bag, and which belong together. Geometry alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
) -> LinkedGrid:
    """Lay a regular grid at each scale and link its patches.

    All grids start at the slide's corner. A patch's ancestor is the patch of the lower grid that contains its centre:
    for integer ratios (5x, 10x) it contains the whole patch, for others (5x, 12.5x) the patch may reach into a
    neighbour.

    Args:
        scales: one for each magnification, from low to high.
        size_level0: (width, height) of the slide in level-0 pixels.
        tissue_fraction: gives the fraction of tissue of squares, see :meth:`scripts.bags.tissue.TissueMask.fraction`.
        min_tissue: see :func:`tissue_thresholds`.

    Returns:
        The linked grid; it may have no rows.
    """
    thresholds = tissue_thresholds(min_tissue, len(scales))
    sides = [scale.patch_level0 for scale in scales]
    cells = _all_cells(size_level0, sides[-1])
    fraction = tissue_fraction(_corners(cells, sides[-1]), sides[-1])
    # A threshold of 0 asks for some tissue.
    cells = cells[(fraction > 0) & (fraction >= thresholds[-1] - SLACK)]
    centres = (cells + 0.5) * sides[-1]
    ancestors = [np.floor(centres / side).astype(np.int64) for side in sides[:-1]]

    linked = np.ones(len(cells), dtype=bool)
    for lower_cells, side, threshold in zip(ancestors, sides[:-1], thresholds[:-1], strict=True):
        if threshold > 0:
            linked &= tissue_fraction(_corners(lower_cells, side), side) >= threshold - SLACK

    coords, rows = [], []
    for scale_cells, side in zip([*ancestors, cells], sides, strict=True):
        # Cells are (column, row); sorted by row first, patches are read in the order in which a file is stored.
        unique, index = np.unique(scale_cells[linked][:, ::-1], axis=0, return_inverse=True)
        coords.append(_corners(unique[:, ::-1], side))
        rows.append(index.reshape(-1))
    return LinkedGrid(
        scales=tuple(scales),
        coords=tuple(coords),
        rows=np.stack(rows, axis=1).astype(np.int64),
        orphans=int((~linked).sum()),
    )


def _all_cells(size_level0: tuple[int, int], side_level0: float) -> NDArray[np.int64]:
    """``[n, 2]`` (column, row) of every cell that overlaps the slide, row by row."""
    columns, rows = (math.ceil(round(length / side_level0, 9)) for length in size_level0)
    return np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)


def _corners(cells: NDArray[np.int64], side_level0: float) -> NDArray[np.float64]:
    return np.multiply(cells, side_level0, dtype=np.float64)
