"""The attention over a slide's patches: from the rows of a bag to the unique patches of one scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

__all__ = ["AttentionMap", "gather_attention"]

# Rows that share a patch are summed from float32, so that equal attentions come out a hair apart: no tie is
# broken, and no rank given, by less than this.
TIE_RTOL = 2e-6


@dataclass(frozen=True)
class AttentionMap:
    """One attention map of one class: a number for each patch of one scale of a slide, each patch once.

    Args:
        corners: ``[n, 2]`` float64, (x, y) of the patches' top left corners in level-0 pixels; n is at least 1.
        patch_level0: side of the patches in level-0 pixels, not rounded.
        base_mpp: micrometres per pixel of level 0.
        attention: ``[n]`` float64, at least 0; the parts of an attention that sums to 1, over this map or over
            all maps of the same attention (the union of all scales in MSMIL).

    Raises:
        ValueError: if a shape or a value is outside of this.
    """

    corners: NDArray[np.float64]
    patch_level0: float
    base_mpp: float
    attention: NDArray[np.float64]

    def __post_init__(self) -> None:
        shapes = self.corners.shape, self.attention.shape
        if len(self.attention) == 0 or shapes != ((len(self.attention), 2), (len(self.attention),)):
            raise ValueError(f"wanted corners [n, 2] and attention [n], n > 0, got {shapes[0]} and {shapes[1]}")
        if not (np.isfinite(self.corners).all() and np.isfinite(self.attention).all() and self.attention.min() >= 0):
            raise ValueError("corners and attention must be finite, and attention at least 0")
        if not (0 < self.patch_level0 < np.inf and 0 < self.base_mpp < np.inf):
            raise ValueError(f"patch and pixel must have a size, got {self.patch_level0} px, {self.base_mpp} um/px")

    @cached_property
    def percentile(self) -> NDArray[np.float64]:
        """``[n]``, in (0, 100]: the rank among the slide's patches; equal attentions share their mean rank."""
        order = np.argsort(self.attention, kind="stable")
        ascending = self.attention[order]
        level = np.empty(len(order), dtype=np.int64)
        level[order] = np.concatenate([[0], np.cumsum(ascending[1:] > ascending[:-1] * (1 + TIE_RTOL))])
        return np.asarray(100 * rankdata(level) / len(level), dtype=np.float64)

    @property
    def patch_um(self) -> float:
        """Side of the patches in micrometres."""
        return self.patch_level0 * self.base_mpp


def gather_attention(
    attention: NDArray[np.floating], corners: NDArray[np.float64], patch_level0: float, base_mpp: float
) -> AttentionMap:
    """Sum the attention of the rows that share a patch.

    Args:
        attention: ``[N]``, of each row, at least 0.
        corners: ``[N, 2]``, (x, y) of the top left corner of each row's patch in level-0 pixels; rows that share
            a patch have equal ones, padding has NaN and is left out.
        patch_level0: side of the patches in level-0 pixels.
        base_mpp: micrometres per pixel of level 0.

    Returns:
        The map over the unique patches, from top to bottom and left to right, as the grid orders them.

    Raises:
        ValueError: if the shapes do not fit, no row is left, or a value is not finite or below 0.
    """
    if corners.shape != (*attention.shape, 2) or attention.ndim != 1:
        raise ValueError(f"wanted attention [N] and corners [N, 2], got {attention.shape} and {corners.shape}")
    real = ~np.isnan(corners).any(axis=1)
    # Sorted by y first: the columns are swapped, and swapped back.
    patches, patch_of_row = np.unique(corners[real][:, ::-1], axis=0, return_inverse=True)
    summed = np.zeros(len(patches))
    np.add.at(summed, patch_of_row.reshape(-1), attention[real])
    return AttentionMap(patches[:, ::-1].astype(np.float64), float(patch_level0), float(base_mpp), summed)
