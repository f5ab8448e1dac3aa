"""What ``metrics.json`` says of one head: as the paper scores it, and at its operating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from scripts.core.tasks import get_task
from scripts.evaluation.bootstrap import bootstrap_interval, class_intervals, mean_interval
from scripts.evaluation.calibration import reliability
from scripts.evaluation.confusion import class_confusion, decision_counts
from scripts.evaluation.metrics import class_scores, head_scores
from scripts.evaluation.patient_level import patient_predictions

__all__ = ["RANKING_SCORES", "decided_scores", "head_report", "of_decisions", "operating_point_report"]

Floats = NDArray[np.float64]

RANKING_SCORES = ("roc_auc", "average_precision")
"""Scores that no threshold changes."""
# Of a curve's points: they are read off a picture.
DIGITS = 6


def decided_scores(task: str) -> list[str]:
    """The names of a task's scores that an operating point may change."""
    return [name for name in get_task(task).scores if name not in RANKING_SCORES]


def of_decisions(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores by name, without those that no threshold changes."""
    return {name: score for name, score in scores.items() if name not in RANKING_SCORES}


def head_report(
    p: Floats, y: Floats, class_names: Sequence[str], task: str, seed: int, patients: Sequence[str]
) -> dict[str, Any]:
    """The scores of a head, undefined ones as NaN.

    Args:
        p: probabilities ``[n, K]``, as the network gives them.
        y: labels ``[n, K]``, 0 or 1.
        class_names: of the K classes.
        task: one of :data:`scripts.core.tasks.TASKS`, which says what is decided.
        seed: of the bootstrap.
        patients: of the n slides.

    Returns:
        Each score of the task as ``{"value": v, "ci95": [low, high]}``; ``classes``, the same of each class, with
        ``slides``, how many have it; ``brier``, the mean squared error of the probabilities (Brier, Monthly Weather
        Review 78(1):1-3, 1950), over slides and classes; ``expected_calibration_error``; ``confusion``, and ``curves``.
        Where a patient has several slides, ``patients`` as well: the same for each of
        :func:`scripts.evaluation.patient_level.patient_predictions`, of which ``slides`` are then patients.
    """
    classes = {
        name: scores | {"slides": int(y[:, k].sum()), "curves": _curves(p[:, k], y[:, k])}
        for k, (name, scores) in enumerate(_class_scores(p, y, class_names, task, seed, patients).items())
    }
    bounds = bootstrap_interval(p, y, task, seed=seed, patients=patients)
    return {
        **_with_bounds(head_scores(p, y, task), bounds),
        "classes": classes,
        **_probabilities(p, y, seed, patients),
        "confusion": _confusion(get_task(task).decided(p), p, y, class_names, task),
        **_of_patients(p, y, class_names, task, seed, patients),
    }


def operating_point_report(
    p: Floats,
    decided: Floats,
    y: Floats,
    class_names: Sequence[str],
    task: str,
    seed: int,
    patients: Sequence[str],
    thresholds: Floats | None = None,
) -> dict[str, Any]:
    """The same at the operating point, or at that of each fold; scores that no threshold changes are left out.

    Args:
        p: calibrated probabilities ``[n, K]``.
        decided: ``[n, K]``, 1 for what is decided on them, and 0. The scores decide once more, on these.
        y: as in :func:`head_report`, and so are the others.
        class_names: see there.
        task: see there.
        seed: see there.
        patients: see there.
        thresholds: ``[K]``, from which on a probability is a positive decision, to be reported with each class;
            ``None`` where the task has none, or the slides have not the same.
    """
    bounds = bootstrap_interval(decided, y, task, seed=seed, patients=patients)
    classes = {}
    for k, (name, scores) in enumerate(_class_scores(decided, y, class_names, task, seed, patients).items()):
        threshold = {} if thresholds is None else {"threshold": float(thresholds[k])}
        classes[name] = {**threshold, **of_decisions(scores), "slides": int(y[:, k].sum())}
    return {
        **of_decisions(_with_bounds(head_scores(decided, y, task), bounds)),
        "classes": classes,
        **_probabilities(p, y, seed, patients),
        "confusion": _confusion(decided, p, y, class_names, task),
    }


def _of_patients(
    p: Floats, y: Floats, class_names: Sequence[str], task: str, seed: int, patients: Sequence[str]
) -> dict[str, Any]:
    if len(set(patients)) == len(patients):
        return {}
    names, labels, pooled = patient_predictions(p, y, patients)
    if get_task(task).is_exclusive:
        # Of a patient whose slides have several classes none is right, and maxima do not sum to 1.
        if (labels.sum(axis=1) != 1).any():
            return {}
        pooled = {"mean": pooled["mean"]}
    given = labels, class_names, task, seed, names
    return {"patients": {pooling: head_report(of_patients, *given) for pooling, of_patients in pooled.items()}}


def _class_scores(
    p: Floats, y: Floats, class_names: Sequence[str], task: str, seed: int, patients: Sequence[str]
) -> dict[str, dict[str, Any]]:
    bounds = class_intervals(p, y, class_names, seed=seed, patients=patients, task=task)
    return {name: _with_bounds(scores, bounds[name]) for name, scores in class_scores(p, y, class_names, task).items()}


def _with_bounds(scores: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    return {name: {"value": scores[name], "ci95": list(interval)} for name, interval in bounds.items()}


def _probabilities(p: Floats, y: Floats, seed: int, patients: Sequence[str]) -> dict[str, Any]:
    """How right the probabilities are."""
    error, curve = np.square(p - y), reliability(p, y)
    return {
        "brier": {"value": float(error.mean()), "ci95": list(mean_interval(error, seed=seed, patients=patients))},
        "expected_calibration_error": curve.expected_calibration_error,
        "calibration_curve": {
            "slides_and_classes": curve.counts.tolist(),
            "predicted": _rounded(curve.predicted),
            "observed": _rounded(curve.observed),
        },
    }


def _confusion(decided: NDArray[Any], p: Floats, y: Floats, class_names: Sequence[str], task: str) -> dict[str, Any]:
    """Of each class ``[[TN, FP], [FN, TP]]``; and of slides with one class, label by most probable, or only, class."""
    counts = {name: of.tolist() for name, of in zip(class_names, decision_counts(decided, y), strict=True)}
    taken = decided if get_task(task).is_exclusive else p
    single = {"slides_with_one_class": class_confusion(taken, y).tolist()} if len(class_names) > 1 else {}
    return {"classes": counts, **single}


def _curves(p: Floats, y: Floats) -> dict[str, dict[str, list[float]]]:
    """The points of a class's curves; none of a curve that is not defined."""
    found = {}
    if y.any() and not y.all():
        false, true, thresholds = roc_curve(y, p)
        found["roc"] = {"false_positive_rate": false, "true_positive_rate": true, "threshold": thresholds}
    if y.any():
        precision, recall, thresholds = precision_recall_curve(y, p, drop_intermediate=True)
        found["precision_recall"] = {"precision": precision, "recall": recall, "threshold": thresholds}
    return {name: {axis: _rounded(values) for axis, values in curve.items()} for name, curve in found.items()}


def _rounded(values: Floats) -> list[float]:
    return [float(value) for value in np.round(values, DIGITS)]
