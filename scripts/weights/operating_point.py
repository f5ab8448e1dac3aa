"""The operating point of trained weights: calibrated probabilities, and the thresholds of decisions.

It is found on the training's own draws and on validation slides, rides with each file of weights in what made them
(:mod:`scripts.networks.state_record`), and is applied wherever the weights are used. Test slides decide nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from scripts.core.errors import SettingsError
from scripts.core.tasks import TASKS, THRESHOLD, Task, get_task
from scripts.weights.calibration import FEWEST_SLIDES, fit_platt, fit_temperature
from scripts.weights.ranking import ranking_of
from scripts.weights.thresholds import choose_threshold, is_fixed

__all__ = [
    "CALIBRATIONS",
    "OPERATING_POINT",
    "RECALIBRATED",
    "OperatingPoint",
    "check_rules",
    "find_points",
    "members_of",
    "operating_point_of",
    "point_sha256",
    "point_text",
    "points_warning",
]

Floats = NDArray[np.float64]

CALIBRATIONS = ("none", "temperature", "platt")
OPERATING_POINT = "operating_point"
"""The key in the origin of a file of weights."""
RECALIBRATED = "recalibrated"
"""The key there of what the training had found, and of what decided again (:mod:`scripts.training.recalibration`)."""
LINE = ("shift", "slope", "intercept")


@dataclass(frozen=True)
class OperatingPoint:
    """How the logits of H heads become probabilities and decisions on K classes; each array is ``[H, K]``.

    Args:
        shift: the correction of the prior (:meth:`scripts.core.tasks.Task.corrected`).
        slope: by which the corrected logits are multiplied; exclusive classes have one.
        intercept: added to them then.
        threshold: of that probability; ``None`` where the task has none.
        task: of the logits.
    """

    shift: Floats
    slope: Floats
    intercept: Floats
    threshold: Floats | None
    task: Task = TASKS["multilabel"]

    def calibrated(self, logits: ArrayLike) -> Floats:
        """The calibrated probabilities ``[..., H, K]`` of logits ``[..., H, L]``."""
        own = self.task.corrected(logits, self.shift)  # [..., H, L]
        # The K classes of an ordinal head have fewer logits, and all the same line.
        slope, intercept = (line[..., : own.shape[-1]] for line in (self.slope, self.intercept))
        return np.asarray(self.task.probabilities(torch.as_tensor(slope * own + intercept)).numpy())

    def decided(self, calibrated: ArrayLike) -> NDArray[np.bool_]:
        """The decisions on calibrated probabilities ``[..., H, K]``."""
        return self.task.decided(np.asarray(calibrated, np.float64), self.threshold)


def check_rules(settings: Mapping[str, Any]) -> None:
    """Refuse rules of the operating point that the task does not have.

    Args:
        settings: by name, with the ``task``; without rules there is nothing to refuse.

    Raises:
        SettingsError: if there is a threshold, or a line for each class, and a slide has exactly one class.
    """
    task = get_task(settings["task"])
    if not task.is_exclusive:
        return
    if (rule := settings.get("threshold", THRESHOLD)) != THRESHOLD:
        cause = f"got {rule!r}, and in the {task.name} task {task.decision} is decided, whatever its probability"
        raise SettingsError("threshold", cause, f"Leave it out, or give {THRESHOLD}.")
    if settings.get("calibration") == "platt":
        cause = f"got 'platt', which fits each class alone, and in the {task.name} task probabilities sum to 1"
        raise SettingsError("calibration", cause, "Choose temperature or none.")


def find_points(
    logits: ArrayLike,
    labels: ArrayLike,
    heads: Sequence[str],
    class_names: Sequence[str],
    shift: ArrayLike,
    calibration: str,
    threshold: float | str,
    task: str = "multilabel",
) -> dict[str, dict[str, Any]]:
    """The operating point of each head, from its logits on validation slides, as plain values.

    Args:
        logits: ``[n, H, L]``; a head with NaN is not in use, and gets no point.
        labels: ``[n, K]``, 0 or 1.
        heads: the H heads' names.
        class_names: the K classes' names.
        shift: ``[K]``, the correction of the prior (:func:`scripts.weights.calibration.prior_shift`), or zeros.
        calibration: ``"none"``; ``"temperature"``, one for each head; ``"platt"``, a line for each class that at least
            :data:`FEWEST_SLIDES` slides have, and as many have not, and the temperature for the others.
        threshold: see :func:`scripts.weights.thresholds.choose_threshold`; exclusive classes have none.
        task: one of :data:`scripts.core.tasks.TASKS`.

    Returns:
        By head: ``calibration``, ``rule`` and ``slides``, how it was found and on how many; ``classes``, by class the
        numbers of :class:`OperatingPoint` and ``positives``, how many of the slides have it; ``ranking``, what
        :func:`scripts.weights.ranking.ranking_of` gives.
    """
    kind = get_task(task)
    z, y, moved = np.asarray(logits, np.float64), np.asarray(labels, np.float64), np.asarray(shift, np.float64)
    points = {}
    for index, head in enumerate(heads):
        own = kind.corrected(z[:, index], moved)  # [n, L]
        if np.isnan(own).any():
            continue
        slope = 1.0 if calibration == "none" else 1 / fit_temperature(own, kind.per_logit(y), kind.is_softmax)
        classes: dict[str, dict[str, float]] = {}
        for k, name in enumerate(class_names):
            positives = int(y[:, k].sum())
            line = (slope, 0.0)
            if calibration == "platt" and min(positives, len(y) - positives) >= FEWEST_SLIDES:
                line = fit_platt(own[:, k], y[:, k])
            classes[name] = dict(zip(LINE, (float(moved[k]), *line), strict=True))
            if not kind.is_exclusive:
                p = expit(line[0] * own[:, k] + line[1])
                classes[name]["threshold"] = choose_threshold(threshold, p, y[:, k])
            classes[name]["positives"] = positives
        rule = kind.decision if kind.is_exclusive else threshold
        # A sigmoid, which keeps the order, would round large logits to one value.
        scores = kind.probabilities(torch.as_tensor(own)).numpy() if kind.is_exclusive else own
        ranking = ranking_of(scores, y)
        found = {"calibration": calibration, "rule": rule, "slides": len(y)}
        points[head] = {**found, "classes": classes, "ranking": ranking}
    return points


def point_sha256(origin: Mapping[str, Any], head: str) -> str | None:
    """The SHA-256 of what the operating point of a head decides with, from the origin of its weights.

    Returns:
        ``None`` where they have none.
    """
    point = origin.get(OPERATING_POINT, {}).get(head)
    if point is None:
        return None
    numbers = {
        name: {key: of_class.get(key) for key in (*LINE, "threshold")} for name, of_class in point["classes"].items()
    }
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()


def point_text(point: Mapping[str, Any]) -> str:
    """How the operating point of a head was found, and its thresholds, in words."""
    slopes = sorted({round(one["slope"], 3) for one in point["classes"].values()})
    chosen = [(name, one["threshold"]) for name, one in point["classes"].items() if "threshold" in one]
    thresholds = ", ".join(f"{name} {threshold:.3f}" for name, threshold in chosen)
    calibration = f"calibration {point['calibration']} (slope {', '.join(f'{slope:g}' for slope in slopes)})"
    return f"{calibration}, " + (f"threshold {point['rule']} ({thresholds})" if chosen else f"decision {point['rule']}")


def points_warning(points: Mapping[str, Mapping[str, Any]], unit: str = "slide") -> str | None:
    """What to know of thresholds that rest on too few slides; ``None`` where they rest on enough, or on none.

    Args:
        points: by head.
        unit: what they were found on: ``"slide"`` or ``"patient"``.
    """
    few: dict[str, int] = {}
    for point in points.values():
        for name, of_class in point["classes"].items():
            fewer = min(of_class["positives"], point["slides"] - of_class["positives"])
            if "threshold" in of_class and not is_fixed(point["rule"]) and fewer < FEWEST_SLIDES:
                few[name] = min(fewer, few.get(name, fewer))
    if not few:
        return None
    which = ", ".join(f"{name} {number}" for name, number in few.items())
    cause = f"fewer than {FEWEST_SLIDES} validation {unit}s have these classes, or have them not ({which})"
    return (
        f"their thresholds are not to be trusted: {cause}. Validate on more {unit}s, or give a number as `threshold`."
    )


def members_of(network: Any, heads: Sequence[str]) -> Sequence[Any]:
    """The network that gives the logits of each head: its copy, where a network has one for each."""
    copies: Sequence[Any] = getattr(network, "copies", [network] * len(heads))
    return copies


def operating_point_of(
    network: Any, heads: Sequence[str], class_names: Sequence[str], task: str = "multilabel"
) -> OperatingPoint | None:
    """That of the weights that a network has loaded; ``None`` where they have none, or not for each head and class.

    Args:
        network: one that keeps a record, whatever else has the ``origin`` of weights, or has ``copies`` of such, one
            for each head.
        heads: the heads of its logits, in order.
        class_names: the classes of its logits, in order.
        task: one of :data:`scripts.core.tasks.TASKS`.
    """
    kind = get_task(task)
    names = LINE if kind.is_exclusive else (*LINE, "threshold")
    table = np.full((len(names), len(heads), len(class_names)), math.nan)
    for h, (head, member) in enumerate(zip(heads, members_of(network, heads), strict=True)):
        points = getattr(member, "origin", {}).get(OPERATING_POINT, {})
        classes = points.get(head, {}).get("classes", {})
        for k, name in enumerate(class_names):
            table[:, h, k] = [classes.get(name, {}).get(number, math.nan) for number in names]
    if np.isnan(table).any():
        return None
    shift, slope, intercept, *thresholds = table
    return OperatingPoint(shift, slope, intercept, thresholds[0] if thresholds else None, kind)
