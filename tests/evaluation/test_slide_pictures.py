"""Which slides are shown, those that are most wrong and those that are most right; and what is drawn of each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from scripts.bags.bag import BagBuilder
from scripts.evaluation.slide_pictures import SlidePictures, extreme_slides
from scripts.heatmaps.attention_maps import KINDS
from scripts.heatmaps.images import OPACITY, shade_colours
from tests.evaluation.test_board import Bags
from tests.evaluation.test_localisation_report import CLASSES, MAPS, Given, item, make_slide


def test_wrong_and_right_are_by_cross_entropy():
    rng = np.random.default_rng(2)
    p, y = rng.random((12, 3)), rng.integers(0, 2, (12, 3))
    loss = [
        np.mean([log_loss([b], [a], labels=[0, 1]) for a, b in zip(*row, strict=True)])
        for row in zip(p, y, strict=True)
    ]
    order = [int(i) for i in np.argsort(loss)]
    assert extreme_slides(p, y, 3) == (order[::-1][:3], order[:3])


@given(st.integers(1, 9), st.integers(1, 4))
def test_no_slide_is_both(num_slides, number):
    p = np.linspace(0.1, 0.9, num_slides)[:, None]
    wrong, right = extreme_slides(p, np.zeros((num_slides, 1)), number)
    assert not {*wrong} & {*right}
    assert len(wrong) == min(number, -(-num_slides // 2))
    assert len(wrong) + len(right) == min(2 * number, num_slides)


@pytest.mark.parametrize("wrong_first", [True, False])
def test_certainty_has_no_infinite_loss(wrong_first):
    p = np.array([[1.0], [0.0]]) if wrong_first else np.array([[0.0], [1.0]])
    wrong, right = extreme_slides(p, np.zeros((2, 1)))
    assert (wrong, right) == (([0], [1]) if wrong_first else ([1], [0]))


# Label, probabilities, and the class that is shown: the one with the largest error above a half, or else the most
# probable one.
SHOWN = {
    "false alarm": ([1, 0, 0], [0.75, 0.875, 0.125], "hgd"),
    "missed": ([1, 0, 1], [0.25, 0.125, 0.625], "cancer"),
    "right": ([0, 1, 0], [0.125, 0.75, 0.375], "hgd"),
    "of no class": ([0, 0, 0], [0.0625, 0.25, 0.375], "normal"),
}


def drawn(folder, names, maps):
    """The figures of these slides, each with maps of its own."""
    data = [make_slide(folder, name, SHOWN[name][0], None) for name in SHOWN]
    items = [item(entry, own) for entry, own in zip(data, maps, strict=True)]
    pictures = SlidePictures(Given(3), MAPS, Bags(data, items), BagBuilder(), CLASSES, CLASSES)
    p, y = (np.array([SHOWN[name][i] for name in names], dtype=float) for i in (1, 0))
    return pictures.draw(names, p, y)


def test_a_row_names_its_slide_its_label_and_the_class_that_is_most_wrong(tmp_path):
    names = ["missed", "of no class", "false alarm", "right"]  # in another order than the datalist's
    figures = drawn(tmp_path, names, np.random.default_rng(0).random((4, 32, 3, 3)))
    assert list(figures) == list(KINDS)
    texts = {"missed": "cancer, normal", "of no class": "none", "false alarm": "cancer", "right": "hgd"}
    for kind, figure in figures.items():
        axes = [ax for ax in figure.axes if ax.get_subplotspec() is not None and ax.get_ylabel().count("\n") == 2]
        assert [ax.get_ylabel().split("\n") for ax in axes] == [
            [name, f"label {texts[name]}, {of} {p[CLASSES.index(of)]:.2f}", f"{kind} for {of}"]
            for name, (_, p, of) in ((name, SHOWN[name]) for name in names)
        ]
        titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
        assert titles == ["slide", "true regions", "global", "5x", "10x"]
        columns = figure.axes[0].get_gridspec().ncols
        assert columns == 2 + len(MAPS)


def test_without_maps_nothing_is_drawn(tmp_path):
    entry = make_slide(tmp_path, "right", (0, 1, 0), None)
    pictures = SlidePictures(Given(3), [], Bags([entry], [{}]), BagBuilder(), CLASSES, CLASSES)
    assert pictures.draw(["right"], np.array([[0.1, 0.8, 0.2]]), np.array([[0.0, 1, 0]])) == {}


def test_each_column_shows_the_map_of_its_class_on_its_slide(tmp_path):
    # Of each slide, map and class another row is hot, so that no map can pass for another.
    maps = np.full((4, 32, 3, 3), 1e-3)
    row_of = dict(zip(np.ndindex(4, 3, 3), np.random.default_rng(1).permutation(36) % 32, strict=True))
    for (s, m, k), number in row_of.items():
        maps[s, number, m, k] = 1.0
    hottest = 255 * (1 - OPACITY) + OPACITY * shade_colours(np.array([100.0]), "attention")[0]  # over blank slides
    names = list(SHOWN)
    figure = drawn(tmp_path, names, maps)["attention"]
    columns = figure.axes[0].get_gridspec().ncols
    for s, name in enumerate(names):
        k = CLASSES.index(SHOWN[name][2])
        for m, spec in enumerate(MAPS):
            ax = figure.axes[s * columns + 2 + m]
            (image,) = ax.get_images()
            pixels = np.asarray(image.get_array()).astype(int)
            y, x = np.nonzero(np.abs(pixels - hottest).max(axis=-1) < 8)
            # Of rows there are eight in a line; at 5x a patch has the sum of its four.
            column, line = row_of[s, m, k] % 8, row_of[s, m, k] // 8
            side = 8 if spec.scale_index else 4
            place = np.array([column, line]) // (8 // side)
            found = np.array([x.mean() / pixels.shape[1] * side, y.mean() / pixels.shape[0] * side / 2]) - 0.5
            assert found == pytest.approx(place, abs=0.2), (name, spec.name)
