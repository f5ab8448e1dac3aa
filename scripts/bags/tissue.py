"""Where a slide has tissue: decided once, at low resolution, and projected to every scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.bags.ink import find_ink
from scripts.bags.mask_files import read_image_of_slide
from scripts.bags.mask_values import OtherValues, tissue_in
from scripts.bags.tissue_settings import TissueSettings
from scripts.core.mha import write_mha
from scripts.slides.frames import Rectangle, place_image
from scripts.slides.slide import Slide

__all__ = ["TissueMask", "find_tissue", "read_tissue_mask"]

# Half of the discrete Gaussian of variance 1. These are ITK's weights, so that its masks are found to the last pixel.
HALF_GAUSSIAN = (0.008173546120060573, 0.05005045885392682, 0.20837538406328132, 0.46680122192546253)
GAUSSIAN = np.array([*HALF_GAUSSIAN, *HALF_GAUSSIAN[-2::-1]])
HISTOGRAM_BINS = 256
# A slide with more tissue than this, up to all four borders, is a field cut out of tissue, or its glass is no glass.
MOST_TISSUE = 0.95
# What scanners fill their last tiles up with, at the border: up to 1024 px.
BORDER_UM = 300.0
# What is at least this in all channels, or at most the other, is filled up and was not scanned: glass is darker.
FILL_WHITE, FILL_BLACK = 253, 2
# Glass that yellowed or is coloured is still at least so bright in all channels; stained tissue mostly is not.
DARKEST_GLASS = 180


@dataclass(frozen=True)
class TissueMask:
    """A slide's tissue.

    Args:
        tissue: bool ``[h, w]``, true where there is tissue.
        pixel_level0: (x, y) size of a mask pixel in level-0 pixels.
        base_mpp: micrometres per pixel of level 0.
        ink_mm2: area of the ink that was left out, in square millimetres.
        ink_colours: the colours of that ink, see :mod:`scripts.bags.ink`.
        origin_level0: (x, y) of the mask's top left corner in level-0 pixels; beyond the mask there is no tissue.
        bounds_level0: the part of the slide that was scanned, around which scanners and readers fill up with white or
            black; by default the whole mask.
        warnings: what may be wrong with the annotations that it was made from, and what to do, as one line each.
        exclusions: what was left out of the tissue, by its name: bool ``[h, w]`` each.
        is_found: whether it was found by its colour, and not given by the user.
    """

    tissue: NDArray[np.bool_]
    pixel_level0: tuple[float, float]
    base_mpp: float
    ink_mm2: float = 0.0
    ink_colours: tuple[str, ...] = ()
    origin_level0: tuple[float, float] = (0.0, 0.0)
    bounds_level0: Rectangle | None = None
    warnings: tuple[tuple[str, str], ...] = ()
    exclusions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    is_found: bool = False

    @cached_property
    def _integral(self) -> NDArray[np.float64]:
        integral = np.zeros((self.tissue.shape[0] + 1, self.tissue.shape[1] + 1))
        np.cumsum(np.cumsum(self.tissue, axis=0, dtype=np.float64), axis=1, out=integral[1:, 1:])
        return integral

    def fraction(self, xy_level0: NDArray[np.float64], side_level0: float) -> NDArray[np.float64]:
        """The share of each square's area that is tissue; beyond the mask there is none.

        The area is exact, parts of mask pixels included, so it does not depend on how a grid falls on the mask.

        Args:
            xy_level0: ``[n, 2]`` top left corners (x, y) in level-0 pixels.
            side_level0: side of the squares in level-0 pixels.

        Returns:
            ``[n]``, in 0..1.
        """
        pixel = np.asarray(self.pixel_level0)
        start = (xy_level0 - self.origin_level0) / pixel
        stop = (xy_level0 - self.origin_level0 + side_level0) / pixel
        area = (
            self._area(stop[:, 0], stop[:, 1])
            - self._area(start[:, 0], stop[:, 1])
            - self._area(stop[:, 0], start[:, 1])
            + self._area(start[:, 0], start[:, 1])
        )
        return np.clip(area * pixel.prod() / side_level0**2, 0.0, 1.0)

    def quick_fraction(self, xy_level0: NDArray[np.float64], side_level0: float) -> NDArray[np.float64]:
        """The same, where a mask makes that slow perhaps less exact."""
        return self.fraction(xy_level0, side_level0)

    def _area(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue, in mask pixels, above and to the left of (x, y): the integral is bilinear within a pixel."""
        height, width = self.tissue.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        left = np.minimum(x.astype(np.intp), width - 1)
        top = np.minimum(y.astype(np.intp), height - 1)
        dx, dy = x - left, y - top
        table = self._integral
        upper = table[top, left] * (1 - dx) + table[top, left + 1] * dx
        lower = table[top + 1, left] * (1 - dx) + table[top + 1, left + 1] * dx
        return upper * (1 - dy) + lower * dy

    def covered_mm2(self, xy_level0: NDArray[np.float64], side_level0: float) -> float:
        """Area of the tissue within any of some squares, in square millimetres; where they overlap it counts once.

        Args:
            xy_level0, side_level0: as for :meth:`fraction`.
        """
        if not len(xy_level0):
            return 0.0
        return self._mm2_within(_disjoint(xy_level0, side_level0))

    def _mm2_within(self, rectangles: NDArray[np.float64]) -> float:
        """Area of the tissue in rectangles that do not overlap, ``[n, 4]`` (left, top, right, bottom)."""
        corners = (rectangles.reshape(-1, 2, 2) - self.origin_level0) / self.pixel_level0
        (left, top), (right, bottom) = corners.transpose(1, 2, 0)
        areas = self._area(right, bottom) - self._area(left, bottom) - self._area(right, top) + self._area(left, top)
        return float(areas.sum() * self._pixel_mm2)

    def pieces_level0(self) -> NDArray[np.float64]:
        """``[n, 4]``: (left, top, right, bottom) of each connected piece of tissue, in level-0 pixels."""
        _, _, stats, _ = cv2.connectedComponentsWithStats(self.tissue.astype(np.uint8), connectivity=8)
        corner = stats[1:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]]
        size = stats[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
        return np.concatenate([c * self.pixel_level0 + self.origin_level0 for c in (corner, corner + size)], axis=1)

    @property
    def area_mm2(self) -> float:
        """Area of the tissue in square millimetres."""
        return self.mm2_of(self.tissue)

    def mm2_of(self, mask: NDArray[np.bool_]) -> float:
        """Area of a mask with the same pixels, such as one of the exclusions, in square millimetres."""
        return float(mask.sum() * self._pixel_mm2)

    @property
    def _pixel_mm2(self) -> float:
        return self.pixel_level0[0] * self.pixel_level0[1] * self.base_mpp**2 * 1e-6

    @property
    def is_everywhere(self) -> bool:
        """Whether next to all that was scanned is tissue, up to all four borders: as where glass counts as tissue."""
        scanned = self._scanned
        across, down = (max(1, round(BORDER_UM / (side * self.base_mpp))) for side in self.pixel_level0)
        borders = scanned[:down], scanned[-down:], scanned[:, :across], scanned[:, -across:]
        return bool(scanned.mean() > MOST_TISSUE) and all(border.any() for border in borders)

    @property
    def _scanned(self) -> NDArray[np.bool_]:
        """The part of the mask within the bounds, of at least one pixel."""
        if self.bounds_level0 is None:
            return self.tissue
        (height, width), bounds = self.tissue.shape, self.bounds_level0
        corners = np.array([bounds[:2], (bounds.x + bounds.width, bounds.y + bounds.height)])
        corners = np.rint((corners - self.origin_level0) / self.pixel_level0).astype(np.intp)
        left, top = np.clip(corners[0], 0, (width - 1, height - 1))
        right, bottom = np.maximum(corners[1], (left + 1, top + 1))
        return self.tissue[top:bottom, left:right]

    def doubt(self) -> tuple[str, str] | None:
        """Why it may be wrong, and what to do, as one line each; ``None`` if nothing speaks against it."""
        if not self.is_everywhere:
            return None
        what = (
            f"{self._scanned.mean():.0%} of the slide is tissue, up to all four borders: coloured glass, a coloured "
            "background and false colours count as tissue"
        )
        return what, "Look at it with `inspecting`; give a `mask`, leave the slide out, or go on if it is all tissue."

    def ink(self) -> tuple[str, str] | None:
        """How much ink was left out, and what to do, as one line each; ``None`` for none."""
        if not self.ink_colours:
            return None
        what = f"{self.ink_mm2:.3g} mm2 of {' and '.join(self.ink_colours)} ink are left out of the tissue"
        return what, "Look at it with `inspecting`; if it is tissue, or a stain with the colour of ink, give a `mask`."

    def write(self, path: str | Path) -> None:
        """Write the mask as MetaImage (``.mha``): uint8, 0 or 1, with spacing and origin in millimetres.

        The frame is that of level 0, whatever QuPath shows of the slide: the slide's corner is at (0, 0), and the
        origin is the centre of the mask's first pixel.
        """
        x, y = (side * self.base_mpp * 1e-3 for side in self.pixel_level0)
        left, top = (start * self.base_mpp * 1e-3 for start in self.origin_level0)
        write_mha(path, self.tissue.astype(np.uint8), spacing_mm=(x, y), origin_mm=(left + x / 2, top + y / 2))


def find_tissue(slide: Slide, settings: TissueSettings | None = None) -> TissueMask:
    """Find a slide's tissue by its colour, without ink (:mod:`scripts.bags.ink`).

    Stain strength is max(R, G, B) - min(R, G, B): it is 0 for every grey, so that glass, shadows and the white
    of a lumen do not count, and unlike HSV's saturation it does not blow up in the dark. Otsu's threshold,
    closing, and removal of small objects and small holes follow. Ink counts as glass. Where there is no
    glass a pen cannot be distinguished from a background of its colour: nothing is left out of tissue that is
    everywhere.

    Args:
        slide: the slide.
        settings: by default those of :class:`TissueSettings`; a slide coarser than their ``mpp`` is used as it is.

    Returns:
        The mask; it may be empty.

    Raises:
        SlideError: if the slide or its bounds cannot be read.
    """
    settings = settings or TissueSettings()
    mpp = max(settings.mpp, slide.base_mpp)
    overview, pixel_level0 = slide.read_overview(mpp), (mpp / slide.base_mpp,) * 2
    stain = overview.max(axis=-1) - overview.min(axis=-1)
    bounds = _without_margin(overview, pixel_level0[0], slide.bounds_level0)
    tissue = _stained(stain, mpp, settings)
    found = TissueMask(tissue, pixel_level0, slide.base_mpp, bounds_level0=bounds, is_found=True)
    if found.is_everywhere or not (ink := find_ink(overview, mpp)).colours:
        return found
    stain[ink.mask] = 0
    ink_mm2 = float(ink.mask.sum() * mpp**2 * 1e-6)
    tissue, exclusions = _stained(stain, mpp, settings), {"ink": ink.mask}
    return replace(found, tissue=tissue, ink_mm2=ink_mm2, ink_colours=ink.colours, exclusions=exclusions)


def read_tissue_mask(path: str | Path, slide: Slide, mask_tissue: tuple[int, ...] | None = None) -> TissueMask:
    """A user's own mask: an image of the whole slide, or of its bounds, at any size.

    What is annotated in QuPath and exported from there has the size of the bounds:
    :func:`scripts.slides.frames.place_image` decides by a mask's proportions which of the two it is.

    Args:
        path: an image with one channel, RGB or RGBA, by the values that are stored, see
            :mod:`scripts.bags.mask_files`.
        slide: the slide that the mask belongs to.
        mask_tissue: the values that are tissue, see :func:`scripts.bags.mask_values.tissue_in`; by default its only one
            beside 0.

    Raises:
        SlideError: if the mask cannot be read, has several values and ``mask_tissue`` is not given, or has other
            proportions than the slide and its bounds.
    """
    remedy = "Save it in grey as PNG, TIFF or MHA, or remove the key `mask` from the datalist."
    pixels, is_lossy = read_image_of_slide(path, slide.path, f"mask {path}", "mask", remedy)
    height, width = pixels.shape[:2]
    place = place_image((width, height), slide.size_level0, slide.bounds_level0, slide.path, f"mask {path}", "mask")
    pixel_level0 = (place.width / width, place.height / height)
    tissue = tissue_in(pixels, mask_tissue, slide.path, path, is_lossy)
    others = OtherValues(pixels, mask_tissue)
    return TissueMask(tissue, pixel_level0, slide.base_mpp, origin_level0=(place.x, place.y), exclusions=others)


def _disjoint(xy_level0: NDArray[np.float64], side_level0: float) -> NDArray[np.float64]:
    """What squares cover, as rectangles that do not overlap, ``[n, 4]`` (left, top, right, bottom)."""
    # All edges make a table of cells, of which each is covered or not. Rounded: edges of neighbours are one.
    starts, stops = np.round(xy_level0, 6), np.round(xy_level0 + side_level0, 6)
    xs, ys = (np.unique(np.concatenate([starts[:, axis], stops[:, axis]])) for axis in range(2))
    covered = np.zeros((len(ys) - 1, len(xs) + 1), dtype=np.int8)  # a column of glass on both sides
    lefts, rights = np.searchsorted(xs, starts[:, 0]), np.searchsorted(xs, stops[:, 0])
    tops, bottoms = np.searchsorted(ys, starts[:, 1]), np.searchsorted(ys, stops[:, 1])
    for left, right, top, bottom in zip(lefts, rights, tops, bottoms, strict=True):
        covered[top:bottom, left + 1 : right + 1] = 1
    # Neighbours in a row are one rectangle.
    change = np.diff(covered, axis=1)
    (row, first), (_, last) = np.nonzero(change == 1), np.nonzero(change == -1)
    return np.stack([xs[first], ys[row], xs[last], ys[row + 1]], axis=1)


def _without_margin(overview: NDArray[np.uint8], pixel_level0: float, bounds: Rectangle) -> Rectangle:
    """The bounds without a margin that is filled up, in level-0 pixels; as they are if nothing else is in them."""
    left, top = (round(start / pixel_level0) for start in bounds[:2])
    right, bottom = (round((start + side) / pixel_level0) for start, side in zip(bounds[:2], bounds[2:], strict=True))
    part = overview[top:bottom, left:right]
    scanned = np.asarray((part < FILL_WHITE).any(axis=-1) & (part > FILL_BLACK).any(axis=-1))
    rows, columns = np.flatnonzero(scanned.any(axis=1)), np.flatnonzero(scanned.any(axis=0))
    # What most of it is has the brightness of glass, or it is tissue on glass that is as white as a margin.
    if not len(rows) or np.median(part[scanned], axis=0).min() < DARKEST_GLASS:
        return bounds
    size = (columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
    return Rectangle(*(float(v * pixel_level0) for v in (left + columns[0], top + rows[0], *size)))


def _stained(stain: NDArray[np.uint8], mpp: float, settings: TissueSettings) -> NDArray[np.bool_]:
    smooth = _smooth(stain)
    threshold = float(np.clip(_otsu_threshold(smooth), *settings.threshold))
    return _clean(smooth >= threshold, mpp, settings)


def _smooth(stain: NDArray[np.uint8]) -> NDArray[np.float32]:
    # In ITK's order, and rounded as it rounds: down the columns, then along the rows, in single precision between.
    smooth, one = stain.astype(np.float32), np.ones(1)
    for along_x, along_y in ((one, GAUSSIAN), (GAUSSIAN, one)):
        blurred = cv2.sepFilter2D(smooth, cv2.CV_64F, along_x, along_y, borderType=cv2.BORDER_REPLICATE)
        smooth = blurred.astype(np.float32)
    return smooth


def _otsu_threshold(values: NDArray[np.float32]) -> float:
    """Where a histogram over the values' range is split so that the two classes' means differ most (Otsu 1979)."""
    low, high = float(values.min()), float(values.max())
    high += (high - low) / HISTOGRAM_BINS / 100  # The highest value belongs to the last bin.
    # ITK rounds the width and its multiples to single precision.
    starts = np.arange(HISTOGRAM_BINS, dtype=np.float32) * ((np.float32(high) - np.float32(low)) / HISTOGRAM_BINS)
    edges = np.append(low + starts.astype(np.float64), high)
    counts, _ = np.histogram(values, edges)
    below, total = np.cumsum(counts), values.size
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    # The variance between the classes, but for what is the same for all splits.
    between = sums**2 / np.maximum(below, 1) + (sums[-1] - sums) ** 2 / np.maximum(total - below, 1)
    return float(edges[1:][np.argmax(between[:-1])])


def _clean(tissue: NDArray[np.bool_], mpp: float, settings: TissueSettings) -> NDArray[np.bool_]:
    radius = round(settings.closing_um / mpp)
    objects = _closed(tissue, radius) if radius > 0 else tissue
    objects = _without_small(objects, settings.smallest_um2 / mpp**2)
    # A strip of glass along the border is no hole: it goes on outside.
    glass = np.pad(~objects, 1, constant_values=True)
    return ~_without_small(glass, settings.largest_hole_um2 / mpp**2)[1:-1, 1:-1]


def _closed(tissue: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x**2 + y**2 <= (radius + 0.5) ** 2).astype(np.uint8)
    # Closing eats into tissue at the image's border unless the border is moved away first.
    closed = cv2.morphologyEx(np.pad(tissue, radius).astype(np.uint8), cv2.MORPH_CLOSE, disc)
    return np.asarray(closed[radius:-radius, radius:-radius] > 0)


def _without_small(objects: NDArray[np.bool_], smallest_px: float) -> NDArray[np.bool_]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(objects.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= smallest_px
    large[0] = False
    return large[labels]
