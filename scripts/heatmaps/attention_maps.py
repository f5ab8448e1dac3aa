"""Maps over a slide's patches, of attention or contribution: from a bag's rows to the unique patches of one scale."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

__all__ = ["KINDS", "PatchMap", "gather_rows"]

KINDS = ("attention", "contribution")
"""What a map can show: where a network looks, and what it concludes there (``BagNetwork.explain``, in this order)."""

# Rows that share a patch are summed from float32, which leaves equal values slightly apart. Values that differ by less
# than this are a tie.
TIE_RTOL = 2e-6


@dataclass(frozen=True)
class PatchMap:
    """One map of one class: a number for each patch of one scale of a slide, each patch once.

    Args:
        corners: ``[n, 2]`` float64, (x, y) of the patches' top left corners in level-0 pixels; n is at least 1.
        patch_level0: side of the patches in level-0 pixels, not rounded.
        base_mpp: micrometres per pixel of level 0.
        values: ``[n]`` float64. Attention: at least 0; together with the other maps of the same attention (all scales
            in MSMIL) it sums to 1. Contribution: in logits, of either sign; over the same maps it sums to the class's
            logit less its bias.
        kind: one of :data:`KINDS`.
        others: the values of the patches of the bag's other slides at this scale. Ranks and colours are those among
            all, so that the maps of a patient's slides compare.

    Raises:
        ValueError: if there is no patch, a number is not finite, or an attention is negative.
    """

    corners: NDArray[np.float64]
    patch_level0: float
    base_mpp: float
    values: NDArray[np.float64]
    kind: str = "attention"
    others: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if not self.values.size or self.corners.shape != (*self.values.shape, 2):
            raise ValueError(f"wanted {self.kind} [n] of some patches, got {list(self.values.shape)}")
        if not (np.isfinite(self.corners).all() and np.isfinite(self.values).all()):
            raise ValueError(f"corners and {self.kind} must be finite")
        if self.kind == "attention" and self.values.min() < 0:
            raise ValueError(f"attention must be at least 0, got {self.values.min():g}")

    @cached_property
    def percentile(self) -> NDArray[np.float64]:
        """``[n]``, in (0, 100]: the rank among the bag's patches; equal values share their mean rank."""
        of_bag = np.concatenate([self.values, self.others])
        magnitude = _levels(np.abs(of_bag))
        level = np.where(of_bag < 0, -magnitude, magnitude)
        return np.asarray(100 * rankdata(level) / len(level), dtype=np.float64)[: len(self.values)]

    @cached_property
    def greatest(self) -> float:
        """The greatest magnitude of the values of the bag's patches."""
        return float(np.abs(np.concatenate([self.values, self.others])).max())

    @property
    def shade(self) -> NDArray[np.float64]:
        """``[n]``, in 0..100: the place of each patch on the colour scale of its kind.

        Attention has its percentile. Contribution has 50 for nothing, more for the class and less against it, and 0 or
        100 for the patch of the greatest magnitude in the bag, so that a colour never hides the sign.
        """
        if self.kind == "attention":
            return self.percentile
        most = self.greatest
        return 50 + 50 * self.values / most if most > 0 else np.full(len(self.values), 50.0)

    @property
    def patch_um(self) -> float:
        """Side of the patches in micrometres."""
        return self.patch_level0 * self.base_mpp


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
        corners: ``[N, 2]``, (x, y) of each row's patch in level-0 pixels; equal for rows that share a patch, and NaN
            for padding, which is left out.
        patch_level0: side of the patches in level-0 pixels.
        base_mpp: micrometres per pixel of level 0.
        kind: one of :data:`KINDS`.

    Returns:
        The map over the unique patches, from top to bottom and left to right, as the grid orders them.

    Raises:
        ValueError: as :class:`PatchMap`.
    """
    real = ~np.isnan(corners).any(axis=1)
    # Sorted by y first: the columns are swapped, and swapped back.
    patches, patch_of_row = np.unique(corners[real][:, ::-1], axis=0, return_inverse=True)
    summed = np.zeros(len(patches))
    np.add.at(summed, patch_of_row.reshape(-1), values[real])
    return PatchMap(patches[:, ::-1].astype(np.float64), float(patch_level0), float(base_mpp), summed, kind)


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
