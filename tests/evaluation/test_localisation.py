"""Maps against known regions: areas by plain loops, rankings that are known in advance, means by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.errors import SettingsError, SlideError
from scripts.evaluation.bootstrap import mean_interval
from scripts.evaluation.localisation import (
    LabelImage,
    Localisation,
    compare_with_regions,
    localisation_summary,
    patch_truth,
    read_regions,
    region_values,
)
from scripts.slides.frames import Rectangle

CLASSES = ["cancer", "hgd", "normal"]


def overlap(start: float, stop: float, other_start: float, other_stop: float) -> float:
    return max(0.0, min(stop, other_stop) - max(start, other_start))


def share_by_loop(
    corner: tuple[float, float], side: float, size: tuple[int, int], regions: np.ndarray, values: tuple[int, ...]
) -> float:
    """The overlap of a patch with every label pixel, one after the other."""
    height, width = regions.shape
    pixel_x, pixel_y = size[0] / width, size[1] / height
    area = 0.0
    for row in range(height):
        for column in range(width):
            if regions[row, column] in values:
                across = overlap(corner[0], corner[0] + side, column * pixel_x, (column + 1) * pixel_x)
                area += across * overlap(corner[1], corner[1] + side, row * pixel_y, (row + 1) * pixel_y)
    return area / side**2


def over(size: tuple[int, int], regions: np.ndarray) -> LabelImage:
    """A label image of a whole slide."""
    return LabelImage(regions, Rectangle(0, 0, *size))


def write_labels(path: Path, regions: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), regions)
    return path


# --- the share of a patch that is region ------------------------------------------------------------------


def test_shares_of_a_hand_made_slide() -> None:
    # A slide of 80 x 40 px, 10 px a label pixel: class 1 upper left, class 2 in one pixel, lower right.
    regions = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [0] * 8, [0] * 7 + [2]])
    corners = np.array([[0, 0], [20, 0], [40, 0], [60, 0], [0, 20], [20, 20], [40, 20], [60, 20]], dtype=float)
    shares = patch_truth(corners, 20.0, over((80, 40), regions), [(1,), (2,), (3,), (1, 2)])
    assert shares.shape == (8, 4)
    assert shares[:, 0].tolist() == [1, 0.5, 0, 0, 0, 0, 0, 0]
    assert shares[:, 1].tolist() == [0, 0, 0, 0, 0, 0, 0, 0.25]
    assert not shares[:, 2].any()
    assert np.array_equal(shares[:, 3], shares[:, 0] + shares[:, 1])


def test_beyond_the_border_of_the_slide_there_are_no_regions() -> None:
    everywhere = np.ones((4, 8), int)
    corners = np.array([[60.0, 20.0], [70.0, 20.0], [70.0, 30.0]])
    shares = patch_truth(corners, 20.0, over((80, 40), everywhere), [(1,)])
    assert shares[:, 0].tolist() == [1, 0.5, 0.25]


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(20, 300), st.integers(20, 300)),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    side=st.floats(3.0, 150.0),
    seed=st.integers(0, 2**16),
)
def test_shares_are_exact_for_any_slide_label_image_and_patch(
    size: tuple[int, int], shape: tuple[int, int], side: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    regions = rng.integers(0, 4, shape)
    corners = rng.uniform(0, 1, (5, 2)) * size
    values = [(1,), (2, 3)]
    shares = patch_truth(corners, side, over(size, regions), values)
    expected = [[share_by_loop(tuple(corner), side, size, regions, own) for own in values] for corner in corners]
    assert shares == pytest.approx(np.array(expected), abs=1e-9)


def test_x_is_the_column_and_y_the_row() -> None:
    regions = np.zeros((2, 6), np.uint8)
    regions[0, 4] = 1  # x from 400, y from 0
    corners = np.array([[400.0, 0.0], [0.0, 400.0], [0.0, 100.0]])
    shares = patch_truth(corners, 100.0, over((600, 200), regions), [(1,)])
    assert shares[:, 0].tolist() == [1, 0, 0]


# --- label images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_label_image_is_read_as_it_was_written(tmp_path: Path, suffix: str, dtype: type) -> None:
    regions = np.array([[0, 1, 2, 3], [3, 0, 0, 1]], dtype)
    path = write_labels(tmp_path / f"regions.{suffix}", regions)
    assert np.array_equal(read_regions(path, "s1", (4000, 2000), ["a", "b", "c"]).labels, regions)


@pytest.mark.parametrize("size", [(2000, 4000), (4000, 2600), (4000, 1000)])
def test_a_label_image_of_other_proportions_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_labels(tmp_path / "regions.png", np.zeros((100, 200), np.uint8))
    with pytest.raises(SlideError, match=r"slide s1: its `regions` .*regions.png is 200 x 100 px.* the key `regions`"):
        read_regions(path, "s1", size, ["a", "b", "c"])
    # The rounding of a size is no other proportion.
    assert read_regions(path, "s1", (4000, 2020), ["a", "b", "c"]).labels.shape == (100, 200)


def test_label_images_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(SlideError) as caught:
            read_regions(path, "s1", (400, 400), ["a", "b", "c"])
        return str(caught.value)

    assert "does not exist. Correct the key `regions`" in refusal(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    assert "cannot be read" in refusal(tmp_path / "text.png")
    assert "has the shape (4, 4, 3)" in refusal(write_labels(tmp_path / "rgb.png", np.zeros((4, 4, 3), np.uint8)))
    painted = write_labels(tmp_path / "painted.png", np.full((4, 4), 255, np.uint8))
    assert "contains the value 255. Write 0 for none and 1 to 3" in refusal(painted)


def test_the_binary_task_looks_for_the_regions_of_all_classes_of_high_risk() -> None:
    assert region_values("multilabel", CLASSES, ["cancer", "hgd"]) == {"cancer": (1,), "hgd": (2,), "normal": (3,)}
    assert (
        region_values("binary", CLASSES) == region_values("binary", CLASSES, ["hgd", "cancer"]) == {"high_risk": (1, 2)}
    )
    assert region_values("binary", CLASSES, ["normal", "cancer"]) == {"cancer_or_normal": (1, 3)}
    with pytest.raises(SettingsError, match="positive_classes: 'lgd' is no class"):
        region_values("binary", CLASSES, ["lgd"])
    with pytest.raises(
        SettingsError, match=r"positive_classes: not given, and `regions` .* Give a list of some of: a, b\."
    ):
        region_values("binary", ["a", "b"])


def test_the_ordinal_task_looks_for_the_regions_of_all_higher_classes() -> None:
    grades = ["normal", "lgd", "cancer"]
    assert region_values("ordinal", grades) == {"above normal": (2, 3), "above lgd": (3,)}
    assert region_values("multiclass", grades) == {"normal": (1,), "lgd": (2,), "cancer": (3,)}


# --- one map of one slide ---------------------------------------------------------------------------------


def compare(attention: list[float], share: list[float]) -> Localisation:
    return compare_with_regions("s1", "10x", "cancer", np.array(attention), np.array(share))


def test_attention_that_is_the_truth_ranks_perfectly_and_reversed_it_ranks_all_wrong() -> None:
    share = [1.0, 0.5, 0.4, 0.0]
    right = compare([0.4, 0.3, 0.2, 0.1], share)
    assert (right.roc_auc, right.average_precision, right.positive_share, right.patches) == (1, 1, 0.5, 4)
    wrong = compare([0.1, 0.2, 0.3, 0.4], share)
    # The positives come third and fourth: precisions 1/3 and 2/4.
    assert (wrong.roc_auc, wrong.average_precision) == (0, pytest.approx((1 / 3 + 2 / 4) / 2))


def test_constant_attention_is_no_better_than_chance() -> None:
    constant = compare([0.2] * 5, [1.0, 0.0, 0.0, 0.0, 0.6])
    assert (constant.roc_auc, constant.average_precision, constant.positive_share) == (0.5, 0.4, 0.4)


def test_a_patch_is_positive_from_a_half_on_however_its_area_was_summed() -> None:
    assert compare([1, 2], [0.5, 0.4999]).positive_share == 0.5
    assert compare([1, 2], [0.1 + 0.2 + 0.2 - 1e-12, 0.0]).positive_share == 0.5


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_patches_of_one_kind_cannot_be_told_apart(share: float) -> None:
    found = compare([0.1, 0.9], [share] * 2)
    assert not found.is_defined
    assert np.isnan([found.roc_auc, found.average_precision]).all()
    assert found.positive_share == share


def test_a_contribution_is_ranked_by_its_signed_value() -> None:
    values, share = np.array([0.5, -2.0, -0.1, 0.0]), np.array([1.0, 0.0, 0.0, 1.0])
    found = compare_with_regions("s1", "10x", "cancer", values, share, "contribution")
    assert (found.roc_auc, found.kind) == (1, "contribution")


# --- over slides ------------------------------------------------------------------------------------------


def one(
    slide: str, class_name: str, roc_auc: float, share: float = 0.5, map_name: str = "10x", kind: str = "attention"
) -> Localisation:
    return Localisation(slide, map_name, class_name, 8, share, roc_auc, roc_auc / 2, kind)


def test_the_summary_is_the_mean_over_slides_of_each_map_and_class() -> None:
    nan = float("nan")
    found = [
        one("s1", "cancer", 0.9, 0.2),
        one("s1", "hgd", 0.5, 0.3),
        one("s2", "cancer", 0.6, 0.4),
        one("s3", "cancer", nan, 0.0),
        one("s1", "cancer", 0.1, map_name="5x"),
        one("s1", "cancer", 0.8, map_name="5x", kind="contribution"),
        one("s2", "hgd", 0.4, map_name="5x", kind="contribution"),
    ]
    summary = localisation_summary(found, ["5x", "10x"], CLASSES)
    assert list(summary) == ["5x", "5x contribution", "10x", "10x contribution"]
    assert list(summary["10x"]) == [*CLASSES, "all"]
    cancer = summary["10x"]["cancer"]
    assert cancer["roc_auc"] == {"value": pytest.approx(0.75), "ci95": pytest.approx(mean_interval([0.9, 0.6]))}
    assert cancer["average_precision"]["value"] == pytest.approx(0.375)
    assert cancer["positive_share"] == pytest.approx(0.3)  # of the slides that count
    assert (cancer["slides"], cancer["undefined"]) == (2, 1)
    assert (summary["10x"]["hgd"]["slides"], summary["10x"]["hgd"]["roc_auc"]["value"]) == (1, 0.5)
    together = summary["10x"]["all"]
    assert together["roc_auc"]["value"] == pytest.approx((0.9 + 0.5 + 0.6) / 3)
    # Slides are drawn, not pairs: s1 brings both of its classes.
    assert together["roc_auc"]["ci95"] == pytest.approx(mean_interval([[0.9, 0.5], [0.6, nan]]))
    assert (together["slides"], together["undefined"]) == (2, 1)
    # The kinds of a map are apart.
    assert (summary["5x"]["all"]["slides"], summary["5x"]["all"]["roc_auc"]["value"]) == (1, 0.1)
    assert summary["5x contribution"]["cancer"]["roc_auc"]["value"] == 0.8
    assert summary["5x contribution"]["all"]["roc_auc"]["value"] == pytest.approx(0.6)
    assert summary["10x contribution"]["all"]["slides"] == 0


def test_the_interval_of_a_map_is_that_of_patients() -> None:
    values = {"s1": 0.9, "s2": 0.6, "s3": 0.2}
    found = [one(slide, "cancer", value) for slide, value in values.items()]
    summary = localisation_summary(found, ["10x"], CLASSES, patients={"s1": "p", "s3": "p", "gone": "q"})
    cancer = summary["10x"]["cancer"]
    assert (cancer["slides"], cancer["patients"]) == (3, 2)
    assert cancer["roc_auc"]["ci95"] == mean_interval(list(values.values()), patients=["p", "s2", "p"])
    assert cancer["roc_auc"]["ci95"] != mean_interval(list(values.values()))


def test_the_order_of_the_slides_decides_no_interval() -> None:
    rng = np.random.default_rng(0)
    found = [
        Localisation(f"s{i}", "10x", name, 9, 0.25, float(rng.random()), float(rng.random()), "attention")
        for i in range(9)
        for name in CLASSES
    ]
    reversed_slides = sorted(found, key=lambda one: one.slide, reverse=True)
    one, other = (localisation_summary(slides, ["10x"], CLASSES) for slides in (found, reversed_slides))
    assert str(one) == str(other)  # As text, in which what is not a number equals itself.


def test_a_class_without_slides_has_no_mean() -> None:
    nothing = localisation_summary([], ["10x"], CLASSES)["10x"]["normal"]
    assert np.isnan([nothing["roc_auc"]["value"], *nothing["roc_auc"]["ci95"], nothing["positive_share"]]).all()
    assert (nothing["slides"], nothing["undefined"]) == (0, 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), start=st.tuples(st.integers(0, 300), st.integers(0, 300)), side=st.floats(3, 150))
def test_labels_of_the_bounds_are_those_of_the_slide_padded_by_glass(seed: int, start: tuple[int, int], side: float):
    # Pixels of 10 x 10, and a place on their grid: padded to the slide, the labels are the same.
    rng = np.random.default_rng(seed)
    left, top = (10 * (side // 10) for side in start)
    labels = rng.integers(0, 4, (7, 5))
    of_bounds = LabelImage(labels, Rectangle(left, top, 50, 70))
    padded = np.zeros((40, 40), int)
    padded[top // 10 : top // 10 + 7, left // 10 : left // 10 + 5] = labels
    corners, values = rng.uniform(-50, 420, (8, 2)), [(1,), (2, 3)]
    shares = patch_truth(corners, side, of_bounds, values)
    assert shares == pytest.approx(patch_truth(corners, side, over((400, 400), padded), values), abs=1e-9)
    assert np.array_equal(of_bounds.over_slide((400, 400)), padded)


def test_a_label_image_from_qupath_lies_at_the_bounds(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "regions.png", np.eye(100, 200, dtype=np.uint8))
    bounds = Rectangle(4000, 5000, 1600, 800)
    assert read_regions(path, "s1", (9000, 9000), ["a", "b", "c"], bounds).place == bounds
    with pytest.raises(
        SlideError, match=r"the slide's proportion \(9000 x 9000 px\) nor that of its bounds \(700 x 800"
    ):
        read_regions(path, "s1", (9000, 9000), ["a", "b", "c"], Rectangle(4000, 5000, 700, 800))


@pytest.mark.parametrize("palette", [False, True])
def test_tiff_labels_are_the_values_as_they_are_stored(tmp_path, palette):
    # Tiled, and with a palette: for other readers that is a picture in colours.
    regions = np.repeat(np.repeat(np.array([[0, 1], [2, 3]], np.uint8), 64, axis=0), 64, axis=1)
    path = tmp_path / "regions.tif"
    colours = {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)} if palette else {}
    tifffile.imwrite(path, regions, tile=(64, 64), **colours)
    assert np.array_equal(read_regions(path, "s", (256, 256), ["a", "b", "c"]).labels, regions)


@pytest.mark.parametrize("regions", [3, True, ["a.png"]])
def test_regions_that_are_no_path_are_refused(regions):
    with pytest.raises(SlideError, match="is no path. Give the path of a file"):
        read_regions(regions, "s", (64, 64), ["a", "b", "c"])
