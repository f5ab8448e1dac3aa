"""Whether two test sets differ in how frequent classes are, and in the probabilities that a network gives them.

Both are tested by permutation of patients, who bring all of their slides: who is in which test set is drawn anew, and p
is the fraction of draws in which the test sets differ as much as they do (Ernst, Statistical Science 19(4):676-685,
2004). The slides of one patient are not independent; tests that count slides, as Fisher's or Kolmogorov and Smirnov's
in their usual form, would find differences that are none. Where each patient has one slide, the second is the exact
two-sample test of Kolmogorov and Smirnov, and the first draws from the distribution of Fisher's exact test; but what
counts as extreme is the difference of the frequencies, and not how unlikely a table is, so that two-sided p differ
where the test sets have different sizes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Drift", "find_drift"]

Floats = NDArray[np.float64]

# Values in each array of a block of permutations: 16 MB.
BLOCK_VALUES = 2_000_000
# Sums in another order differ in the last digits.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Drift:
    """How two test sets differ.

    Args:
        frequency: ``[K]``, p of the difference of each class's frequency among the slides.
        distance: ``[...]``, the Kolmogorov-Smirnov distance of the probabilities: the largest difference of their two
            distribution functions, within 0 to 1.
        probability: ``[...]``, p of that distance.
    """

    frequency: Floats
    distance: Floats
    probability: Floats


def find_drift(
    labels: ArrayLike,
    probabilities: ArrayLike,
    is_second: ArrayLike,
    patients: Sequence[Hashable],
    num_permutations: int = 2000,
    seed: int = 0,
) -> Drift:
    """Compare two test sets.

    Args:
        labels: ``[n, K]``, 0 or 1, of the slides of both.
        probabilities: ``[n, ...]``, what a network gives them.
        is_second: ``[n]``, whether a slide is of the second test set; neither is empty.
        patients: the patient of each slide; none is in both.
        num_permutations: the smallest p is one over one more than this.
        seed: of the permutations.
    """
    y, p, second = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64), np.asarray(is_second, bool)
    columns = p.reshape(len(p), -1)
    order = np.argsort(columns, axis=0, kind="stable")
    ranked = np.take_along_axis(columns, order, axis=0)
    # Of equal probabilities, the distribution function is known after the last.
    is_last = np.concatenate([ranked[1:] != ranked[:-1], np.ones((1, ranked.shape[1]), bool)])
    observed = _differences(second[None].astype(np.float64), y, order, is_last)
    exceeding = [np.zeros(difference.shape[1]) for difference in observed]
    for block in _permutations(second, patients, num_permutations, seed):
        for count, own, drawn in zip(exceeding, observed, _differences(block, y, order, is_last), strict=True):
            count += (drawn >= own - TOLERANCE).sum(axis=0)
    # The test sets as they are count as one more draw, so that no p is 0.
    frequency, probability = ((1 + count) / (1 + num_permutations) for count in exceeding)
    return Drift(frequency, observed[1][0].reshape(p.shape[1:]), probability.reshape(p.shape[1:]))


def _differences(
    second: Floats, y: Floats, order: NDArray[np.intp], is_last: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """For test sets ``[r, n]``, 1 in the second: the differences of frequencies ``[r, K]`` and distances ``[r, C]``."""
    first = 1 - second
    of_first, of_second = first.sum(axis=1, keepdims=True), second.sum(axis=1, keepdims=True)
    frequencies = np.abs(second @ y / of_second - first @ y / of_first)
    distances = np.empty((len(second), order.shape[1]))
    for column in range(order.shape[1]):
        steps = second[:, order[:, column]] / of_second - first[:, order[:, column]] / of_first
        distances[:, column] = np.abs(np.cumsum(steps, axis=1)[:, is_last[:, column]]).max(axis=1)
    return frequencies, distances


def _permutations(
    second: NDArray[np.bool_], patients: Sequence[Hashable], num_permutations: int, seed: int
) -> Iterator[Floats]:
    """Test sets ``[r, n]``, 1 in the second, with as many patients in each as there are."""
    number = {patient: i for i, patient in enumerate(dict.fromkeys(patients))}
    of_slide = np.array([number[patient] for patient in patients], dtype=np.intp)
    num_second = len(np.unique(of_slide[second]))
    rng, size = np.random.default_rng(seed), max(1, BLOCK_VALUES // len(of_slide))
    for start in range(0, num_permutations, size):
        draws = rng.random((min(size, num_permutations - start), len(number)))
        chosen = np.argsort(np.argsort(draws, axis=1), axis=1) < num_second  # [r, patients]
        yield np.take(chosen, of_slide, axis=1).astype(np.float64)
