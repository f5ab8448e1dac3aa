"""Calibration takes back what is known to be wrong with probabilities, as far as so many slides can show it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression

from scripts.datalists.classes import balanced_weights
from scripts.weights.calibration import TEMPERATURES, fit_platt, fit_temperature, prior_shift


def scored(n: int, frequency: float, seed: int, distance: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, logits of a perfect classifier of two normal distributions, and what they were drawn from, ``[n]``."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < frequency).astype(float)
    x = rng.normal(distance * y, 1.0)
    return y, distance * x - distance**2 / 2 + logit(frequency), x


@pytest.mark.parametrize("frequency", [0.05, 0.3, 0.8])
def test_the_shift_of_the_prior_gives_the_probabilities_before_the_draws(frequency: float) -> None:
    y, right, x = scored(200_000, frequency, seed=1)
    weights = balanced_weights(y[:, None])
    # What a classifier learns from balanced draws: both values as often.
    drawn = 2.0 * x - 2.0
    assert weights[y > 0.5].sum() == pytest.approx(0.5)
    found = drawn + prior_shift(y[:, None], weights)[0]
    # The frequency of so many slides is known to its standard error.
    error = 1 / np.sqrt(len(y) * frequency * (1 - frequency))
    assert np.abs(found - right).max() < 4 * error
    # And so the probabilities are those of the slides, where those of the draws are not.
    assert expit(found).mean() == pytest.approx(y.mean(), abs=4 * np.sqrt(0.25 / len(y)))
    assert abs(expit(drawn).mean() - y.mean()) > 0.05


def test_draws_of_all_slides_alike_shift_nothing() -> None:
    y = np.random.default_rng(0).integers(0, 2, (50, 4)).astype(float)
    assert prior_shift(y, np.full(50, 1 / 50)) == pytest.approx(np.zeros(4), abs=1e-12)


def test_a_class_that_all_slides_have_or_none_is_not_shifted() -> None:
    y = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0]], float)
    shift = prior_shift(y, balanced_weights(y))
    assert shift[0] == shift[1] == 0
    assert shift[2] < 0  # rare, and drawn more often


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    y, right, _ = scored(20_000, 0.4, seed=2)
    found = fit_temperature(right * temperature, y)
    # The standard error of the slope that a logistic regression without intercept has.
    p = expit(right)
    error = 1 / np.sqrt((p * (1 - p) * right**2).sum())
    assert temperature / found == pytest.approx(1, abs=4 * error)


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -1.0), (1.0, 0.0), (2.0, 1.5)])
def test_platts_line_is_that_of_a_logistic_regression(slope: float, intercept: float) -> None:
    y, right, _ = scored(20_000, 0.3, seed=3)
    wrong = (right - intercept) / slope
    found = fit_platt(wrong, y)
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(wrong[:, None], y)
    # The targets are 1 / (n + 2) from the labels.
    assert found == pytest.approx((oracle.coef_[0, 0], oracle.intercept_[0]), abs=5e-3)
    assert found == pytest.approx((slope, intercept), abs=0.15)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), scale=st.sampled_from([0.0, 0.1, 5.0, 500.0]))
def test_few_slides_give_finite_values_that_keep_the_order(seed: int, n: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    z, y = scale * rng.normal(size=n), rng.integers(0, 2, n).astype(float)
    assert TEMPERATURES[0] <= fit_temperature(z, y) <= TEMPERATURES[1]
    slope, intercept = fit_platt(z, y)
    assert slope >= 0
    assert np.isfinite([slope, intercept]).all()


def test_slides_that_are_all_right_do_not_make_probabilities_certain() -> None:
    z, y = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1.0])
    assert expit(2.0 / fit_temperature(z, y)) < 0.95
    slope, intercept = fit_platt(z, y)
    assert expit(2.0 * slope + intercept) < 0.95


def of_three(n: int, frequencies: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One-hot labels of three classes, and for each the log-likelihood of two normal features, ``[n, 3]``."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])
    y = np.eye(3)[rng.choice(3, n, p=frequencies)]
    x = rng.normal(y @ centres, 1.0)
    return y, -0.5 * np.square(x[:, None] - centres).sum(axis=2)


def test_the_shift_of_exclusive_classes_gives_the_posterior_of_bayes() -> None:
    frequencies = np.array([0.7, 0.2, 0.1])
    y, likelihood = of_three(100_000, frequencies, seed=1)
    weights = balanced_weights(y)
    assert weights @ y == pytest.approx([1 / 3] * 3)
    shift = prior_shift(y, weights, is_exclusive=True)
    own = y.mean(axis=0)
    # A network that learned from the draws has the likelihoods alone; by Bayes the priors multiply them.
    wanted = np.exp(likelihood) * own / (np.exp(likelihood) @ own)[:, None]
    assert softmax(likelihood + shift, axis=1) == pytest.approx(wanted)
    assert softmax(likelihood + shift, axis=1).mean(axis=0) == pytest.approx(own, abs=5e-3)
    assert abs(softmax(likelihood, axis=1).mean(axis=0) - own).max() > 0.1


def test_an_exclusive_class_that_no_slide_has_is_not_shifted() -> None:
    y = np.eye(3)[[0, 0, 1]]
    shift = prior_shift(y, balanced_weights(y), is_exclusive=True)
    assert shift == pytest.approx([np.log(2 / 3) - np.log(1 / 2), np.log(1 / 3) - np.log(1 / 2), 0])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_of_exclusive_classes_is_found(temperature: float) -> None:
    y, likelihood = of_three(20_000, np.full(3, 1 / 3), seed=2)
    assert fit_temperature(likelihood * temperature, y, is_softmax=True) == pytest.approx(temperature, rel=0.05)


def test_two_exclusive_classes_have_the_temperature_of_one_sigmoid() -> None:
    z, y = np.array([-2.0, -1.0, 0.5, 1.0, 2.0]), np.array([0, 1, 0, 1, 1.0])
    pair = fit_temperature(np.column_stack([-z / 2, z / 2]), np.column_stack([1 - y, y]), is_softmax=True)
    assert pair == pytest.approx(fit_temperature(z, y), rel=1e-4)
