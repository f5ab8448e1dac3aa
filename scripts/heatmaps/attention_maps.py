"""Maps over a slide's patches, of attention or contribution: from a bag's rows to the unique patches of one scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

__all__ = ["KINDS", "PatchMap", "gather_rows"]

KINDS = ("attention", "contribution")
"""What a map can hold: where a network looks, and what it concludes there (``BagNetwork.explain``)."""

# Rows that share a patch are summed from float32, so that equal values come out a hair apart: no tie is broken,
# and no rank given, by less than this.
TIE_RTOL = 2e-6


@dataclass(frozen=True)
class PatchMap:
    """One map of one class: a number for each patch of one scale of a slide, each patch once.

    Args:
        corners: ``[n, 2]`` float64, (x, y) of the patches' top left corners in level-0 pixels; n is at least 1.
        patch_level0: side of the patches in level-0 pixels, not rounded.
        base_mpp: micrometres per pixel of level 0.
        values: ``[n]`` float64. Attention: at least 0; the parts of an attention that sums to 1, over this map or
            over all maps of the same attention (the union of all scales in MSMIL). Contribution: in logits, of
            either sign; over the same maps it sums to the class's logit less its bias.
        kind: one of :data:`KINDS`.

    Raises:
        ValueError: if a shape, a value or the kind is outside of this.
    """

    corners: NDArray[np.float64]
    patch_level0: float
    base_mpp: float
    values: NDArray[np.float64]
    kind: str = "attention"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a map holds {' or '.join(KINDS)}, not {self.kind!r}")
        shapes = self.corners.shape, self.values.shape
        if len(self.values) == 0 or shapes != ((len(self.values), 2), (len(self.values),)):
            raise ValueError(f"wanted corners [n, 2] and {self.kind} [n], n > 0, got {shapes[0]} and {shapes[1]}")
        if not (np.isfinite(self.corners).all() and np.isfinite(self.values).all()):
            raise ValueError(f"corners and {self.kind} must be finite")
        if self.kind == "attention" and self.values.min() < 0:
            raise ValueError(f"attention must be at least 0, got {self.values.min():g}")
        if not (0 < self.patch_level0 < np.inf and 0 < self.base_mpp < np.inf):
            raise ValueError(f"patch and pixel must have a size, got {self.patch_level0} px, {self.base_mpp} um/px")

    @cached_property
    def percentile(self) -> NDArray[np.float64]:
        """``[n]``, in (0, 100]: the rank among the slide's patches; equal values share their mean rank."""
        magnitude = _levels(np.abs(self.values))
        level = np.where(self.values < 0, -magnitude, magnitude)
        return np.asarray(100 * rankdata(level) / len(level), dtype=np.float64)

    @property
    def shade(self) -> NDArray[np.float64]:
        """``[n]``, in 0..100: where each patch stands on the colour scale of its kind.

        Attention has its percentile. Contribution has 50 for nothing, more for the class and less against it,
        and 0 or 100 for the patch of the slide that says most, so that a colour never hides the sign.
        """
        if self.kind == "attention":
            return self.percentile
        most = float(np.abs(self.values).max())
        return 50 + 50 * self.values / most if most > 0 else np.full(len(self.values), 50.0)

    @property
    def patch_um(self) -> float:
        """Side of the patches in micrometres."""
        return self.patch_level0 * self.base_mpp


def _levels(magnitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    """``[n]``: equal for magnitudes that are a tie, else in their order.

    A tie reaches from its smallest member as far as the tolerance and no further: neighbour by neighbour, a large
    slide's flat attention would become one tie.
    """
    order = np.argsort(magnitudes, kind="stable")
    ascending = magnitudes[order]
    reach = np.searchsorted(ascending, ascending * (1 + TIE_RTOL), side="right")
    starts = np.zeros(len(order), dtype=bool)
    place = 0
    while place < len(order):
        starts[place] = True
        place = int(reach[place])
    level = np.empty(len(order), dtype=np.int64)
    level[order] = np.cumsum(starts)
    return level


def gather_rows(
    values: NDArray[np.floating],
    corners: NDArray[np.float64],
    patch_level0: float,
    base_mpp: float,
    kind: str = "attention",
) -> PatchMap:
    """Sum the attention, or the contribution, of the rows that share a patch.

    Args:
        values: ``[N]``, of each row.
        corners: ``[N, 2]``, (x, y) of the top left corner of each row's patch in level-0 pixels; rows that share
            a patch have equal ones, padding has NaN and is left out.
        patch_level0: side of the patches in level-0 pixels.
        base_mpp: micrometres per pixel of level 0.
        kind: one of :data:`KINDS`.

    Returns:
        The map over the unique patches, from top to bottom and left to right, as the grid orders them.

    Raises:
        ValueError: if the shapes do not fit, no row is left, or :class:`PatchMap` refuses a value or the kind.
    """
    if corners.shape != (*values.shape, 2) or values.ndim != 1:
        raise ValueError(f"wanted {kind} [N] and corners [N, 2], got {values.shape} and {corners.shape}")
    real = ~np.isnan(corners).any(axis=1)
    # Sorted by y first: the columns are swapped, and swapped back.
    patches, patch_of_row = np.unique(corners[real][:, ::-1], axis=0, return_inverse=True)
    summed = np.zeros(len(patches))
    np.add.at(summed, patch_of_row.reshape(-1), values[real])
    return PatchMap(patches[:, ::-1].astype(np.float64), float(patch_level0), float(base_mpp), summed, kind)
