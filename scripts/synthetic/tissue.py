"""Synthetic tissue: stroma, crypts, dysplastic glands and tumour nests.

Two stains, haematoxylin and eosin, are painted on planes of their own, and turned into colour by their absorption.
How the classes differ:

- cancer: ragged solid nests, visible at 5x and at 10x.
- hgd and lgd: the same crowded glands. The nuclei of hgd are coarsely mottled, with a period of 2 to 3 um and a mean
  of zero over every pixel of 2 um: visible at 10x, invisible at 5x.
- hyperplastic and normal: the same small crypts, and as many large ones among them, so far apart that a 10x patch
  never shows two of them whole. In hyperplastic they crowd in broad bands, in normal they are spread evenly: visible
  at 5x, invisible at 10x.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.synthetic.shapes import (
    BASE_MPP,
    SHIFT,
    Points,
    Polygon,
    ellipses,
    in_px,
    noise,
    outlines,
    tiled,
    without_coarse_part,
)  # fmt: skip

__all__ = ["CLASSES", "MASK_STEP_PX", "Stain", "background", "draw_tissue", "sample_stain"]

CLASSES = ("cancer", "hgd", "lgd", "hyperplastic", "normal")
# Base pixels per pixel of the masks: 8 um.
MASK_STEP_PX = 16

# Optical density of pure stain in red, green and blue.
HAEMATOXYLIN = np.array([0.68, 0.76, 0.36])
EOSIN = np.array([0.09, 0.72, 0.36])
# A plane's 255 stands for this multiple of the stain's density.
FULL_DENSITY = 2.2

# The lattice of the large crypts, half of whose places are taken, and how far it may turn. A 10x patch (224 um) is
# smaller than the pitch, so it never shows two crypts whole. A 5x patch (448 um) shows up to four places.
LARGE_PITCH_UM = 240.0
LARGE_RADIUS_UM = 50.0
LARGE_TURN_DEG = 3.0
# Spread of the mottling, as a fraction of the light that passes.
MOTTLE = 0.36

_TEXTURE_PX = 1024

Plane = NDArray[np.uint8]


@dataclass(frozen=True)
class Stain:
    """How strongly one slide took the stains."""

    haematoxylin: float  # factor of its density, about 1
    eosin: float  # factor of its density, about 1
    white: tuple[float, float, float]  # red, green and blue of the empty glass, 0 to 255


def sample_stain(rng: np.random.Generator) -> Stain:
    """A mild variation of the stains, as between days in one laboratory."""
    haematoxylin, eosin = rng.uniform(0.93, 1.07, 2).tolist()
    brightness = rng.uniform(238, 247)
    red, green, blue = (brightness + rng.uniform(-2, 2, 3)).tolist()
    return Stain(haematoxylin, eosin, (red, green, blue))


def background(width_px: int, height_px: int, stain: Stain, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Empty glass, slightly uneven, as RGB ``[height_px, width_px, 3]``."""
    side = 512
    grain = cv2.GaussianBlur(rng.normal(0, 2.0, (side, side, 1)).astype(np.float32), (0, 0), 1.0)
    glass = np.clip(np.array(stain.white) + grain[..., None] * 1.5, 0, 255).astype(np.uint8)
    repeats = (-(-height_px // side), -(-width_px // side), 1)
    return np.ascontiguousarray(np.tile(glass, repeats)[:height_px, :width_px])


def draw_tissue(
    glass: NDArray[np.uint8],
    tissue: NDArray[np.float32],
    labels: NDArray[np.uint8],
    stain: Stain,
    rng: np.random.Generator,
) -> None:
    """Paint one piece of tissue over the glass, in place.

    Args:
        glass: RGB ``[16 * rows, 16 * columns, 3]`` at 0.5 um/px. Its top left corner lies on a multiple of 16 pixels
            of the slide.
        tissue: ``[rows, columns]`` at 8 um/px; above 0.5 is tissue.
        labels: ``[rows, columns]``, 0 for none and class index + 1 in the region of a class.
        stain: the slide's stains.
        rng: the slide's generator.
    """
    height_px, width_px = glass.shape[:2]
    field = cv2.resize(tissue, (width_px, height_px), interpolation=cv2.INTER_LINEAR)
    painter = _Painter(np.clip((field - 0.5) * 60 + 0.5, 0, 1), labels, rng)
    painter.stroma()
    for value in np.unique(labels[labels > 0]).tolist():
        name = CLASSES[value - 1]
        if name == "cancer":
            painter.nests(value)
        elif name in ("hgd", "lgd"):
            painter.crowded_glands(value, mottled=name == "hgd")
        else:
            painter.crypts(value, banded=name == "hyperplastic")
    painter.develop(glass, stain)


class _Painter:
    """The two stain planes of one piece of tissue, and what is painted on them."""

    def __init__(self, inside: NDArray[np.float32], labels: NDArray[np.uint8], rng: np.random.Generator) -> None:
        self.inside, self.labels, self.rng = inside, labels, rng
        self.h: Plane = np.zeros(inside.shape, np.uint8)
        self.e: Plane = np.zeros(inside.shape, np.uint8)
        # Factor of the light that passes. Mottling it leaves the mean as it is; mottling a stain would not.
        self.gain: NDArray[np.float32] = np.ones(inside.shape, np.float32)

    def stroma(self) -> None:
        """Wavy pink fibres with few, thin nuclei, everywhere in the tissue."""
        rng = self.rng
        height_px, width_px = self.inside.shape
        fibres = noise(rng, _TEXTURE_PX, (6, 40), stretch=3.0)
        clouds = noise(rng, _TEXTURE_PX, (60, 400))
        grain = noise(rng, _TEXTURE_PX, (2, 6))
        pink = np.clip(62 + 15 * fibres + 9 * clouds + 5 * grain, 8, 160).astype(np.uint8)
        blue = np.clip(10 + 3 * clouds + 4 * grain, 0, 60).astype(np.uint8)
        self.e[:] = tiled(pink, height_px, width_px)
        self.h[:] = tiled(blue, height_px, width_px)
        area_mm2 = height_px * width_px * (BASE_MPP / 1000) ** 2
        everywhere = rng.uniform((0, 0), (width_px, height_px), (int(area_mm2 * 900), 2))
        self._nuclei(everywhere, (3.6, 1.3), (120, 190))

    def nests(self, value: int) -> None:
        """Ragged solid sheets of large, uneven cells."""
        centres = self._lattice(value, pitch_um=118, jitter=0.22, margin_um=35)
        radii_px = in_px(self.rng.uniform(34, 56, len(centres)))
        sheets = outlines(self.rng, centres, radii_px, raggedness=0.16, stretch=(1.0, 1.7))
        self._fill(sheets, h=62, e=58)
        cells = self._scatter_in(sheets, pitch_um=9.5)
        self._nuclei(cells, (4.2, 3.0), (105, 200))
        holes = outlines(self.rng, centres[::3], radii_px[::3] * 0.25, raggedness=0.25, stretch=(1.0, 1.8))
        self._fill(holes, h=6, e=14)

    def crowded_glands(self, value: int, mottled: bool) -> None:
        """Long dark glands back to back. Mottled or not, they look the same at 2 um/px."""
        rng = self.rng
        centres = self._lattice(value, pitch_um=84, jitter=0.12, margin_um=30)
        angles = rng.uniform(0, np.pi) + rng.normal(0, 0.35, len(centres))
        stretch = rng.uniform(1.15, 1.6, len(centres))
        radii_px = in_px(rng.uniform(31, 36, len(centres)))
        outer = outlines(rng, centres, radii_px, 0.05, stretch=stretch, angles=angles)
        inner = outlines(rng, centres, radii_px * 0.42, 0.10, stretch=stretch * 1.25, angles=angles)
        rim = np.zeros_like(self.h)
        for shapes, h, e, in_rim in ((outer, 118, 52, 255), (inner, 40, 60, 0)):
            self._fill(shapes, h, e)
            for shape in shapes:
                cv2.fillPoly(rim, [shape], in_rim, cv2.LINE_AA, SHIFT)
        self._fill(outlines(rng, centres, radii_px * 0.22, 0.15, stretch=stretch * 1.4, angles=angles), h=3, e=8)
        # Both textures have the same spread, so that JPEG and rounding treat them alike.
        period_px = (4.0, 6.0) if mottled else (1.0, 2.6)
        texture = without_coarse_part(noise(rng, _TEXTURE_PX, period_px).clip(-2, 2))
        height_px, width_px = self.h.shape
        soft_rim = cv2.GaussianBlur(rim, (3, 3), 0)
        self.gain += tiled(texture / texture.std(), height_px, width_px) * (soft_rim * np.float32(MOTTLE / 255))

    def crypts(self, value: int, banded: bool) -> None:
        """Small crypts everywhere, and large ones in broad bands or spread evenly."""
        large = self._large_lattice(value, banded)
        small = self._lattice(value, pitch_um=66, jitter=0.10, margin_um=26)
        if len(large):
            gaps = np.linalg.norm(small[:, None] - large[None], axis=2).min(axis=1)
            small = small[gaps > in_px(LARGE_RADIUS_UM + 28)]
        self._small_crypts(small)
        self._large_crypts(large)

    def develop(self, glass: NDArray[np.uint8], stain: Stain) -> None:
        """Turn the planes into colour over the glass."""
        blue = (cv2.GaussianBlur(self.h, (3, 3), 0) * self.inside).astype(np.uint8)
        pink = (cv2.GaussianBlur(self.e, (3, 3), 0) * self.inside).astype(np.uint8)
        steps = np.arange(256) / 255 * FULL_DENSITY
        table_h = np.exp(-stain.haematoxylin * np.outer(steps, HAEMATOXYLIN)) * 255
        table_e = np.exp(-stain.eosin * np.outer(steps, EOSIN)) * 255
        for channel in range(3):
            light = cv2.multiply(
                cv2.LUT(blue, np.rint(table_h[:, channel]).astype(np.uint8)),
                cv2.LUT(pink, np.rint(table_e[:, channel]).astype(np.uint8)),
                scale=1 / 255,
            )
            light = cv2.multiply(light, self.gain, dtype=cv2.CV_8U)
            glass[..., channel] = cv2.multiply(light, glass[..., channel], scale=1 / 255)

    def _small_crypts(self, centres: Points) -> None:
        rng = self.rng
        radii_px = in_px(rng.uniform(20, 24, len(centres)))
        self._fill(outlines(rng, centres, radii_px, 0.05, stretch=(1.0, 1.2)), h=34, e=44)
        self._ring_of_nuclei(centres, radii_px * 0.86, spacing_um=6.0)
        self._goblets(centres, radii_px * 0.56, count=7, radius_um=3.6)
        self._fill(outlines(rng, centres, radii_px * 0.17, 0.15, stretch=(1.0, 1.6)), h=3, e=10)

    def _large_crypts(self, centres: Points) -> None:
        rng = self.rng
        radii_px = in_px(rng.uniform(LARGE_RADIUS_UM - 1.5, LARGE_RADIUS_UM, len(centres)))
        self._fill(outlines(rng, centres, radii_px, 0.02, stretch=(1.0, 1.05)), h=120, e=60)
        for part in (0.94, 0.82):
            self._ring_of_nuclei(centres, radii_px * part, spacing_um=5.2)
        self._fill(outlines(rng, centres, radii_px * 0.72, 0.03, stretch=(1.0, 1.1)), h=3, e=4)

    def _large_lattice(self, value: int, banded: bool) -> Points:
        """Places of the large crypts in pixels: three rows of every six of a lattice, or every other place."""
        rng = self.rng
        pitch_px = in_px(LARGE_PITCH_UM)
        rows, columns = np.nonzero(self.labels == value)
        middle = np.array([columns.mean(), rows.mean()]) * MASK_STEP_PX
        reach = int(np.hypot(*self.inside.shape) / pitch_px)
        places = np.arange(-reach, reach + 1)
        i, j = (index.ravel() for index in np.meshgrid(places, places))
        phase = rng.integers(6)
        # Bands lie across the region's length, so that every region has several.
        along = i if np.ptp(columns) > np.ptp(rows) else j
        taken = (along + phase) % 6 < 3 if banded else (i + j + phase) % 2 == 0
        x, y = (np.stack([i, j])[:, taken] + rng.uniform(-0.5, 0.5, (2, 1))) * pitch_px
        turn = np.deg2rad(rng.uniform(-LARGE_TURN_DEG, LARGE_TURN_DEG))
        centres = middle + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)
        centres += rng.uniform(-1, 1, centres.shape) * in_px(3)
        return centres[self._is_in(value, centres, margin_um=LARGE_RADIUS_UM + 4)]

    def _lattice(self, value: int, pitch_um: float, jitter: float, margin_um: float) -> Points:
        """Jittered hexagonal lattice, in pixels, within the region of a class."""
        rng = self.rng
        pitch_px = float(in_px(pitch_um))
        height_px, width_px = self.inside.shape
        x, y = np.meshgrid(np.arange(0, width_px, pitch_px), np.arange(0, height_px, pitch_px * 0.866))
        x[1::2] += pitch_px / 2
        centres = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(0, pitch_px, 2)
        centres += rng.normal(0, jitter * pitch_px, centres.shape)
        return centres[self._is_in(value, centres, margin_um)]

    def _is_in(self, value: int, centres: Points, margin_um: float) -> NDArray[np.bool_]:
        """Which points lie in the region of a class, this far from its border."""
        depth = cv2.distanceTransform(np.pad(self.labels == value, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        columns, rows = np.floor(centres / MASK_STEP_PX).astype(int).T
        known = (columns >= 0) & (rows >= 0) & (columns < depth.shape[1]) & (rows < depth.shape[0])
        depth_um = np.zeros(len(centres))
        depth_um[known] = depth[rows[known], columns[known]] * MASK_STEP_PX * BASE_MPP
        return depth_um > margin_um

    def _scatter_in(self, shapes: list[Polygon], pitch_um: float) -> Points:
        """Jittered lattice, in pixels, within shapes."""
        mask = np.zeros(self.labels.shape, np.uint8)
        for shape in shapes:
            cv2.fillPoly(mask, [np.rint(shape / (MASK_STEP_PX << SHIFT)).astype(np.int32)], 1)
        pitch_px = float(in_px(pitch_um))
        height_px, width_px = self.inside.shape
        x, y = np.meshgrid(np.arange(0, width_px, pitch_px), np.arange(0, height_px, pitch_px))
        points = np.stack([x.ravel(), y.ravel()], axis=1)
        points += self.rng.normal(0, 0.22 * pitch_px, points.shape)
        nearest = np.floor(points / MASK_STEP_PX).astype(int).clip(0, np.array(mask.shape)[::-1] - 1)
        return points[mask[nearest[:, 1], nearest[:, 0]] > 0]

    def _ring_of_nuclei(self, centres: Points, radii_px: NDArray[np.float64], spacing_um: float) -> None:
        counts = np.maximum(6, (2 * np.pi * radii_px / in_px(spacing_um)).astype(int))
        owner = np.repeat(np.arange(len(centres)), counts)
        turn = np.concatenate([np.linspace(0, 2 * np.pi, n, endpoint=False) for n in counts] or [np.empty(0)])
        turn += self.rng.normal(0, 0.03, len(turn))
        reach = radii_px[owner] * self.rng.normal(1, 0.03, len(turn))
        points = centres[owner] + np.stack([np.cos(turn), np.sin(turn)], axis=1) * reach[:, None]
        self._nuclei(points, (3.0, 1.9), (130, 180), angles=turn)

    def _goblets(self, centres: Points, radii_px: NDArray[np.float64], count: int, radius_um: float) -> None:
        turn = self.rng.uniform(0, 2 * np.pi, (len(centres), 1)) + np.arange(count) * (2 * np.pi / count)
        turn += self.rng.normal(0, 0.12, turn.shape)
        points = centres[:, None] + np.stack([np.cos(turn), np.sin(turn)], axis=2) * radii_px[:, None, None]
        size = np.full((len(points) * count, 2), radius_um) * self.rng.uniform(0.8, 1.2, (len(points) * count, 1))
        shapes = ellipses(points.reshape(-1, 2), in_px(size), turn.ravel())
        self._fill(list(shapes), h=12, e=8)

    def _fill(self, shapes: list[Polygon], h: int, e: int) -> None:
        # One by one: in a single call, shapes that overlap would cut holes into each other.
        for shape in shapes:
            cv2.fillPoly(self.h, [shape], h, cv2.LINE_AA, SHIFT)
            cv2.fillPoly(self.e, [shape], e, cv2.LINE_AA, SHIFT)

    def _nuclei(
        self,
        points: Points,
        axes_um: tuple[float, float],
        shades: tuple[int, int],
        angles: NDArray[np.float64] | None = None,
    ) -> None:
        rng = self.rng
        size = in_px(np.array(axes_um) * rng.uniform(0.75, 1.25, (len(points), 2)))
        turned = rng.uniform(0, np.pi, len(points)) if angles is None else angles
        values = rng.integers(shades[0], shades[1], len(points)).tolist()
        for shape, value in zip(ellipses(points, size, turned), values, strict=True):
            cv2.fillConvexPoly(self.h, shape, value, cv2.LINE_AA, SHIFT)
