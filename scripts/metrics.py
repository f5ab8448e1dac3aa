"""The scores of the paper, on arrays and as metrics of MONAI's engines.

A probability of 0.5 or more is a positive prediction. "micro" counts every slide and class as one decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import ignite.distributed as idist
import numpy as np
import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import EpochMetric, Metric
from monai.handlers import from_engine
from monai.utils import convert_to_tensor
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts.errors import SettingsError

__all__ = [
    "bootstrap_interval",
    "frequency_baseline",
    "head_metrics",
    "head_scores",
    "key_metric",
    "lower_is_better",
    "score_names",
]

Floats = NDArray[np.float64]

THRESHOLD = 0.5
SCORE_NAMES = {
    "multilabel": ("micro_accuracy", "micro_f1", "macro_f1", "roc_auc"),
    "binary": ("accuracy", "f1", "roc_auc"),
}
# Values that a block of bootstrap resamples may hold at once: 16 MB for each array of them.
BLOCK_VALUES = 2_000_000


def score_names(task: str) -> tuple[str, ...]:
    """The names of the scores of a task, ``"multilabel"`` or ``"binary"``.

    Raises:
        SettingsError: if there is no such task.
    """
    if task not in SCORE_NAMES:
        raise SettingsError("task", f"got {task!r}", f"Set it to one of: {', '.join(SCORE_NAMES)}.")
    return SCORE_NAMES[task]


def head_scores(probabilities: ArrayLike, labels: ArrayLike, task: str) -> dict[str, float]:
    """The scores of one output.

    An F1 without any positive label or prediction is 0, and the ROC-AUC of labels that are all the same is
    NaN. The multilabel ROC-AUC is micro: it ranks all slides and classes together.

    Args:
        probabilities: ``[n, K]`` within 0 to 1; K is 1 for binary.
        labels: ``[n, K]``, 0 or 1.
        task: ``"multilabel"`` or ``"binary"``.

    Returns:
        A value for each of :func:`score_names`, in that order.

    Raises:
        SettingsError: if there is no such task.
        ValueError: if the arrays do not fit, or hold other values.
    """
    names = score_names(task)
    p, y = _checked(probabilities, labels, task)
    predicted, truth, classes = (p >= THRESHOLD).ravel(), (y == 1).ravel(), range(y.shape[1])
    scores = {
        "accuracy": accuracy_score(truth, predicted),
        "f1": f1_score(truth, predicted, zero_division=0.0),
        "macro_f1": np.mean([f1_score(y[:, k], p[:, k] >= THRESHOLD, zero_division=0.0) for k in classes]),
        "roc_auc": roc_auc_score(truth, p.ravel()) if truth.any() and not truth.all() else np.nan,
    }
    return {name: float(scores[name.removeprefix("micro_")]) for name in names}


def bootstrap_interval(
    probabilities: ArrayLike, labels: ArrayLike, task: str, num_resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 95% percentile bootstrap interval of each score, over slides.

    Slides are drawn with replacement, all classes of a slide together. A resample whose ROC-AUC is undefined
    is ignored for that score; if all are, its interval is (NaN, NaN).

    Args:
        probabilities: as for :func:`head_scores`.
        labels: as for :func:`head_scores`.
        task: as for :func:`head_scores`.
        num_resamples: how many times to draw as many slides as there are.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        Lower and upper end of each score that :func:`head_scores` returns.

    Raises:
        SettingsError: if there is no such task, or ``num_resamples`` is not positive.
        ValueError: as :func:`head_scores`.
    """
    names = score_names(task)
    p, y = _checked(probabilities, labels, task)
    if num_resamples < 1:
        raise SettingsError("num_resamples", f"got {num_resamples}", "Set it to 1 or more.")
    draws = np.random.default_rng(seed).integers(len(y), size=(num_resamples, len(y)))
    block = max(1, BLOCK_VALUES // y.size)
    blocks = [_resampled_scores(p, y, draws[i : i + block]) for i in range(0, num_resamples, block)]
    intervals = {}
    for name in names:
        values = np.concatenate([scores[name.removeprefix("micro_")] for scores in blocks])
        values = values[~np.isnan(values)]
        low, high = np.percentile(values, [2.5, 97.5]) if values.size else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def frequency_baseline(train_labels: ArrayLike, test_labels: ArrayLike, task: str) -> dict[str, float]:
    """What a classifier scores that knows only how frequent the classes are in training.

    It gives one answer to every slide: the one that has the best micro-F1 (binary: F1) on the training
    labels, the one with the fewest positives where several are best. Its ROC-AUC ranks by class frequency.

    Args:
        train_labels: ``[m, K]``, 0 or 1.
        test_labels: ``[n, K]``, 0 or 1.
        task: ``"multilabel"`` or ``"binary"``.

    Returns:
        As :func:`head_scores` on the test labels.

    Raises:
        SettingsError: if there is no such task.
        ValueError: if the arrays do not fit, or hold other values.
    """
    score_names(task)
    train, test = np.asarray(train_labels, np.float64), np.asarray(test_labels, np.float64)
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(f"wanted labels [m, K] and [n, K], got {list(train.shape)} and {list(test.shape)}")
    frequency = _checked(np.zeros_like(train), train, task)[1].mean(axis=0)  # [K]
    # Whatever the number of positives, the most frequent classes give the best F1.
    by_frequency = np.argsort(-frequency, kind="stable")
    answers = []
    for positives in range(len(frequency) + 1):
        answer = np.zeros(len(frequency))
        answer[by_frequency[:positives]] = 1.0
        answers.append(answer)
    f1 = score_names(task)[1]
    best = max(answers, key=lambda answer: head_scores(np.tile(answer, (len(train), 1)), train, task)[f1])
    scores = head_scores(np.tile(best, (len(test), 1)), test, task)
    ranked = head_scores(np.tile(frequency, (len(test), 1)), test, task)
    return scores | {"roc_auc": ranked["roc_auc"]}


def head_metrics(heads: Sequence[str], task: str) -> dict[str, Metric]:
    """The metrics of every output, for an evaluator's ``additional_metrics``.

    Each is computed at the end of an epoch over the slides of all ranks. The engine's output must hold the
    logits ``pred`` ``[1 + S, K]`` and the labels ``label`` ``[K]`` of every slide, as MONAI's evaluator
    leaves them when no postprocessing changes them.

    Args:
        heads: the names of the outputs in order, for example ``["global", "5x", "10x"]``.
        task: ``"multilabel"`` or ``"binary"``.

    Returns:
        For each output ``"<head>_<score>"`` with the scores of :func:`head_scores`, and ``"<head>_loss"``,
        its binary cross-entropy.

    Raises:
        SettingsError: if there is no such task.
    """
    metrics: dict[str, Metric] = {}
    for index, head in enumerate(heads):
        for name in score_names(task):
            metrics[f"{head}_{name}"] = _AllSlides(partial(_score, name=name, task=task), index)
        metrics[f"{head}_loss"] = _AllSlides(_loss, index)
    return metrics


def key_metric(heads: Sequence[str], task: str) -> dict[str, Metric]:
    """The loss of the first output alone, for an evaluator's ``key_val_metric``; see :func:`head_metrics`."""
    name = f"{heads[0]}_loss"
    return {name: head_metrics(heads, task)[name]}


def lower_is_better(current: float, best: float) -> bool:
    """Whether a loss is the best so far, for an evaluator's ``metric_cmp_fn``. NaN is worse than anything."""
    return current < best or (math.isnan(best) and not math.isnan(current))


class _AllSlides(EpochMetric):
    """A function of one output's logits and labels ``[n, K]`` over the slides of all ranks."""

    def __init__(self, compute_fn: Callable[[Tensor, Tensor], float], head: int) -> None:
        super().__init__(compute_fn, output_transform=partial(_of_head, head=head), check_compute_fn=False)

    def compute(self) -> float:
        # Ignite's own compute gathers tensors, and so needs the same number of slides on every rank.
        if self._result is None:
            # A tuple, unlike a tensor, comes back as a list with an item for each rank.
            shares = cast(list[Any], idist.all_gather((self._predictions, self._targets)))
            logits = [batch for predictions, _ in shares for batch in predictions]
            labels = [batch for _, targets in shares for batch in targets]
            if not logits:
                raise NotComputableError("a metric needs at least one slide, got none")
            self._result = self.compute_fn(_table(logits), _table(labels))
        return self._result


def _of_head(output: Any, head: int) -> tuple[Tensor, Tensor]:
    predictions, labels = from_engine(["pred", "label"])(output)
    logits = torch.stack([convert_to_tensor(p)[head] for p in predictions])  # [b, K]
    return logits.float(), torch.stack([convert_to_tensor(label) for label in labels]).float()


def _table(batches: list[Tensor]) -> Tensor:
    # Ignite's update turns [b, 1] into [b].
    return torch.cat([batch.reshape(len(batch), -1) for batch in batches])  # [n, K]


def _score(logits: Tensor, labels: Tensor, name: str, task: str) -> float:
    return head_scores(torch.sigmoid(logits).numpy(), labels.numpy(), task)[name]


def _loss(logits: Tensor, labels: Tensor) -> float:
    return binary_cross_entropy_with_logits(logits, labels).item()


def _checked(probabilities: ArrayLike, labels: ArrayLike, task: str) -> tuple[Floats, Floats]:
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    if p.ndim != 2 or p.shape != y.shape or not p.size:
        raise ValueError(f"wanted probabilities and labels [n, K], got {list(p.shape)} and {list(y.shape)}")
    if task == "binary" and p.shape[1] != 1:
        raise ValueError(f"the binary task has one class, got {p.shape[1]}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probabilities must be within 0 to 1, got {p[~((p >= 0) & (p <= 1))][0]}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {y[~np.isin(y, (0, 1))][0]}")
    return p, y


def _resampled_scores(p: Floats, y: Floats, draws: NDArray[np.int64]) -> dict[str, Floats]:
    """What :func:`head_scores` would say of every resample, [R] a score, without making the resamples."""
    resamples, (slides, classes) = len(draws), y.shape
    cells = draws + slides * np.arange(resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=resamples * slides).reshape(resamples, slides).astype(float)

    predicted = (p >= THRESHOLD).astype(float)
    hits = counts @ (predicted * y)  # [R, K]: true positives
    marked = counts @ (predicted + y)  # [R, K]: predicted positives + positives = 2 TP + FP + FN
    right = counts @ (predicted == y).sum(axis=1)  # [R]
    return {
        "accuracy": right / (slides * classes),
        "f1": _f1(hits.sum(axis=1), marked.sum(axis=1)),
        "macro_f1": _f1(hits, marked).mean(axis=1),
        "roc_auc": _weighted_roc_auc(p.ravel(), y.ravel(), np.repeat(counts, classes, axis=1)),
    }


def _f1(hits: Floats, marked: Floats) -> Floats:
    return np.divide(2 * hits, marked, out=np.zeros_like(hits), where=marked > 0)


def _weighted_roc_auc(scores: Floats, truth: Floats, weights: Floats) -> Floats:
    """[R] of weights [R, m]: the share of (positive, negative) pairs in the right order, ties half."""
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.diff(scores[order], prepend=-1.0) > 0)  # where each group of equal scores starts
    positives = np.add.reduceat(weights[:, order] * truth[order], ties, axis=1)  # [R, groups]
    negatives = np.add.reduceat(weights[:, order] * (1 - truth[order]), ties, axis=1)  # [R, groups]
    below = np.cumsum(negatives, axis=1) - negatives  # [R, groups]
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)  # [R]
    ordered = (positives * (below + negatives / 2)).sum(axis=1)  # [R]
    result: Floats = np.divide(ordered, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    return result
