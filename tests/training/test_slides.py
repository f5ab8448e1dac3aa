"""The slides of a training, and what is left of them when some failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.core.errors import DatalistError
from scripts.datalists.cohort import Cohort
from scripts.training.slides import TrainingSlides

CLASSES = ["cancer", "hgd"]


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(None, None, tmp_path, "multilabel", CLASSES)


def given(*names: str, label: tuple[int, ...] = (1, 0)) -> list[dict[str, Any]]:
    """Data as MONAI Label hands it over."""
    return [{"image": f"/slides/{name}.svs", "label": list(label)} for name in names]


def test_a_slide_that_is_trained_on_validates_nothing(cohort):
    with pytest.raises(DatalistError, match=r"/slides/a\.svs: is there twice"):
        TrainingSlides(cohort, given("a", "b"), given("a"))


def test_what_failed_is_left_out_of_both(cohort):
    slides = TrainingSlides(cohort, given("a", "b"), given("c", "d"))
    assert [entry["slide"] for entry in slides.entries] == ["a", "b", "c", "d"]
    assert [entry["slide"] for entry in slides.training_without(["b", "c"])] == ["a"]
    assert [entry["slide"] for entry in slides.others_without(["b", "c"])] == ["d"]


def test_only_slides_that_are_trained_on_have_augmented_views(cohort):
    data = given("a", "b", "c") + given("rare", label=(0, 1))
    slides = TrainingSlides(cohort, data, given("d"), views=3)
    assert slides.views_to_extract == [1, 1, 1, 3, 0]
    assert slides.training_views(["b"]) == [1, 1, 3]
    assert TrainingSlides(cohort, data, given("d")).views_to_extract == [0] * 5
    assert TrainingSlides(cohort, data, given("d")).training_views() is None


def test_data_that_was_handed_over_comes_from_no_datalist_and_draws_no_demonstration(cohort, tmp_path):
    assert TrainingSlides(cohort, given("a"), given("b")).datalist is None
    assert not list(tmp_path.iterdir())
