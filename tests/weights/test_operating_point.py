"""The operating point: what validation slides make of logits, and how it rides with weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit

from scripts.core.tasks import get_task
from scripts.networks.mustmil import MuSTMIL
from scripts.networks.state_record import sign
from scripts.weights.calibration import FEWEST_SLIDES, fit_platt, fit_temperature
from scripts.weights.operating_point import (
    OPERATING_POINT,
    OperatingPoint,
    find_points,
    operating_point_of,
    points_warning,
)
from tests.weights.test_record import RECORD

HEADS, CLASSES = ["global", "5x"], ["cancer", "hgd", "normal"]


def validation(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``[n, H, K]`` that know something of the labels ``[n, K]``; of the last class three slides."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < [0.5, 0.3, 0.0]).astype(float)
    y[:3, 2] = 1
    return 3 * y[:, None] + rng.normal(-1, 2, (n, 2, 3)), y


def points_of(calibration: str = "temperature", threshold: float | str = "f1", shift: float = -0.5, n: int = 60):
    logits, y = validation(n)
    return find_points(logits, y, HEADS, CLASSES, [shift] * 3, calibration, threshold)


def test_a_head_has_one_temperature_and_is_shifted_before_it() -> None:
    logits, y = validation()
    for h, head in enumerate(HEADS):
        classes = points_of()[head]["classes"]
        wanted = 1 / fit_temperature(logits[:, h] - 0.5, y)
        assert [one["slope"] for one in classes.values()] == [pytest.approx(wanted)] * 3
        assert {(one["shift"], one["intercept"]) for one in classes.values()} == {(-0.5, 0.0)}


def test_platts_line_is_for_classes_with_enough_slides_alone() -> None:
    logits, y = validation()
    assert min(y[:, :2].sum(axis=0)) >= FEWEST_SLIDES > y[:, 2].sum()
    classes = points_of("platt")["5x"]["classes"]
    for k, name in enumerate(CLASSES[:2]):
        wanted = fit_platt(logits[:, 1, k] - 0.5, y[:, k])
        assert (classes[name]["slope"], classes[name]["intercept"]) == pytest.approx(wanted)
    assert classes["normal"]["slope"] == pytest.approx(1 / fit_temperature(logits[:, 1] - 0.5, y))


def test_without_calibration_and_correction_probabilities_stay_as_they_are() -> None:
    logits, _ = validation()
    network = MuSTMIL(num_classes=3, num_features=8)
    sign(network, RECORD, {OPERATING_POINT: points_of("none", 0.5, shift=0.0)})
    point = operating_point_of(network, HEADS, CLASSES)
    assert point is not None
    assert point.calibrated(logits) == pytest.approx(expit(logits))
    assert np.array_equal(point.decided(point.calibrated(logits)), logits >= 0)


def test_a_head_that_is_not_in_use_has_no_point() -> None:
    logits, y = validation()
    logits[:, 1] = np.nan
    assert list(find_points(logits, y, HEADS, CLASSES, np.zeros(3), "temperature", "f1")) == ["global"]


def test_thresholds_that_rest_on_few_slides_are_told_of_and_numbers_are_not() -> None:
    text = points_warning(points_of())
    assert text is not None
    assert "(normal 3)" in text
    assert points_warning(points_of(threshold=0.4)) is None


def test_the_point_rides_with_the_weights_and_is_that_of_heads_and_classes_by_name(tmp_path) -> None:
    network = MuSTMIL(num_classes=3, num_features=8)
    sign(network, RECORD, {OPERATING_POINT: points_of()})
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = MuSTMIL(num_classes=3, num_features=8)
    assert operating_point_of(other, HEADS, CLASSES) is None
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    found, turned = (operating_point_of(other, HEADS, names) for names in (CLASSES, CLASSES[::-1]))
    assert isinstance(found, OperatingPoint)
    assert isinstance(turned, OperatingPoint)
    assert np.array_equal(found.threshold, turned.threshold[:, ::-1])
    assert operating_point_of(other, [*HEADS, "10x"], CLASSES) is None
    assert operating_point_of(other, HEADS, ["cancer", "hgd", "benign"]) is None


def graded(n: int, steepness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``[n, 1, 3]`` of being above each of four grades, ``steepness`` times those in truth, and the grades."""
    rng = np.random.default_rng(seed)
    truth = 4 * rng.random(n)[:, None] - [1.0, 2.0, 3.0]  # P(y > k) is the sigmoid of three times this
    grades = (expit(3 * truth) > rng.random((n, 1))).sum(axis=1)  # one draw for all steps
    return 3 * steepness * truth[:, None], np.eye(4)[grades]


@pytest.mark.parametrize("steepness", [0.3, 1.0, 4.0])
def test_a_known_temperature_of_ordered_classes_is_found_and_never_changes_a_decision(steepness: float) -> None:
    logits, y = graded(5_000, steepness, seed=0)
    kind, names = get_task("ordinal"), ["normal", "lgd", "hgd", "cancer"]
    found = find_points(logits, y, ["global"], names, np.zeros(4), "temperature", 0.5, "ordinal")
    slopes = [one["slope"] for one in found["global"]["classes"].values()]
    assert slopes == pytest.approx([1 / steepness] * 4, rel=0.05)
    network = MuSTMIL(num_classes=3, num_features=8)
    sign(network, RECORD, {OPERATING_POINT: found})
    point = operating_point_of(network, ["global"], names, "ordinal")
    assert point is not None
    # Networks also say that a slide is rather above a grade than above the one before.
    rough = logits + np.random.default_rng(1).normal(0, 2, logits.shape)
    raw = kind.probabilities(torch.from_numpy(rough)).numpy()
    assert np.array_equal(point.decided(point.calibrated(rough)), kind.decided(raw))
