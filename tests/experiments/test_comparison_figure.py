"""The pictures of a comparison: which slides are shown, and every training as a point."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.core.errors import SettingsError
from scripts.experiments.comparison_figure import choose_figure_slides, draw_scores
from scripts.experiments.comparison_results import compare
from tests.comparisons import CLASSES, MAGNIFICATIONS, write_cohort


def entry(slide, *label, regions=True):
    return {"slide": slide, "label": np.array(label, dtype=np.float32), **({"regions": "r.png"} if regions else {})}


def test_each_class_gets_a_slide_of_its_own_that_has_it():
    data = [entry("a", 1, 1, 0), entry("b", 0, 1, 0), entry("c", 1, 0, 1)]
    assert choose_figure_slides(data, CLASSES) == [(0, 0), (1, 1), (2, 2)]


def test_a_slide_with_drawn_regions_is_shown_before_one_without():
    data = [entry("a", 1, 0, 0, regions=False), entry("b", 1, 0, 0)]
    assert choose_figure_slides(data, CLASSES) == [(1, 0)]
    assert choose_figure_slides(data[:1], CLASSES) == [(0, 0)]


def test_without_any_class_the_first_slide_is_shown():
    assert choose_figure_slides([entry("a", 0, 0, 0)], CLASSES) == [(0, 0)]


def test_slides_can_be_named_and_are_shown_for_their_first_class():
    data = [entry("a", 1, 1, 0), entry("b", 0, 1, 0)]
    assert choose_figure_slides(data, CLASSES, ["b", "a"]) == [(1, 1), (0, 0)]
    assert choose_figure_slides([entry("größe", 0, 1, 0)], CLASSES, ["gro\u0308ße"]) == [(0, 1)]
    with pytest.raises(SettingsError, match="figure_slides: c is not among the test slides. Name some of: a, b"):
        choose_figure_slides(data, CLASSES, ["a", "c"])
    with pytest.raises(SettingsError, match="figure_slides: an empty list is not among"):
        choose_figure_slides(data, CLASSES, [])


def test_every_training_is_a_point_and_the_mean_a_line(tmp_path):
    rows, _ = compare(write_cohort(tmp_path), MAGNIFICATIONS, "multilabel", CLASSES, num_resamples=10)
    figure = draw_scores(rows, "multilabel")
    axes = figure.axes[1]
    assert axes.get_title() == "micro-F1"
    for place, row in enumerate(rows):
        points, mean = axes.lines[2 * place : 2 * place + 2]
        np.testing.assert_array_equal(points.get_xdata(), row.scores["micro_f1"])
        assert set(points.get_ydata()) == {place}
        assert mean.get_xdata()[0] == row.scores["micro_f1"].mean()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [row.title for row in rows]
