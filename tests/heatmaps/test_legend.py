"""The legend of a heatmap, read back from its pixels."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.heatmaps.attention_maps import KINDS, PatchMap
from scripts.heatmaps.images import OPACITY, Thumbnail, overlay, shade_colours, write_png
from scripts.heatmaps.legend import (
    Title,
    bar_length_um,
    heatmap_with_legend,
    legend,
    legend_colours,
    shade_limits,
    shade_text,
)
from scripts.heatmaps.lettering import font, text_block
from tests.heatmaps.test_images import read_png

TITLE = Title("a slide", "global", "global", "bösartig", 0.75)


def a_map(kind="attention", values=(0.1, 0.2, 0.7)):
    corners = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    return PatchMap(corners, 100.0, 0.5, np.array(values, dtype=float), kind)


def a_thumbnail(height=150, width=900):
    grey = np.linspace(90, 240, width).astype(np.uint8)
    return Thumbnail(np.tile(grey[None, :, None], (height, 1, 3)), 0.5, (width / 2, height / 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [40, 900])
def test_the_picture_above_a_legend_is_that_without_one_pixel_for_pixel(kind, width):
    thumbnail, heat = a_thumbnail(width=width), a_map(kind)
    plain = overlay(thumbnail, heat)
    shown = heatmap_with_legend(plain, heat, TITLE, thumbnail.mpp)
    assert (shown[: len(plain), :width] == plain).all()
    assert (shown[: len(plain), width:] == 255).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bar_runs_through_the_colours_of_the_map_and_its_file_keeps_them(kind, tmp_path):
    thumbnail, heat = a_thumbnail(), a_map(kind)
    picture = heatmap_with_legend(overlay(thumbnail, heat), heat, TITLE, thumbnail.mpp)
    write_png(tmp_path / "map.png", picture, thumbnail.mpp, legend_colours(kind))
    stored = read_png(tmp_path / "map.png")[0]
    for pixels in (picture, stored):
        below = pixels[len(thumbnail.pixels) :].astype(int)
        saturation = below.max(axis=-1) - below.min(axis=-1)
        bar = below[np.argmax((saturation > 20).sum(axis=1))]
        coloured = np.flatnonzero((bar < 255).any(axis=-1))
        left, right = coloured[0], coloured[bar[coloured].sum(axis=1) > 0][-1]
        # The scale bar, black, lies beside it; of the colour bar, each place has its shade's colour over white.
        coloured = coloured[bar[coloured].sum(axis=1) > 0]
        left, right = coloured[0], coloured[-1]
        shade = 100 * (np.arange(left, right + 1) - left + 0.5) / (right + 1 - left)
        expected = 255 * (1 - OPACITY) + OPACITY * shade_colours(shade, kind).astype(float)
        assert np.abs(bar[left : right + 1] - expected).max() < 8


def test_whatever_a_legend_says_is_seen_in_its_pixels():
    contribution = a_map("contribution", (-1.5, 0.2, 1.0))
    titles = [
        TITLE,
        replace(TITLE, slide="another slide"),
        replace(TITLE, map_name="5x", head="5x"),
        replace(TITLE, head="5x"),
        replace(TITLE, class_name="gutartig"),
        replace(TITLE, probability=0.751),
        replace(TITLE, probability=None),
    ]
    pictures = [legend(a_map(), title, 900, 0.5) for title in titles]
    # The range of a contribution's values is that of the map; percentiles always run from 0 to 100.
    pictures += [legend(contribution, TITLE, 900, 0.5), legend(a_map("contribution", (-3, 0.4, 2)), TITLE, 900, 0.5)]
    pictures += [legend(a_map(), TITLE, 900, 20.0)]  # another scale bar
    for one, other in combinations(pictures, 2):
        # At the least a letter's height and width of pixels that are black in one of them alone.
        assert one.shape == other.shape
        assert (np.abs(one.astype(int) - other).max(axis=-1) > 200).sum() > 10
    assert (legend(a_map(values=(0.2, 0.4, 1.4)), TITLE, 900, 0.5) == pictures[0]).all()


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 50), st.integers(30, 3000))
def test_the_scale_bar_is_as_long_as_it_says(mpp, width):
    pixels = legend(a_map(), TITLE, width, mpp)
    # The longest run of black pixels in a row: letters have none that is as thick and long.
    black = (pixels[-70:] == 0).all(axis=-1)
    lengths = [0]
    for row in black:
        steps = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        lengths += (steps[1::2] - steps[::2]).tolist()
    length_um = bar_length_um(width * mpp)
    if width * mpp >= 100:
        assert 0.1 * width * mpp < length_um <= 0.3 * width * mpp
    if length_um / mpp > 30:
        assert max(lengths) == round(length_um / mpp)


def test_the_ends_of_the_colours_are_percentiles_or_the_greatest_contribution_of_this_map():
    assert shade_limits(a_map()) == (0, 100)
    heat = a_map("contribution", (-1.5, 0.2, 1.0))
    assert shade_limits(heat) == (-1.5, 1.5)
    least, most = shade_limits(heat)
    assert least + (most - least) * heat.shade / 100 == pytest.approx(heat.values)
    assert [shade_text(value, heat.kind) for value in (least, 0, most)] == ["-1.5", "0", "+1.5"]
    assert [shade_text(value, "attention") for value in (0, 100)] == ["0", "100"]


def test_a_title_names_slide_map_class_kind_and_probability_and_the_head_where_it_is_another():
    lines = [text for text, _ in TITLE.lines("attention")]
    assert lines == ["a slide", "map global   class bösartig   attention   probability 0.750"]
    other = Title("s", "global_5x", "global", "hgd")
    assert [text for text, _ in other.lines()] == ["s", "map global_5x (head global)   class hgd"]


def test_a_long_name_keeps_its_ends_and_stays_in_the_picture():
    size, name = 20, "first" + "0" * 300 + "last"
    block = text_block([(name, size)], 400)
    assert block.shape == (28, 400, 3)
    assert (block[:, 390:] == 255).all()
    for start in ("first", "last"):
        assert font(size).getlength(start) < 150
