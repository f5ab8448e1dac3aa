"""What the bundle sees in one slide, as text and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from scripts.bags.bag import Bag, BagBuilder
from scripts.bags.linked_patches import linked_rows
from scripts.core.errors import SettingsError
from scripts.core.files import replacing
from scripts.core.magnification import magnification_of
from scripts.datalists.slide_files import slide_name
from scripts.heatmaps.images import read_thumbnail
from scripts.slides.remote import is_remote, known_as

__all__ = ["describe", "draw", "inspect_slide"]

# Wide enough to see each patch, small enough for a screen.
OVERVIEW_PX = 1600
TISSUE_COLOUR = (0, 140, 60)
# Of what was left out of the tissue, by its name in :attr:`scripts.bags.tissue.TissueMask.exclusions`.
EXCLUSION_COLOURS = {"ink": (225, 0, 60)}
OTHER_EXCLUSIONS = ((90, 90, 90), (130, 70, 20), (0, 90, 120), (110, 0, 130))
ROWS_SHOWN = 4
# A frame's line, at most, in pixels of the overview.
LINE_PX = 3
GRID_COLOURS = ((30, 60, 200), (220, 120, 0), (150, 0, 150), (0, 130, 130))


def inspect_slide(entry: Mapping[str, Any], bag_builder: BagBuilder, output_dir: str | Path) -> Path:
    """Print what the bundle sees in a slide, and write a picture of it.

    Args:
        entry: ``image`` and, optionally, ``mpp``, ``mask`` and ``mask_tissue``.
        bag_builder: makes the slide's bag.
        output_dir: where ``<slide>.png``, and the tissue mask ``<slide>_tissue.mha``, are written.

    Returns:
        The picture's path.

    Raises:
        SettingsError: if there is no ``image``, or no such file.
        SlideError: if the slide cannot be read; or, after the picture was written, if it has no rows.
    """
    if entry.get("image") is None:
        raise SettingsError("image", "got none", "Name the slide: --image PATH.")
    entry = {**entry, "image": known_as(str(entry["image"]))}
    for key in ("image", "mask"):
        if entry.get(key) is not None and not is_remote(entry[key]) and not Path(entry[key]).exists():
            raise SettingsError(key, f"no such file {entry[key]}", f"Check the path: --{key} PATH.")
    with bag_builder.staging.holding(entry):
        return _inspect(entry, bag_builder, output_dir)


def _inspect(entry: Mapping[str, Any], bag_builder: BagBuilder, output_dir: str | Path) -> Path:
    bag = bag_builder.look(entry)
    path = bag.slide.path.absolute()
    name = slide_name(str(path))
    print(describe(bag))
    picture, mask = Path(output_dir) / f"{name}.png", Path(output_dir) / f"{name}_tissue.mha"
    with replacing(picture) as part:
        draw(bag).savefig(part)
    with replacing(mask) as part:
        bag.tissue.write(part)
    print(f"picture      {picture}\ntissue mask  {mask}")
    bag_builder.check(bag)
    return picture


def describe(bag: Bag) -> str:
    """A slide's resolution and where it came from, its levels, tissue, and rows and patches at each scale."""
    slide, grid = bag.slide, bag.grid
    width, height = slide.size_level0
    lines = [
        f"slide        {slide.path}",
        f"reader       {slide.backend}",
        f"resolution   {slide.base_mpp:g} um/px ({magnification_of(slide.base_mpp):.4g}x), "
        f"from {slide.resolution.source}",
        f"size         {width} x {height} px, {width * slide.base_mpp / 1e3:.2f} x "
        f"{height * slide.base_mpp / 1e3:.2f} mm",
    ]
    bounds = slide.bounds_level0
    if bounds != (0, 0, width, height):
        place = f"{bounds.width:g} x {bounds.height:g} px at ({bounds.x:g}, {bounds.y:g})"
        lines.append(f"bounds       {place}: the part that QuPath shows")
    for level, ((w, h), downsample) in enumerate(zip(slide.level_sizes, slide.downsamples, strict=True)):
        mpp = slide.base_mpp * downsample
        lines.append(f"level {level}      {w} x {h} px, {mpp:.4g} um/px ({magnification_of(mpp):.4g}x)")
    lines.append(f"tissue       {bag.tissue.area_mm2:.3g} mm2")
    for name, mask in bag.tissue.exclusions.items():
        if name == "ink":  # which has a line of its own, with advice
            continue
        lines.append(f"excluded     {name}, {bag.tissue.mm2_of(mask):.3g} mm2")
    for name, message in (
        ("ink", bag.tissue.ink()),
        ("warning", bag.tissue.doubt()),
        *(("warning", warning) for warning in bag.tissue.warnings),
    ):
        if message is not None:
            lines.append(f"{name:<12} {'. '.join(message)}")
    for scale, coords in zip(grid.scales, grid.coords, strict=True):
        lines.append(
            f"{scale.name:<12} {len(coords)} patches of {scale.patch_size_px} px = {scale.patch_um:g} um, "
            f"read as {scale.patch_read_px} px from level {scale.level}"
        )
    lines.append(f"covered      {_covered(bag)}, by the patches of {grid.scales[-1].name}")
    lines.append(f"rows         {grid.num_rows} ({grid.orphans} patches left out without an ancestor)")
    return "\n".join(lines)


def draw(bag: Bag) -> Figure:
    """The thumbnail with tissue, what was left out of it, and the linked grids; and a few rows of the bag beside it."""
    slide, grid, thumbnail = bag.slide, bag.grid, read_thumbnail(bag.slide, OVERVIEW_PX)
    picture, pixel_level0 = thumbnail.pixels, thumbnail.mpp / slide.base_mpp
    outlines = [(bag.tissue.tissue, TISSUE_COLOUR, f"tissue: {_covered(bag)} covered")]
    for number, (name, mask) in enumerate(bag.tissue.exclusions.items()):
        colour = EXCLUSION_COLOURS.get(name, OTHER_EXCLUSIONS[number % len(OTHER_EXCLUSIONS)])
        outlines.append((mask, colour, f"{name}: {bag.tissue.mm2_of(mask):.3g} mm2, not tissue"))
    for mask, colour, _ in outlines:
        _outline(picture, mask, colour, bag, pixel_level0)
    # Beside each other, the coarser outside: so both are seen where frames of two magnifications lie on one line.
    finest_px = grid.scales[-1].patch_level0 / pixel_level0
    line_px = int(np.clip(finest_px / (8 * len(grid.scales)), 1, LINE_PX))
    # The coarser on top, where their lines cross.
    for s, scale in reversed([*enumerate(grid.scales)]):
        _frame(picture, grid.coords[s] / pixel_level0, scale.patch_level0 / pixel_level0, _colour(s), s, line_px)

    figure = Figure(figsize=(14, 8), dpi=120, layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(2, 1)))
    overview = left.subplots()
    extent_mm = (0, picture.shape[1] * thumbnail.mpp / 1e3, picture.shape[0] * thumbnail.mpp / 1e3, 0)
    overview.imshow(picture, extent=extent_mm)
    overview.set(title=slide.path.name, xlabel="mm", ylabel="mm")
    for s, scale in enumerate(grid.scales):
        overview.plot([], [], color=np.divide(_colour(s), 255), label=f"{scale.name}: {len(grid.coords[s])} patches")
    for _, colour, label in outlines:
        overview.plot([], [], color=np.divide(colour, 255), label=label)
    # Below the slide, where no tissue can lie.
    left.legend(loc="outside lower left", fontsize="small", ncols=3)
    right.suptitle("rows of the bag")
    if grid.num_rows > 0:
        _show_rows(right, bag)
    return figure


def _show_rows(figure: SubFigure, bag: Bag) -> None:
    rows = linked_rows(bag, ROWS_SHOWN)
    axes = figure.subplots(len(rows), len(bag.grid.scales), squeeze=False)
    for row, patches in enumerate(rows):
        for column, patch in enumerate(patches):
            axes[row, column].imshow(patch)
            axes[row, column].set(xticks=[], yticks=[])
    for column, scale in enumerate(bag.grid.scales):
        axes[0, column].set_title(f"{scale.name}, {scale.patch_um:g} um", fontsize="medium")


def _covered(bag: Bag) -> str:
    return f"{bag.covered_mm2:.3g} of {bag.tissue.area_mm2:.3g} mm2 ({bag.covered_fraction:.0%})"


def _outline(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Sequence[int], bag: Bag, pixel_level0: float
) -> None:
    scale = np.divide(bag.tissue.pixel_level0, pixel_level0)
    origin = np.divide(bag.tissue.origin_level0, pixel_level0)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for outline in outlines:
        # A contour runs through the pixels' centres.
        points = np.round(origin + (outline + 0.5) * scale).astype(np.int32)
        cv2.polylines(picture, [points], isClosed=True, color=tuple(colour), thickness=3)


def _frame(
    picture: NDArray[np.uint8],
    corners: NDArray[np.floating],
    side: float,
    colour: Sequence[int],
    inset: int,
    line_px: int,
) -> None:
    """Draw frames inside of squares, as the ``inset``-th line from their borders.

    Where two squares have an edge in common it is drawn once, inside of the right or the lower one.
    """
    # Rounded first to less than a pixel: the edges of neighbours are one.
    starts, stops = (np.round(np.round(edge, 6)).astype(int) for edge in (corners, corners + side))
    known = {tuple(start) for start in starts.tolist()}
    near, far = inset * line_px, (inset + 1) * line_px
    for (x0, y0), (x1, y1) in zip(starts.tolist(), stops.tolist(), strict=True):
        right = x1 + near if (x1, y0) in known else x1 - far
        lower = y1 + near if (x0, y1) in known else y1 - far
        for line in range(line_px):
            place = (x0 + near + line, y0 + near + line), (right + line_px - 1 - line, lower + line_px - 1 - line)
            cv2.rectangle(picture, *place, tuple(colour), 1)


def _colour(scale_index: int) -> tuple[int, int, int]:
    return GRID_COLOURS[scale_index % len(GRID_COLOURS)]
