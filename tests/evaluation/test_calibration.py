"""The reliability curve and the expected calibration error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.calibration import calibration_curve

from scripts.evaluation.calibration import draw_calibration, reliability

PROBABILITIES = arrays(np.float64, (12, 2), elements=st.floats(0, 1))
LABELS = arrays(np.float64, (12, 2), elements=st.sampled_from([0.0, 1.0]))


@given(PROBABILITIES, LABELS)
def test_the_curve_is_scikit_learns(probabilities, labels):
    found = reliability(probabilities, labels)
    observed, predicted = calibration_curve(labels.ravel(), probabilities.ravel(), n_bins=10)
    filled = found.counts > 0
    assert found.observed[filled] == pytest.approx(observed)
    assert found.predicted[filled] == pytest.approx(predicted)
    assert np.isnan(found.observed[~filled]).all()
    assert found.counts.sum() == probabilities.size


@given(PROBABILITIES, LABELS)
def test_the_error_is_the_gap_of_each_decisions_bin_on_average(probabilities, labels):
    p, y = probabilities.ravel(), labels.ravel()
    gaps = 0.0
    for low, high in zip(np.linspace(0, 1, 11)[:-1], np.linspace(0, 1, 11)[1:], strict=True):
        inside = (p <= high) & ((p > low) | (low == 0))
        gaps += abs(y[inside].sum() - p[inside].sum())
    assert reliability(probabilities, labels).expected_calibration_error == pytest.approx(gaps / len(p))


def test_probabilities_that_come_true_have_no_error_and_the_opposite_has_all():
    labels = np.array([[0.0], [1.0], [1.0]])
    assert reliability(labels, labels).expected_calibration_error == 0
    assert reliability(1 - labels, labels).expected_calibration_error == 1
    half = reliability(np.full((4, 1), 0.5), np.array([[0.0], [1.0], [0.0], [1.0]]))
    assert half.expected_calibration_error == 0


def test_the_figure_shows_curve_error_and_counts():
    probabilities = np.array([[0.1, 0.15, 0.85, 0.95, 0.95]]).T
    labels = np.array([[0.0, 1.0, 1.0, 1.0, 0.0]]).T
    upper, lower = draw_calibration(probabilities, labels).axes
    curve = upper.lines[1]
    # Bins end at their upper edge: 0.1 is in the first, 0.15 in the second.
    assert curve.get_xydata() == pytest.approx(np.array([[0.1, 0], [0.15, 1], [0.85, 1], [0.95, 0.5]]))
    error = (0.1 + 0.85 + 0.15 + 2 * 0.45) / 5
    assert curve.get_label() == f"observed; expected calibration error {error:.3f}"
    assert [bar.get_height() for bar in lower.patches] == [1, 1, 0, 0, 0, 0, 0, 0, 1, 2]
