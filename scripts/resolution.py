"""Where a slide's base resolution comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import tifffile

from scripts.errors import SettingsError, SlideError
from scripts.files import refuse_special
from scripts.isolation import ReaderError, read_properties
from scripts.magnification import MPP_AT_1X

__all__ = ["POWER_SOURCE", "Resolution", "find_resolution", "resolution_sources"]

# Outside of this range a TIFF resolution tag is a printer's default (72 dpi is 353 um/px), not a microscope's.
PLAUSIBLE_MPP = (0.02, 20.0)
# Pixels of a slide scanner are square to better than this; anything else has to be said by the user.
SQUARE_RTOL = 0.02
OPENSLIDE_SOURCE = "file: openslide.mpp-x, openslide.mpp-y"
TAGS_SOURCE = "file: TIFF tags XResolution, YResolution"
POWER_SOURCE = "file: objective power"
MICROMETRES_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF ResolutionUnit: inch, centimetre


@dataclass(frozen=True)
class Resolution:
    """A slide's base resolution.

    Args:
        mpp: micrometres per pixel of level 0.
        source: where the figure was found, in words.
    """

    mpp: float
    source: str


def find_resolution(path: Path, mpp: float | None = None) -> Resolution:
    """The resolution of a slide's level 0.

    Asked in this order: the datalist's ``mpp``, the file's own resolution (by OpenSlide, then the TIFF tags),
    10 divided by the file's objective power. cuCIM is not asked: for a file without a resolution it says 1.0.
    So the answer is the same whatever backend reads the pixels.

    Args:
        path: the slide.
        mpp: micrometres per pixel from the datalist, if it has any; from 0.02 to 20.

    Raises:
        SlideError: if no source knows the resolution, it is out of range, or the pixels are not square.
    """
    if mpp is not None:
        least, most = PLAUSIBLE_MPP
        if not (isinstance(mpp, int | float) and least <= mpp <= most):
            cause = f"`mpp` is {mpp!r}, not a number from {least:g} to {most:g}"
            raise SlideError(path, cause, "Give micrometres per pixel at full resolution, such as 0.25.")
        return Resolution(float(mpp), "datalist: mpp")
    properties = _openslide_properties(path)
    pixel_size = _from_openslide(properties)
    source = OPENSLIDE_SOURCE
    if pixel_size is None:
        pixel_size = _from_tiff_tags(path)
        source = TAGS_SOURCE
    if pixel_size is not None:
        x_mpp, y_mpp = pixel_size
        if abs(x_mpp - y_mpp) > SQUARE_RTOL * max(x_mpp, y_mpp):
            raise SlideError(
                path,
                f"its pixels are not square ({x_mpp:g} x {y_mpp:g} um)",
                "Rescale the slide, or set the key `mpp` of this slide in the datalist.",
            )
        return Resolution(math.sqrt(x_mpp * y_mpp), source)
    from_power = _from_objective_power(properties)
    if from_power is not None:
        return from_power
    raise SlideError(
        path,
        "the file carries no resolution (no micrometres per pixel, no objective power)",
        "Set `mpp` (micrometres per pixel at full resolution) of this slide in a datalist (to inspect: --mpp).",
    )


def resolution_sources(path: Path) -> list[Resolution]:
    """All that a file says of its level 0's resolution, in the order in which :func:`find_resolution` asks.

    TIFF tags count where the file's first image is level 0: in some formats it is a photograph of the whole glass.

    Raises:
        SlideError: if its resolution cannot be read.
    """
    properties = _openslide_properties(path)
    level0 = [properties.get(f"openslide.level[0].{side}") for side in ("width", "height")]
    tags = _from_tiff_tags(path)
    if tags is not None and level0 != [None, None] and level0 != _first_image_size(path):
        tags = None
    found = [
        Resolution(math.sqrt(pixel_size[0] * pixel_size[1]), source)
        for pixel_size, source in ((_from_openslide(properties), OPENSLIDE_SOURCE), (tags, TAGS_SOURCE))
        if pixel_size is not None
    ]
    from_power = _from_objective_power(properties)
    return found if from_power is None else [*found, from_power]


def _openslide_properties(path: Path) -> dict[str, str]:
    try:
        refuse_special(path)
        return read_properties(path)
    except SettingsError as error:
        raise SlideError(path, error.cause, "Give the slide's file.") from error
    except ReaderError as error:
        remedy = "Is the file complete? Copy it again, or leave the slide out."
        raise SlideError(path, f"its resolution cannot be read ({error})", remedy) from error


def _from_openslide(properties: dict[str, str]) -> tuple[float, float] | None:
    x_mpp = _plausible(properties.get("openslide.mpp-x"), PLAUSIBLE_MPP)
    y_mpp = _plausible(properties.get("openslide.mpp-y"), PLAUSIBLE_MPP)
    return None if x_mpp is None or y_mpp is None else (x_mpp, y_mpp)


def _from_tiff_tags(path: Path) -> tuple[float, float] | None:
    try:
        with tifffile.TiffFile(path) as tiff:
            tags = tiff.pages.first.tags
            unit = MICROMETRES_PER_UNIT.get(tags.valueof("ResolutionUnit", 2))
            pixels = [tags.valueof(name) for name in ("XResolution", "YResolution")]
    except (tifffile.TiffFileError, IndexError):
        return None
    if unit is None or any(p is None or 0 in p for p in pixels):
        return None
    x_mpp, y_mpp = (_plausible(unit * p[1] / p[0], PLAUSIBLE_MPP) for p in pixels)
    return None if x_mpp is None or y_mpp is None else (x_mpp, y_mpp)


def _first_image_size(path: Path) -> list[str | None]:
    with tifffile.TiffFile(path) as tiff:
        return [str(tiff.pages.first.imagewidth), str(tiff.pages.first.imagelength)]


def _from_objective_power(properties: dict[str, str]) -> Resolution | None:
    power = _plausible(properties.get("openslide.objective-power"), (0.5, 200.0))
    return None if power is None else Resolution(MPP_AT_1X / power, f"{POWER_SOURCE} {power:g}")


def _plausible(value: str | float | None, limits: tuple[float, float]) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if limits[0] <= number <= limits[1] else None
