"""The probability from which on a class is a decision: a number, or a rule by which validation slides choose it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["choose_threshold", "is_fixed"]

Floats = NDArray[np.float64]

SENSITIVITY = "sensitivity="


def is_fixed(rule: float | str) -> bool:
    """Whether a rule is a number, which no slide changes."""
    return not isinstance(rule, str)


def choose_threshold(rule: float | str, probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The threshold of one class.

    Between two probabilities any threshold decides the same: the middle is taken. Of thresholds that are equally good
    it is the one next to 0.5.

    Args:
        rule: ``"f1"``, the best F1; ``"youden"``, the best sensitivity + specificity - 1 (Youden, Cancer 3(1):32-35,
            1950); ``"sensitivity=0.95"``, the highest threshold with at least this sensitivity; or a number.
        probabilities: ``[n]`` within 0 to 1, of the validation slides.
        labels: ``[n]``, 0 or 1.

    Returns:
        Within 0 to 1; a probability at it, or above, is a positive decision. 0.5 where no slide has the class, or
        every slide.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64) > 0.5
    if not isinstance(rule, str):
        return float(rule)
    if not y.any() or y.all():
        return 0.5
    distinct = np.unique(p)
    candidates = np.unique([0.5, distinct[0] / 2, *(distinct[:-1] + distinct[1:]) / 2, (1 + distinct[-1]) / 2])
    # [C]: of the slides, how many with the class, and without it, are at a candidate or above.
    hits, false = (len(of) - np.searchsorted(np.sort(of), candidates) for of in (p[y], p[~y]))
    if rule.startswith(SENSITIVITY):
        needed = math.ceil(float(rule.removeprefix(SENSITIVITY)) * y.sum() - 1e-9)
        return float(candidates[hits >= needed][-1])
    score = 2 * hits / (hits + false + y.sum()) if rule == "f1" else hits / y.sum() - false / (~y).sum()
    best = candidates[score >= score.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])
