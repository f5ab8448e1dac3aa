"""The panel, drawn and read back pixel by pixel."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from scripts.heatmaps.attention_maps import PatchMap
from scripts.heatmaps.figures import REGION_OPACITY, PanelRow, draw_regions, draw_thumbnail, panel
from scripts.heatmaps.images import Thumbnail, class_colour, overlay

CLASSES = ["cancer", "hgd", "normal"]


def a_thumbnail(width=300, height=200, mpp=4.0):
    pixels = np.full((height, width, 3), 240, dtype=np.uint8)
    pixels[20:80, 180:280] = (150, 80, 160)
    # The slide ends within the last pixels, as most do.
    return Thumbnail(pixels, mpp, ((width - 0.4) * mpp, (height - 0.7) * mpp))


def a_map(columns=6, rows=4, kind="attention"):
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    return PatchMap(cells * 400.0, 400.0, 0.5, np.arange(1.0, len(cells) + 1), kind)


def a_row(name="s1", width=300, height=200, regions=True, titles=("MuSTMIL global", "SSMIL 5x")):
    label = np.zeros((50, 75), dtype=np.uint8)
    label[5:20, 45:70], label[30:45, 5:30] = 1, 3
    thumbnail = a_thumbnail(width, height)
    return PanelRow(name, "cancer", thumbnail, label if regions else None, [(title, a_map()) for title in titles])


def drawn(figure):
    """The figure's pixels, RGB."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def shown(draw, *arguments):
    """What is drawn on axes that have a pixel for each of the thumbnail's."""
    figure = Figure(figsize=(3, 2), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    draw(ax, *arguments)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return drawn(figure)


def texts(figure):
    found = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for ax in figure.axes:
        found += [ax.get_title(), ax.get_ylabel(), *(text.get_text() for text in ax.texts)]
    return [text for text in found if text]


def test_a_slide_is_drawn_as_its_thumbnail_and_its_heatmap_as_the_overlay():
    thumbnail = dataclasses.replace(a_thumbnail(), size_um=(1200.0, 800.0))  # of whole pixels: none is interpolated
    for heat, expected in ((None, thumbnail.pixels), (a_map(), overlay(thumbnail, a_map()))):
        assert np.abs(shown(draw_thumbnail, thumbnail, heat).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", [(50, 75), (400, 600), (7, 11)])
def test_true_regions_lie_where_the_label_image_has_them_whatever_its_size(size):
    thumbnail = a_thumbnail()
    label = np.zeros(size, dtype=np.uint8)
    rows, columns = np.arange(size[0]) / size[0], np.arange(size[1]) / size[1]
    label[np.ix_((rows >= 0.2) & (rows < 0.5), columns >= 0.6)] = 2
    picture = shown(draw_regions, thumbnail, label)
    colour = np.array(class_colour(1))
    middle = np.argwhere(label == 2).mean(axis=0) + 0.5
    y, x = middle / size * (200, 300)
    expected = (1 - REGION_OPACITY) * thumbnail.pixels[int(y), int(x)] + REGION_OPACITY * colour
    assert picture[int(y), int(x)] == pytest.approx(expected, abs=3)
    changed = (np.abs(picture.astype(int) - thumbnail.pixels) > 20).any(axis=-1)
    assert changed.mean() == pytest.approx((label == 2).mean(), abs=0.02)
    assert picture[190, 10] == pytest.approx(thumbnail.pixels[190, 10], abs=1)


def test_a_panel_has_a_row_a_slide_and_a_column_a_map_with_their_names():
    rows = [a_row("slide one"), a_row("slide two", width=200, height=300)]
    figure = panel(rows, CLASSES)
    found = texts(figure)
    for text in ("slide", "true regions", "MuSTMIL global", "SSMIL 5x", "cancer", "normal"):
        assert found.count(text) == 1
    assert "hgd" not in found  # no slide shows it
    assert any("slide one" in text and "cancer" in text for text in found)
    assert any("slide two" in text and "cancer" in text for text in found)
    assert sum("percentile" in text for text in found) == 1
    assert sum(ax.get_images() != [] for ax in figure.axes) == 2 * 4
    assert drawn(figure).std() > 20


def test_a_slide_whose_regions_nobody_drew_and_a_map_that_is_missing_say_so():
    row = a_row(regions=False)
    row = PanelRow(row.slide, row.class_name, row.thumbnail, None, [("MuSTMIL global", None)])
    found = texts(panel([row], CLASSES))
    assert "not annotated" in found
    assert "no map" in found
    assert "cancer" not in found


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["attention"], "attention"),
        (["contribution"], "contribution"),
        (["contribution", "attention", "contribution"], "attention and contribution"),
    ],
)
def test_a_panel_says_what_its_maps_hold(kinds, words):
    maps = [(f"map {number}", a_map(kind=kind)) for number, kind in enumerate(kinds)]
    found = texts(panel([PanelRow("s1", "cancer", a_thumbnail(), None, maps)], CLASSES))
    assert f"s1\n{words} for cancer" in found
    bars = {"attention percentile": "attention", "contribution / slide's greatest": "contribution"}
    assert {kind for label, kind in bars.items() if label in found} == set(kinds)


def test_without_maps_there_is_no_colour_bar():
    assert not any("percentile" in text for text in texts(panel([a_row(titles=())], CLASSES)))


@pytest.mark.parametrize(("mpp", "length"), [(4.0, "200 µm"), (40.0, "2 mm"), (0.5, "20 µm")])
def test_the_scale_bar_is_as_long_as_it_says(mpp, length):
    thumbnail = a_thumbnail(mpp=mpp)
    figure = Figure(figsize=(3, 2), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    draw_thumbnail(ax, thumbnail, None, True)
    (text,), (bar,) = ax.texts, ax.lines
    assert text.get_text() == length
    number, unit = length.split()
    assert np.ptp(bar.get_xdata()) == pytest.approx(float(number) * {"mm": 1000, "µm": 1}[unit])
