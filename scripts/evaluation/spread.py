"""Whether the spread of an ensemble's members says which of its decisions are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from scripts.evaluation.bootstrap import bootstrap_interval

__all__ = ["spread_report"]


def spread_report(
    spread: NDArray[np.float64], decided: ArrayLike, y: ArrayLike, seed: int, patients: Sequence[str]
) -> dict[str, Any]:
    """How far members are apart where a head is right, and where it is wrong.

    Args:
        spread: ``[n, K]``, the standard deviation of the members' probabilities
            (:meth:`scripts.networks.ensemble.Ensemble.with_spread`).
        decided: ``[n, K]``, the head's decisions.
        y: ``[n, K]``, 0 or 1.
        seed: of the bootstrap.
        patients: of the n slides.

    Returns:
        ``mean`` over slides and classes; ``of_right`` and ``of_wrong``, the mean over right and over wrong decisions,
        NaN where there are none; ``roc_auc``, with which the spread ranks wrong decisions above right ones, as
        ``{"value": v, "ci95": [low, high]}`` by a bootstrap over patients: 0.5 where it says nothing.
    """
    wrong = (np.asarray(decided) > 0.5) != (np.asarray(y) > 0.5)
    value, interval = np.nan, (np.nan, np.nan)
    if wrong.any() and not wrong.all():
        value = float(roc_auc_score(wrong.ravel(), spread.ravel()))
        # Slides and classes one by one, which stay together with their patient.
        each = [patient for patient in patients for _ in range(wrong.shape[1])]
        interval = bootstrap_interval(
            spread.reshape(-1, 1), wrong.reshape(-1, 1).astype(np.float64), "binary", seed=seed, patients=each
        )["roc_auc"]
    return {
        "mean": float(spread.mean()),
        "of_right": _mean(spread[~wrong]),
        "of_wrong": _mean(spread[wrong]),
        "roc_auc": {"value": value, "ci95": list(interval)},
    }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
