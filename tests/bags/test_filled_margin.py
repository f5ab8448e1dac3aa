"""A margin that a scanner fills up with white or black was not scanned: it says nothing of the glass."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from scripts.bags.tissue import find_tissue
from scripts.slides.slide import Slide
from tests.pyramids import PINK, write_pyramid

YELLOW, GLASS, WHITE = (240, 228, 200), (243, 242, 241), (255, 255, 255)


@pytest.mark.parametrize(
    ("glass", "margin", "is_doubted"),
    [
        (YELLOW, 255, True), (YELLOW, 254, True), (YELLOW, 0, True), (PINK, 255, False),
        (GLASS, 255, False), (GLASS, 0, False), (WHITE, 255, False),
    ],
)  # fmt: skip
def test_a_margin_that_a_scanner_fills_up_hides_no_coloured_glass(tmp_path, glass, margin, is_doubted):
    scanned = np.full((800, 1000, 3), glass, dtype=np.uint8)
    cv2.circle(scanned, (500, 400), 300, PINK, thickness=-1)
    image = np.pad(scanned, ((200, 400), (300, 200), (0, 0)), constant_values=margin)
    slide = Slide(write_pyramid(tmp_path / "s.tif", image, mpp=2.0, downsamples=(1, 4)))
    assert (find_tissue(slide).doubt() is not None) == is_doubted
