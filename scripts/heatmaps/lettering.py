"""Text in pictures, drawn onto white in pixels of the picture, so that nothing is resampled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["MARGIN_PX", "font", "stacked", "text_block"]

MARGIN_PX = 16
# Of the font's size.
LINE_HEIGHT = 1.4


@cache
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: the same on every machine, and more than ASCII."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size_px)


def text_block(lines: Sequence[tuple[str, int]], width_px: int, margin_px: int = MARGIN_PX) -> NDArray[np.uint8]:
    """Lines of black text on white, RGB ``[h, width_px, 3]``, each with the size of its letters in pixels.

    A line that is too long loses its middle, since the ends of a slide's name are what differs.
    """
    heights = [round(LINE_HEIGHT * size) for _, size in lines]
    block = Image.new("RGB", (width_px, sum(heights)), "white")
    draw, top = ImageDraw.Draw(block), 0
    for (text, size), height in zip(lines, heights, strict=True):
        draw.text((margin_px, top), _fitting(text, size, width_px - 2 * margin_px), fill="black", font=font(size))
        top += height
    return np.array(block)


def stacked(pictures: Sequence[NDArray[np.uint8]], axis: int = 0, gap_px: int = 0) -> NDArray[np.uint8]:
    """RGB pictures below each other (``axis`` 0) or side by side (1), from the upper left on, on white."""
    across = max(picture.shape[1 - axis] for picture in pictures)
    along = sum(picture.shape[axis] for picture in pictures) + gap_px * (len(pictures) - 1)
    together = np.full((along, across, 3) if axis == 0 else (across, along, 3), 255, dtype=np.uint8)
    place = 0
    for picture in pictures:
        height, width = picture.shape[:2]
        top, left = (place, 0) if axis == 0 else (0, place)
        together[top : top + height, left : left + width] = picture
        place += picture.shape[axis] + gap_px
    return together


def _fitting(text: str, size_px: int, width_px: int) -> str:
    text = " ".join(text.splitlines())
    kept = len(text)
    shown = text
    while font(size_px).getlength(shown) > width_px and kept > 2:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
    return shown
