"""What each task is: how many logits its classes have, and what becomes of them.

This is the one place that says how logits become probabilities, decisions and a loss, and by which scores a task is
judged. A label is 0 or 1 for each class, ``[K]``, whatever the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid

from scripts.core.errors import SettingsError

__all__ = ["TASKS", "THRESHOLD", "Task", "cumulative_logits", "get_task", "log_probabilities_in_order"]

Floats = NDArray[np.float64]

THRESHOLD = 0.5


class Task:
    """Each class is there or not, whatever the others are: the multilabel task, and the binary one with one class.

    A logit for each class, its sigmoid, binary cross-entropy, and a threshold of each class.

    Args:
        name: the setting.
        scores: the names of the scores, of which the second compares methods
            (:data:`scripts.evaluation.metrics.SCORE_TITLES`).

    Attributes:
        is_exclusive: whether a slide has exactly one class.
        is_softmax: whether its logits are those of a softmax over the classes, and not each that of a sigmoid.
        decision: the rule of decisions, in words.
    """

    is_exclusive = False
    is_softmax = False
    decision = "the classes whose probability reaches their threshold"

    def __init__(self, name: str, scores: Sequence[str]) -> None:
        self.name, self.scores = name, tuple(scores)

    def num_logits(self, num_classes: int) -> int:
        """L, the number of logits of K classes."""
        return num_classes

    def logit_names(self, class_names: Sequence[str]) -> list[str]:
        """What each logit, and the map that explains it, stands for."""
        return list(class_names)

    def per_logit(self, values: NDArray[Any]) -> NDArray[Any]:
        """Labels, or probabilities, of classes ``[..., K]`` as those of what the logits stand for, ``[..., L]``."""
        return values

    def targets(self, labels: Tensor) -> Tensor:
        """Labels of classes ``[..., K]`` as those of what the logits stand for, ``[..., L]``."""
        return labels

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities of the classes, ``[..., K]``, from logits ``[..., L]``."""
        return torch.sigmoid(logits)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropies ``[..., n]`` whose mean is the loss, of logits ``[..., L]`` and labels ``[..., K]``."""
        return binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def corrected(self, logits: ArrayLike, shift: ArrayLike) -> Floats:
        """The logits ``[..., L]`` after the correction of the prior; a temperature divides these.

        Args:
            logits: ``[..., L]``.
            shift: ``[..., K]``, of each class (:func:`scripts.weights.calibration.prior_shift`).
        """
        return np.asarray(logits, np.float64) + np.asarray(shift, np.float64)

    def decided(self, probabilities: ArrayLike, thresholds: ArrayLike | None = None) -> NDArray[np.bool_]:
        """The decisions ``[..., K]`` on probabilities ``[..., K]``.

        Args:
            probabilities: of the classes.
            thresholds: ``[..., K]``, by default :data:`THRESHOLD`; exclusive classes have none.
        """
        return np.asarray(probabilities) >= (THRESHOLD if thresholds is None else np.asarray(thresholds))


class _Multiclass(Task):
    """A slide has exactly one class. A logit for each, softmax, cross-entropy; the most probable class is decided."""

    is_exclusive = True
    is_softmax = True
    decision = "the most probable class"

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=-1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -(labels * log_softmax(logits, dim=-1)).sum(dim=-1, keepdim=True)

    def decided(self, probabilities: ArrayLike, thresholds: ArrayLike | None = None) -> NDArray[np.bool_]:
        p = np.asarray(probabilities)
        return _one_hot(p.argmax(axis=-1), p.shape[-1])


class _Ordinal(_Multiclass):
    r"""A slide has exactly one of K ordered classes, the lowest first.

    After Niu et al., "Ordinal Regression with Multiple Output CNN for Age Estimation", CVPR 2016, logit k of K - 1 is
    that of the cumulative probability :math:`P(y > k)`, with weights of its own; the loss is the mean of their binary
    cross-entropies. Nothing in the network keeps these from rising with k, so their running minimum is taken; the class
    probabilities are its differences. The decision is Niu's, the number of k with :math:`P(y > k) \ge 0.5`: the
    median of the classes, which has the least expected distance to the true one. A temperature divides the cumulative
    logits, as it divides others, and so never changes the decision.
    """

    is_softmax = False
    decision = "the median class"

    def num_logits(self, num_classes: int) -> int:
        return num_classes - 1

    def logit_names(self, class_names: Sequence[str]) -> list[str]:
        return [f"above {name}" for name in class_names[:-1]]

    def per_logit(self, values: NDArray[Any]) -> NDArray[Any]:
        return (1 - values.cumsum(axis=-1)[..., :-1]).clip(0, 1)

    def targets(self, labels: Tensor) -> Tensor:
        return 1 - labels.cumsum(dim=-1)[..., :-1]

    def probabilities(self, logits: Tensor) -> Tensor:
        above = torch.sigmoid(logits).cummin(dim=-1).values  # [..., K - 1]
        edge = torch.ones_like(above[..., :1])
        return torch.cat([edge, above], dim=-1) - torch.cat([above, 0 * edge], dim=-1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, self.targets(labels), reduction="none")

    def corrected(self, logits: ArrayLike, shift: ArrayLike) -> Floats:
        z, of_classes = (torch.as_tensor(np.asarray(values, np.float64)) for values in (logits, shift))
        return np.asarray(cumulative_logits(log_probabilities_in_order(z) + of_classes).numpy())

    def decided(self, probabilities: ArrayLike, thresholds: ArrayLike | None = None) -> NDArray[np.bool_]:
        p = np.asarray(probabilities)
        return _one_hot((self.per_logit(p) >= THRESHOLD).sum(axis=-1), p.shape[-1])


def log_probabilities_in_order(logits: Tensor) -> Tensor:
    r"""The logarithms ``[..., K]`` of probabilities of ordered classes, of logits ``[..., K - 1]`` of being above each.

    Differences of probabilities would be rounded to 0 where one is near 1. Therefore
    :math:`\sigma(a) - \sigma(b) = \sigma(a)\,\sigma(-b)\,(1 - e^{b - a})`. A class is ruled out, minus infinity, where
    the logits do not fall. ONNX has no cumulative minimum.
    """
    falling = [logits[..., 0]]
    for k in range(1, logits.shape[-1]):
        falling.append(torch.minimum(falling[-1], logits[..., k]))
    above = torch.stack(falling, dim=-1)  # [..., K - 1]
    reached, missed = logsigmoid(above), logsigmoid(-above)  # [..., K - 1]
    apart = torch.log(-torch.expm1(above[..., 1:] - above[..., :-1]))  # [..., K - 2]
    between = reached[..., :-1] + missed[..., 1:] + apart  # [..., K - 2]
    return torch.cat([missed[..., :1], between, reached[..., -1:]], dim=-1)


def cumulative_logits(log_probabilities: Tensor) -> Tensor:
    """The logits ``[..., K - 1]`` of being above each class but the last.

    Args:
        log_probabilities: logarithms ``[..., K]`` of probabilities, or of any multiple of all of them.
    """
    above: list[Tensor] = []
    for k in range(1, log_probabilities.shape[-1]):
        higher, lower = log_probabilities[..., k:], log_probabilities[..., :k]
        above.append(torch.logsumexp(higher, dim=-1) - torch.logsumexp(lower, dim=-1))
    return torch.stack(above, dim=-1)


def _one_hot(index: NDArray[np.integer], length: int) -> NDArray[np.bool_]:
    return np.asarray(index)[..., None] == np.arange(length)


_OF_CLASSES = ("balanced_accuracy", "macro_f1", "roc_auc")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("multilabel", ["micro_accuracy", "micro_f1", "macro_f1", "roc_auc"]),
        Task("binary", ["accuracy", "f1", "roc_auc"]),
        _Multiclass("multiclass", ["accuracy", *_OF_CLASSES]),
        _Ordinal("ordinal", ["accuracy", "quadratic_kappa", *_OF_CLASSES]),
    )
}
"""The tasks by name."""


def get_task(name: str) -> Task:
    """The task of a name.

    Raises:
        SettingsError: if there is no such task.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise SettingsError("task", f"got {name!r}", f"Choose one of: {', '.join(TASKS)}.")
    return TASKS[name]
