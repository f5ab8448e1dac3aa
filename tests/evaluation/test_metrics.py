"""The scores: by hand, against scikit-learn, and inside MONAI's evaluator."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.exceptions import NotComputableError
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn import metrics as sk
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts.core.errors import SettingsError
from scripts.core.tasks import get_task
from scripts.evaluation.metrics import (
    CLASS_SCORE_NAMES,
    class_scores,
    frequency_baseline,
    head_metrics,
    head_scores,
    key_metric,
    lower_is_better,
    score_names,
)
from scripts.networks.losses import head_losses
from scripts.networks.mustmil import MuSTMIL
from tests.cohorts import join_log_weight

HEADS = ["global", "5x", "10x"]


def slides(n: int, classes: int, seed: int = 0, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties that know something of the labels, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=(n, classes))
    return np.round(np.clip(0.35 * labels + 0.65 * rng.random((n, classes)), 0, 1), decimals), labels


# --- one output -------------------------------------------------------------------------------------------


def test_multilabel_by_hand() -> None:
    # Slide 1: a hit, a false alarm. Slide 2: a miss, and a probability of exactly 0.5, which is positive.
    scores = head_scores([[0.9, 0.6], [0.2, 0.5]], [[1, 0], [1, 1]], "multilabel")
    assert tuple(scores) == score_names("multilabel")
    assert scores["micro_accuracy"] == 2 / 4
    assert scores["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    # The pairs (positive, negative): 0.9 > 0.6, 0.2 < 0.6, 0.5 < 0.6.
    assert scores["roc_auc"] == pytest.approx(1 / 3)


def test_binary_by_hand() -> None:
    scores = head_scores([[0.9], [0.4], [0.6], [0.1]], [[1], [1], [0], [0]], "binary")
    assert scores == pytest.approx({"accuracy": 0.5, "f1": 0.5, "roc_auc": 0.75})


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(2, 5), st.integers(0, 2**16))
def test_multilabel_equals_scikit_learn_on_the_table(n: int, classes: int, seed: int) -> None:
    p, y = slides(n, classes, seed, decimals=1)
    y[0, 0], y[1, 0] = 0, 1
    scores = head_scores(p, y, "multilabel")
    predicted = (p >= 0.5).astype(int)
    assert scores["micro_accuracy"] == pytest.approx(1 - sk.hamming_loss(y, predicted))
    assert scores["micro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="micro", zero_division=0))
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro", zero_division=0))
    assert scores["roc_auc"] == pytest.approx(sk.roc_auc_score(y, p, average="micro"))


def test_what_is_undefined_is_nan_and_an_empty_f1_is_zero() -> None:
    nothing = head_scores([[0.1], [0.2]], [[0], [0]], "binary")
    assert nothing["accuracy"] == 1
    assert nothing["f1"] == 0
    assert math.isnan(nothing["roc_auc"])
    assert math.isnan(head_scores([[0.1, 0.9]], [[1, 1]], "multilabel")["roc_auc"])


@pytest.mark.parametrize(
    ("probabilities", "labels", "task", "message"),
    [
        ([[0.1]], [[1], [0]], "binary", r"\[n, K\], got \[1, 1\] and \[2, 1\]"),
        ([0.1], [1], "binary", r"\[n, K\], got \[1\] and \[1\]"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "multilabel", r"got \[0, 2\] and \[0, 2\]"),
        ([[0.1, 0.2]], [[1, 0]], "binary", "the binary task has one class, got 2"),
        ([[1.2]], [[1]], "binary", "within 0 to 1, got 1.2"),
        ([[math.nan]], [[1]], "binary", "within 0 to 1, got nan"),
        ([[0.1]], [[0.5]], "binary", "labels must be 0 or 1, got 0.5"),
        ([[0.1, 0.9]], [[1, 1]], "multiclass", r"exactly one class, got \[1.0, 1.0\]"),
        ([[0.1, 0.9]], [[0, 0]], "ordinal", r"exactly one class, got \[0.0, 0.0\]"),
    ],
)
def test_arrays_that_cannot_be_scored_are_refused(
    probabilities: ArrayLike, labels: ArrayLike, task: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        head_scores(probabilities, labels, task)


def test_an_unknown_task_is_refused() -> None:
    for call in (
        lambda: head_scores([[0.1]], [[1]], "both"),
        lambda: frequency_baseline([[1]], [[1]], "both"),
        lambda: head_metrics(HEADS, "both"),
    ):
        with pytest.raises(SettingsError, match=r"task: got 'both'. Choose one of: multilabel, binary"):
            call()


# --- one class a slide --------------------------------------------------------------------------------------


def one_class(n: int, classes: int, seed: int = 0, decimals: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities with ties that sum to about 1 and know something of the labels, one-hot labels, and classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=n)
    p = np.round(softmax(2 * np.eye(classes)[truth] + rng.normal(0, 1.5, (n, classes)), axis=1), decimals)
    return p, np.eye(classes)[truth], truth


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 2**16), st.sampled_from(["multiclass", "ordinal"]))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_scores_of_one_class_a_slide_equal_scikit_learn(n: int, classes: int, seed: int, task: str) -> None:
    p, y, truth = one_class(n, classes, seed)
    # The median: the number of classes that at least half of the probability is above.
    median = (p[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:] >= 0.5 - 1e-12).sum(axis=1)
    decided = p.argmax(axis=1) if task == "multiclass" else median
    p = p if task == "multiclass" else p / p.sum(axis=1, keepdims=True)
    scores = head_scores(p, y, task)
    assert tuple(scores) == score_names(task)
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(truth, decided))
    assert scores["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, decided))
    f1 = sk.f1_score(truth, decided, labels=range(classes), average="macro", zero_division=0)
    assert scores["macro_f1"] == pytest.approx(f1)
    ranked = [sk.roc_auc_score(truth == k, p[:, k]) for k in range(classes) if 0 < (truth == k).sum() < n]
    assert scores["roc_auc"] == pytest.approx(np.mean(ranked) if ranked else math.nan, nan_ok=True)
    if classes > 2 and len(ranked) == classes and task == "ordinal":
        assert scores["roc_auc"] == pytest.approx(sk.roc_auc_score(truth, p, multi_class="ovr"))
    if task == "ordinal":
        kappa = sk.cohen_kappa_score(truth, decided, labels=range(classes), weights="quadratic")
        assert scores["quadratic_kappa"] == pytest.approx(kappa, nan_ok=True)


def test_the_quadratic_kappa_by_hand_counts_steps_over_classes_that_no_slide_has() -> None:
    # Labels 0, 0, 2, 2 of three grades; decisions 0, 2, 2, 2: one slide is wrong by two steps.
    y, p = np.eye(3)[[0, 0, 2, 2]], np.eye(3)[[0, 2, 2, 2]]
    # Squared distances: 4 / 4 slides; of all pairs of labels and decisions: 4 * (2 * 3 + 2 * 1) / 16.
    assert head_scores(p, y, "ordinal")["quadratic_kappa"] == pytest.approx(1 - 1 / 2)
    assert head_scores(y, y, "ordinal")["quadratic_kappa"] == 1
    assert math.isnan(head_scores(y[:2], y[:2], "ordinal")["quadratic_kappa"])


def test_each_class_of_one_a_slide_is_scored_by_the_decisions() -> None:
    p, y = [[0.4, 0.25, 0.35], [0.2, 0.45, 0.35]], [[1, 0, 0], [0, 0, 1]]
    scores = class_scores(p, y, ["a", "b", "c"], "multiclass")
    assert [scores[name]["recall"] for name in "ac"] == [1, 0]
    assert scores["b"]["precision"] == 0
    # The median of the first is the second class: 0.6 of the probability is above the first one.
    assert class_scores(p, y, ["a", "b", "c"], "ordinal")["a"]["recall"] == 0


def test_the_baseline_of_one_class_a_slide_is_the_most_frequent_class() -> None:
    train, test = np.eye(3)[[0, 1, 1, 2]], np.eye(3)[[1, 1, 0, 2]]
    scores = frequency_baseline(train, test, "ordinal")
    wanted = {"accuracy": 0.5, "quadratic_kappa": 0, "balanced_accuracy": 1 / 3, "macro_f1": 2 / 9, "roc_auc": 0.5}
    assert scores == pytest.approx(wanted)


# --- each class alone -------------------------------------------------------------------------------------


def test_the_scores_of_a_class_by_hand() -> None:
    # The first class: a hit, a miss, a false alarm, a right no. The second is never predicted.
    p = [[0.9, 0.1], [0.3, 0.2], [0.7, 0.4], [0.1, 0.3]]
    scores = class_scores(p, [[1, 0], [1, 0], [0, 1], [0, 1]], ["cancer", "normal"], "multilabel")
    assert list(scores) == ["cancer", "normal"]
    assert list(scores["cancer"]) == [*CLASS_SCORE_NAMES, "slides"]
    # Pairs (positive, negative): 0.9 beats 0.7 and 0.1, 0.3 beats 0.1. Precision at 0.9 is 1, at 0.3 it is 2/3.
    assert scores["cancer"] == pytest.approx(
        {
            "accuracy": 2 / 4,
            "precision": 1 / 2,
            "recall": 1 / 2,
            "specificity": 1 / 2,
            "f1": 1 / 2,
            "roc_auc": 3 / 4,
            "average_precision": (1 + 2 / 3) / 2,
            "slides": 2,
        }
    )
    assert scores["normal"] == pytest.approx(
        {
            "accuracy": 2 / 4,
            "precision": math.nan,
            "recall": 0,
            "specificity": 1,
            "f1": 0,
            "roc_auc": 1,
            "average_precision": 1,
            "slides": 2,
        },
        nan_ok=True,
    )


def test_a_class_that_no_slide_has_says_nothing_of_ranking_or_recall() -> None:
    absent = class_scores([[0.1], [0.2]], [[0], [0]], ["cancer"], "multilabel")["cancer"]
    assert (absent["accuracy"], absent["specificity"], absent["slides"]) == (1, 1, 0)
    assert all(math.isnan(absent[name]) for name in CLASS_SCORE_NAMES if name not in ("accuracy", "specificity"))
    alarmed = class_scores([[0.1], [0.8]], [[0], [0]], ["cancer"], "multilabel")["cancer"]
    assert (alarmed["precision"], alarmed["f1"]) == (0, 0)
    assert math.isnan(alarmed["recall"])


def test_a_class_that_every_slide_has_cannot_be_ranked() -> None:
    everywhere = class_scores([[0.1], [0.8]], [[1], [1]], ["cancer"], "multilabel")["cancer"]
    assert math.isnan(everywhere["roc_auc"])
    assert math.isnan(everywhere["specificity"])
    assert (everywhere["average_precision"], everywhere["precision"], everywhere["recall"]) == (1, 1, 0.5)


def test_ranking_scores_see_the_probabilities_and_not_the_decisions() -> None:
    scores = class_scores([[0.4], [0.3], [0.2]], [[1], [0], [0]], ["cancer"], "multilabel")["cancer"]
    assert scores["recall"] == 0
    assert (scores["roc_auc"], scores["average_precision"]) == (1, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**16))
def test_class_scores_equal_scikit_learn_and_their_f1_has_the_macro_f1_as_mean(n: int, seed: int) -> None:
    p, y = slides(n, 3, seed, decimals=1)
    y[0], y[1] = 0, 1
    scores = class_scores(p, y, ["a", "b", "c"], "multilabel")
    predicted = p >= 0.5
    for k, name in enumerate("abc"):
        nan = {"zero_division": np.nan}
        assert scores[name] == pytest.approx(
            {
                "accuracy": np.mean(predicted[:, k] == y[:, k]),
                "precision": sk.precision_score(y[:, k], predicted[:, k], **nan),
                "recall": sk.recall_score(y[:, k], predicted[:, k], **nan),
                "specificity": sk.recall_score(y[:, k] == 0, ~predicted[:, k], **nan),
                "f1": sk.f1_score(y[:, k], predicted[:, k], **nan),
                "roc_auc": sk.roc_auc_score(y[:, k], p[:, k]),
                "average_precision": sk.average_precision_score(y[:, k], p[:, k]),
                "slides": y[:, k].sum(),
            },
            nan_ok=True,
        )
    assert np.mean([scores[name]["f1"] for name in "abc"]) == pytest.approx(head_scores(p, y, "multilabel")["macro_f1"])


def test_each_class_needs_a_name() -> None:
    with pytest.raises(ValueError, match="a name for each of 2 classes, got 1"):
        class_scores([[0.1, 0.2]], [[0, 1]], ["cancer"], "multilabel")


# --- the baseline -----------------------------------------------------------------------------------------


def test_the_frequency_baseline_by_hand() -> None:
    # Training: 3, 2 and 0 of 4 slides. Micro-F1 of answering with the first class: 6/(4+5); with the first
    # two: 10/(8+5), the best; with all: 10/(12+5).
    train = [[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    scores = frequency_baseline(train, [[1, 0, 0], [0, 1, 1]], "multilabel")
    assert scores["micro_accuracy"] == pytest.approx(3 / 6)
    assert scores["micro_f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    # Ranks 3/4, 2/4, 0: the positives 3/4, 2/4 and 0 against the negatives 3/4, 2/4 and 0.
    assert scores["roc_auc"] == pytest.approx(0.5)


def test_the_frequency_baseline_of_a_binary_task_calls_every_slide_positive() -> None:
    scores = frequency_baseline([[1], [0], [0]], [[1], [1], [1], [0]], "binary")
    assert scores == pytest.approx({"accuracy": 0.75, "f1": 6 / 7, "roc_auc": 0.5})


def test_the_frequency_baseline_without_any_positive_calls_none() -> None:
    assert frequency_baseline([[0, 0]], [[0, 1]], "multilabel")["micro_accuracy"] == 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**16))
def test_no_constant_answer_beats_the_frequency_baseline_in_training(n: int, classes: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(2, size=(n, classes))
    best = frequency_baseline(labels, labels, "multilabel")["micro_f1"]
    for code in range(2**classes):
        answer = np.array([[code >> k & 1 for k in range(classes)]] * n)
        assert head_scores(answer, labels, "multilabel")["micro_f1"] <= best + 1e-12


# --- inside MONAI -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "classes"), [("multilabel", 3), ("multilabel", 1), ("binary", 1)])
@pytest.mark.parametrize("decollate", [True, False])
def test_an_evaluator_reports_the_scores_of_all_slides_at_once(task: str, classes: int, decollate: bool) -> None:
    torch.manual_seed(0)
    network = MuSTMIL(classes, 2, 6, 4).eval()
    features, log_weight = torch.randn(5, 4, 2, 6), torch.zeros(5, 4, 2)
    log_weight[:, 3] = -math.inf
    labels = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]])[:, :classes]
    items = [{"image": join_log_weight(x, g), "label": y} for x, g, y in zip(features, log_weight, labels, strict=True)]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=network,
        key_val_metric=key_metric(HEADS, task),
        additional_metrics=head_metrics(HEADS, task),
        metric_cmp_fn=lower_is_better,
        decollate=decollate,
    )
    for _ in range(2):
        evaluator.run()

    logits = network(features, log_weight).detach()
    wanted: dict[str, float] = {}
    for index, head in enumerate(HEADS):
        scores = head_scores(torch.sigmoid(logits[:, index]).numpy(), labels.numpy(), task)
        wanted |= {f"{head}_{name}": value for name, value in scores.items()}
        wanted[f"{head}_loss"] = binary_cross_entropy_with_logits(logits[:, index], labels.float()).item()
    assert evaluator.state.metrics == pytest.approx(wanted, abs=1e-6)
    assert evaluator.state.key_metric_name == "global_loss"
    assert evaluator.state.best_metric == pytest.approx(wanted["global_loss"])


@pytest.mark.parametrize(("task", "logits"), [("multiclass", 3), ("ordinal", 2), ("ordinal", 1)])
def test_an_evaluator_reports_the_scores_of_one_class_a_slide(task: str, logits: int) -> None:
    torch.manual_seed(0)
    network = MuSTMIL(logits, 2, 6, 4).eval()
    features = torch.randn(5, 4, 2, 6)
    classes = 3 if task == "multiclass" else logits + 1
    labels = torch.eye(classes)[torch.tensor([0, classes - 1, 1, 1, 0])]
    items = [{"image": x, "label": y} for x, y in zip(features, labels, strict=True)]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=network,
        key_val_metric=key_metric(HEADS, task),
        additional_metrics=head_metrics(HEADS, task),
        metric_cmp_fn=lower_is_better,
    )
    evaluator.run()
    found = network(features).detach()
    wanted: dict[str, float] = {}
    for index, head in enumerate(HEADS):
        p = get_task(task).probabilities(found[:, index]).numpy()
        wanted |= {f"{head}_{name}": value for name, value in head_scores(p, labels.numpy(), task).items()}
        wanted[f"{head}_loss"] = head_losses(found, labels, task)[index].item()
    assert evaluator.state.metrics == pytest.approx(wanted, abs=1e-6)


def test_a_metric_without_slides_says_so() -> None:
    with pytest.raises(NotComputableError, match="at least one slide"):
        key_metric(HEADS, "binary")["global_loss"].compute()


RANK = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
from scripts.evaluation.metrics import head_metrics

rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"file://{file}", timedelta(seconds=120), world_size=2, rank=rank)
logits = torch.linspace(-2, 3, 10).reshape(5, 1, 2)
labels = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1], [1, 1]])
metrics = head_metrics(["global"], "multilabel")
for slide in ((0, 1, 2, 3), (4,))[rank]:
    for metric in metrics.values():
        metric.update((logits[slide : slide + 1, 0], labels[slide : slide + 1].float()))
print([round(metric.compute(), 6) for metric in metrics.values()])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_every_rank_scores_the_slides_of_all_even_when_they_differ_in_number(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "meet")],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [rank.communicate(timeout=200)[0].strip().splitlines()[-1] for rank in ranks]
    logits = torch.linspace(-2, 3, 10).reshape(5, 2)
    labels = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1], [1, 1]])
    wanted = list(head_scores(torch.sigmoid(logits).numpy(), labels.numpy(), "multilabel").values())
    wanted.append(binary_cross_entropy_with_logits(logits, labels.float()).item())
    assert printed == [str([round(value, 6) for value in wanted])] * 2


def test_a_lower_loss_is_better_and_nan_is_never() -> None:
    assert lower_is_better(0.4, 0.5)
    assert not lower_is_better(0.5, 0.5)
    assert not lower_is_better(0.6, 0.5)
    assert not lower_is_better(math.nan, 0.5)
    assert lower_is_better(0.6, math.nan)
    assert not lower_is_better(math.nan, math.nan)
