"""The legend of a heatmap: what it shows, its colours with their values, and a scale bar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scripts.heatmaps.attention_maps import PatchMap
from scripts.heatmaps.images import BLACK_AND_WHITE, OPACITY, shade_colours
from scripts.heatmaps.lettering import MARGIN_PX, font, stacked, text_block

__all__ = ["Title", "bar_length_um", "heatmap_with_legend", "legend", "legend_colours", "shade_limits", "shade_text"]

TITLE_PX, TEXT_PX = 24, 18
BAR_HEIGHT_PX = 24
# Each step takes a colour of the file's palette from the tissue.
BAR_STEPS = 41
# A narrower picture gets white at its right, so that its legend stays legible.
LEAST_WIDTH_PX = 720
LABELS = {"attention": "attention percentile", "contribution": "contribution in logits"}
# A scale bar has the longest of these lengths that is at most this fraction of the slide's width.
BAR_FRACTION = 0.3
BAR_LENGTHS_UM = [digit * 10.0**power for power in range(1, 6) for digit in (1, 2, 5)]


@dataclass(frozen=True)
class Title:
    """What a picture of one map and class is of.

    Args:
        slide: the slide's name.
        map_name: the map's name.
        head: the head that the map explains.
        class_name: the class.
        probability: the head's probability of the class, in 0..1; ``None`` where it is not known.
    """

    slide: str
    map_name: str
    head: str
    class_name: str
    probability: float | None = None

    def lines(self, kind: str | None = None) -> list[tuple[str, int]]:
        """Lines for :func:`scripts.heatmaps.lettering.text_block`; ``kind`` is named if it is given."""
        of_head = "" if self.head == self.map_name else f" (head {self.head})"
        parts = [f"map {self.map_name}{of_head}", f"class {self.class_name}"]
        parts += [] if kind is None else [kind]
        parts += [] if self.probability is None else [f"probability {self.probability:.3f}"]
        return [(self.slide, TITLE_PX), ("   ".join(parts), TEXT_PX)]


def heatmap_with_legend(overlaid: NDArray[np.uint8], heat: PatchMap, title: Title, mpp: float) -> NDArray[np.uint8]:
    """An overlay with its legend below, RGB ``[h, w, 3]``: the picture's upper left pixel stays that of the slide."""
    return stacked([overlaid, legend(heat, title, overlaid.shape[1], mpp)])


def legend(heat: PatchMap, title: Title, width_px: int, mpp: float) -> NDArray[np.uint8]:
    """The legend of an overlay, RGB ``[h, w, 3]`` on white; w is at least ``width_px``.

    Args:
        heat: the map.
        title: of the picture.
        width_px: of the overlay.
        mpp: micrometres per pixel of the overlay.
    """
    width = max(width_px, LEAST_WIDTH_PX)
    bars = Image.new("RGB", (width, 2 * round(1.5 * TEXT_PX) + BAR_HEIGHT_PX + MARGIN_PX), "white")
    draw, top = ImageDraw.Draw(bars), round(1.5 * TEXT_PX)
    bottom, bar_px = top + BAR_HEIGHT_PX, width // 2 - 2 * MARGIN_PX
    draw.text((MARGIN_PX, 0), LABELS[heat.kind], fill="black", font=font(TEXT_PX))
    colours = legend_colours(heat.kind)[np.arange(bar_px) * BAR_STEPS // bar_px]
    bars.paste(Image.fromarray(np.repeat(colours[None], BAR_HEIGHT_PX, axis=0)), (MARGIN_PX, top))
    least, most = shade_limits(heat)
    for value, place, anchor in ((least, 0.0, "lt"), ((least + most) / 2, 0.5, "mt"), (most, 1.0, "rt")):
        x = MARGIN_PX + round(place * (bar_px - 1))
        draw.line([(x, bottom), (x, bottom + 4)], fill="black")
        text = shade_text(value, heat.kind)
        draw.text((x, bottom + 7), text, fill="black", font=font(TEXT_PX), anchor=anchor)
    length_um = bar_length_um(width_px * mpp)
    left, length_px = width // 2 + MARGIN_PX, max(1, round(length_um / mpp))
    draw.text((left, 0), f"{length_um / 1000:g} mm", fill="black", font=font(TEXT_PX))
    draw.rectangle([left, top, left + length_px - 1, top + 5], fill="black")
    return stacked([np.full((MARGIN_PX // 2, width, 3), 255, np.uint8), text_block(title.lines(heat.kind), width),
                    np.array(bars)])  # fmt: skip


def legend_colours(kind: str) -> NDArray[np.uint8]:
    """The colours of a legend, RGB ``[n, 3]``: those of the bar, as a map has them over white, then black and white."""
    shades = (np.arange(BAR_STEPS) + 0.5) * 100 / BAR_STEPS
    mixed = np.round(255 * (1 - OPACITY) + OPACITY * shade_colours(shades, kind)).astype(np.uint8)
    return np.concatenate([mixed, BLACK_AND_WHITE])


def shade_limits(heat: PatchMap) -> tuple[float, float]:
    """What the ends of a map's colours stand for: percentiles of attention, or logits of this map's contribution."""
    return (0.0, 100.0) if heat.kind == "attention" else (-heat.greatest, heat.greatest)


def shade_text(value: float, kind: str) -> str:
    """A value of a map's colours in three digits; a contribution has its sign."""
    return f"{value:{'+' if value and kind == 'contribution' else ''}.3g}"


def bar_length_um(width_um: float) -> float:
    """The length of the scale bar of a picture of this width."""
    return max([length for length in BAR_LENGTHS_UM if length <= BAR_FRACTION * width_um], default=BAR_LENGTHS_UM[0])
