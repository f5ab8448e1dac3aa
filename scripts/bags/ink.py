"""Ink of pens on a slide, distinguished from stained tissue by its colour.

Haematoxylin and eosin both absorb green most (optical densities of R, G, B: 0.65, 0.70, 0.29 and 0.07, 0.99, 0.11;
Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23(4):291-299, 2001), and by the law of Beer
and Lambert so does every mixture of them, however thick. Blue and green ink absorb red more than green; red ink absorbs
blue about as much as green and next to no red; black ink absorbs all three alike. A stroke is found by its saturated
core, and followed from there into its paler parts and edges.

Limits were chosen at 8 um/px on pen marks of all four colours in the example images of HistoQC and histolab (not kept
here), against the 165 fields of GlaS, the templates of HistoQC and OpenSlide's CMU-1-Small-Region, in whose tissue
nothing passes for the core of a stroke (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Ink", "find_ink"]

COLOURS = ("blue", "green", "red", "black")

# Optical densities, -log10 of what passes, R above G; in tissue R stays 0.05 below G, and 0.02 at the bluest nuclei.
RED_ABOVE_GREEN_OD = 0.03
# Saturation, (max - min) / max, of a core. Pale blue is also the haematoxylin of a counterstain (0.15 to 0.35).
BLUE_CORE, GREEN_CORE, RED_CORE = 0.4, 0.3, 0.6
# Pixels at least as colourful as this, max - min in grey levels, belong to a stroke of blue or green that they touch.
PALE_CHROMA = 20
# Red ink, as fractions of G's optical density: B's (eosin 0.1 to 0.7; brown stains above 1.15), and R's at most, in a
# core and in paler parts; and the least saturation of paler parts.
RED_BLUE = (0.68, 1.15)
RED_RED_CORE, RED_RED_PALE, RED_PALE = 0.25, 0.35, 0.35
# Black ink: R's and B's least fraction of G's optical density, B's highest, and B's least optical density in a core,
# which nuclei do not reach, and in paler parts.
BLACK_LEAST, BLACK_BLUE_MOST, BLACK_CORE_OD, BLACK_PALE_OD = 0.8, 1.3, 0.7, 0.3

# A smaller core could be pigment, and no patch of 224 um would be mostly ink.
SMALLEST_CORE_UM2 = 150.0**2
# The edge of ink that lies above the focal plane.
MARGIN_UM = 32.0
# Rows of the picture that are processed together, which bounds the memory.
BAND_ROWS = 512

_OD = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)


@dataclass(frozen=True)
class Ink:
    """Where a slide has ink.

    Args:
        mask: bool ``[h, w]``, true where there is ink, its edges included.
        colours: of :data:`COLOURS`, those that it has.
    """

    mask: NDArray[np.bool_]
    colours: tuple[str, ...]


def find_ink(overview: NDArray[np.uint8], mpp: float) -> Ink:
    """Find the ink of pens in a picture of a slide stained with haematoxylin and eosin.

    Ink over tissue is found where it hides the tissue. A slide of another stain may have the colours of ink.

    Args:
        overview: RGB ``[h, w, 3]``.
        mpp: its resolution in micrometres per pixel.
    """
    cores, strokes = _colours(np.asarray(cv2.GaussianBlur(overview, (0, 0), 1.0), np.uint8))
    smallest_px = SMALLEST_CORE_UM2 / mpp**2
    _, labels, stats, _ = cv2.connectedComponentsWithStats((cores > 0).astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= smallest_px
    large[0] = False
    cores[~large[labels]] = 0
    if not large.any():
        return Ink(np.zeros(cores.shape, dtype=bool), ())
    counts = np.bincount(cores.ravel(), minlength=len(COLOURS) + 1)[1:]
    # Where colours run into each other, none of them may be large alone.
    enough = min(smallest_px, counts.max())
    colours = tuple(name for name, count in zip(COLOURS, counts, strict=True) if count >= enough)
    num_strokes, labels = cv2.connectedComponents(strokes, connectivity=8)
    has_core = np.zeros(num_strokes, dtype=bool)
    has_core[np.unique(labels[cores > 0])] = True
    side = 2 * max(1, round(MARGIN_UM / mpp)) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return Ink(cv2.dilate(has_core[labels].astype(np.uint8), disc) > 0, colours)


def _colours(picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """``[h, w]`` each: where a core is, the number of its colour from 1 up; and 1 where a stroke may be."""
    cores, strokes = (np.zeros(picture.shape[:2], dtype=np.uint8) for _ in range(2))
    for start in range(0, len(picture), BAND_ROWS):
        band = picture[start : start + BAND_ROWS]
        r, g, b = (_OD[band[..., channel]] for channel in range(3))
        highest = band.max(axis=-1)
        chroma = highest - band.min(axis=-1)
        saturation = chroma / np.maximum(highest, 1).astype(np.float32)
        cold = (r - g >= RED_ABOVE_GREEN_OD) & (chroma >= PALE_CHROMA)
        red = (b >= RED_BLUE[0] * g) & (b <= RED_BLUE[1] * g)
        black = (r >= BLACK_LEAST * g) & (b >= BLACK_LEAST * g) & (b <= BLACK_BLUE_MOST * g)
        found = (
            (cold & (b <= g), saturation >= BLUE_CORE),
            (cold & (b > g), saturation >= GREEN_CORE),
            (red & (r <= RED_RED_PALE * g) & (saturation >= RED_PALE),
             (r <= RED_RED_CORE * g) & (saturation >= RED_CORE)),
            (black & (b >= BLACK_PALE_OD), b >= BLACK_CORE_OD),
        )  # fmt: skip
        for number, (stroke, is_core) in enumerate(found, 1):
            strokes[start : start + BAND_ROWS] |= stroke
            cores[start : start + BAND_ROWS][stroke & is_core] = number
    return cores, strokes
