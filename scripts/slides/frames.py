"""The frames in which positions on a slide leave the bundle, and where on a slide images such as masks lie.

Inside, a position is (x, y) in pixels of the file's level 0, from its corner on. QuPath shows less of some slides
(MIRAX, Leica SCN, sparse TIFF): it crops them to OpenSlide's ``bounds`` and counts from there, unless they are opened
with ``--no-crop``. This is the only file that decides what is counted from where.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scripts.core.errors import SettingsError, SlideError
from scripts.core.repeats import Repeats

__all__ = [
    "COORDINATES",
    "LEVEL0",
    "Frame",
    "Rectangle",
    "check_coordinates",
    "doubt",
    "find_bounds",
    "frame_of",
    "place_image",
]

COORDINATES = ("qupath", "level0")
# The proportions of an image may be off by the rounding of its size, not by more.
ASPECT_RTOL = 0.02
# An image's size is that of its slide divided and rounded: proportions that are nearer to each other than this, in the
# image's pixels, do not show which of two places was meant.
ROUNDING_PX = 1.0

logger = logging.getLogger(__name__)
_repeats = Repeats()


class Rectangle(NamedTuple):
    """A part of a slide: its top left corner (x, y), and its size, in level-0 pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Frame:
    """A frame of positions on one slide, in pixels of level 0.

    Args:
        coordinates: its name, one of :data:`COORDINATES`.
        origin_level0: (x, y) of where it starts, in level-0 pixels of the file.
    """

    coordinates: str
    origin_level0: tuple[float, float]

    def from_level0(self, xy_level0: ArrayLike) -> NDArray[np.float64]:
        """Positions ``[..., 2]`` in this frame, from (x, y) in level-0 pixels of the file."""
        return np.asarray(xy_level0, dtype=np.float64) - self.origin_level0

    def stated(self) -> dict[str, Any]:
        """The frame as plain values, as files state it."""
        return {"coordinates": self.coordinates, "origin_level0": list(self.origin_level0)}


LEVEL0 = Frame("level0", (0.0, 0.0))


def check_coordinates(coordinates: object) -> str:
    """Check the setting ``coordinates``.

    Raises:
        SettingsError: if it is none of :data:`COORDINATES`.
    """
    if coordinates not in COORDINATES:
        remedy = "Give qupath, which starts at the bounds that QuPath crops a slide to, or level0."
        raise SettingsError("coordinates", f"got {coordinates!r}", remedy)
    return str(coordinates)


def frame_of(coordinates: str, bounds_level0: Sequence[float]) -> Frame:
    """The frame of that name on a slide with bounds (x, y, width, height); raises as :func:`check_coordinates`."""
    if check_coordinates(coordinates) == "level0":
        return LEVEL0
    return Frame("qupath", (float(bounds_level0[0]), float(bounds_level0[1])))


def find_bounds(properties: Mapping[str, str], size_level0: tuple[int, int]) -> Rectangle:
    """The part of a slide that QuPath shows: OpenSlide's ``bounds``, or the whole slide where it has none.

    Args:
        properties: of the slide's file by OpenSlide, whatever reads the pixels, since QuPath uses OpenSlide.
        size_level0: (width, height) of the slide's level 0, as it is read.
    """
    keys = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    sides = [f"openslide.level[0].{name}" for name in ("width", "height")]
    # As in QuPath: all four of them, in whole numbers. They are of OpenSlide's level 0, which may be another reader's
    # level 1.
    try:
        bounds = Rectangle(*(int(properties[key]) for key in keys))
        size = tuple(int(properties[key]) for key in sides)
    except (KeyError, ValueError):
        return Rectangle(0, 0, *size_level0)
    is_usable = size == tuple(size_level0) and bounds.width > 0 and bounds.height > 0
    return bounds if is_usable else Rectangle(0, 0, *size_level0)


def place_image(
    size_px: tuple[int, int],
    size_level0: tuple[int, int],
    bounds_level0: Rectangle,
    subject: object,
    image: str,
    key: str,
) -> Rectangle:
    """Where an image of a slide lies, such as a mask: over the whole slide or over its bounds, as its proportions say.

    If both fit, the closer one counts; if one is not closer than the other by more than the rounding of the image's
    size, it is the whole slide, with a warning.

    Args:
        size_px: (width, height) of the image in its pixels.
        size_level0: (width, height) of the slide in level-0 pixels.
        bounds_level0: of the slide.
        subject: the slide, to begin an error with.
        image: what the image is called in an error.
        key: of the datalist, which names it.

    Raises:
        SlideError: if its proportions are those of neither.
    """
    place, _ = _find_place(size_px, size_level0, bounds_level0)
    if place is None:
        whole = Rectangle(0, 0, *size_level0)
        cause = f"its {image} is {size_px[0]} x {size_px[1]} px, which is not the slide's proportion "
        cause += f"({whole.width} x {whole.height} px)"
        over = "the whole slide"
        if bounds_level0 != whole:
            cause += f" nor that of its bounds ({bounds_level0.width:g} x {bounds_level0.height:g} px)"
            over += " or its bounds"
        raise SlideError(subject, cause, f"Save it over {over}, or correct the key `{key}` in the datalist.")
    if (doubtful := doubt(size_px, size_level0, bounds_level0)) is not None:
        _repeats.log(logger, logging.WARNING, f"{subject}: its {image} {doubtful[0]}. {doubtful[1]}", str(subject))
    return place


def doubt(size_px: tuple[int, int], size_level0: tuple[int, int], bounds_level0: Rectangle) -> tuple[str, str] | None:
    """Why it is not certain where :func:`place_image` puts an image, and what to do; ``None`` if it is certain."""
    _, is_certain = _find_place(size_px, size_level0, bounds_level0)
    if is_certain:
        return None
    x, y, width, height = bounds_level0
    cause = (
        f"of {size_px[0]} x {size_px[1]} px has the proportion of the whole slide ({size_level0[0]} x {size_level0[1]} "
        f"px) and of its bounds ({width:g} x {height:g} px at ({x:g}, {y:g})), and is placed over the whole slide"
    )
    return cause, "If it shows only the bounds, pad it to the whole slide."


def _find_place(
    size_px: tuple[int, int], size_level0: tuple[int, int], bounds_level0: Rectangle
) -> tuple[Rectangle | None, bool]:
    """The place whose proportions an image has, if any, and whether this is certain."""
    fitting = [place for place in (Rectangle(0, 0, *size_level0), bounds_level0) if _fits(size_px, place)]
    if len(fitting) < 2 or _is_same(size_px, *fitting):
        return next(iter(fitting), None), True
    # The least by which both sides of the image have to change to have a place's exact proportion, in its pixels.
    whole, bounds = (abs(p.width * size_px[1] - p.height * size_px[0]) / (p.width + p.height) for p in fitting)
    return fitting[bounds < whole - ROUNDING_PX], abs(whole - bounds) > ROUNDING_PX


def _fits(size_px: tuple[int, int], place: Rectangle) -> bool:
    across, down = place.width / size_px[0], place.height / size_px[1]
    return abs(across / down - 1) <= ASPECT_RTOL + 1 / min(size_px)


def _is_same(size_px: tuple[int, int], one: Rectangle, other: Rectangle) -> bool:
    """Whether the borders of two places are less than one of an image's pixels apart."""
    pixel = np.array((one.width / size_px[0], one.height / size_px[1]))
    corners = [np.cumsum([place[:2], place[2:]], axis=0) for place in (one, other)]
    return bool((np.abs(corners[0] - corners[1]) < pixel).all())
