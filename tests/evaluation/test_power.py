"""How wide an interval will be: against cohorts that are simulated, and against variances that are worked out."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.evaluation.bootstrap import FEWEST_PATIENTS, paired_difference
from scripts.evaluation.power import DifferenceSpread, difference_spread

TASK, SCORE = "binary", "accuracy"


def simulate(rng: np.random.Generator, patients: int, trainings: int, spread: float = 0.25) -> list[np.ndarray]:
    """The labels of a cohort, and of two methods what their trainings predict, right or wrong.

    Whether a training is right depends on the patient, on the patient for this method, on the training, and on the
    training for this patient.
    """
    labels = rng.integers(2, size=(patients, 1))
    patient, methods = rng.normal(0, 1, patients), []
    for skill in (1.0, 0.6):
        margin = skill + patient + rng.normal(0, 0.6, patients)
        margin = margin + rng.normal(0, spread, (trainings, 1)) + rng.normal(0, 0.5, (trainings, patients))
        methods.append(np.where(margin[..., None] > 0, labels, 1 - labels).astype(float))
    return [labels, *methods]


def test_the_width_of_a_larger_cohort_is_foretold_by_smaller_ones() -> None:
    """A small cohort is a pilot. Its forecast for a larger one, with more trainings, against many such cohorts."""
    rng, (n, r) = np.random.default_rng(5), (240, 10)
    foretold = []
    for pilot in range(60):
        labels, first, second = simulate(rng, patients=60, trainings=5)
        found = difference_spread(first, second, labels, TASK, SCORE, num_resamples=300, seed=pilot)
        assert found is not None
        foretold.append(found.half_width(n, r) ** 2)
    half_width = math.sqrt(np.mean(foretold))
    differences, printed = [], []
    for cohort in range(400):
        labels, first, second = simulate(rng, n, r)
        differences.append((first == labels).mean() - (second == labels).mean())
        if cohort < 30:
            of_one = paired_difference(first, second, labels, TASK, SCORE, num_resamples=300, seed=cohort)
            printed.append((of_one.high - of_one.low) / 2)
    assert half_width == pytest.approx(np.mean(printed), rel=0.1)
    # What the differences really spread by is less, as the bootstrap is on the safe side.
    true = 1.96 * np.std(differences, ddof=1)
    assert 0.95 * true < half_width < 1.4 * true


def test_the_parts_are_those_of_an_analysis_of_variance() -> None:
    # The accuracy is a mean over patients, so that the bootstrap's variances can be worked out.
    labels, *methods = simulate(np.random.default_rng(1), patients=80, trainings=4)
    n, r = 80, 4
    found = difference_spread(*methods, labels, TASK, SCORE, num_resamples=20_000)
    assert found is not None
    right = [(method == labels)[..., 0].astype(float) for method in methods]  # [r, n]
    both = sum(((of - of.mean(axis=0)).var(axis=1).mean()) * r / (r - 1) for of in right)
    apart = right[0].mean(axis=0) - right[1].mean(axis=0)  # [n]
    trainings = sum(of.mean(axis=1).var(ddof=1) for of in right) - both / n
    assert found.both == pytest.approx(both, rel=0.04)
    assert found.patients == pytest.approx(apart.var() - both / r, rel=0.06)
    assert found.trainings == pytest.approx(trainings, rel=0.1)
    assert found.patients_sd == pytest.approx(apart.std() / math.sqrt(n), rel=0.03)
    assert found.trainings_sd**2 == pytest.approx(sum(of.mean(axis=1).var(ddof=1) for of in right), rel=1e-6)
    assert (found.num_patients, found.num_trainings) == (n, r)


def test_trainings_that_vary_more_need_more_of_them() -> None:
    steady, shaky = (
        difference_spread(*methods, labels, TASK, SCORE)
        for spread in (0.0, 0.8)
        for labels, *methods in [simulate(np.random.default_rng(2), 100, 5, spread)]
    )
    assert steady is not None
    assert shaky is not None
    assert steady.needed(0.02)[1] == 5
    assert shaky.needed(0.02)[1] > 20
    # Ever more patients do not make up for few trainings.
    assert shaky.half_width(10**9, 5) > 0.1


def test_more_slides_of_the_same_patients_are_no_more_patients() -> None:
    labels, *methods = simulate(np.random.default_rng(3), 40, 3)
    own = [f"P{i}" for i in range(40)] * 3
    many = [np.concatenate([of] * 3, axis=-2) for of in (*methods, labels)]
    found, wanted = (
        difference_spread(*of, TASK, SCORE, patients=whose) for of, whose in ((many, own), ((*methods, labels), None))
    )
    assert found is not None
    assert wanted is not None
    assert astuple(found) == pytest.approx(astuple(wanted), rel=1e-9)


@given(
    st.floats(0, 2),
    st.floats(0, 0.05),
    st.floats(0, 2),
    st.integers(2, 20),
    st.floats(0.005, 0.3),
)
def test_what_is_needed_is_enough_and_one_patient_less_is_not(
    patients: float, trainings: float, both: float, repeats: int, half_width: float
) -> None:
    spread = DifferenceSpread(50, repeats, patients, trainings, both)
    n, r = spread.needed(half_width)
    assert r >= repeats
    assert spread.half_width(n, r) <= half_width * (1 + 1e-9)
    assert n == FEWEST_PATIENTS or spread.half_width(n - 1, r) > half_width * (1 - 1e-9)
    assert r == repeats or trainings / (r - 1) > (half_width / 1.96) ** 2 / 2 * (1 - 1e-3)


@pytest.mark.parametrize(("patients", "trainings"), [(FEWEST_PATIENTS - 1, 5), (40, 1)])
def test_too_few_patients_or_trainings_tell_nothing(patients: int, trainings: int) -> None:
    labels, *methods = simulate(np.random.default_rng(4), patients, trainings)
    assert difference_spread(*methods, labels, TASK, SCORE) is None


def test_a_score_that_is_undefined_tells_nothing() -> None:
    methods = np.random.default_rng(0).random((2, 3, 12, 1))
    assert difference_spread(*methods, np.ones((12, 1)), TASK, "roc_auc") is None
