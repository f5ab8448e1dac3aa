"""Polygons for QuPath and DSA: which patches, where, and in which colours."""

import html

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.label_app.lib.choices import Choice
from bundle.label_app.lib.polygons import ClassMap, annotate, escape_labels
from scripts.heatmaps.attention_maps import PatchMap
from scripts.heatmaps.geojson import feature_collection
from scripts.heatmaps.images import shade_colours
from scripts.slides.frames import COORDINATES, frame_of

RED = (214, 39, 40)
SIDE = 448.9


def choose(shares=(0.1,), threshold=None, region=None, kind="attention"):
    return Choice("global", None, kind, shares, threshold, region)


def row_of_patches(values, kind="attention"):
    """Patches side by side from (100, 50) on, with these values from left to right."""
    x = 100 + SIDE * np.arange(len(values))
    corners = np.stack([x, np.full(len(values), 50.0)], axis=1)
    return PatchMap(corners, SIDE, 0.499, np.array(values, dtype=float), kind)


def drawn(annotation):
    """By name, the index of each patch of :func:`row_of_patches`, from its left edge."""
    return {
        element["label"]: [round((contour[0][0] - 100) / SIDE) for contour in element["contours"]]
        for element in annotation["elements"]
    }


def of(heat, choice, name="cancer"):
    return annotate([ClassMap(name, RED, heat)], choice, shade_colours)


def test_a_square_has_the_corners_of_its_patch_in_level_0_pixels_clockwise_from_the_top_left():
    annotation = of(row_of_patches([0.2, 0.8]), choose(shares=(0.5,)))
    assert annotation["elements"] == [
        {
            "label": "cancer",
            "contours": [[[548.9, 50.0], [997.8, 50.0], [997.8, 498.9], [548.9, 498.9]]],
            "values": [0.8],
            "percentiles": [100.0],
        }
    ]
    assert annotation["labels"] == {"cancer": [214, 39, 40]}


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_whole_map_has_the_rings_of_the_geojson_in_every_frame(coordinates):
    heat, frame = row_of_patches([0.1, 0.5, 0.25, 0.15]), frame_of(coordinates, (4000, 5000, 3072, 3584))
    collection = feature_collection(heat, "slide", "global", "cancer", RED, frame)
    rings = [feature["geometry"]["coordinates"][0] for feature in collection["features"]]
    drawn_map = annotate([ClassMap("cancer", RED, heat)], choose(shares=(1,)), shade_colours, frame.origin_level0)
    contours = drawn_map["elements"][0]["contours"]
    assert [[*contour, contour[0]] for contour in contours] == rings


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.1, 1), (0.11, 2), (0.7, 7), (1, 10)])
def test_a_share_draws_that_part_of_the_patches_rounded_up(share, count):
    values = np.arange(1, 11) / 55
    hottest = list(range(10 - count, 10))
    assert drawn(of(row_of_patches(values), choose(shares=(share,)))) == {"cancer": hottest}


def test_patches_that_tie_with_the_last_one_are_drawn_with_it():
    assert drawn(of(row_of_patches([0.25] * 4), choose())) == {"cancer": [0, 1, 2, 3]}


def test_a_share_of_0_draws_nothing():
    assert of(row_of_patches([0.5, 0.5]), choose(shares=())) == {"labels": {}, "elements": []}


def test_a_threshold_draws_what_reaches_it():
    heat = row_of_patches([0.1, 0.3, 0.2, 0.4])
    assert drawn(of(heat, choose(shares=(), threshold=0.2))) == {"cancer": [1, 2, 3]}


def test_what_argues_against_a_class_is_not_drawn_as_if_for_it():
    heat = row_of_patches([-3, 0.5, -1, 0.1, 0], kind="contribution")
    assert drawn(of(heat, choose(shares=(1,), kind="contribution"))) == {"cancer": [1, 3]}
    # Unless a client asks for it by its value.
    assert drawn(of(heat, choose(shares=(), threshold=-1, kind="contribution"))) == {"cancer": [1, 2, 3, 4]}


def test_several_shares_are_bands_each_patch_in_the_smallest_that_holds_it():
    heat = row_of_patches(np.arange(1, 11) / 55)
    annotation = of(heat, choose(shares=(0.1, 0.3, 1)))
    assert drawn(annotation) == {
        "cancer top 10%": [9],
        "cancer top 30%": [7, 8],
        "cancer top 100%": [0, 1, 2, 3, 4, 5, 6],
    }
    # Coloured as the heatmaps are: from red for the hottest to blue.
    hottest, _, coldest = annotation["labels"].values()
    assert hottest[0] > hottest[2]
    assert coldest[0] < coldest[2]


def test_each_class_has_its_own_polygons_and_colour():
    maps = [
        ClassMap("cancer", RED, row_of_patches([0.9, 0.1])),
        ClassMap("normal", (44, 160, 44), row_of_patches([0.1, 0.9])),
    ]
    annotation = annotate(maps, choose(), shade_colours)
    assert drawn(annotation) == {"cancer": [0], "normal": [1]}
    assert annotation["labels"] == {"cancer": [214, 39, 40], "normal": [44, 160, 44]}


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.tuples(st.floats(-500, 5000), st.floats(-500, 500), st.floats(1, 5000), st.floats(1, 1000)),
)
def test_a_rectangle_draws_the_patches_centred_in_it_and_ranks_them_on_the_whole_slide(values, region):
    heat = row_of_patches(values)
    left, top, width, height = region
    whole = drawn(of(heat, choose(shares=(0.5,)))).get("cancer", [])
    centres = [(100 + SIDE * (i + 0.5), 50 + SIDE / 2) for i in whole]
    wanted = [
        i for i, (x, y) in zip(whole, centres, strict=True) if left <= x < left + width and top <= y < top + height
    ]
    assert drawn(of(heat, choose(shares=(0.5,), region=region))).get("cancer", []) == wanted


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    region=st.tuples(st.integers(-500, 5000), st.integers(-500, 500), st.integers(1, 5000), st.integers(1, 1000)),
    origin=st.tuples(st.integers(0, 90_000), st.integers(0, 90_000)),
)
def test_a_rectangle_annotated_in_qupath_is_answered_there_as_level_0s_is_in_level_0(values, region, origin):
    heat = row_of_patches(values)
    (x, y, width, height), maps = region, [ClassMap("cancer", RED, heat)]
    in_level0 = annotate(maps, choose(shares=(1,), region=region), shade_colours)
    moved = choose(shares=(1,), region=(x - origin[0], y - origin[1], width, height))
    in_qupath = annotate(maps, moved, shade_colours, origin)
    assert [len(element["contours"]) for element in in_qupath["elements"]] == [
        len(element["contours"]) for element in in_level0["elements"]
    ]
    for one, other in zip(in_qupath["elements"], in_level0["elements"], strict=True):
        assert np.add(one["contours"], origin) == pytest.approx(np.array(other["contours"]), abs=2e-3)
        assert one["values"] == other["values"]


def test_names_are_escaped_for_xml_and_stay_matched_to_their_colours():
    annotation = of(row_of_patches([1]), choose(), name='stage "II" & <III>')
    escaped = escape_labels(annotation)
    (name,) = escaped["labels"]
    assert "<" not in name
    assert '"' not in name
    assert html.unescape(name) == 'stage "II" & <III>'
    assert [element["label"] for element in escaped["elements"]] == [name]
    assert escaped["elements"][0]["contours"] == annotation["elements"][0]["contours"]
