"""How well a head ranks validation slides, and how well chance would: what tells of a head that has learnt nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, rankdata

__all__ = ["doubt_of_ranking", "ranking_of"]

LUCK = 0.05
"""How often a head that has learnt nothing is to rank above the limit."""
# Of ROC-AUC by chance, the mean of the classes, as if they went together.
LARGEST_DEVIATION = 0.25 / float(norm.isf(LUCK))


def ranking_of(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    r"""How well scores rank slides, and how well scores that know nothing would.

    With ranks r and labels y, centred over the slides, and :math:`c_k = 1 / (K n^+_k n^-_k)`, ROC-AUC is
    :math:`1/2 + \sum_k c_k \sum_i y_{ik} r_{ik}`, a mean over classes. If all orders of the slides are as likely, its
    variance is :math:`\frac{1}{n - 1} \sum_{ij} (\sum_k c_k y_{ik} r_{jk})^2` (Hoeffding, Annals of Mathematical
    Statistics 22(4):558-566, 1951, theorem 2), whatever ties there are and however classes go together.

    Args:
        scores: ``[n, K]``, higher where a class is more likely.
        labels: ``[n, K]``, 0 or 1.

    Returns:
        ``roc_auc``, a mean over the classes that some slides have and some have not, and ``limit``, above which
        chance is once in 20 times. Empty where slides are so few that the limit might be above 0.75: chance then often
        ranks as well as a head that has learnt; and where a score is NaN.
    """
    z, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    is_mixed = np.flatnonzero(y.any(axis=0) & ~y.all(axis=0))
    if not len(is_mixed) or np.isnan(z).any():
        return {}
    y, ranks = y[:, is_mixed], rankdata(z[:, is_mixed], axis=0)
    y, r = y - y.mean(axis=0), ranks - ranks.mean(axis=0)
    pairs = len(y) * (y**2).sum(axis=0)  # n+ n- of each class
    if float(np.sqrt((len(y) + 1) / (12 * pairs)).mean()) > LARGEST_DEVIATION:
        return {}
    c = 1 / (len(pairs) * pairs)
    variance = float(((c[:, None] * (y.T @ y) * c) * (r.T @ r)).sum()) / (len(y) - 1)
    limit = 0.5 + float(norm.isf(LUCK)) * math.sqrt(max(variance, 0.0))  # rounding may leave less than none
    return {"roc_auc": 0.5 + float((c * (y * r).sum(axis=0)).sum()), "limit": limit}


def doubt_of_ranking(point: Mapping[str, Any]) -> str | None:
    """Why a head may have learnt nothing, from its operating point; ``None`` where nothing says so.

    Args:
        point: of the head, as :func:`scripts.weights.operating_point.find_points` gives it.
    """
    ranking = point.get("ranking")
    if not ranking or ranking["roc_auc"] > ranking["limit"]:
        return None
    return (
        f"it ranks the {point['slides']} validation bags no better than chance does (ROC-AUC {ranking['roc_auc']:.3f}; "
        f"chance stays at {ranking['limit']:.3f} or below 19 times in 20)"
    )
