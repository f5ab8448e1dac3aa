"""The entropy of attention, against plain NumPy on distinct patches; what its weight adds to a loss, and where not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from scripts.core.errors import SettingsError
from scripts.networks.attention_entropy import AttentionEntropyLoss, attention_entropy
from scripts.networks.bag_network import BagNetwork
from scripts.networks.losses import MultiScaleLoss, PhaseLoss, head_losses
from scripts.networks.methods import METHODS, USED_BY, get_loss, get_network
from scripts.training.curves import training_scalars
from tests.networks.test_bag_network import linked_bag, padded
from tests.networks.test_class_attention import branch

F, M, K = 8, 4, 3
LABELS = torch.tensor([[1.0, 0.0, 1.0]])
few = settings(max_examples=10, deadline=None)
methods = pytest.mark.parametrize("method", USED_BY["attention_entropy"])
kinds = pytest.mark.parametrize("kind", ["joint", "separate", "shared"])


def network(method: str = "mustmil", weight: float = 1.0, kind: str = "joint", scales: int = 2, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"num_classes": K, "num_scales": scales, "num_features": F, "num_nodes": M}
    made = get_network(method, kind, weight, **sizes).double()
    with torch.no_grad():  # initial attention is nearly even
        for score in made.attention:
            score[2].weight *= 20
    return made


def of_patches(model: BagNetwork, x: Tensor, rows: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """The normalised entropy of each branch ``[branches, K]`` over the distinct patches of one bag ``[1, N, S, F]``."""
    state = {key: value.detach() for key, value in model.state_dict().items()}
    embedded = [
        x[0, :, s].numpy() @ state[f"embed.{s}.weight"].numpy().T + state[f"embed.{s}.bias"].numpy()
        for s in range(x.shape[2])
    ]
    scales = [h[np.unique(rows[:, s], return_index=True)[1]] for s, h in enumerate(embedded)]
    of_all = {
        "MuSTMIL": lambda: [np.concatenate(embedded, axis=1)],  # a row is a patch of the highest scale
        "MSMIL": lambda: [np.concatenate(scales)],
        "SSMIL": list,
    }[type(model).__name__]()
    found = []
    for index, h in enumerate([*of_all, *scales]):
        _, a = branch(state, index, h, np.zeros(len(h)), kind)
        found.append(np.ones(K) if len(h) == 1 else -(a * np.log(a)).sum(axis=0) / math.log(len(h)))
    return np.array(found)


def in_training(model: Any, *batch: Tensor) -> NDArray[np.float64]:
    """The entropies ``[B, branches, K]`` that follow the logits, each branch in the phase that computes it."""
    found = np.full((len(batch[0]), len(model.computes), K), np.nan)
    for phase, heads in enumerate(model.phases):
        model.train().start_phase(phase)
        _, entropies = model(*batch).detach().chunk(2, dim=1)
        found[:, heads] = entropies[:, heads].numpy()
    return found


# --- the entropy --------------------------------------------------------------------------------------------


@methods
@kinds
@few
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2**16))
def test_linked_rows_have_the_entropy_of_the_patches_that_they_share(
    method: str, kind: str, scales: int, num_rows: int, padding: int, seed: int
) -> None:
    model = network(method, kind=kind, scales=scales, seed=seed)
    x, log_weight, rows = linked_bag(num_rows, scales, seed)
    batch = padded(torch.cat([x, -2 * x]), log_weight.expand(2, -1, -1), 7.0, padding)
    wanted = np.stack([of_patches(model, bag, rows, kind) for bag in (x, -2 * x)])
    np.testing.assert_allclose(in_training(model, *batch), wanted, rtol=1e-6, atol=1e-6)  # log(c) is in float32


def test_repeated_rows_count_each() -> None:
    model = network()
    x, log_weight, _ = linked_bag(7, 2, 0)
    each = np.stack([np.arange(7)] * 2, axis=1)
    found = in_training(model, x, torch.zeros_like(log_weight))
    np.testing.assert_allclose(found[0], of_patches(model, x, each, "joint"), rtol=1e-9, atol=1e-12)
    assert not np.allclose(found, in_training(model, x, log_weight))


def test_even_attention_has_the_entropy_1_and_attention_to_one_patch_0() -> None:
    shared = torch.tensor([[0.0, -math.log(2), -math.log(2), -math.inf]]).double()  # two patches, three rows, padding
    attention = torch.tensor([[[0.5, 1.0, 0.0], [0.25, 0.0, 0.5], [0.25, 0.0, 0.5], [0.0, 0.0, 0.0]]]).double()
    assert attention_entropy(attention, shared)[0].tolist() == pytest.approx(
        [1.0, 0.0, 0.0], abs=1e-8
    )  # log(2) is in float32


def test_the_only_patch_of_a_bag_counts_as_even_attention_and_moves_nothing() -> None:
    for log_weight in (torch.zeros(1, 1), torch.full((1, 3), -math.log(3))):
        scores = torch.randn(1, log_weight.shape[1], K, requires_grad=True)
        a = torch.softmax(scores + log_weight.unsqueeze(-1), dim=1)
        entropy = attention_entropy(a, log_weight)
        entropy.sum().backward()
        assert entropy.tolist() == [[1.0] * K]
        assert scores.grad is not None
        assert not scores.grad.any()


def test_the_gradient_is_that_of_the_value_also_beside_padding() -> None:
    _, log_weight, _ = linked_bag(6, 2, 0)
    weight = torch.cat([log_weight[:, :, 0], torch.full((1, 2), -math.inf).double()], dim=1)

    def entropy(scores: Tensor) -> Tensor:
        return attention_entropy(torch.softmax(scores + weight.unsqueeze(-1), dim=1), weight)

    assert torch.autograd.gradcheck(entropy, torch.randn(1, 8, K, requires_grad=True, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_attention_that_underflows_is_finite_in_value_and_gradient(scale: float) -> None:
    scores = (scale * torch.linspace(-1, 1, 50).reshape(1, 50, 1)).requires_grad_()
    entropy = attention_entropy(torch.softmax(scores, dim=1), torch.zeros(1, 50))
    entropy.sum().backward()
    assert 0 <= entropy.item() <= 1
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())


@methods
def test_every_weight_gets_a_finite_gradient_from_a_batch_with_padding(method: str) -> None:
    model = network(method).float().train()
    bags = [padded(*(t.float() for t in linked_bag(rows, 2, rows)[:2]), math.nan, 9 - rows) for rows in (1, 4, 9)]
    x, log_weight = (torch.cat(parts) for parts in zip(*bags, strict=True))
    for phase in range(len(model.phases)):
        model.start_phase(phase)
        loss = get_loss(method, model, attention_entropy=1.0)(model(x, log_weight), LABELS.expand(3, -1))
        loss.backward()
        assert bool(loss.isfinite())
        for parameter in model.phase_parameters(phase):
            assert parameter.grad is not None
            assert bool(parameter.grad.isfinite().all())


# --- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta", "heads"), [(1.0, 1.0, [0, 1, 2]), (2.0, 0.0, [0]), (0.0, 0.5, [1, 2])])
@pytest.mark.parametrize("weight", [0.3, -2])
def test_the_term_is_the_mean_entropy_of_the_heads_that_train(
    alpha: float, beta: float, heads: list[int], weight: float
) -> None:
    model = network(weight=weight).train()
    bags = [linked_bag(8, 2, seed) for seed in range(2)]
    x, log_weight = (torch.cat([bag[part] for bag in bags]) for part in (0, 1))
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    loss = get_loss("mustmil", model, alpha, beta, attention_entropy=weight)(model(x, log_weight), labels)
    without = MultiScaleLoss(alpha, beta)(model.eval()(x, log_weight), labels)
    entropies = np.stack([of_patches(model, bag, rows, "joint")[heads] for bag, _, rows in bags])
    assert loss.item() == pytest.approx(without.item() - weight * entropies.mean(), rel=1e-6)


@pytest.mark.parametrize("method", ["msmil", "ssmil"])
def test_a_phase_has_the_entropy_of_its_own_head(method: str) -> None:
    model = network(method).train()
    x, log_weight, rows = linked_bag(8, 2, 0)
    loss, entropies = get_loss(method, model, attention_entropy=0.5), of_patches(model, x, rows, "joint")
    for phase, (head,) in enumerate(model.phases):
        model.start_phase(phase)
        output = model(x, log_weight)
        without = head_losses(output[:, [head]], LABELS).item()
        assert loss(output, LABELS).item() == pytest.approx(without - 0.5 * entropies[head].mean(), rel=1e-6)


@methods
def test_above_0_attention_spreads_and_below_0_it_concentrates(method: str) -> None:
    x, log_weight, _ = linked_bag(12, 2, 0)
    after = []
    for weight in (1.0, 0.0, -1.0):
        model = network(method, weight)
        for phase in range(len(model.phases)):
            model.train().start_phase(phase)
            loss = get_loss(method, model, attention_entropy=weight)
            optimizer = torch.optim.Adam(model.phase_parameters(phase), lr=0.01)
            for _ in range(30):
                optimizer.zero_grad()
                loss(model(x, log_weight), LABELS).backward()
                optimizer.step()
        model.gives_entropies = True
        after.append(np.nanmean(in_training(model, x, log_weight)))
    assert after[0] > after[1] + 0.02
    assert after[1] > after[2] + 0.02


# --- where it must change nothing ---------------------------------------------------------------------------


@methods
def test_at_0_network_and_loss_are_those_without_it(method: str) -> None:
    model = network(method, 0.0)
    x, log_weight, _ = linked_bag(8, 2, 0)
    for phase in range(len(model.phases)):
        model.start_phase(phase)
        torch.testing.assert_close(
            model.train()(x, log_weight), model.eval()(x, log_weight), rtol=0, atol=0, equal_nan=True
        )
    kind = MultiScaleLoss if method == "mustmil" else PhaseLoss
    assert type(get_loss(method, model, attention_entropy=0.0)) is kind


@methods
def test_evaluated_and_exported_networks_give_no_entropies(method: str) -> None:
    model, plain = network(method, 1.0), network(method, 0.0)
    batch = linked_bag(8, 2, 0)[:2]
    wanted = plain.eval().explain(*batch)
    one, other = torch.jit.script(model.eval()), torch.jit.script(plain)
    for found in (model.explain(*batch), one.explain(*batch)):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    assert torch.equal(model(*batch), plain(*batch))
    assert one.code == other.code
    assert "entrop" not in one._c._get_method("_branches").code
    assert one.train()(*batch).shape == wanted[0].shape


def test_other_methods_do_not_use_it() -> None:
    for method in set(METHODS) - set(USED_BY["attention_entropy"]):
        sizes = {"num_classes": K, "num_scales": 2, "num_features": F, "num_nodes": M}
        plain, given_it = get_network(method, **sizes), get_network(method, attention_entropy=1.0, **sizes)
        assert type(get_loss(method, given_it, attention_entropy=1.0)) is type(get_loss(method, plain))


def test_curves_show_the_losses_of_the_heads_alone() -> None:
    model = network().train()
    output = model(*linked_bag(8, 2, 0)[:2])
    optimizer = torch.optim.Adam(model.parameters())
    items = [{"pred": output[0].detach(), "label": LABELS[0], "loss": 1.0}]
    scalars = training_scalars(["global", "5x", "10x"], optimizer)(items)
    losses = head_losses(output[:, :3].detach(), LABELS).tolist()
    shown = {name: value for name, value in scalars.items() if name.count("/") == 2}
    assert shown == {f"loss/{head}/training": loss for head, loss in zip(("global", "5x", "10x"), losses, strict=True)}


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 10.5, -11, True, "1"])
def test_a_weight_that_makes_no_sense_is_refused(weight: Any) -> None:
    with pytest.raises(SettingsError, match=f"attention_entropy: got {weight!r}. Give a number from -10 to 10"):
        get_loss("mustmil", network(), attention_entropy=weight)


def test_logits_without_entropies_are_refused() -> None:
    loss = AttentionEntropyLoss(MultiScaleLoss(), 1.0, 3)
    with pytest.raises(ValueError, match=r"wanted logits and entropies of 3 heads, \[B, 6, L\], got \[2, 3, 3\]"):
        loss(torch.zeros(2, 3, K), torch.zeros(2, K))
