"""The scores: by hand, against scikit-learn, resample by resample, and inside MONAI's evaluator."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
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
from sklearn import metrics as sk
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts.errors import SettingsError
from scripts.inferers import LogWeightInferer, join_log_weight
from scripts.metrics import (
    bootstrap_interval,
    frequency_baseline,
    head_metrics,
    head_scores,
    key_metric,
    lower_is_better,
    score_names,
)
from scripts.networks import MuSTMIL

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
    ],
)
def test_arrays_that_cannot_be_scored_are_refused(
    probabilities: ArrayLike, labels: ArrayLike, task: str, message: str
) -> None:
    for function in (head_scores, bootstrap_interval):
        with pytest.raises(ValueError, match=message):
            function(probabilities, labels, task)


def test_an_unknown_task_is_refused() -> None:
    for call in (
        lambda: head_scores([[0.1]], [[1]], "multiclass"),
        lambda: bootstrap_interval([[0.1]], [[1]], "multiclass"),
        lambda: frequency_baseline([[1]], [[1]], "multiclass"),
        lambda: head_metrics(HEADS, "multiclass"),
    ):
        with pytest.raises(SettingsError, match=r"task: got 'multiclass'. Set it to one of: multilabel, binary"):
            call()


# --- the bootstrap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "classes"), [("multilabel", 3), ("binary", 1)])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_intervals_equal_those_of_resamples_that_are_made(task: str, classes: int, n: int) -> None:
    p, y = slides(n, classes, seed=n, decimals=1)
    draws = np.random.default_rng(5).integers(n, size=(60, n))
    resamples = [head_scores(p[draw], y[draw], task) for draw in draws]
    intervals = bootstrap_interval(p, y, task, num_resamples=60, seed=5)
    assert tuple(intervals) == score_names(task)
    for name, interval in intervals.items():
        values = [scores[name] for scores in resamples if not math.isnan(scores[name])]
        wanted = np.percentile(values, [2.5, 97.5]) if values else [math.nan, math.nan]
        assert interval == pytest.approx(tuple(wanted), nan_ok=True)


@pytest.mark.parametrize(("task", "classes"), [("multilabel", 5), ("binary", 1)])
def test_an_interval_holds_the_estimate_and_narrows_with_slides(task: str, classes: int) -> None:
    few, many = slides(40, classes), slides(1000, classes)
    wide, narrow = bootstrap_interval(*few, task), bootstrap_interval(*many, task)
    for name, estimate in head_scores(*few, task).items():
        assert wide[name][0] <= estimate <= wide[name][1]
        assert wide[name][1] - wide[name][0] > 2 * (narrow[name][1] - narrow[name][0]) > 0


def test_the_seed_decides_the_interval() -> None:
    p, y = slides(30, 3)
    assert bootstrap_interval(p, y, "multilabel", seed=1) == bootstrap_interval(p, y, "multilabel", seed=1)
    assert bootstrap_interval(p, y, "multilabel", seed=1) != bootstrap_interval(p, y, "multilabel", seed=2)


def test_blocks_of_resamples_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y = slides(30, 3)
    whole = bootstrap_interval(p, y, "multilabel", num_resamples=50)
    monkeypatch.setattr("scripts.metrics.BLOCK_VALUES", 700)
    assert bootstrap_interval(p, y, "multilabel", num_resamples=50) == whole


def test_a_thousand_slides_take_seconds_not_minutes() -> None:
    start = time.process_time()
    bootstrap_interval(*slides(1000, 5, decimals=6), "multilabel")
    assert time.process_time() - start < 10


def test_no_resamples_are_refused() -> None:
    with pytest.raises(SettingsError, match="num_resamples: got 0"):
        bootstrap_interval([[0.1]], [[1]], "binary", num_resamples=0)


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


def test_the_frequency_baseline_wants_the_same_classes() -> None:
    with pytest.raises(ValueError, match=r"\[m, K\] and \[n, K\], got \[1, 2\] and \[1, 3\]"):
        frequency_baseline([[1, 0]], [[1, 0, 0]], "multilabel")


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
        inferer=LogWeightInferer(),
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


def test_a_metric_without_slides_says_so() -> None:
    with pytest.raises(NotComputableError, match="at least one slide"):
        key_metric(HEADS, "binary")["global_loss"].compute()


RANK = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
from scripts.metrics import head_metrics

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
    root = Path(__file__).resolve().parents[1]
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
