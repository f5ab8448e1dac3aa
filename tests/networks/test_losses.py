"""The loss: against the formula in NumPy, by hand, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.errors import SettingsError
from scripts.core.tasks import get_task
from scripts.networks.losses import MultiScaleLoss, PhaseLoss, head_losses
from scripts.networks.methods import get_loss, get_network


def reference(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """The mean of -y log p - (1 - y) log(1 - p) of each output."""
    losses = []
    for head in range(logits.shape[1]):
        terms = []
        for bag in range(logits.shape[0]):
            for k in range(logits.shape[2]):
                p = 1 / (1 + math.exp(-logits[bag, head, k]))
                terms.append(-labels[bag, k] * math.log(p) - (1 - labels[bag, k]) * math.log(1 - p))
        losses.append(sum(terms) / len(terms))
    return losses


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(1, 5)),
    st.sampled_from([(1.0, 1.0), (0.5, 2.0), (1.0, 0.0), (0.0, 1.0)]),
    st.integers(0, 2**16),
)
def test_equals_the_formula(shape: tuple[int, int, int], weights: tuple[float, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, shape), rng.random((shape[0], shape[2]))
    alone = reference(logits, labels)
    alpha, beta = weights

    loss = MultiScaleLoss(alpha, beta)(torch.tensor(logits), torch.tensor(labels))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(alpha * alone[0] + beta * sum(alone[1:]))
    assert head_losses(torch.tensor(logits), torch.tensor(labels)).tolist() == pytest.approx(alone)


def test_by_hand() -> None:
    # Logit 0 costs ln 2 whatever the label; the logit ln 3 is a probability of 3/4.
    logits = torch.tensor([[[0.0], [math.log(3)], [math.log(3)]]])
    assert MultiScaleLoss()(logits, torch.tensor([[1]])).item() == pytest.approx(math.log(2) + 2 * math.log(4 / 3))
    assert MultiScaleLoss(alpha=3, beta=0.5)(logits, torch.tensor([[0]])).item() == pytest.approx(
        3 * math.log(2) + 0.5 * 2 * math.log(4)
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_labels_of_any_dtype_count_the_same(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]])
    loss = MultiScaleLoss()(logits, labels.to(dtype))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, MultiScaleLoss()(logits, labels.float()))
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad != 0).all()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[1e4], [-1e4]]])
    assert MultiScaleLoss()(logits, torch.tensor([[1.0]])).item() == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [((2, 3, 4), (2, 3)), ((2, 3, 4), (1, 4)), ((2, 4), (2, 4)), ((2, 3, 1), (2,))],
)
def test_a_wrong_shape_says_what_was_wanted_and_what_came(logits: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wanted logits \[B, H, L\] and labels \[B, K\], L being") as error:
        MultiScaleLoss()(torch.zeros(logits), torch.zeros(labels))
    assert str(error.value).endswith(f"got {list(logits)} and {list(labels)}")


@pytest.mark.parametrize(("name", "value"), [("alpha", -1.0), ("beta", -0.1), ("beta", math.nan), ("alpha", math.inf)])
def test_a_weight_that_makes_no_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name}: got {value}. Set it to 0 or more"):
        MultiScaleLoss(**{name: value})


def test_two_zero_weights_are_refused() -> None:
    with pytest.raises(SettingsError, match="both are 0, so nothing would train"):
        MultiScaleLoss(alpha=0, beta=0)


@pytest.mark.parametrize(("task", "logits"), [("multiclass", 4), ("ordinal", 3)])
def test_every_methods_loss_is_that_of_the_task(task: str, logits: int) -> None:
    rng = np.random.default_rng(0)
    x, y = torch.tensor(rng.normal(0, 2, (5, 3, logits))), torch.eye(4)[[0, 1, 2, 3, 1]]
    alone = [get_task(task).losses(x[:, h], y.double()).mean().item() for h in range(3)]
    assert head_losses(x, y, task).tolist() == pytest.approx(alone)
    assert MultiScaleLoss(0.5, 2.0, task)(x, y).item() == pytest.approx(0.5 * alone[0] + 2.0 * sum(alone[1:]))
    network = get_network("ssmil", num_classes=logits, num_scales=2, num_features=4, num_nodes=2)
    loss = get_loss("ssmil", network, task=task)
    assert isinstance(loss, PhaseLoss)
    network.start_phase(1)
    assert loss(x[:, 1:], y).item() == pytest.approx(alone[2])


def test_ordinal_labels_are_of_one_class_more_than_the_logits() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 3, 4\] and \[2, 4\]"):
        head_losses(torch.zeros(2, 3, 4), torch.zeros(2, 4), "ordinal")
