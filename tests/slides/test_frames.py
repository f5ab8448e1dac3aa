"""Frames and places: on a slide with OpenSlide's bounds, and on made-up ones; shifted by just what the bounds say."""

import json
import logging

import cv2
import itk
import numpy as np
import openslide
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scripts.bags.bag import BagBuilder
from scripts.bags.tissue import find_tissue, read_tissue_mask
from scripts.checking.inspection import describe
from scripts.checking.slides import SlideChecker
from scripts.core.errors import SettingsError, SlideError
from scripts.core.repeats import Repeats
from scripts.heatmaps.attention_maps import PatchMap
from scripts.heatmaps.geojson import feature_collection, write_geojson
from scripts.inference.transforms import EncodeSlided
from scripts.slides import slide as slides
from scripts.slides.frames import COORDINATES, LEVEL0, Frame, Rectangle, doubt, find_bounds, frame_of, place_image
from scripts.slides.slide import Slide
from tests.cohorts import draw_slide, tiny_encoder
from tests.pyramids import BOUNDS, BOUNDS_SIZE, BOUNDS_SLIDE

ORIGIN = np.array(BOUNDS[:2])
STATED = {
    **{"openslide.bounds-x": "368", "openslide.bounds-y": "16"},
    **{"openslide.bounds-width": "600", "openslide.bounds-height": "480"},
    **{"openslide.level[0].width": "1024", "openslide.level[0].height": "512"},
}


@pytest.fixture(scope="module")
def slide():
    if not BOUNDS_SLIDE.is_file():
        pytest.skip(f"no file {BOUNDS_SLIDE}")
    return Slide(BOUNDS_SLIDE)


@pytest.fixture
def bounded(tmp_path, monkeypatch):
    """A slide of 1024 x 512 px whose file says that its scan is 600 x 480 px of it, from (368, 16) on."""
    state_bounds(monkeypatch, STATED)
    return draw_slide(tmp_path / "s.tif")


def state_bounds(monkeypatch, stated):
    """Have slides state these bounds."""
    monkeypatch.setattr(slides, "find_bounds", lambda properties, size: find_bounds(properties | stated, size))


def placed(size_px, size_level0, bounds_level0, subject="slide s"):
    return place_image(size_px, size_level0, Rectangle(*bounds_level0), subject, "mask m.png", "mask")


def square(corner, side=448.0):
    return PatchMap(np.array([corner], dtype=float), side, 0.5, np.array([1.0]))


def ring(path):
    return np.array(json.loads(path.read_text())["features"][0]["geometry"]["coordinates"][0])


# --- what leaves ------------------------------------------------------------------------------------------


def test_the_bounds_are_those_that_openslide_tells(slide):
    with openslide.OpenSlide(str(BOUNDS_SLIDE)) as file:
        told = [int(file.properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height")]
    assert list(slide.bounds_level0) == told == list(BOUNDS)
    assert slide.size_level0 == BOUNDS_SIZE


@pytest.mark.parametrize("corner", [(4480.0, 5376.0), (0.0, 0.0), (7168.0, 8512.0)])
def test_a_square_is_shifted_by_just_the_bounds_in_qupaths_frame_and_not_in_level_0s(slide, tmp_path, corner):
    for coordinates in COORDINATES:
        frame = frame_of(coordinates, slide.bounds_level0)
        write_geojson(
            tmp_path / f"{coordinates}.geojson",
            feature_collection(square(corner), "s", "10x", "cancer", (1, 2, 3), frame),
        )
    level0, qupath = (ring(tmp_path / f"{name}.geojson") for name in ("level0", "qupath"))
    assert level0.min(axis=0).tolist() == list(corner)
    assert np.array_equal(qupath - level0, np.tile((-4000, -5000), (5, 1)))
    stated = [json.loads((tmp_path / f"{name}.geojson").read_text())["frame"] for name in ("level0", "qupath")]
    assert stated == [
        {"coordinates": "level0", "origin_level0": [0, 0]},
        {"coordinates": "qupath", "origin_level0": [4000, 5000]},
    ]


@given(st.tuples(*[st.integers(0, 10**5)] * 4), st.lists(st.tuples(*[st.floats(-1e5, 1e5)] * 2), min_size=1))
def test_what_leaves_and_comes_back_is_where_it_was(bounds, places):
    frame = frame_of("qupath", bounds)
    assert frame.from_level0(places) + frame.origin_level0 == pytest.approx(np.array(places), abs=1e-6)
    assert np.array_equal(LEVEL0.from_level0(places), places)


@pytest.mark.parametrize("wrong", ["QuPath", "level 0", None, 0, True, {"a": 1}])
def test_a_frame_that_there_is_not_is_refused(wrong):
    with pytest.raises(SettingsError, match=r"^coordinates: got .*\. Give qupath, .* or level0\.$"):
        frame_of(wrong, BOUNDS)


def test_a_served_slide_carries_its_bounds(bounded):
    encode = EncodeSlided("image", BagBuilder(patch_size=64), tiny_encoder())
    encoded = encode({"image": str(bounded)})
    assert encoded["bounds_level0"].tolist() == [368, 16, 600, 480]
    assert frame_of("qupath", encoded["bounds_level0"]) == Frame("qupath", (368, 16))


def test_inspecting_says_what_qupath_shows(bounded, tmp_path):
    assert "bounds       600 x 480 px at (368, 16): the part that QuPath shows" in describe(
        BagBuilder(patch_size=64).look({"image": bounded})
    )


WHOLE = (0, 0, 1024, 512)


@pytest.mark.parametrize(
    ("changed", "bounds"),
    [
        ({}, (368, 16, 600, 480)),
        ({"bounds-x": None}, WHOLE),
        ({"bounds-height": None}, WHOLE),
        ({"bounds-width": "6e2"}, WHOLE),
        ({"bounds-width": "0"}, WHOLE),
        # OpenSlide's level 0 is another than that which is read: its bounds are of other pixels.
        ({"level[0].width": "2048", "level[0].height": "1024"}, WHOLE),
    ],
)
def test_without_bounds_that_can_be_used_it_is_the_whole_slide(changed, bounds):
    stated = STATED | {f"openslide.{key}": value for key, value in changed.items()}
    stated = {key: value for key, value in stated.items() if value is not None}
    assert find_bounds(stated, (1024, 512)) == bounds


@pytest.mark.parametrize("reader", ["cucim", "openslide"])
def test_a_slide_without_bounds_has_one_frame_whatever_reads_it(tmp_path, reader):
    path = draw_slide(tmp_path / "s.tif")
    bounds = Slide(path, reader=reader).bounds_level0
    assert bounds == WHOLE
    assert frame_of("qupath", bounds).origin_level0 == (0, 0)


@pytest.mark.parametrize("reader", ["cucim", "openslide"])
def test_bounds_are_openslides_whatever_reads_the_pixels(bounded, reader):
    assert Slide(bounded, reader=reader).bounds_level0 == (368, 16, 600, 480)


# --- what comes in ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("downsample", [8, 16, 30.7])
def test_a_mask_of_the_bounds_marks_the_tissue_that_it_marks_padded_to_the_whole_slide(slide, tmp_path, downsample):
    whole = np.zeros((9000 // 8, 8000 // 8), np.uint8)  # pixels of 8 x 8
    left, top, width, height = (side // 8 for side in BOUNDS)
    found = find_tissue(slide)
    corners = (np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2) * 8 + ORIGIN).astype(float)
    crop = (found.fraction(corners, 8.0) > 0.5).reshape(height, width)
    assert 0.1 < crop.mean() < 0.9
    whole[top : top + height, left : left + width] = crop
    cv2.imwrite(str(tmp_path / "whole.png"), whole)
    size = (round(BOUNDS[2] / downsample), round(BOUNDS[3] / downsample))
    cv2.imwrite(str(tmp_path / "crop.png"), cv2.resize(crop.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST))
    at_bounds, padded = (read_tissue_mask(tmp_path / f"{name}.png", slide) for name in ("crop", "whole"))
    assert (at_bounds.origin_level0, padded.origin_level0) == ((4000, 5000), (0, 0))
    patches = np.random.default_rng(0).uniform(0, BOUNDS_SIZE, (500, 2))
    slack = 1e-9 if downsample == 8 else 0.1
    assert at_bounds.fraction(patches, 448.0) == pytest.approx(padded.fraction(patches, 448.0), abs=slack)
    assert at_bounds.area_mm2 == pytest.approx(padded.area_mm2, rel=1e-9 if downsample == 8 else 0.02)


def test_a_mask_of_the_bounds_gives_the_bag_of_the_padded_one(bounded, tmp_path):
    crop = np.zeros((60, 75), np.uint8)  # pixels of 8 x 8
    crop[10:50, 20:60] = 1
    whole = np.zeros((64, 128), np.uint8)
    whole[2:62, 46:121] = crop
    cv2.imwrite(str(tmp_path / "crop.png"), crop)
    cv2.imwrite(str(tmp_path / "whole.png"), whole)
    build = BagBuilder(patch_size=64)
    one, other = (build({"image": bounded, "mask": tmp_path / f"{name}.png"}) for name in ("crop", "whole"))
    assert one.grid.num_rows > 2
    assert np.array_equal(one.grid.coords[1], other.grid.coords[1])
    one.tissue.write(tmp_path / "tissue.mha")
    written = itk.imread(str(tmp_path / "tissue.mha"))
    assert written.GetOrigin() == pytest.approx([(368 + 4) * 0.5e-3, (16 + 4) * 0.5e-3])


# Slides of 8000 x 9000 px with these bounds; sizes of images, and where they lie.
FAR, NEAR, SAME = (4000, 5000, 3072, 3584), (2000, 3000, 4000, 4530), (4000, 4500, 4000, 4500)


@pytest.mark.parametrize(
    ("size_px", "bounds", "place", "certain"),
    [
        ((384, 448), FAR, FAR, True),  # a downsample of 8
        ((1000, 1125), FAR, (0, 0, 8000, 9000), True),
        ((100, 117), FAR, FAR, True),  # rounded
        ((98, 111), FAR, (0, 0, 8000, 9000), True),
        # Proportions of 0.8889 and 0.8830, both within what rounding may do: the closer one counts.
        ((1000, 1125), NEAR, (0, 0, 8000, 9000), True),
        ((1000, 1132), NEAR, NEAR, True),
        # In so few pixels they are the same, and bounds may have the slide's very proportion.
        ((80, 90), NEAR, (0, 0, 8000, 9000), False),
        ((1000, 1125), SAME, (0, 0, 8000, 9000), False),
        # Bounds that differ by less than one of the image's pixels are no other place.
        ((80, 90), (10, 20, 7985, 8975), (0, 0, 8000, 9000), True),
        ((80, 90), (0, 0, 8000, 9000), (0, 0, 8000, 9000), True),
    ],
)
def test_the_proportions_decide_where_an_image_lies(size_px, bounds, place, certain):
    assert placed(size_px, (8000, 9000), bounds) == place
    assert (doubt(size_px, (8000, 9000), Rectangle(*bounds)) is None) == certain


@settings(max_examples=200)
@given(
    size=st.tuples(*[st.integers(2000, 60000)] * 2),
    shares=st.tuples(*[st.floats(0.1, 1)] * 2),
    downsample=st.floats(1.5, 40),
    of_bounds=st.booleans(),
)
def test_an_exported_image_lies_where_it_was_exported_or_is_said_to_be_uncertain(size, shares, downsample, of_bounds):
    width, height = (int(side * share) for side, share in zip(size, shares, strict=True))
    bounds = Rectangle((size[0] - width) // 2, (size[1] - height) // 3, width, height)
    meant = bounds if of_bounds else Rectangle(0, 0, *size)
    size_px = round(meant.width / downsample), round(meant.height / downsample)
    assume(min(size_px) >= 20)
    found = placed(size_px, size, bounds, subject=f"{size} {bounds}")
    corners = [np.add([place[:2]] * 2, [(0, 0), place[2:]]) for place in (found, meant)]
    same = np.abs(np.subtract(*corners)).max() < 1.1 * downsample
    assert same or doubt(size_px, size, bounds) is not None


def test_an_image_of_neither_proportion_is_refused_with_both():
    with pytest.raises(SlideError) as refused:
        placed((500, 100), (8000, 9000), FAR)
    assert str(refused.value) == (
        "slide s: its mask m.png is 500 x 100 px, which is not the slide's proportion (8000 x 9000 px) nor that of "
        "its bounds (3072 x 3584 px). Save it over the whole slide or its bounds, or correct the key `mask` in the "
        "datalist."
    )


def test_what_is_uncertain_is_said_once_with_both_places(caplog, monkeypatch):
    monkeypatch.setattr("scripts.slides.frames._repeats", Repeats())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            placed((1000, 1125), (8000, 9000), SAME, subject="slide uncertain")
    (record,) = caplog.records
    assert record.getMessage() == (
        "slide uncertain: its mask m.png of 1000 x 1125 px has the proportion of the whole slide (8000 x 9000 px) and "
        "of its bounds (4000 x 4500 px at (4000, 4500)), and is placed over the whole slide. If it shows only the "
        "bounds, pad it to the whole slide."
    )


def test_many_uncertain_masks_are_few_lines(caplog, monkeypatch):
    monkeypatch.setattr("scripts.slides.frames._repeats", Repeats())
    with caplog.at_level(logging.WARNING):
        for i in range(165):
            placed((1000, 1125), (8000 + 8 * i, 9000 + 9 * i), SAME, subject=f"/slides/s{i}.mrxs")
    assert len(caplog.records) == 4
    assert "`checking` names all of them" in caplog.messages[-1]


@pytest.mark.parametrize("uncertain", [False, True])
@pytest.mark.parametrize("key", ["mask", "regions"])
def test_checking_warns_of_what_is_uncertain(bounded, tmp_path, monkeypatch, key, uncertain):
    if uncertain:
        state_bounds(monkeypatch, STATED | {"openslide.bounds-height": "300"})
    cv2.imwrite(str(tmp_path / "m.png"), np.ones((64, 128) if uncertain else (60, 75), np.uint8))
    facts = SlideChecker(BagBuilder(patch_size=64), class_names=["cancer", "hgd", "normal"])(
        {"image": str(bounded), "slide": "s", key: str(tmp_path / "m.png")}
    )
    found = [(p.severity, p.check) for p in facts.problems if p.check != "tissue"]
    assert found == ([("warns", key)] if uncertain else [])
