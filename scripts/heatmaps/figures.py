"""The figure that sets maps side by side: slides, their true regions, and what each method sees where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from numpy.typing import NDArray

from scripts.heatmaps.attention_maps import KINDS, PatchMap
from scripts.heatmaps.images import COLOUR_MAPS, OPACITY, Thumbnail, class_colour, overlay
from scripts.heatmaps.legend import bar_length_um

__all__ = ["PanelRow", "draw_regions", "draw_thumbnail", "panel"]

# More than a heatmap's: regions have to be distinguished, not graded.
REGION_OPACITY = 0.6
CELL_INCHES = 2.6
BAR_LIMITS = {"attention": (0, 100), "contribution": (-1, 1)}
BAR_LABELS = {"attention": "attention percentile", "contribution": "contribution / slide's greatest"}


@dataclass(frozen=True)
class PanelRow:
    """One slide of the figure.

    Args:
        slide: the slide's name.
        class_name: the class whose maps are shown, named at the row.
        thumbnail: the slide.
        regions: label image ``[h, w]`` of the whole slide at any size, 0 for no class and else the class's index + 1;
            ``None`` where nobody annotated it.
        maps: the title (method and map) and the map of each column; a row may lack one (``None``).
    """

    slide: str
    class_name: str
    thumbnail: Thumbnail
    regions: NDArray[np.integer] | None
    maps: Sequence[tuple[str, PatchMap | None]] = field(default_factory=list)


def panel(rows: Sequence[PanelRow], class_names: Sequence[str]) -> Figure:
    """One row a slide: the slide, its true regions, then one column for each map.

    Thumbnails of 800 px are enough; larger ones make the drawing slow, and not finer.

    Args:
        rows: at least one slide, all with the same titles in the same order.
        class_names: the classes in the order of the label images, for the legend.
    """
    titles = [title for title, _ in rows[0].maps]
    num_columns = 2 + len(titles)
    # Each row is as high as its slide wants at the columns' width, so that no slide shrinks for another.
    heights = [min(max(row.thumbnail.size_um[1] / row.thumbnail.size_um[0], 0.4), 2.5) for row in rows]
    size = (CELL_INCHES * num_columns + 1.0, CELL_INCHES * sum(heights) + 0.9)
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, dpi=150, layout=layout)
    grid = figure.subplots(len(rows), num_columns, squeeze=False, height_ratios=heights)
    for axes, row in zip(grid, rows, strict=True):
        draw_thumbnail(axes[0], row.thumbnail, bar=True)
        label = f"{row.slide}\n{' and '.join(_kinds([row]))} for {row.class_name}"
        axes[0].set_ylabel(label, fontsize=9, parse_math=False)
        draw_regions(axes[1], row.thumbnail, row.regions)
        for ax, (_, heat) in zip(axes[2:], row.maps, strict=True):
            draw_thumbnail(ax, row.thumbnail, heat)
            if heat is None:
                ax.text(0.5, 0.5, "no map", transform=ax.transAxes, ha="center", va="center")
    for ax, title in zip(grid[0], ["slide", "true regions", *titles], strict=True):
        ax.set_title(title, fontsize=10)
    _legend(figure, rows, class_names)
    for kind in _kinds(rows):
        colours = ScalarMappable(Normalize(*BAR_LIMITS[kind]), COLOUR_MAPS[kind])
        bar = figure.colorbar(colours, ax=grid, alpha=OPACITY, shrink=0.8, aspect=30, pad=0.01)
        bar.set_label(BAR_LABELS[kind], fontsize=9)
        bar.ax.tick_params(labelsize=8)
    return figure


def draw_thumbnail(ax: Axes, thumbnail: Thumbnail, heat: PatchMap | None = None, bar: bool = False) -> None:
    """Show a slide, with a map over it or a scale bar, on axes in micrometres from the slide's corner."""
    _show(ax, thumbnail, thumbnail.pixels if heat is None else overlay(thumbnail, heat))
    if bar:
        _scale_bar(ax, thumbnail.size_um)


def draw_regions(ax: Axes, thumbnail: Thumbnail, regions: NDArray[np.integer] | None) -> None:
    """Show the true regions in the classes' colours over a slide; see :class:`PanelRow`."""
    if regions is None:
        ax.text(0.5, 0.5, "not annotated", transform=ax.transAxes, ha="center", va="center", fontsize=9, color="0.4")
        _frame(ax, thumbnail)
        return
    # By place: the label image covers the slide, the thumbnail's last pixels may reach beyond it.
    row, column = (
        np.minimum(((np.arange(length) + 0.5) * thumbnail.mpp * labelled / side_um).astype(int), labelled - 1)
        for length, labelled, side_um in zip(
            thumbnail.pixels.shape, regions.shape, reversed(thumbnail.size_um), strict=False
        )
    )
    labels = regions[np.ix_(row, column)]
    pixels = thumbnail.pixels.copy()
    for value in np.unique(labels[labels > 0]):
        inside = labels == value
        colour = np.array(class_colour(int(value) - 1))
        pixels[inside] = np.round((1 - REGION_OPACITY) * pixels[inside] + REGION_OPACITY * colour)
    _show(ax, thumbnail, pixels)


def _show(ax: Axes, thumbnail: Thumbnail, pixels: NDArray[np.uint8]) -> None:
    height, width = pixels.shape[:2]
    extent = (0, width * thumbnail.mpp, height * thumbnail.mpp, 0)
    ax.imshow(pixels, extent=extent, interpolation="antialiased")
    _frame(ax, thumbnail)


def _frame(ax: Axes, thumbnail: Thumbnail) -> None:
    width, height = thumbnail.size_um
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color="0.75", linewidth=0.6)


def _scale_bar(ax: Axes, size_um: tuple[float, float]) -> None:
    width, height = size_um
    length = bar_length_um(width)
    left, y = 0.04 * width, height - 0.04 * width
    ax.plot([left, left + length], [y, y], color="black", linewidth=2, solid_capstyle="butt")
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    ax.text(left + length / 2, y - 0.015 * width, text, ha="center", va="bottom", fontsize=7)


def _legend(figure: Figure, rows: Sequence[PanelRow], class_names: Sequence[str]) -> None:
    shown = sorted({int(v) - 1 for row in rows if row.regions is not None for v in np.unique(row.regions) if v > 0})
    patches = [
        Patch(color=np.divide(class_colour(k), 255), alpha=REGION_OPACITY, label=class_names[k])  # type: ignore[arg-type]
        for k in shown
    ]
    if patches:
        figure.legend(
            handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9,
            title="true regions", title_fontsize=9,
        )  # fmt: skip


def _kinds(rows: Sequence[PanelRow]) -> list[str]:
    shown = {heat.kind for row in rows for _, heat in row.maps if heat is not None}
    return [kind for kind in KINDS if kind in shown]
