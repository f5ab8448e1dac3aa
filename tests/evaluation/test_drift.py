"""Drift between two test sets: against scipy's tests where each patient has one slide, and where they have several."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import fisher_exact, hypergeom, ks_2samp

from scripts.evaluation.drift import find_drift


def two_sets(first: int, second: int, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and which slides are of the second set."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-np.concatenate([rng.normal(size=first), rng.normal(shift, size=second)])))
    return p, np.repeat([False, True], [first, second])


@pytest.mark.parametrize(("first", "second", "shift", "decimals"), [(30, 30, 0.5, 9), (25, 40, 0.8, 9), (30, 20, 0, 1)])
def test_distances_are_those_of_scipy_and_their_p_as_well(first: int, second: int, shift: float, decimals: int) -> None:
    p, is_second = two_sets(first, second, shift)
    p = np.round(p, decimals)  # with one decimal, most are ties
    found = find_drift(np.zeros((len(p), 1)), p[:, None], is_second, range(len(p)), 4000)
    wanted = ks_2samp(p[~is_second], p[is_second], method="exact")
    assert found.distance == pytest.approx([wanted.statistic])
    # Of 4,000 permutations the fraction errs by 0.008; scipy's p takes no ties into account, and is then too high.
    if decimals == 9:
        assert found.probability == pytest.approx([wanted.pvalue], abs=0.032)
    else:
        assert found.probability[0] < wanted.pvalue + 0.032


@pytest.mark.parametrize(("first", "second"), [(10, 18), (12, 13), (3, 20)])
def test_frequencies_are_tested_as_fisher_does(first: int, second: int) -> None:
    n = 25  # in both, where the two sides of Fisher's test are alike
    y = np.concatenate([np.arange(n) < first, np.arange(n) < second]).astype(float)[:, None]
    found = find_drift(y, y, np.arange(2 * n) >= n, range(2 * n), 4000)
    wanted = fisher_exact([[first, n - first], [second, n - second]]).pvalue
    assert found.frequency == pytest.approx([wanted], abs=0.032)


def test_frequencies_of_test_sets_of_different_sizes_are_compared_by_their_difference() -> None:
    y = np.repeat([1, 0, 1, 0], [7, 13, 1, 6]).astype(float)[:, None]  # 7 of 20, and 1 of 7
    found = find_drift(y, y, np.arange(27) >= 20, range(27), 4000)
    of_second = np.arange(8)
    apart = np.abs(of_second / 7 - (8 - of_second) / 20)
    wanted = hypergeom(27, 8, 7).pmf(of_second)[apart >= apart[1] - 1e-9].sum()
    assert found.frequency == pytest.approx([wanted], abs=0.032)
    # Fisher's test also counts tables that are as unlikely, whatever their difference.
    assert fisher_exact([[7, 13], [1, 6]]).pvalue > wanted + 0.2


def test_all_ways_to_divide_a_few_patients_are_as_likely() -> None:
    p, patients = np.array([0.1, 0.2, 0.3, 0.7, 0.8]), ["a", "b", "c", "d", "e"]
    is_second = np.array([False, False, False, True, True])

    def distance(second: np.ndarray) -> float:
        return float(ks_2samp(p[~second], p[second]).statistic)

    splits = [np.isin(range(5), pair) for pair in itertools.combinations(range(5), 2)]
    wanted = np.mean([distance(split) >= distance(is_second) - 1e-9 for split in splits])
    found = find_drift(np.zeros((5, 1)), p[:, None], is_second, patients, 4000)
    assert found.probability == pytest.approx([wanted], abs=0.03)


def test_each_head_and_class_has_its_own() -> None:
    p, is_second = two_sets(40, 40)
    shifted = np.where(is_second, 0.5 + 0.5 * p, p)
    table = np.stack([np.stack([p, shifted], axis=1), np.stack([shifted, p], axis=1)], axis=1)  # [n, H, K]
    y = np.stack([np.zeros(80), is_second], axis=1)
    found = find_drift(y, table, is_second, range(80))
    assert found.distance.shape == found.probability.shape == (2, 2)
    assert found.probability[0, 1] == found.probability[1, 0] == pytest.approx(1 / 2001)
    assert found.probability[0, 0] == found.probability[1, 1] > 0.05
    assert found.frequency[0] == 1
    assert found.frequency[1] == pytest.approx(1 / 2001)


def test_without_drift_five_in_a_hundred_are_below_five_percent() -> None:
    found = []
    for seed in range(200):
        p, is_second = two_sets(15, 25, seed=seed)
        y = (np.random.default_rng([seed, 1]).random((40, 1)) < 0.4).astype(float)
        drift = find_drift(y, p[:, None], is_second, range(40), 199, seed)
        found.append([drift.frequency[0] < 0.05, drift.probability[0] < 0.05])
    # Two standard errors above 0.05; never far above, as a frequency has few values.
    assert np.mean(found, axis=0).max() < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_slides_of_one_patient_count_as_one_and_not_as_many() -> None:
    rejected, naive = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p = np.repeat(rng.random(16), 12)  # each patient's twelve slides are the same
        patients, is_second = np.repeat(range(16), 12), np.repeat(np.arange(16) >= 8, 12)
        y = (p > 0.5).astype(float)[:, None]
        drift = find_drift(y, p[:, None], is_second, patients.tolist(), 199, seed)
        rejected.append([drift.frequency[0] < 0.05, drift.probability[0] < 0.05])
        naive.append(ks_2samp(p[is_second], p[~is_second]).pvalue < 0.05)
    assert np.mean(naive) > 0.5  # what a test that counts slides would find
    assert np.mean(rejected, axis=0).max() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_the_seed_decides_p_and_the_order_of_slides_does_not_decide_the_distance() -> None:
    p, is_second = two_sets(20, 20, 0.4)
    y = (p > 0.5).astype(float)[:, None]
    one, again, other = (find_drift(y, p[:, None], is_second, range(40), 300, seed) for seed in (1, 1, 2))
    assert (one.probability, one.frequency) == (again.probability, again.frequency)
    assert one.frequency != other.frequency
    turned = find_drift(y[::-1], p[::-1, None], is_second[::-1], range(40), 300, 1)
    assert turned.distance == pytest.approx(one.distance)
