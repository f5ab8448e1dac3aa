"""What the tasks are: against formulas in NumPy, by hand, and the paper's two to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts.core.errors import SettingsError
from scripts.core.tasks import TASKS, get_task

LGD_UP = ["normal", "lgd", "hgd", "cancer"]


def logits_of(seed: int, n: int = 6, width: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (n, width)))


def one_hot(grades: list[int], classes: int) -> np.ndarray:
    return np.eye(classes)[grades]


@pytest.mark.parametrize("name", ["multilabel", "binary"])
def test_the_papers_tasks_are_sigmoids_with_binary_cross_entropy_at_a_half(name: str) -> None:
    task, logits = TASKS[name], logits_of(0).float()
    labels = torch.tensor([[1.0, 0, 1]] * 6)
    assert torch.equal(task.probabilities(logits), torch.sigmoid(logits))
    assert torch.equal(task.losses(logits, labels).mean(), binary_cross_entropy_with_logits(logits, labels))
    assert task.corrected(logits, [0.5, 0, -1]) == pytest.approx(logits.numpy() + np.array([0.5, 0, -1]))
    assert task.decided([[0.5, 0.4999]]).tolist() == [[True, False]]
    assert task.decided([[0.5, 0.4]], [0.6, 0.3]).tolist() == [[False, True]]
    assert task.logit_names(LGD_UP) == LGD_UP
    assert task.num_logits(4) == 4
    assert not task.is_exclusive


def test_multiclass_is_a_softmax_of_which_the_highest_is_decided() -> None:
    task, logits = TASKS["multiclass"], logits_of(1)
    p = task.probabilities(logits).numpy()
    assert p == pytest.approx(softmax(logits.numpy(), axis=1))
    # Of classes that are twice as frequent, probabilities double before they sum to 1 again.
    doubled = p * [2, 1, 1]
    found = task.probabilities(torch.from_numpy(task.corrected(logits, [math.log(2), 0, 0])))
    assert found.numpy() == pytest.approx(doubled / doubled.sum(axis=1, keepdims=True))
    # No class reaches a half, and one is decided all the same.
    assert task.decided([0.4, 0.25, 0.35]).tolist() == [True, False, False]
    labels = one_hot([0, 1, 2, 2, 1, 0], 3)
    wanted = [-math.log(row[label.argmax()]) for row, label in zip(p, labels, strict=True)]
    assert task.losses(logits, torch.from_numpy(labels)).mean().item() == pytest.approx(np.mean(wanted))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 5))
def test_ordinal_probabilities_are_differences_of_cumulative_ones_that_never_rise(seed: int, width: int) -> None:
    logits = logits_of(seed, width=width)
    p = TASKS["ordinal"].probabilities(logits).numpy()
    above = np.minimum.accumulate(1 / (1 + np.exp(-logits.numpy())), axis=1)
    assert p.shape == (6, width + 1)
    assert p.min() >= 0
    assert p.sum(axis=1) == pytest.approx(np.ones(6))
    for k in range(width):
        assert p[:, k + 1 :].sum(axis=1) == pytest.approx(above[:, k])
    assert TASKS["ordinal"].per_logit(p) == pytest.approx(above)


def test_two_ordered_classes_are_one_sigmoid() -> None:
    logits = logits_of(2, width=1)
    assert TASKS["ordinal"].probabilities(logits)[:, 1].numpy() == pytest.approx(expit(logits.numpy()[:, 0]))


def test_the_ordinal_loss_is_that_of_a_binary_task_for_each_step() -> None:
    # The grade 2 of 4 is above 0 and 1, and not above 2. A logit of 0 costs ln 2, ln 3 is a probability of 3/4.
    logits, label = torch.tensor([[math.log(3), 0.0, math.log(3)]]), torch.tensor([[0.0, 0, 1, 0]])
    losses = TASKS["ordinal"].losses(logits, label)
    assert losses[0].tolist() == pytest.approx([math.log(4 / 3), math.log(2), math.log(4)])


@pytest.mark.parametrize(
    ("p", "grade"),
    [
        ([0.1, 0.2, 0.3, 0.4], 2),  # the most probable class is the last: the median is not
        ([0.45, 0.0, 0.1, 0.45], 2),
        ([0.6, 0.0, 0.0, 0.4], 0),
        ([0.0, 0.0, 0.0, 1.0], 3),
    ],
)
def test_the_ordinal_decision_is_the_median_class(p: list[float], grade: int) -> None:
    assert TASKS["ordinal"].decided(p).tolist() == one_hot([grade], 4)[0].astype(bool).tolist()
    distances = [sum(q * abs(k - other) for other, q in enumerate(p)) for k in range(4)]
    assert distances[grade] == pytest.approx(min(distances))


def test_a_decision_as_probabilities_is_decided_again() -> None:
    for name in ("multiclass", "ordinal"):
        decided = TASKS[name].decided(softmax(logits_of(3, width=4).numpy(), axis=1))
        assert np.array_equal(TASKS[name].decided(decided.astype(float)), decided)


def test_ordinal_logits_and_maps_stand_for_what_is_above_a_class() -> None:
    task = TASKS["ordinal"]
    assert task.logit_names(LGD_UP) == ["above normal", "above lgd", "above hgd"]
    assert task.num_logits(4) == 3
    assert task.per_logit(one_hot([0, 2, 3], 4)).tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 5))
def test_other_frequencies_of_ordered_classes_multiply_their_probabilities(seed: int, width: int) -> None:
    task, logits = TASKS["ordinal"], logits_of(seed, width=width)
    shift = np.random.default_rng([seed, 1]).normal(size=width + 1)
    wanted = task.probabilities(logits).numpy() * np.exp(shift)
    found = task.probabilities(torch.from_numpy(task.corrected(logits, shift))).numpy()
    assert found == pytest.approx(wanted / wanted.sum(axis=1, keepdims=True), abs=1e-12)


def test_an_ordered_class_that_is_ruled_out_stays_so_and_logits_stay_finite() -> None:
    task = TASKS["ordinal"]
    logits = torch.tensor([[0.3, -0.4, -2.0], [-1.0, 5.0, 5.0], [50.0, 50.0, 50.0]], dtype=torch.float64)
    found = task.corrected(logits, np.zeros(4))
    assert found == pytest.approx(np.minimum.accumulate(logits.numpy(), axis=1))  # the second rises
    assert task.probabilities(torch.from_numpy(found / 7)).numpy()[1, 1:3] == pytest.approx([0, 0])


def test_a_head_without_logits_has_no_probabilities() -> None:
    for task in TASKS.values():
        assert torch.isnan(task.probabilities(torch.full((2, 3), torch.nan))).all()
        assert np.isnan(task.corrected(np.full((2, 3), np.nan), 0.0)).all()


@pytest.mark.parametrize("name", ["both", "", None, ["binary"]])
def test_an_unknown_task_is_refused(name: object) -> None:
    with pytest.raises(SettingsError, match="Choose one of: multilabel, binary, multiclass, ordinal"):
        get_task(name)  # type: ignore[arg-type]
