"""Where a slide's base resolution comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import tifffile

from scripts.core.errors import SettingsError, SlideError
from scripts.core.files import refuse_special
from scripts.core.magnification import MPP_AT_1X
from scripts.slides.isolation import ReaderError, read_properties

__all__ = ["POWER_SOURCE", "Resolution", "find_resolution", "resolution_sources"]

# Outside of this range a TIFF resolution tag is a printer's default (72 dpi is 353 um/px), not a microscope's.
PLAUSIBLE_MPP = (0.02, 20.0)
# Pixels of a slide scanner are square to better than this; anything else has to be said by the user.
SQUARE_RTOL = 0.02
OPENSLIDE_SOURCE = "file: openslide.mpp-x, openslide.mpp-y"
OME_SOURCE = "file: OME-XML PhysicalSizeX, PhysicalSizeY"
TAGS_SOURCE = "file: TIFF tags XResolution, YResolution"
POWER_SOURCE = "file: objective power"
INCH, CENTIMETRE = 2, 3  # TIFF ResolutionUnit
MICROMETRES_PER_UNIT = {INCH: 25_400.0, CENTIMETRE: 10_000.0}
# OME-XML writes the sign for micro, of which Unicode has two.
MICROMETRES_PER_OME_UNIT = {"\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


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

    Asked in this order: the datalist's ``mpp``, the file's own resolution (by OpenSlide, then the TIFF tags, then
    OME-XML), 10 divided by the file's objective power. cuCIM is not asked: for a file without a resolution it says 1.0.
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
    properties, tiff = _openslide_properties(path), _tiff_sizes(path)
    for pixel_size, source in ((_from_openslide(properties), OPENSLIDE_SOURCE), *tiff.sources()):
        if pixel_size is None or not all(map(_is_of_a_slide, pixel_size)):
            continue
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
    cause = "the file carries no resolution (no micrometres per pixel, no objective power)"
    # OpenSlide comes last, because of a TIFF it repeats the tags.
    for pixel_size, source in (*tiff.sources(), (_from_openslide(properties), OPENSLIDE_SOURCE)):
        if pixel_size is not None:
            cause = _why_not(pixel_size, source)
            break
    remedy = "Set `mpp` (micrometres per pixel at full resolution) of this slide in a datalist (to inspect: --mpp)."
    raise SlideError(path, cause, remedy)


def resolution_sources(path: Path) -> list[Resolution]:
    """All that a file says of its level 0's resolution, in the order in which :func:`find_resolution` asks.

    TIFF tags count where the file's first image is level 0: in some formats it is a photograph of the whole glass.

    Raises:
        SlideError: if its resolution cannot be read.
    """
    properties, tiff = _openslide_properties(path), _tiff_sizes(path)
    level0 = [properties.get(f"openslide.level[0].{side}") for side in ("width", "height")]
    of_tiff = tiff.sources() if level0 in ([None, None], [str(side) for side in tiff.size_px]) else ()
    found = [
        Resolution(math.sqrt(pixel_size[0] * pixel_size[1]), source)
        for pixel_size, source in ((_from_openslide(properties), OPENSLIDE_SOURCE), *of_tiff)
        if pixel_size is not None and all(map(_is_of_a_slide, pixel_size))
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
    x_mpp, y_mpp = (_number(properties.get(f"openslide.mpp-{side}")) for side in "xy")
    return None if x_mpp is None or y_mpp is None else (x_mpp, y_mpp)


@dataclass(frozen=True)
class _TiffSizes:
    """What a TIFF says of its first image: sizes of its pixels in micrometres, and (width, height) in pixels."""

    of_tags: tuple[float, float] | None = None
    of_ome: tuple[float, float] | None = None
    size_px: tuple[int, int] = (0, 0)

    def sources(self) -> tuple[tuple[tuple[float, float] | None, str], ...]:
        return (self.of_tags, TAGS_SOURCE), (self.of_ome, OME_SOURCE)


def _tiff_sizes(path: Path) -> _TiffSizes:
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            unit = MICROMETRES_PER_UNIT.get(page.tags.valueof("ResolutionUnit", INCH))
            pixels = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
            size_px, description = (page.imagewidth, page.imagelength), page.description if page.is_ome else ""
    except (tifffile.TiffFileError, IndexError):
        return _TiffSizes()
    known = unit is not None and not any(p is None or 0 in p for p in pixels)
    x_mpp, y_mpp = (unit * p[1] / p[0] for p in pixels) if known else (None, None)
    of_tags = None if x_mpp is None or y_mpp is None else (x_mpp, y_mpp)
    return _TiffSizes(of_tags, _from_ome(description, size_px), size_px)


def _from_ome(description: str, size_px: tuple[int, int]) -> tuple[float, float] | None:
    """The pixel size that OME-XML gives to the image of a size: others may be photographs of the glass."""
    try:
        elements = list(ElementTree.fromstring(description).iter()) if description else []
    except ElementTree.ParseError:
        return None
    for element in elements:
        if element.tag.endswith("}Pixels") and [element.get(f"Size{side}") for side in "XY"] == list(map(str, size_px)):
            units = [element.get(f"PhysicalSize{side}Unit", "um") for side in "XY"]
            x_size, y_size = (_number(element.get(f"PhysicalSize{side}")) for side in "XY")
            x_unit, y_unit = (MICROMETRES_PER_OME_UNIT.get(unit) for unit in units)
            if x_size and y_size and x_unit and y_unit:
                return x_size * x_unit, y_size * y_unit
    return None


def _why_not(pixel_size: tuple[float, float], source: str) -> str:
    """Why a size of a pixel in micrometres, of which a side at least is out of range, is no slide's."""
    said = next(size for size in pixel_size if not _is_of_a_slide(size))
    of_what, (least, most) = source.removeprefix("file: "), PLAUSIBLE_MPP
    if source == TAGS_SOURCE and said > most:
        in_dpi = f"{MICROMETRES_PER_UNIT[INCH] / said:.4g} dpi = {said:.4g} um/px"
        return f"the file says {in_dpi} ({of_what}), which image programs write by default: no slide's resolution"
    return f"the file says {said:.4g} um/px ({of_what}), which is outside {least:g} to {most:g} um/px"


def _from_objective_power(properties: dict[str, str]) -> Resolution | None:
    power = _number(properties.get("openslide.objective-power"))
    if power is None or not 0.5 <= power <= 200.0:
        return None
    return Resolution(MPP_AT_1X / power, f"{POWER_SOURCE} {power:g}")


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _is_of_a_slide(mpp: float) -> bool:
    return PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]
