"""Galleries of top patches: which patches they show, and which pixels of the slide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.magnification import Scale
from scripts.heatmaps.attention_maps import PatchMap, gather_rows
from scripts.heatmaps.legend import Title
from scripts.heatmaps.lettering import text_block
from scripts.heatmaps.top_patches import central_row, gallery, top_patches
from scripts.slides.frames import LEVEL0, Frame

TITLE = Title("slide", "10x", "10x", "cancer", 0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]), min_size=1, max_size=30), st.integers(0, 40))
def test_top_patches_are_those_of_the_highest_values_in_the_grids_order(values, count):
    corners = np.stack([np.arange(len(values)), np.zeros(len(values))], axis=1)
    found = top_patches(PatchMap(corners, 1.0, 0.5, np.array(values)), count)
    assert found.tolist() == sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def a_bag(num_scales, side=32):
    """Rows of nested patches: each patch of the finest scale on a 4 x 4 grid has its ancestors."""
    scales = [Scale(10 / 2**s, side, 0.5) for s in reversed(range(num_scales))]
    finest = scales[-1].patch_level0
    grid = np.array([(x * finest, y * finest) for y in range(4) for x in range(4)])
    corners = np.stack([np.floor(grid / s.patch_level0) * s.patch_level0 for s in scales], axis=1)
    return scales, corners


def colour_of(scale_index, corner):
    return np.array([40 + 60 * scale_index, 3 + int(corner[0]) % 240, 3 + int(corner[1]) % 240], dtype=np.uint8)


@pytest.mark.parametrize("num_scales", [1, 2, 3])
def test_a_gallery_shows_each_top_patch_whole_with_the_patches_it_is_linked_to(num_scales):
    scales, corners = a_bag(num_scales)
    values = np.arange(16) / 120
    heat = gather_rows(values, corners[:, -1], scales[-1].patch_level0, 0.5)
    asked = []

    def read(s, corner):
        asked.append((s, corner))
        return np.tile(colour_of(s, corner), (32, 32, 1))

    picture = gallery([heat], 3, TITLE, corners, scales, num_scales - 1, read)
    rows = [15, 14, 13]
    wanted = [(s, tuple(corners[row, s].tolist())) for row in rows for s in range(num_scales)]
    assert asked == wanted
    for row in rows:
        colour = colour_of(num_scales - 1, corners[row, -1])
        y, x = np.nonzero((picture == colour).all(axis=-1))
        assert len(y) == 32 * 32
        assert np.ptp(y) == np.ptp(x) == 31
        # The outline that marks it is black, and covers none of it.
        assert (picture[y.min() - 1, x.min() : x.max()] == 0).all()


def test_of_a_lower_scales_patch_the_most_central_of_the_finest_patches_is_shown():
    scales, corners = a_bag(3)
    sides = [scale.patch_level0 for scale in scales]
    row = central_row(corners, sides, 0, patch=15)
    middle = corners[row, -1] + sides[-1] / 2
    distance = np.linalg.norm(corners[:, -1] + sides[-1] / 2 - corners[0, 0] - sides[0] / 2, axis=1)
    assert (corners[row, 0] == corners[15, 0]).all()
    assert np.linalg.norm(middle - corners[0, 0] - sides[0] / 2) == pytest.approx(distance.min())


def test_padding_is_no_patch_and_fewer_patches_than_asked_for_are_shown():
    scales, corners = a_bag(2)
    padded = np.concatenate([corners, np.full((2, 2, 2), np.nan)])
    heat = gather_rows(np.ones(18), padded[:, -1], scales[-1].patch_level0, 0.5)
    asked = []

    def read(s, corner):
        asked.append((s, corner))
        return np.zeros((32, 32, 3), np.uint8)

    gallery([heat, heat], 100, TITLE, padded, scales, 1, read)
    assert len(asked) == 2 * 16 * 2
    assert np.isfinite([corner for _, corner in asked]).all()


@pytest.mark.parametrize("frame", [LEVEL0, Frame("qupath", (300.0, 200.0))])
def test_a_gallery_says_value_percentile_and_where_the_patch_is_counted_from_its_frame(monkeypatch, frame):
    scales, corners = a_bag(2)
    heat = gather_rows(np.arange(16) / 120, corners[:, -1], scales[-1].patch_level0, 0.5)
    said = []

    def text_block_of(lines, *size):
        said.extend(text for text, _ in lines)
        return text_block(lines, *size)

    monkeypatch.setattr("scripts.heatmaps.top_patches.text_block", text_block_of)
    gallery([heat], 1, TITLE, corners, scales, 1, lambda s, corner: np.zeros((32, 32, 3), np.uint8), frame)
    x, y = corners[15, -1] + scales[-1].patch_level0 / 2 - frame.origin_level0
    assert said[:3] == [
        f"1.  attention 0.125, percentile {heat.percentile.max():.1f}",
        f"centre x {x / 2000:.3f} mm, y {y / 2000:.3f} mm",
        f"x {x:.0f} px, y {y:.0f} px of level 0 ({frame.coordinates})",
    ]
    assert said[3:] == ["Highest attention", *(text for text, _ in TITLE.lines())]
