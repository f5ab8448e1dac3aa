"""The scores of the paper, and of the tasks that it does not have, on arrays and as metrics of MONAI's engines.

The task decides (:meth:`scripts.core.tasks.Task.decided`): in the paper's a probability of 0.5 or more is a positive
prediction. "micro" counts every slide and class as one decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import EpochMetric, Metric
from monai.handlers import from_engine
from monai.utils import convert_to_tensor
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
)
from torch import Tensor

from scripts.core.shards import dataset_size, gather_shards
from scripts.core.tasks import get_task

__all__ = [
    "CLASS_SCORE_NAMES",
    "SCORE_TITLES",
    "check_predictions",
    "class_scores",
    "frequency_baseline",
    "head_metrics",
    "head_scores",
    "key_metric",
    "lower_is_better",
    "score_names",
]

Floats = NDArray[np.float64]

SCORE_TITLES = {
    "micro_accuracy": "micro-accuracy",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "quadratic_kappa": "quadratic weighted kappa",
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "specificity": "specificity",
    "f1": "F1",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
}
CLASS_SCORE_NAMES = ("accuracy", "precision", "recall", "specificity", "f1", "roc_auc", "average_precision")


def score_names(task: str) -> tuple[str, ...]:
    """The names of the scores of a task; raises what :func:`scripts.core.tasks.get_task` does."""
    return get_task(task).scores


def head_scores(probabilities: ArrayLike, labels: ArrayLike, task: str) -> dict[str, float]:
    """The scores of one head.

    An F1 without any positive label or prediction is 0, and the ROC-AUC of labels that are all the same is NaN. The
    multilabel ROC-AUC is micro: it ranks all slides and classes together. Where a slide has exactly one class, it is
    that of each class against the rest, and the balanced accuracy the recall of each class, as means over the classes
    in which they are defined. The quadratic weighted kappa (Cohen, Psychological Bulletin 70(4):213-220, 1968) is NaN
    where all labels and decisions are of one class.

    Args:
        probabilities: ``[n, K]`` within 0 to 1; K is 1 for binary.
        labels: ``[n, K]``, 0 or 1.
        task: one of :data:`scripts.core.tasks.TASKS`.

    Returns:
        A value for each of :func:`score_names`, in that order.

    Raises:
        SettingsError: if there is no such task.
        ValueError: if the arrays do not fit, or contain other values.
    """
    return {name: float(score()) for name, score in _scores(probabilities, labels, task).items()}


def class_scores(
    probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str], task: str
) -> dict[str, dict[str, float]]:
    """For each class :data:`CLASS_SCORE_NAMES`, and ``slides``, how many have it; arguments as :func:`head_scores`.

    What would be 0 / 0 is NaN: the precision of a class that is never predicted, the recall and the average precision
    of one that no slide has, the specificity of one that every slide has, the F1 of one that is neither predicted nor
    there (the macro-F1 counts it as 0), the ROC-AUC of one that no slide or every slide has. Ranking scores are
    those of the probabilities; the paper's code takes thresholded ones.

    Raises:
        ValueError: if the arrays or names do not fit, or the arrays contain other values.
    """
    p, y = check_predictions(probabilities, labels, class_names=class_names)
    decided = get_task(task).decided(p)
    return {name: _one_class(p[:, k], y[:, k], decided[:, k]) for k, name in enumerate(class_names)}


def frequency_baseline(train_labels: ArrayLike, test_labels: ArrayLike, task: str) -> dict[str, float]:
    """The scores of a classifier that knows only how frequent the classes are in training.

    It gives every slide the same answer: the one that has the best micro-F1 (binary: F1) on the training labels, with
    the fewest positives where several are best; where a slide has exactly one class, the most frequent one. Its ROC-AUC
    ranks by class frequency.

    Args:
        train_labels: ``[m, K]``, 0 or 1.
        test_labels: ``[n, K]``, 0 or 1.
        task: one of :data:`scripts.core.tasks.TASKS`.

    Returns:
        As :func:`head_scores` on the test labels.
    """
    train, test = np.asarray(train_labels, np.float64), np.asarray(test_labels, np.float64)

    def scores(answer: Floats, labels: Floats) -> dict[str, float]:
        return head_scores(np.tile(answer, (len(labels), 1)), labels, task)

    frequency, f1 = train.mean(axis=0), score_names(task)[1]  # [K]
    # Whatever the number of positives, the most frequent classes give the best F1.
    rank = np.argsort(np.argsort(-frequency, kind="stable"), kind="stable")
    counts = [1] if get_task(task).is_exclusive else range(len(frequency) + 1)
    answers = [(rank < positives).astype(np.float64) for positives in counts]
    best = max(answers, key=lambda answer: scores(answer, train)[f1])
    return scores(best, test) | {"roc_auc": scores(frequency, test)["roc_auc"]}


def head_metrics(heads: Sequence[str], task: str) -> dict[str, Metric]:
    """The metrics of every head, for an evaluator's ``additional_metrics``.

    Each is computed at the end of an epoch over the slides of all ranks. The engine's output must have the logits
    ``pred`` ``[1 + S, L]`` and the labels ``label`` ``[K]`` of every slide, as MONAI's evaluator leaves them when no
    postprocessing changes them.

    Args:
        heads: the names of the heads in order, for example ``["global", "5x", "10x"]``.
        task: one of :data:`scripts.core.tasks.TASKS`.

    Returns:
        For each head ``"<head>_<score>"`` with the scores of :func:`head_scores`, and ``"<head>_loss"``, its
        cross-entropy.
    """
    metrics: dict[str, Metric] = {}
    for index, head in enumerate(heads):
        for name in score_names(task):
            metrics[f"{head}_{name}"] = _AllSlides(partial(_score, name=name, task=task), index)
        metrics[f"{head}_loss"] = _AllSlides(partial(_loss, task=task), index)
    return metrics


def key_metric(heads: Sequence[str], task: str) -> dict[str, Metric]:
    """The loss of the first head alone, for an evaluator's ``key_val_metric``; see :func:`head_metrics`."""
    name = f"{heads[0]}_loss"
    return {name: head_metrics(heads, task)[name]}


def lower_is_better(current: float, best: float) -> bool:
    """Whether a loss is the best so far, for an evaluator's ``metric_cmp_fn``. NaN is worse than anything."""
    return current < best or (math.isnan(best) and not math.isnan(current))


def check_predictions(
    probabilities: ArrayLike, labels: ArrayLike, task: str | None = None, class_names: Sequence[str] | None = None
) -> tuple[Floats, Floats]:
    """Probabilities and labels as arrays ``[n, K]``, K of them for the task and the class names where given.

    Raises:
        ValueError: if the arrays do not fit, or contain other values than 0 to 1, and 0 or 1; or if a slide has not
            exactly one class, where the task wants it.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    if p.ndim != 2 or p.shape != y.shape or not p.size:
        raise ValueError(f"wanted probabilities and labels [n, K], got {list(p.shape)} and {list(y.shape)}")
    if task == "binary" and p.shape[1] != 1:
        raise ValueError(f"the binary task has one class, got {p.shape[1]}")
    if class_names is not None and p.shape[1] != len(class_names):
        raise ValueError(f"wanted a name for each of {p.shape[1]} classes, got {len(class_names)}")
    if (wrong := p[~((p >= 0) & (p <= 1))]).size:
        raise ValueError(f"probabilities must be within 0 to 1, got {wrong[0]}")
    if (wrong := y[~np.isin(y, (0, 1))]).size:
        raise ValueError(f"labels must be 0 or 1, got {wrong[0]}")
    if task is not None and get_task(task).is_exclusive and (wrong := y[y.sum(axis=1) != 1]).size:
        raise ValueError(f"in the {task} task a slide has exactly one class, got {wrong[0].tolist()}")
    return p, y


class _AllSlides(EpochMetric):
    """A function of one head's logits and labels ``[n, K]`` over the slides of all ranks."""

    num_slides: int | None = None

    def __init__(self, compute_fn: Callable[[Tensor, Tensor], float], head: int) -> None:
        super().__init__(compute_fn, output_transform=partial(_of_head, head=head), check_compute_fn=False)

    def completed(self, engine: Engine, name: str) -> None:
        self.num_slides = dataset_size(engine)
        super().completed(engine, name)

    def compute(self) -> float:
        # Ignite's own compute gathers the slides in another order, and counts twice those that two ranks had.
        if self._result is None:
            logits, labels = (_rows(batches) for batches in (self._predictions, self._targets))
            slides = gather_shards(list(zip(logits, labels, strict=True)), self.num_slides)
            if not slides:
                raise NotComputableError("a metric needs at least one slide, got none")
            self._result = self.compute_fn(*(torch.stack(column) for column in zip(*slides, strict=True)))
        return self._result


def _of_head(output: Any, head: int) -> tuple[Tensor, Tensor]:
    predictions, labels = from_engine(["pred", "label"])(output)
    logits = torch.stack([convert_to_tensor(p)[head] for p in predictions])  # [b, K]
    return logits.float(), torch.stack([convert_to_tensor(label) for label in labels]).float()


def _rows(batches: list[Tensor]) -> list[Tensor]:
    # Ignite's update turns [b, 1] into [b].
    return [row.reshape(-1) for batch in batches for row in batch]  # n of [K]


def _score(logits: Tensor, labels: Tensor, name: str, task: str) -> float:
    if torch.isnan(logits).all():  # a head that this phase of the training does not compute
        return math.nan
    return float(_scores(get_task(task).probabilities(logits).numpy(), labels.numpy(), task)[name]())


def _loss(logits: Tensor, labels: Tensor, task: str) -> float:
    return get_task(task).losses(logits, labels).mean().item()


def _scores(probabilities: ArrayLike, labels: ArrayLike, task: str) -> dict[str, Callable[[], float]]:
    """What gives each of :func:`head_scores`: a validation asks for one at a time."""
    kind = get_task(task)
    p, y = check_predictions(probabilities, labels, task)
    decided, classes = kind.decided(p), range(y.shape[1])
    own = _exclusive_scores(p, y, decided) if kind.is_exclusive else _micro_scores(p, y, decided)
    own["macro_f1"] = lambda: np.mean([f1_score(y[:, k], decided[:, k], zero_division=0.0) for k in classes])
    return {name: own[name.removeprefix("micro_")] for name in kind.scores}


def _micro_scores(p: Floats, y: Floats, decided: NDArray[np.bool_]) -> dict[str, Callable[[], float]]:
    """Every slide and class is one decision."""
    truth, predicted = (y == 1).ravel(), decided.ravel()
    return {
        "accuracy": lambda: accuracy_score(truth, predicted),
        "f1": lambda: f1_score(truth, predicted, zero_division=0.0),
        "roc_auc": lambda: roc_auc_score(truth, p.ravel()) if truth.any() and not truth.all() else np.nan,
    }


def _exclusive_scores(p: Floats, y: Floats, decided: NDArray[np.bool_]) -> dict[str, Callable[[], float]]:
    """Every slide is one decision."""
    truth, predicted, there = y.argmax(axis=1), decided.argmax(axis=1), np.flatnonzero(y.any(axis=0))
    ranked = [k for k in there if not y[:, k].all()]
    # Classes that are neither there nor decided count as steps between the others.
    kappa = partial(cohen_kappa_score, labels=range(y.shape[1]), weights="quadratic")
    is_one = len(np.union1d(truth, predicted)) == 1
    return {
        "accuracy": lambda: accuracy_score(truth, predicted),
        "balanced_accuracy": lambda: recall_score(truth, predicted, labels=there, average="macro"),
        "quadratic_kappa": lambda: np.nan if is_one else kappa(truth, predicted),
        "roc_auc": lambda: np.mean([roc_auc_score(y[:, k], p[:, k]) for k in ranked]) if ranked else np.nan,
    }


def _one_class(p: Floats, y: Floats, predicted: NDArray[np.bool_]) -> dict[str, float]:
    some, all_same = bool(y.any()), y.min() == y.max()
    precision, recall, f1, _ = precision_recall_fscore_support(y, predicted, average="binary", zero_division=np.nan)
    scores = {
        "accuracy": accuracy_score(y, predicted),
        "precision": precision,
        "recall": recall,
        "specificity": recall_score(y, predicted, pos_label=0, zero_division=np.nan),
        "f1": f1,
        "roc_auc": np.nan if all_same else roc_auc_score(y, p),
        "average_precision": average_precision_score(y, p) if some else np.nan,
    }
    return {name: float(scores[name]) for name in CLASS_SCORE_NAMES} | {"slides": int(y.sum())}
