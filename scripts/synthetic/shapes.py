"""Shapes and textures of synthetic tissue."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BASE_MPP", "SHIFT", "Points", "Polygon", "ellipses", "in_px", "noise", "outlines", "tiled", "without_coarse_part",
]  # fmt: skip

BASE_MPP = 0.5
# Fractional bits of polygons in OpenCV's fixed point.
SHIFT = 3

Points = NDArray[np.float64]  # rows of (x, y)
Polygon = NDArray[np.int32]  # rows of (x, y) in fixed point
_Kind = TypeVar("_Kind", bound=np.generic)


def in_px(length_um: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Base pixels of lengths in micrometres."""
    return np.asarray(length_um) / BASE_MPP


def ellipses(centres: Points, axes_px: Points, angles: NDArray[np.float64]) -> Polygon:
    """Small ellipses as polygons ``[n, 10, 2]``.

    Args:
        centres: ``[n, 2]`` in base pixels.
        axes_px: ``[n, 2]``, both half axes.
        angles: ``[n]``, of the first axis, in radians.
    """
    phi = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    u, v = axes_px[:, :1] * np.cos(phi), axes_px[:, 1:] * np.sin(phi)
    return _fixed_point(centres, u, v, angles[:, None])


def outlines(
    rng: np.random.Generator,
    centres: Points,
    radii_px: NDArray[np.float64],
    raggedness: float,
    stretch: tuple[float, float] | NDArray[np.float64],
    angles: NDArray[np.float64] | None = None,
) -> list[Polygon]:
    """n closed wavy outlines ``[48, 2]``.

    Args:
        rng: of the waves, and of what is not given.
        centres: ``[n, 2]`` in base pixels.
        radii_px: ``[n]``, of the circle that each starts from.
        raggedness: spread of the lowest wave, as a fraction of the radius.
        stretch: ``[n]``, length over width, or the range to sample it from.
        angles: ``[n]``, of the long axis in radians; sampled if not given.
    """
    count = len(centres)
    phi = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = np.arange(2, 7)
    phases = rng.uniform(0, 2 * np.pi, (count, len(waves), 1))
    heights = rng.normal(0, raggedness, (count, len(waves), 1)) / np.sqrt(waves - 1)[:, None]
    radius = radii_px[:, None] * np.clip(1 + (heights * np.cos(waves[:, None] * phi + phases)).sum(axis=1), 0.4, 1.8)
    factor = np.sqrt(rng.uniform(*stretch, count) if isinstance(stretch, tuple) else stretch)[:, None]
    turned = (rng.uniform(0, np.pi, count) if angles is None else angles)[:, None]
    return list(_fixed_point(centres, radius * np.cos(phi) * factor, radius * np.sin(phi) / factor, turned))


def noise(
    rng: np.random.Generator, side_px: int, period_px: tuple[float, float], stretch: float = 1.0
) -> NDArray[np.float32]:
    """Noise ``[side_px, side_px]`` that can be tiled, with a mean of 0 and a standard deviation of 1.

    ``period_px`` is its shortest and longest period; vertical ones are longer by the factor ``stretch``.
    """
    frequency_y = np.fft.fftfreq(side_px)[:, None] * stretch
    frequency = np.hypot(frequency_y, np.fft.rfftfreq(side_px)[None])
    band = (frequency >= 1 / period_px[1]) & (frequency <= 1 / period_px[0])
    texture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side_px, side_px))) * band, s=(side_px, side_px))
    return (texture / texture.std()).astype(np.float32)


def without_coarse_part(texture: NDArray[np.float32], block_px: int = 4) -> NDArray[np.float32]:
    """Subtract from each block of a texture its mean: blocks of 4 leave nothing at 2 um/px."""
    blocks = texture.reshape(len(texture) // block_px, block_px, -1, block_px)
    return (blocks - blocks.mean(axis=(1, 3), keepdims=True)).reshape(texture.shape)


def tiled(texture: NDArray[_Kind], height_px: int, width_px: int) -> NDArray[_Kind]:
    """A square texture, repeated over a larger plane."""
    side_px = len(texture)
    return np.tile(texture, (-(-height_px // side_px), -(-width_px // side_px)))[:height_px, :width_px]


def _fixed_point(
    centres: Points, u: NDArray[np.float64], v: NDArray[np.float64], angles: NDArray[np.float64]
) -> Polygon:
    """Turn (u, v) ``[n, points]`` by the angles ``[n, 1]``, and move them to the centres."""
    cos, sin = np.cos(angles), np.sin(angles)
    shapes = np.stack([u * cos - v * sin, u * sin + v * cos], axis=2) + centres[:, None]
    return np.rint(shapes * (1 << SHIFT)).astype(np.int32)
