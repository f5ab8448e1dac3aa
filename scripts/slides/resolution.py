"""Where a slide's base resolution comes from.

cuCIM is not asked, since for a file without a resolution it says 1.0: OpenSlide's properties, the TIFF tags and OME-XML
give the same answer whichever reader the pixels come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from scripts.core.errors import SlideError
from scripts.core.magnification import MPP_AT_1X

if TYPE_CHECKING:
    import tifffile  # only the reader's process loads it

__all__ = [
    "LEVEL0_MAGNIFICATION_SOURCE",
    "POWER_SOURCE",
    "PixelSize",
    "Resolution",
    "ResolutionError",
    "find_resolution",
    "is_rounded",
    "stated_resolutions",
    "tiff_pixel_sizes",
]

# Outside of this range a TIFF resolution tag is a printer's default (72 dpi is 353 um/px), not a microscope's.
PLAUSIBLE_MPP = (0.02, 20.0)
# Pixels of a slide scanner are square to better than this; anything else the user has to set.
SQUARE_RTOL = 0.02
OPENSLIDE_SOURCE = "file: openslide.mpp-x, openslide.mpp-y"
OME_SOURCE = "file: OME-XML PhysicalSizeX, PhysicalSizeY"
TAGS_SOURCE = "file: TIFF tags XResolution, YResolution"
POWER_SOURCE = "file: objective power"
# Imported features may know no more; see scripts/features/imported_scales.py.
LEVEL0_MAGNIFICATION_SOURCE = "file: level0_magnification"
INCH, CENTIMETRE = 2, 3  # TIFF ResolutionUnit
MICROMETRES_PER_UNIT = {INCH: 25_400.0, CENTIMETRE: 10_000.0}
# OME-XML writes the sign for micro, of which Unicode has two.
MICROMETRES_PER_OME_UNIT = {"\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}

PixelSize = tuple[float, float, str]
"""The sides (x, y) of a pixel in micrometres, as a file states them, and where it does."""


class ResolutionError(SlideError):
    """A slide whose resolution is unknown, out of range, or not the same along both sides."""


@dataclass(frozen=True)
class Resolution:
    """Micrometres per pixel of a slide's level 0, and where this was found, in words."""

    mpp: float
    source: str


def find_resolution(
    path: Path, mpp: float | None, properties: Mapping[str, str], of_tiff: Sequence[PixelSize]
) -> Resolution:
    """The resolution of a slide's level 0.

    Taken from the first of these that knows it: the datalist's ``mpp``, the file's pixel size (OpenSlide's properties,
    then the TIFF tags, then OME-XML), 10 divided by the file's objective power.

    Args:
        path: the slide, to begin an error with.
        mpp: micrometres per pixel from the datalist, from 0.02 to 20, if it has any.
        properties: of the file, by OpenSlide.
        of_tiff: as :func:`tiff_pixel_sizes` gives them.

    Raises:
        ResolutionError: if no source knows the resolution, it is out of range, or the pixels are not square.
    """
    least, most = PLAUSIBLE_MPP
    if mpp is not None:
        if not (isinstance(mpp, int | float) and _is_plausible(mpp)):
            cause = f"`mpp` is {mpp!r}, not a number from {least:g} to {most:g}"
            raise ResolutionError(path, cause, "Give micrometres per pixel at full resolution, such as 0.25.")
        return Resolution(float(mpp), "datalist: mpp")
    sizes = [*_of_openslide(properties), *of_tiff]
    for x_mpp, y_mpp, _ in list(filter(_is_of_a_slide, sizes))[:1]:
        if abs(x_mpp - y_mpp) > SQUARE_RTOL * max(x_mpp, y_mpp):
            cause = f"its pixels are not square ({x_mpp:g} x {y_mpp:g} um)"
            remedy = "Rescale the slide, or set the key `mpp` of this slide in the datalist."
            raise ResolutionError(path, cause, remedy)
    if found := stated_resolutions(properties, of_tiff):
        return found[0]
    cause = "the file carries no resolution (no micrometres per pixel, no objective power)"
    if sizes:
        # OpenSlide comes last, because of a TIFF it repeats the tags.
        cause = _why_not(*[*of_tiff, *sizes][0])
    remedy = "Set `mpp` (micrometres per pixel at full resolution) of this slide in a datalist (to inspect: --mpp)."
    raise ResolutionError(path, cause, remedy)


def stated_resolutions(properties: Mapping[str, str], of_tiff: Sequence[PixelSize]) -> list[Resolution]:
    """All plausible resolutions that a file states, in the order of :func:`find_resolution`."""
    sizes = filter(_is_of_a_slide, [*_of_openslide(properties), *of_tiff])
    found = [Resolution(math.sqrt(x_mpp * y_mpp), source) for x_mpp, y_mpp, source in sizes]
    power = _number(properties.get("openslide.objective-power"))
    if power is not None and 0.5 <= power <= 200.0:
        found.append(Resolution(MPP_AT_1X / power, f"{POWER_SOURCE} {power:g}"))
    return found


def is_rounded(source: str) -> bool:
    """Whether a resolution comes from a magnification: scans of 0.22 um/px and of 0.25 are both called 40x.

    Args:
        source: of :class:`Resolution`, in words, as feature banks store it.
    """
    return source.startswith((POWER_SOURCE, LEVEL0_MAGNIFICATION_SOURCE))


def tiff_pixel_sizes(page: tifffile.TiffPage) -> list[PixelSize]:
    """What the tags and the OME-XML of a TIFF's first page say of the size of its pixels."""
    unit = MICROMETRES_PER_UNIT.get(page.tags.valueof("ResolutionUnit", INCH))
    pixels = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    sizes = _of_ome(page)
    if unit is not None and not any(p is None or 0 in p for p in pixels):
        x_mpp, y_mpp = (unit * p[1] / p[0] for p in pixels)
        sizes.insert(0, (x_mpp, y_mpp, TAGS_SOURCE))
    return sizes


def _of_openslide(properties: Mapping[str, str]) -> list[PixelSize]:
    x_mpp, y_mpp = (_number(properties.get(f"openslide.mpp-{side}")) for side in "xy")
    return [] if x_mpp is None or y_mpp is None else [(x_mpp, y_mpp, OPENSLIDE_SOURCE)]


def _of_ome(page: tifffile.TiffPage) -> list[PixelSize]:
    """The pixel size that OME-XML gives to the image of a page's size: others may be photographs of the glass."""
    try:
        elements = list(ElementTree.fromstring(page.description).iter()) if page.is_ome else []
    except ElementTree.ParseError:
        return []
    own = [str(page.imagewidth), str(page.imagelength)]
    for element in elements:
        if element.tag.endswith("}Pixels") and [element.get(f"Size{side}") for side in "XY"] == own:
            x_size, y_size = (_number(element.get(f"PhysicalSize{side}")) for side in "XY")
            units = [element.get(f"PhysicalSize{side}Unit", "um") for side in "XY"]
            x_unit, y_unit = (MICROMETRES_PER_OME_UNIT.get(unit) for unit in units)
            if x_size and y_size and x_unit and y_unit:
                return [(x_size * x_unit, y_size * y_unit, OME_SOURCE)]
    return []


def _why_not(x_mpp: float, y_mpp: float, source: str) -> str:
    """Why the size of a pixel, of which at least one side is out of range, is no slide's."""
    wrong = y_mpp if _is_plausible(x_mpp) else x_mpp
    of_what, (least, most) = source.removeprefix("file: "), PLAUSIBLE_MPP
    if source == TAGS_SOURCE and wrong > most:
        in_dpi = f"{MICROMETRES_PER_UNIT[INCH] / wrong:.4g} dpi = {wrong:.4g} um/px"
        return f"the file says {in_dpi} ({of_what}), which image programs write by default: no slide's resolution"
    return f"the file says {wrong:.4g} um/px ({of_what}), which is outside {least:g} to {most:g} um/px"


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _is_of_a_slide(size: PixelSize) -> bool:
    return _is_plausible(size[0]) and _is_plausible(size[1])


def _is_plausible(mpp: float) -> bool:
    return PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]
