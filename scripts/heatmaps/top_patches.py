"""The patches of a map with the highest values, as a gallery of linked patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.bags.linked_patches import framed_patches
from scripts.core.magnification import Scale
from scripts.heatmaps.attention_maps import PatchMap
from scripts.heatmaps.legend import Title
from scripts.heatmaps.lettering import MARGIN_PX, stacked, text_block
from scripts.slides.frames import LEVEL0, Frame

__all__ = ["central_row", "gallery", "top_patches"]

TEXT_PX = 15
# An entry's text needs as much, whatever the size of its patches.
LEAST_WIDTH_PX = 400
OUTLINE_PX, GAP_PX = 3, 24
OUTLINE = (0, 0, 0)


def top_patches(heat: PatchMap, count: int) -> NDArray[np.int64]:
    """The indices of the ``count`` patches with the highest values, highest first; ties are in the grid's order."""
    return np.argsort(-heat.percentile, kind="stable")[:count]


def central_row(corners: NDArray[np.float64], sides_level0: Sequence[float], scale_index: int, patch: int) -> int:
    """Of the rows with the same patch at a scale as row ``patch``, the one whose finest patch is most central in it.

    Args:
        corners: ``[N, S, 2]``, (x, y) of each row's patches in level-0 pixels.
        sides_level0: ``[S]``, of the patches.
        scale_index: the scale.
        patch: any row with that patch.
    """
    rows = np.flatnonzero((corners[:, scale_index] == corners[patch, scale_index]).all(axis=1))
    centre = corners[patch, scale_index] + sides_level0[scale_index] / 2
    distance = np.linalg.norm(corners[rows, -1] + sides_level0[-1] / 2 - centre, axis=1)
    return int(rows[np.argmin(np.round(distance, 6))])


def gallery(
    heats: Sequence[PatchMap],
    count: int,
    title: Title,
    corners: NDArray[np.float64],
    scales: Sequence[Scale],
    scale_index: int,
    read: Callable[[int, tuple[float, float]], NDArray[np.uint8]],
    frame: Frame = LEVEL0,
) -> NDArray[np.uint8]:
    """A column for each kind of map, with the patches of the highest values, highest first; RGB ``[h, w, 3]``.

    An entry shows linked patches from low to high magnification, a frame on each marking the next. The patch that the
    value is of has a black outline; if finer patches lie in it, the most central one is shown (:func:`central_row`).
    Below are the value, its percentile, and the centre of the patch.

    Args:
        heats: attention, contribution or both of the same map and class.
        count: patches of each column, at least 1.
        title: of the picture.
        corners: ``[N, S, 2]``, (x, y) of each row's patches in level-0 pixels; NaN for padding.
        scales: the S scales, from low to high.
        scale_index: whose patches the maps lie on.
        read: gives a patch, RGB ``[H, W, 3]``, from the scale's index and the corner (x, y) in level-0 pixels.
        frame: that of the positions.

    Raises:
        SlideError: if ``read`` raises it.
    """
    sides = [scale.patch_level0 for scale in scales]
    columns = []
    for heat in heats:
        entries = []
        for rank, patch in enumerate(top_patches(heat, count), start=1):
            (first, *_) = np.flatnonzero((corners[:, scale_index] == heat.corners[patch]).all(axis=1))
            row = corners[central_row(corners, sides, scale_index, int(first))]
            shown = [
                cv2.copyMakeBorder(pixels, *(OUTLINE_PX,) * 4, cv2.BORDER_CONSTANT,
                                   value=OUTLINE if s == scale_index else (255, 255, 255))
                for s, pixels in enumerate(framed_patches(read, scales, row))
            ]  # fmt: skip
            picture = stacked([np.asarray(pixels, np.uint8) for pixels in shown], axis=1)
            text = _lines(heat, int(patch), rank, frame)
            entries.append(stacked([picture, text_block(text, max(picture.shape[1], LEAST_WIDTH_PX), OUTLINE_PX)]))
        heading = text_block([(f"Highest {heat.kind}", TEXT_PX + 3)], entries[0].shape[1], OUTLINE_PX)
        columns.append(stacked([heading, *entries], gap_px=MARGIN_PX // 2))
    body = np.pad(
        stacked(columns, axis=1, gap_px=GAP_PX), ((0, 0), (MARGIN_PX, MARGIN_PX), (0, 0)), constant_values=255
    )
    above = np.full((MARGIN_PX // 2, 1, 3), 255, np.uint8)
    return stacked([above, text_block(title.lines(), body.shape[1]), body])


def _lines(heat: PatchMap, patch: int, rank: int, frame: Frame) -> list[tuple[str, int]]:
    x, y = frame.from_level0(heat.corners[patch] + heat.patch_level0 / 2)
    sign = "+" if heat.kind == "contribution" else ""
    x_mm, y_mm = (v * heat.base_mpp / 1000 for v in (x, y))
    return [
        (f"{rank}.  {heat.kind} {heat.values[patch]:{sign}.4g}, percentile {heat.percentile[patch]:.1f}", TEXT_PX),
        (f"centre x {x_mm:.3f} mm, y {y_mm:.3f} mm", TEXT_PX),
        (f"x {x:.0f} px, y {y:.0f} px of level 0 ({frame.coordinates})", TEXT_PX),
    ]
