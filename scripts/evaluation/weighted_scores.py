"""Ranking scores under many weights of the slides at once: one for each resample of a bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["average_precision", "ranked_groups", "ratio", "roc_auc"]

Floats = NDArray[np.float64]


def ratio(part: Floats, whole: Floats, empty: float = np.nan) -> Floats:
    """A quotient; ``empty`` where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, empty), where=whole > 0)


def ranked_groups(scores: Floats, truth: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Positives and negatives [R, groups] of weights [R, m], a group for each score, the highest first."""
    order = np.argsort(-scores, kind="stable")
    groups = np.flatnonzero(np.diff(-scores[order], prepend=-np.inf) > 0)  # where each group of equal scores starts
    sorted_weights, sorted_truth = weights[:, order], truth[order]
    positives = np.add.reduceat(sorted_weights * sorted_truth, groups, axis=1)
    return positives, np.add.reduceat(sorted_weights, groups, axis=1) - positives


def roc_auc(positives: Floats, negatives: Floats) -> Floats:
    """[R]: the fraction of (positive, negative) pairs in the right order; a tie counts as half."""
    total = negatives.sum(axis=1, keepdims=True)
    below = total - np.cumsum(negatives, axis=1) + negatives / 2
    return ratio((positives * below).sum(axis=1), positives.sum(axis=1) * total[:, 0])


def average_precision(positives: Floats, negatives: Floats) -> Floats:
    """[R]: the precision at each score, averaged over the positives that have it."""
    hits = np.cumsum(positives, axis=1)
    precision = ratio(hits, hits + np.cumsum(negatives, axis=1), empty=0.0)
    return ratio((positives * precision).sum(axis=1), hits[:, -1])
