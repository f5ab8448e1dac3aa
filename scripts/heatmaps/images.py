"""Maps over patches as pictures of a slide (PNG), and as images with physical spacing (MHA)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from numpy.typing import NDArray
from PIL import Image

from scripts.core.files import replacing
from scripts.core.mha import write_mha
from scripts.heatmaps.attention_maps import PatchMap
from scripts.slides.slide import Slide

__all__ = [
    "COLOUR_MAPS",
    "OPACITY",
    "Thumbnail",
    "class_colour",
    "overlay",
    "patch_image",
    "read_thumbnail",
    "shade_colours",
    "shade_image",
    "with_palette",
    "write_patch_image",
    "write_png",
]

# Fine enough to see glands, small enough for a browser.
LONGEST_PX = 2000
# Turbo from blue to red, without its ends: both are dark, so on stained tissue the coldest patches would look like the
# hottest. Contribution goes from blue (against the class) over grey (nothing) to red (for it).
PERCENTILES = LinearSegmentedColormap.from_list("percentile", colormaps["turbo"](np.linspace(0.1, 0.9, 256)).tolist())
COLOUR_MAPS = {"attention": PERCENTILES, "contribution": colormaps["coolwarm"]}
# Pixels along a patch's side in an image of patches that lie on no regular grid.
PATCH_PARTS = 8
# Of the colour of a patch over the tissue.
OPACITY = 0.45
# Channel by channel, uint8 [257, 256]: a colour of a map over one of the tissue, and in the last row nothing over it.
NOTHING = 256
MIXED = np.concatenate([
    np.round((1 - OPACITY) * np.arange(256)[None] + OPACITY * np.arange(256)[:, None]), np.arange(256.0)[None]
]).astype(np.uint8)  # fmt: skip
# All that a PNG with a palette can have, and how many pixels they are chosen from.
COLOURS, SAMPLED_PX = 256, 20_000
# Of zlib, which takes 6 by default: nearly as small, in six tenths of the time.
COMPRESSION = 3
BLACK_AND_WHITE = np.array([[0] * 3, [255] * 3], dtype=np.uint8)
# From severe to harmless, in the order of the default classes.
CLASS_COLOURS = ("#d62728", "#ff7f0e", "#e8c500", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#17becf", "#7f7f7f")


@dataclass(frozen=True)
class Thumbnail:
    """A whole slide at a low resolution.

    Args:
        pixels: RGB uint8 ``[h, w, 3]``, from the slide's corner; the last row and column may reach beyond the border.
        mpp: micrometres per pixel.
        size_um: (width, height) of the slide in micrometres.
    """

    pixels: NDArray[np.uint8]
    mpp: float
    size_um: tuple[float, float]


def read_thumbnail(slide: Slide, longest_px: int = LONGEST_PX) -> Thumbnail:
    """Read a slide so that its longer side has ``longest_px`` pixels, never finer than the slide is.

    Raises:
        SlideError: if the slide cannot be read.
    """
    width, height = slide.size_level0
    mpp = max(max(width, height) * slide.base_mpp / longest_px, slide.base_mpp)
    return Thumbnail(slide.read_overview(mpp), mpp, (width * slide.base_mpp, height * slide.base_mpp))


def shade_colours(shade: NDArray[np.floating], kind: str) -> NDArray[np.uint8]:
    """The colours of shades in 0..100 (:attr:`PatchMap.shade`) of a kind of map, RGB uint8 with one more axis of 3."""
    return np.asarray(COLOUR_MAPS[kind](np.asarray(shade) / 100, bytes=True)[..., :3], dtype=np.uint8)


def class_colour(index: int) -> tuple[int, int, int]:
    """The colour of a class by its index, RGB in 0..255; the same in every picture."""
    red, green, blue = (round(255 * part) for part in to_rgb(CLASS_COLOURS[index % len(CLASS_COLOURS)]))
    return red, green, blue


def shade_image(heat: PatchMap, thumbnail: Thumbnail) -> NDArray[np.float32]:
    """The shade at each pixel of a thumbnail, ``[h, w]``: NaN where there is no patch.

    Neighbours meet without a gap; where patches overlap, a pixel has their mean. A patch smaller than a pixel still
    gets the pixel of its centre, and the hottest of several wins.
    """
    return _shade_cells(heat, thumbnail).picture


def overlay(thumbnail: Thumbnail, heat: PatchMap) -> NDArray[np.uint8]:
    """The thumbnail with every patch in the colour of its shade, RGB uint8 ``[h, w, 3]``."""
    cells = _shade_cells(heat, thumbnail)
    covered = ~np.isnan(cells.values)
    # The row of MIXED for each cell and channel.
    mixed_with = np.full((*cells.values.shape, 3), NOTHING)
    mixed_with[covered] = shade_colours(cells.values[covered], heat.kind)
    picture, top = np.empty_like(thumbnail.pixels), 0
    for row, height in zip(mixed_with, cells.heights, strict=True):
        band = np.s_[top : top + height]
        start = np.repeat(MIXED.shape[1] * row, cells.widths, axis=0)
        np.take(MIXED.reshape(-1), start + thumbnail.pixels[band], out=picture[band], mode="clip")
        top += height
    return picture


class _Cells(NamedTuple):
    """A picture that is constant between the borders of patches: its values ``[rows, columns]`` and their pixels."""

    values: NDArray[np.float32]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]

    @property
    def picture(self) -> NDArray[np.float32]:
        """One value a pixel, ``[h, w]``."""
        return np.repeat(np.repeat(self.values, self.widths, axis=1), self.heights, axis=0)


def _shade_cells(heat: PatchMap, thumbnail: Thumbnail) -> _Cells:
    """:func:`shade_image`, on the cells between the borders of patches: far fewer than pixels."""
    height, width = thumbnail.pixels.shape[:2]
    size = np.array([width, height])
    pixel_level0 = thumbnail.mpp / heat.base_mpp
    start = np.round(heat.corners / pixel_level0).astype(int)
    stop = np.round((heat.corners + heat.patch_level0) / pixel_level0).astype(int)
    centre = np.floor((heat.corners + heat.patch_level0 / 2) / pixel_level0).astype(int)
    start = np.maximum(np.where(start < stop, start, centre), 0)
    stop = np.minimum(np.maximum(stop, start + 1), size)
    seen = (start < stop).all(axis=1)
    start, stop, shade = start[seen], stop[seen], heat.shade[seen]
    if heat.patch_level0 >= pixel_level0:
        borders = [np.unique([0, length, *start[:, i], *stop[:, i]]) for i, length in enumerate(size.tolist())]
        first, last = (
            np.stack([np.searchsorted(borders[i], ends[:, i]) for i in (0, 1)], axis=1) for ends in (start, stop)
        )
        columns, rows = (len(border) - 1 for border in borders)
        widths, heights = map(np.diff, borders)
        return _Cells(_mean_image(shade, first, last, (rows, columns), np.nan), heights, widths)
    values = np.full((height, width), np.nan, dtype=np.float32)
    hottest_last = np.argsort(shade, kind="stable")
    columns_of, rows_of = start[hottest_last].T
    values[rows_of, columns_of] = shade[hottest_last]
    return _Cells(values, np.ones(height, dtype=int), np.ones(width, dtype=int))


def write_png(
    path: str | Path,
    pixels: NDArray[np.uint8],
    mpp: float | None = None,
    exact: NDArray[np.uint8] = BLACK_AND_WHITE,
) -> None:
    """Write RGB uint8 ``[h, w, 3]`` as PNG of :data:`COLOURS` colours, in one step.

    Args:
        path: of the file.
        pixels: the picture.
        mpp: its micrometres per pixel, stored in the chunk pHYs as pixels per metre; ``None`` stores none.
        exact: see :func:`with_palette`.

    Raises:
        SettingsError: if the folder cannot be written to.
    """
    # The library takes dots per inch, and writes whole pixels per metre.
    resolution = {} if mpp is None else {"dpi": (25_400 / mpp,) * 2}
    with replacing(path) as part:
        with_palette(pixels, exact).save(part, format="PNG", compress_level=COMPRESSION, **resolution)


def with_palette(pixels: NDArray[np.uint8], exact: NDArray[np.uint8] = BLACK_AND_WHITE) -> Image.Image:
    """RGB uint8 ``[h, w, 3]`` in the :data:`COLOURS` colours that suit it best: a quarter of the bytes.

    Median cut on a sample of the pixels, then one step of k-means: octrees, which are faster, paint single pixels in
    the colours of other patches. Nothing is dithered, which would look like grain of the tissue, and compress badly.

    Args:
        pixels: the picture.
        exact: ``[n, 3]``, n below :data:`COLOURS`: colours that stay as they are, such as those of a colour bar, which
            has too few pixels to be sampled.
    """
    height, width = pixels.shape[:2]
    step = max(1, round((height * width / SAMPLED_PX) ** 0.5))
    sample = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step]))
    chosen = sample.quantize(COLOURS - len(exact), method=Image.Quantize.MEDIANCUT, kmeans=1).getpalette("RGB") or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(exact.ravel().tolist() + chosen[: 3 * (COLOURS - len(exact))])
    picture = Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.NONE)
    # The library compares only the upper bits of colours, and so may find another colour for an exact one.
    found = np.asarray(Image.fromarray(exact[None]).quantize(palette=palette, dither=Image.Dither.NONE))[0]
    missed = np.flatnonzero(found != np.arange(len(exact)))
    if len(missed) > 0:
        indices = np.array(picture)
        for index in missed.tolist():
            indices[cv2.inRange(pixels, *(exact[[index]].astype(float),) * 2).astype(bool)] = index
        picture.paste(Image.fromarray(indices), (0, 0))
    return picture


def patch_image(heat: PatchMap, size_um: tuple[float, float]) -> tuple[NDArray[np.float32], float]:
    """The values as an image ``[rows, columns]`` that covers the slide, 0 where there is no patch; and its pixel in um.

    Where the patches lie on one regular grid from the slide's corner, a pixel is a patch. Where they do not
    (``overlap``, ``grid_origin`` tissue), it is an eighth of a patch's side, and has the mean of the patches that
    contain its centre.

    Args:
        heat: the map.
        size_um: (width, height) of the slide in micrometres.

    Raises:
        ValueError: if a patch lies outside of the slide.
    """
    cells = heat.corners / heat.patch_level0
    is_regular = np.abs(cells - np.round(cells)).max() <= 0.01
    parts = 1 if is_regular else PATCH_PARTS
    pixel_um = heat.patch_um / parts
    columns, rows = (max(1, math.ceil(round(side / pixel_um, 6))) for side in size_um)
    start = np.round(cells * parts).astype(int)
    column, row = start.T
    if min(column.min(), row.min()) < 0 or column.max() >= columns or row.max() >= rows:
        raise ValueError(f"a patch lies outside of the slide, whose grid has {columns} x {rows} cells")
    return _mean_image(heat.values, start, start + parts, (rows, columns), 0.0), pixel_um


def _mean_image(
    values: NDArray[np.float64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    shape: tuple[int, int],
    empty: float,
) -> NDArray[np.float32]:
    """The mean of the values of the rectangles from start to stop, ``[n, 2]`` (x, y), that contain each pixel."""
    total, number = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    if (stop - start == 1).all():  # as on a regular grid, where none of them contains another's pixels
        columns, rows = start.T
        np.add.at(total, (rows, columns), values)
        np.add.at(number, (rows, columns), 1)
        return np.where(number > 0, total / np.maximum(number, 1), empty).astype(np.float32)
    for value, (left, top), (right, bottom) in zip(values, start, stop, strict=True):
        total[top:bottom, left:right] += value
        number[top:bottom, left:right] += 1
    return np.where(number > 0, total / np.maximum(number, 1), empty).astype(np.float32)


def write_patch_image(path: str | Path, heat: PatchMap, size_um: tuple[float, float]) -> None:
    """Write :func:`patch_image` as MetaImage (``.mha``), in one step, with spacing and origin in millimetres.

    The origin is the centre of the first pixel, so that the corner of the slide's level 0 is at (0, 0), as with
    :meth:`scripts.bags.tissue.TissueMask.write`.

    Raises:
        SettingsError: if the folder cannot be written to.
        ValueError: as :func:`patch_image`.
    """
    image, pixel_um = patch_image(heat, size_um)
    spacing_mm = pixel_um * 1e-3
    with replacing(path) as part:
        write_mha(part, image, spacing_mm=(spacing_mm,) * 2, origin_mm=(spacing_mm / 2,) * 2)
