"""Whose attentions the logit of a class sees, against the equations in plain NumPy; and what each brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.utils import convert_to_onnx
from numpy.typing import NDArray
from torch import Tensor

from scripts.core.errors import SettingsError
from scripts.core.tasks import get_task
from scripts.networks.bag_network import BagNetwork
from scripts.networks.ensemble import Ensemble
from scripts.networks.methods import get_loss, get_network
from tests.networks.test_bag_network import biases, linked_bag, padded, sums

F, M, K = 8, 4, 3
KINDS = ("joint", "separate", "shared")
kinds = pytest.mark.parametrize("kind", KINDS)
ablated = pytest.mark.parametrize("kind", KINDS[1:])
methods = pytest.mark.parametrize("method", ["mustmil", "msmil", "ssmil"])
few = settings(max_examples=20, deadline=None)


def network(kind: str, method: str = "mustmil", num_classes: int = K, num_scales: int = 2, seed: int = 0) -> BagNetwork:
    torch.manual_seed(seed)
    sizes = {"num_classes": num_classes, "num_scales": num_scales, "num_features": F, "num_nodes": M}
    return get_network(method, class_attention=kind, **sizes).double().eval()


def branch(
    state: dict[str, Tensor], index: int, h: NDArray[Any], log_weight: NDArray[Any], kind: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits ``[K]`` and attention ``[n, K]`` of a branch over ``[n, width]``, class by class."""
    v, b, w = (state[f"attention.{index}.{name}"].numpy() for name in ("0.weight", "0.bias", "2.weight"))
    scores = np.tanh(h @ v.T + b) @ w.T + log_weight[:, None]
    attention = np.exp(scores - scores.max(axis=0))
    attention /= attention.sum(axis=0)  # [n, K], or [n, 1]
    pooled = [attention[:, k] @ h for k in range(attention.shape[1])]
    weight, bias = (state[f"myfc.{index}.{name}"].numpy() for name in ("weight", "bias"))
    seen = {
        "joint": lambda k: np.concatenate(pooled),
        "separate": lambda k: pooled[k],
        "shared": lambda k: pooled[0],
    }[kind]
    logits = np.array([weight[k] @ seen(k) + bias[k] for k in range(len(bias))])
    return logits, attention if kind != "shared" else np.repeat(attention, len(bias), axis=1)


@kinds
@few
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**16))
def test_logits_and_attention_are_those_of_the_equations(kind: str, scales: int, rows: int, seed: int) -> None:
    model = network(kind, num_scales=scales, seed=seed)
    x, log_weight, _ = linked_bag(rows, scales, seed)
    with torch.no_grad():
        logits, attention = (found[0].numpy() for found in model.attend(x, log_weight))
    state = model.state_dict()
    embedded = [
        x[0, :, s].numpy() @ state[f"embed.{s}.weight"].numpy().T + state[f"embed.{s}.bias"].numpy()
        for s in range(scales)
    ]
    inputs = [np.concatenate(embedded, axis=1), *embedded]
    weights = [log_weight[0, :, -1].numpy(), *log_weight[0].numpy().T]
    for head, (h, weight) in enumerate(zip(inputs, weights, strict=True)):
        wanted, looked = branch(state, head, h, weight, kind)
        np.testing.assert_allclose(logits[head], wanted, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(attention[:, head], looked, rtol=1e-10, atol=1e-12)


@kinds
@methods
@few
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2**16))
def test_contributions_and_the_bias_are_the_logit_and_padding_adds_nothing(
    kind: str, method: str, scales: int, rows: int, padding: int, seed: int
) -> None:
    model = network(kind, method, num_scales=scales, seed=seed)
    x, log_weight, _ = linked_bag(rows, scales, seed)
    batch = padded(torch.cat([x, -2 * x]), log_weight.expand(2, -1, -1), 7.0, padding)
    logits, attention, contribution = model.explain(*batch)
    assert contribution.shape == attention.shape == (2, rows + padding, len(model.map_heads), K)
    torch.testing.assert_close(sums(model, contribution) + biases(model), logits, rtol=1e-12, atol=1e-12)
    assert not contribution[:, rows:].any()
    torch.testing.assert_close(logits[:1], model(x, log_weight), rtol=1e-12, atol=1e-12)


def test_a_separate_logit_does_not_depend_on_the_attention_of_another_class() -> None:
    x, log_weight, _ = linked_bag(6, 2, 0)
    for kind, moves in (("joint", True), ("separate", False)):
        model = network(kind)
        before = model(x, log_weight)
        with torch.no_grad():
            for score in model.attention:  # type: ignore[union-attr]
                score[2].weight[1] += 5.0  # type: ignore[index]
        moved = (model(x, log_weight) - before).abs().amax(dim=1)[0] > 1e-9  # [K]
        assert moved.tolist() == [moves, True, moves]


def test_a_shared_attention_is_that_of_every_class_and_its_contributions_are_not() -> None:
    x, log_weight, _ = linked_bag(6, 2, 0)
    _, attention, contribution = network("shared").explain(x, log_weight)
    assert torch.equal(attention, attention[..., :1].expand_as(attention))
    assert not torch.allclose(contribution[..., 0], contribution[..., 1])


@methods
def test_the_sizes_are_those_of_the_equations(method: str) -> None:
    wanted = {"joint": (K, K), "separate": (K, 1), "shared": (1, 1)}
    for kind, (attentions, seen) in wanted.items():
        state = network(kind, method).state_dict()
        for index in range(len([key for key in state if key.startswith("myfc") and key.endswith("bias")])):
            width = state[f"attention.{index}.0.weight"].shape[1]
            assert state[f"attention.{index}.2.weight"].shape[0] == attentions
            assert state[f"myfc.{index}.weight"].shape == (K, seen * width)


@methods
def test_with_one_logit_all_three_are_the_same_network(method: str) -> None:
    x, log_weight, _ = linked_bag(6, 2, 0)
    joint, separate, shared = (network(kind, method, num_classes=1) for kind in KINDS)
    for other in (separate, shared):
        for one, two in zip(joint.explain(x, log_weight), other.explain(x, log_weight), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@ablated
@methods
@pytest.mark.parametrize("task", ["multilabel", "ordinal"])
def test_every_weight_of_a_phase_learns(kind: str, method: str, task: str) -> None:
    model = network(kind, method, num_classes=get_task(task).num_logits(4))
    label = {"multilabel": [[1, 0, 1, 0]], "ordinal": [[0, 1, 0, 0]]}[task]
    for phase in range(len(model.phases)):
        model.start_phase(phase)
        loss = get_loss(method, model, task=task)(model(*linked_bag(6, 2, 0)[:2]), torch.tensor(label))
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.phase_parameters(phase))


@ablated
@methods
def test_torchscript_gives_the_same(kind: str, method: str) -> None:
    model = network(kind, method)
    exported = torch.jit.script(model)
    for batch in (linked_bag(6, 2, 0)[:2], padded(*linked_bag(3, 2, 1)[:2], 7.0)):
        for call in ("forward", "attend", "explain"):
            one, two = getattr(exported, call)(*batch), getattr(model, call)(*batch)
            for a, b in zip(one, two, strict=True) if isinstance(one, tuple) else [(one, two)]:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@ablated
def test_onnx_gives_the_same_for_other_numbers_of_rows(kind: str, tmp_path: Path) -> None:
    model, path = network(kind).float(), str(tmp_path / "model.onnx")

    def joined(rows: int) -> Tensor:
        x, log_weight, _ = linked_bag(rows, 2, rows)
        return torch.cat([x, log_weight.unsqueeze(-1)], dim=-1).float()

    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["pred"]}
    axes: dict[str, Any] = {"image": {1: "rows"}}
    convert_to_onnx(model, [joined(5)], filename=path, use_trace=True, dynamic_axes=axes, **names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (1, 5, 40):
        with torch.no_grad():
            wanted = model(joined(rows)).numpy()
        assert session.run(None, {"image": joined(rows).numpy()})[0] == pytest.approx(wanted, abs=1e-5)


@ablated
def test_an_ensemble_is_of_members_of_each(kind: str) -> None:
    members = [network(kind, seed=seed).float() for seed in range(2)]
    x, log_weight = (t.float() for t in linked_bag(6, 2, 0)[:2])
    with torch.no_grad():
        wanted = torch.stack([member(x, log_weight).sigmoid() for member in members]).mean(dim=0)
        found, attention, _ = Ensemble(members).eval().explain(x, log_weight)
        maps = torch.stack([member.attend(x, log_weight)[1] for member in members]).mean(dim=0)
    torch.testing.assert_close(found.sigmoid(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attention, maps)


def test_monais_model_has_one_attention_whatever_is_given() -> None:
    x, log_weight, _ = linked_bag(6, 2, 0)
    outputs = [network(kind, "mil_att").float()(x.float(), log_weight.float()) for kind in KINDS]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_another_class_attention_is_refused() -> None:
    with pytest.raises(SettingsError, match="class_attention: got 'none'. Choose one of joint, separate, shared"):
        network("none")
