"""Links between patches that lie anywhere: grids of other tools, which start where a piece of tissue does.

Our own grids are laid so that a patch's ancestor follows from its place (:func:`scripts.bags.grid.link_grids`). Here
the patches are given, and the ancestor is searched for, by the same rule. Geometry alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FreeLinks", "link_patches"]

# Pairs of a centre and a patch that are looked at together: about 100 MB of arrays, whatever the slide's size.
PAIRS_AT_ONCE = 1 << 20
# Distances between positions that are each up to half a pixel off: two centres of patches, one of them compared twice.
DISTANCES_DIFFER = 3.0


@dataclass(frozen=True)
class FreeLinks:
    """Rows of linked patches, and which of the given patches are in them.

    Args:
        patches: per scale, from low to high, ``[n_s]`` int64: the given patches that are in a row, from top to bottom
            and left to right.
        rows: ``[N, S]`` int64; ``rows[j, s]`` is the place in ``patches[s]`` of the patch that row j goes through.
        orphans: patches of the highest magnification that are left out because they have no ancestor at a scale.
        unused: patches of lower magnifications that are left out because no row goes through them.
    """

    patches: tuple[NDArray[np.int64], ...]
    rows: NDArray[np.int64]
    orphans: int
    unused: int


def link_patches(
    corners: Sequence[NDArray[np.float64]], sides: Sequence[float], tolerance_px: float = 0.0
) -> FreeLinks:
    """Link each patch of the highest magnification to its ancestor at every other.

    The ancestor is the patch that contains the centre: its left and top border belong to it, its right and bottom
    border do not. Of several it is the one whose centre is nearest; of several that are as near, the lowest on the
    slide, and of these the rightmost. Memory does not grow with the product of the numbers of patches.

    Args:
        corners: per scale, from low to high magnification, ``[n_s, 2]``: (x, y) of the top left corners in level-0
            pixels; they may overlap and need no common grid.
        sides: the side of a patch of each scale in level-0 pixels.
        tolerance_px: how far a centre may be outside of a patch; for positions that were rounded to pixels, 1. Two
            distances that differ by less than rounding explains then count as equal.

    Returns:
        The rows, in the order of their patches of the highest magnification; there may be none.
    """
    order = [np.lexsort((of_scale[:, 0], of_scale[:, 1])) for of_scale in corners]
    centres = corners[-1][order[-1]] + sides[-1] / 2
    found = [
        _ancestors(centres, of_scale[ranked], side, tolerance_px)
        for of_scale, side, ranked in zip(corners[:-1], sides[:-1], order[:-1], strict=True)
    ]
    linked = np.stack([*found, np.arange(len(centres))], axis=1)
    is_linked = (linked >= 0).all(axis=1)
    patches, rows = [], []
    for ranked, of_scale in zip(order, linked[is_linked].T, strict=True):
        used, places = np.unique(of_scale, return_inverse=True)
        patches.append(ranked[used].astype(np.int64))
        rows.append(places.reshape(-1))
    return FreeLinks(
        patches=tuple(patches),
        rows=np.stack(rows, axis=1).astype(np.int64),
        orphans=int((~is_linked).sum()),
        unused=sum(len(given) - len(used) for given, used in zip(order[:-1], patches[:-1], strict=True)),
    )


def _ancestors(
    centres: NDArray[np.float64], corners: NDArray[np.float64], side: float, tolerance: float
) -> NDArray[np.int64]:
    """``[N]``: the patch of each centre ``[N, 2]`` among corners ``[n, 2]``, sorted by y, then x; -1: none."""
    ancestors = np.full(len(centres), -1, dtype=np.int64)
    if not len(centres) or not len(corners):
        return ancestors
    for owners, patches in _near_pairs(centres, corners, side + tolerance, tolerance):
        inside = centres[owners] - corners[patches]
        least, most = -tolerance, side + tolerance
        contains = ((inside >= least) & (inside < most)).all(axis=1)
        owners, patches = owners[contains], patches[contains]
        if not len(owners):
            continue
        distances = np.linalg.norm(inside[contains] - side / 2, axis=1)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        nearest = np.minimum.reduceat(distances, starts)
        counts = np.diff(starts, append=len(owners))
        is_nearest = distances <= np.repeat(nearest, counts) + DISTANCES_DIFFER * tolerance
        # Sorted by y, then x: the last of several is the lowest, then the rightmost.
        ancestors[owners[starts]] = np.maximum.reduceat(np.where(is_nearest, patches, -1), starts)
    return ancestors


def _near_pairs(
    centres: NDArray[np.float64], corners: NDArray[np.float64], reach: float, tolerance: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of a centre and a patch whose corner is in one of the four cells that may contain the centre.

    Yields:
        the centre of each pair, in order, and its patch.
    """
    # A patch's corner is at most one reach above and left of a centre in it, so two cells along each axis are enough.
    cell = reach + tolerance
    start = np.minimum(corners.min(axis=0), centres.min(axis=0)) - 2 * cell
    of_corners, of_centres = (
        np.floor((points - start) / cell).astype(np.int64) for points in (corners, centres + tolerance)
    )
    width = int(max(of_corners[:, 0].max(), of_centres[:, 0].max())) + 2
    keys = of_corners[:, 1] * width + of_corners[:, 0]
    by_cell = np.argsort(keys, kind="stable")
    keys = keys[by_cell]
    # Two rows of cells for each centre; the two cells of a row have successive keys.
    last = (of_centres[:, 1:] - [1, 0]) * width + of_centres[:, :1]  # [N, 2]
    first = np.searchsorted(keys, (last - 1).reshape(-1), side="left")
    counts = np.searchsorted(keys, last.reshape(-1), side="right") - first
    total = np.cumsum(counts.reshape(-1, 2).sum(axis=1))
    begin = 0
    while begin < len(centres):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + PAIRS_AT_ONCE, side="right")))
        part = slice(2 * begin, 2 * end)
        sizes = counts[part]
        owners = np.repeat(np.arange(2 * begin, 2 * end) // 2, sizes)
        offsets = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield owners, by_cell[np.repeat(first[part], sizes) + offsets]
        begin = end
