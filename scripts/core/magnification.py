"""Resolution arithmetic: a magnification is a resolution, 10/m micrometres per pixel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

from scripts.core.errors import SettingsError

__all__ = [
    "MPP_RTOL",
    "Scale",
    "check_magnifications",
    "magnification_of",
    "mean_downsamples",
    "mpp_of",
    "scale_name",
    "scale_names",
    "squeezed_levels",
]

# "20x" is a convention of the field, not a unit: a 20x scan has about 0.5 um/px on every scanner's camera.
MPP_AT_1X = 10.0
# A level this much coarser than what was asked for counts as it, as in MONAI's readers (mpp_rtol): scanners
# write 0.2525 um/px for 40x, and their pyramids round sizes.
MPP_RTOL = 0.05
# 1 mm and 10 nm per pixel: beyond what light microscopes and their scanners show.
LEAST, MOST = 0.01, 1000.0


def mpp_of(magnification: float) -> float:
    """Micrometres per pixel at a magnification: 10x is 1.0, 5x is 2.0."""
    return MPP_AT_1X / magnification


def magnification_of(mpp: float) -> float:
    """Magnification of a resolution in micrometres per pixel: 0.5 is 20x."""
    return MPP_AT_1X / mpp


def scale_name(magnification: float) -> str:
    """The name of a scale in outputs and files: ``"5x"``, ``"12.5x"``."""
    return f"{magnification:g}x"


def scale_names(magnifications: Sequence[float]) -> list[str]:
    """The names of several scales from low to high: ``["5x", "10x"]``.

    Raises:
        SettingsError: as :func:`check_magnifications`.
    """
    return [scale_name(m) for m in check_magnifications(magnifications)]


def mean_downsamples(level_sizes: Sequence[tuple[int, int]]) -> list[float]:
    """Level-0 pixels per pixel of each level, from the (width, height) of the levels, finest first.

    From the sizes, because the backends disagree on how they average the two axes.
    """
    width, height = level_sizes[0]
    return [(width / w + height / h) / 2 for w, h in level_sizes]


def squeezed_levels(level_sizes: Sequence[tuple[int, int]], rtol: float) -> list[tuple[int, float, float]]:
    """The levels of a pyramid that are reduced more along one side than along the other.

    Args:
        level_sizes: (width, height) of the levels, finest first.
        rtol: how much more, relative to the larger reduction, beside what rounding to whole pixels explains.

    Returns:
        (level, times narrower, times lower) of each, compared with level 0.
    """
    width, height = level_sizes[0]
    squeezed = []
    for level, (w, h) in enumerate(level_sizes):
        # The reductions that can end in this size, whichever way the sides were rounded.
        least = max(width / (w + 1), height / (h + 1))
        most = min(side / (pixels - 1) if pixels > 1 else math.inf for side, pixels in ((width, w), (height, h)))
        across, down = width / w, height / h
        if least - most > rtol * max(across, down):
            squeezed.append((level, across, down))
    return squeezed


def check_magnifications(magnifications: Sequence[float], key: str = "magnifications") -> tuple[float, ...]:
    """The magnifications from low to high.

    Args:
        magnifications: in any order.
        key: begins the error.

    Raises:
        SettingsError: if there is none, one is not a number from 0.01 to 1000, or two have one name (5 and
            5.0000001 are both ``"5x"``).
    """
    remedy = "Give positive numbers, each once, for example [5, 10]."
    listed = isinstance(magnifications, Iterable) and not isinstance(magnifications, str | bytes | Mapping | Set)
    found = list(magnifications) if listed else magnifications
    if not isinstance(found, list) or not found or not all(_is_magnification(m) for m in found):
        raise SettingsError(key, f"got {found!r}", remedy)
    values = [float(m) for m in found]
    if len({scale_name(m) for m in values}) < len(values):
        raise SettingsError(key, f"got {found!r}, of which two have one name", remedy)
    return tuple(sorted(values))


@dataclass(frozen=True)
class Scale:
    """One scale of one slide: the patch that was asked for, that is read, and that it covers.

    A 224 px patch at 10x (1.0 um/px) of a slide with 0.25 um/px covers 896 px of level 0; from a level with
    downsample 2 it is read as 448 px and resampled to 224 (the paper's p : s = ps : Mm).

    Args:
        magnification: the magnification asked for.
        patch_size_px: side of the patch that the network sees, in pixels at ``magnification``.
        base_mpp: resolution of level 0, in micrometres per pixel.
        level: the level of the pyramid that is read.
        downsample: level-0 pixels per pixel of that level.
    """

    magnification: float
    patch_size_px: int
    base_mpp: float
    level: int = 0
    downsample: float = 1.0

    @property
    def name(self) -> str:
        """``"5x"``, ``"10x"``, ..."""
        return scale_name(self.magnification)

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the patch that the network sees."""
        return mpp_of(self.magnification)

    @property
    def pixel_level0(self) -> float:
        """Level-0 pixels per pixel of the patch that the network sees."""
        return self.mpp / self.base_mpp

    @property
    def patch_level0(self) -> float:
        """Side of the patch in level-0 pixels, not rounded."""
        return self.patch_size_px * self.pixel_level0

    @property
    def patch_read_px(self) -> int:
        """Side of the patch in pixels of the level that is read."""
        return max(1, round(self.patch_level0 / self.downsample))

    @property
    def patch_um(self) -> float:
        """Side of the patch in micrometres."""
        return self.patch_size_px * self.mpp


def _is_magnification(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and LEAST <= float(value) <= MOST
