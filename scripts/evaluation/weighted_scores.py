"""Scores under many weights of the slides at once: one for each resample of a bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scripts.core.tasks import get_task

__all__ = ["average_precision", "ranked_groups", "ratio", "roc_auc", "weighted_class_scores", "weighted_head_scores"]

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


def weighted_head_scores(p: Floats, y: Floats, counts: Floats, names: Sequence[str], task: str) -> dict[str, Floats]:
    """:func:`scripts.evaluation.metrics.head_scores` of every resample, [R] a score."""
    classes, slides = y.shape[1], counts.sum(axis=1)  # resamples of patients differ in how many slides they contain
    predicted = get_task(task).decided(p).astype(np.float64)
    hits = counts @ (predicted * y)  # [R, K]: true positives
    marked = counts @ (predicted + y)  # [R, K]: predicted positives + positives = 2 TP + FP + FN
    compute = {
        "accuracy": lambda: counts @ (predicted == y).sum(axis=1) / (slides * classes),
        "f1": lambda: ratio(2 * hits.sum(axis=1), marked.sum(axis=1), empty=0.0),
        "macro_f1": lambda: ratio(2 * hits, marked, empty=0.0).mean(axis=1),
        "roc_auc": lambda: roc_auc(*ranked_groups(p.ravel(), y.ravel(), np.repeat(counts, classes, axis=1))),
    }
    if get_task(task).is_exclusive:
        compute |= {
            "accuracy": lambda: hits.sum(axis=1) / slides,
            "balanced_accuracy": lambda: _known_mean(ratio(hits, counts @ y)),
            "quadratic_kappa": lambda: _quadratic_kappa(y.argmax(axis=1), predicted.argmax(axis=1), counts),
            "roc_auc": lambda: _known_mean(_class_aucs(p, y, counts)),
        }
    return {name: compute[name.removeprefix("micro_")]() for name in names}


def _quadratic_kappa(truth: NDArray[np.intp], predicted: NDArray[np.intp], counts: Floats) -> Floats:
    """[R]: 1 less the mean squared distance of labels and decisions [n], in units of that of all pairs of both."""
    t, d = truth.astype(np.float64), predicted.astype(np.float64)
    of_pairs = counts @ (t**2 + d**2) - 2 * (counts @ t) * (counts @ d) / counts.sum(axis=1)
    return 1 - ratio(counts @ (t - d) ** 2, of_pairs)


def _class_aucs(p: Floats, y: Floats, counts: Floats) -> Floats:
    """[R, K]: the ROC-AUC of each class against the rest."""
    return np.stack([roc_auc(*ranked_groups(p[:, k], y[:, k], counts)) for k in range(y.shape[1])], axis=1)


def _known_mean(values: Floats) -> Floats:
    """[R]: the mean of the values [R, K] that are not NaN; NaN without any."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def weighted_class_scores(p: Floats, y: Floats, predicted: Floats, counts: Floats) -> dict[str, Floats]:
    """:func:`scripts.evaluation.metrics.class_scores` of every resample, [R, K] a score."""
    hits, called, positives = (counts @ array for array in (predicted * y, predicted, y))  # [R, K]
    negatives = counts.sum(axis=1, keepdims=True) - positives
    ranked = [ranked_groups(p[:, k], y[:, k], counts) for k in range(y.shape[1])]
    return {
        "accuracy": counts @ (predicted == y) / counts.sum(axis=1, keepdims=True),
        "precision": ratio(hits, called),
        "recall": ratio(hits, positives),
        "specificity": ratio(negatives - (called - hits), negatives),
        "f1": ratio(2 * hits, called + positives),
        "roc_auc": np.stack([roc_auc(*groups) for groups in ranked], axis=1),
        "average_precision": np.stack([average_precision(*groups) for groups in ranked], axis=1),
    }
