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
from scipy.special import expit, softmax
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from scripts.core.errors import SettingsError

__all__ = ["LEAST_PROBABILITY", "TASKS", "THRESHOLD", "Task", "get_task"]

Floats = NDArray[np.float64]

THRESHOLD = 0.5
LEAST_PROBABILITY = 1e-12
"""In place of 0 where a logarithm is taken: an ordinal network can rule a class out."""


class Task:
    """Each class is there or not, whatever the others are: the multilabel task, and the binary one with one class.

    A logit for each class, its sigmoid, binary cross-entropy, and a threshold of each class.

    Args:
        name: the setting.
        scores: the names of the scores, of which the second compares methods
            (:data:`scripts.evaluation.metrics.SCORE_TITLES`).

    Attributes:
        is_exclusive: whether a slide has exactly one class.
        decision: the rule of decisions, in words.
    """

    is_exclusive = False
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

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities of the classes, ``[..., K]``, from logits ``[..., L]``."""
        return torch.sigmoid(logits)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropies ``[..., n]`` whose mean is the loss, of logits ``[..., L]`` and labels ``[..., K]``."""
        return binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def class_logits(self, logits: ArrayLike) -> Floats:
        """One logit for each class, ``[..., K]``, which a correction of the prior shifts and a temperature divides."""
        return np.asarray(logits, np.float64)

    def of_class_logits(self, class_logits: Floats) -> Floats:
        """The probabilities ``[..., K]`` of :meth:`class_logits`."""
        return np.asarray(expit(class_logits))

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
    decision = "the most probable class"

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=-1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -(labels * log_softmax(logits, dim=-1)).sum(dim=-1, keepdim=True)

    def of_class_logits(self, class_logits: Floats) -> Floats:
        return np.asarray(softmax(class_logits, axis=-1))

    def decided(self, probabilities: ArrayLike, thresholds: ArrayLike | None = None) -> NDArray[np.bool_]:
        p = np.asarray(probabilities)
        return _one_hot(p.argmax(axis=-1), p.shape[-1])


class _Ordinal(_Multiclass):
    r"""A slide has exactly one of K ordered classes, the lowest first.

    After Niu et al., "Ordinal Regression with Multiple Output CNN for Age Estimation", CVPR 2016, logit k of K - 1 is
    that of the cumulative probability :math:`P(y > k)`, with weights of its own; the loss is the mean of their binary
    cross-entropies. Nothing in the network keeps these from rising with k, so that the class probabilities, their
    differences, take the running minimum. The decision is Niu's, the number of k with :math:`P(y > k) \ge 0.5`: the
    median of the classes, which has the least expected distance to the true one.
    """

    decision = "the median class"

    def num_logits(self, num_classes: int) -> int:
        return num_classes - 1

    def logit_names(self, class_names: Sequence[str]) -> list[str]:
        return [f"above {name}" for name in class_names[:-1]]

    def per_logit(self, values: NDArray[Any]) -> NDArray[Any]:
        return (1 - values.cumsum(axis=-1)[..., :-1]).clip(0, 1)

    def probabilities(self, logits: Tensor) -> Tensor:
        above = torch.sigmoid(logits).cummin(dim=-1).values  # [..., K - 1]
        edge = torch.ones_like(above[..., :1])
        return torch.cat([edge, above], dim=-1) - torch.cat([above, 0 * edge], dim=-1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        above = 1 - labels.cumsum(dim=-1)[..., :-1]  # [..., K - 1]
        return binary_cross_entropy_with_logits(logits, above, reduction="none")

    def class_logits(self, logits: ArrayLike) -> Floats:
        p = self.probabilities(torch.as_tensor(np.asarray(logits, np.float64))).numpy()
        return np.asarray(np.log(np.maximum(p, LEAST_PROBABILITY)))

    def decided(self, probabilities: ArrayLike, thresholds: ArrayLike | None = None) -> NDArray[np.bool_]:
        p = np.asarray(probabilities)
        return _one_hot((self.per_logit(p) >= THRESHOLD).sum(axis=-1), p.shape[-1])


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
