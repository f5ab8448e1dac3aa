"""The ensemble: the mean of its members' calibrated probabilities, whatever the task and method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from monai.networks.utils import convert_to_onnx

from scripts.core.errors import SettingsError
from scripts.core.tasks import TASKS, get_task
from scripts.networks.ensemble import Ensemble
from scripts.networks.methods import METHODS, get_network
from scripts.weights.operating_point import OperatingPoint

NUM_CLASSES = {"multilabel": 5, "binary": 1, "multiclass": 4, "ordinal": 4}
LINE = ("shift", "slope", "intercept")


def ensemble(task: str = "multilabel", method: str = "mustmil", count: int = 3) -> Ensemble:
    """Of random networks, each calibrated in its own way."""
    torch.manual_seed(0)
    num_logits = get_task(task).num_logits(NUM_CLASSES[task])
    members = [get_network(method, num_classes=num_logits, num_features=16, num_nodes=8) for _ in range(count)]
    network = Ensemble(members, task).eval()
    network.slope.uniform_(0.5, 3)
    network.shift.normal_()
    network.intercept.normal_()
    return network


def bags(scale: float = 3.0) -> torch.Tensor:
    """Two bags of linked rows with log weights, the second one with padding."""
    x = scale * torch.randn(2, 7, 2, 17, generator=torch.Generator().manual_seed(1))
    x[..., -1] = -torch.rand(2, 7, 2, generator=torch.Generator().manual_seed(2))
    x[1, 5:, :, -1] = -torch.inf
    return x


def calibrated(network: Ensemble, x: torch.Tensor, task: str) -> np.ndarray:
    """The members' calibrated probabilities ``[E, B, H, K]``, as the operating point of each has them."""
    of_members = []
    for e, member in enumerate(network.members):
        line = [getattr(network, name)[e].double().numpy() for name in LINE]
        of_members.append(OperatingPoint(*line, None, get_task(task)).calibrated(member(x).detach().numpy()))
    return np.stack(of_members)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_its_logits_make_the_mean_of_the_members_calibrated_probabilities(task: str, method: str) -> None:
    network, x = ensemble(task, method), bags()
    with torch.no_grad():
        found = get_task(task).probabilities(network(x)).numpy()
    assert found == pytest.approx(calibrated(network, x, task).mean(axis=0), abs=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_the_spread_is_the_standard_deviation_of_the_members(task: str) -> None:
    network, x = ensemble(task), bags()
    with torch.no_grad():
        logits, spread = network.with_spread(x)
        assert torch.equal(logits, network(x))
    assert spread.numpy() == pytest.approx(calibrated(network, x, task).std(axis=0, ddof=1), abs=1e-6)


def test_probabilities_near_0_and_1_are_not_rounded() -> None:
    network = ensemble("binary")
    network.slope.fill_(1)
    network.shift.fill_(0)
    network.intercept.copy_(torch.tensor([60.0, 61, 62])[:, None, None])
    with torch.no_grad():
        of_members = [member(bags(0.01)).double() for member in network.members]
        found = network(bags(0.01)).double()
    away = torch.stack([torch.sigmoid(-(z + 60 + e)) for e, z in enumerate(of_members)]).mean(dim=0)
    assert torch.allclose(found, -away.log(), rtol=1e-5)


def test_an_ordered_class_that_float32_rounds_to_0_comes_back_with_temperature() -> None:
    network = ensemble("ordinal")
    network.slope.fill_(0.1)
    with torch.no_grad():
        for member in network.members:
            for name, bias in member.named_parameters():
                if name.endswith("bias") and bias.shape == (3,):
                    bias.fill_(20.0)  # P(y > k) is 1 in float32
        found = get_task("ordinal").probabilities(network(bags())).numpy()
    wanted = calibrated(network, bags(), "ordinal").mean(axis=0)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert wanted[..., 0].min() > 0.01


def test_an_ordered_class_that_every_member_rules_out_has_no_probability() -> None:
    network = ensemble("ordinal")
    network.intercept.fill_(0)
    network.slope.fill_(0.1)
    with torch.no_grad():
        for member in network.members:
            for name, bias in member.named_parameters():
                if name.endswith("bias") and bias.shape == (3,):
                    bias.copy_(torch.tensor([0.0, 100.0, -100.0]))  # the second rises
        logits, spread = network.with_spread(bags(0.01))
        found = get_task("ordinal").probabilities(logits)
    assert torch.isfinite(logits).all()
    assert torch.equal(found[..., 1], torch.zeros_like(found[..., 1]))
    assert torch.equal(spread[..., 1], torch.zeros_like(spread[..., 1]))
    assert found.numpy() == pytest.approx(calibrated(network, bags(0.01), "ordinal").mean(axis=0), abs=1e-6)


def test_maps_are_the_means_of_the_members_maps() -> None:
    network, x = ensemble(), bags()
    with torch.no_grad():
        logits, attention, contribution = network.explain(x)
        of_members = [member.explain(x) for member in network.members]
        assert torch.allclose(logits, network(x), atol=1e-5)
    assert torch.allclose(attention, torch.stack([a for _, a, _ in of_members]).mean(dim=0))
    assert torch.allclose(contribution, torch.stack([c for *_, c in of_members]).mean(dim=0))
    assert torch.allclose(attention.sum(dim=1), torch.ones(2, 3, 5), atol=1e-5)


@pytest.mark.parametrize("method", ["mustmil", "late_fusion", "clam_mb", "dsmil"])
def test_it_is_one_torchscript(method: str) -> None:
    network = ensemble("ordinal", method)
    exported = torch.jit.script(network)
    for x in (bags(), bags()[:1, :3]):
        with torch.no_grad():
            assert torch.allclose(exported(x), network(x), atol=1e-6)
            for one, other in zip(exported.with_spread(x), network.with_spread(x), strict=True):
                assert torch.allclose(one, other, atol=1e-6)
    assert exported.num_members == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method"),
    [
        *((task, "mustmil") for task in TASKS),
        *(("multilabel", of) for of in ("abmil", "late_fusion", "clam_mb", "dsmil")),
    ],
)
def test_it_is_one_onnx_network(task: str, method: str, tmp_path: Path) -> None:
    network, path = ensemble(task, method), str(tmp_path / "model.onnx")
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["pred"]}
    rows: dict[str, Any] = {"image": {1: "rows"}}
    convert_to_onnx(network, [bags()[:1, :3]], filename=path, use_trace=True, dynamic_axes=rows, **names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = network(bags()[:1]).numpy()
    assert session.run(None, {"image": bags()[:1].numpy()})[0] == pytest.approx(wanted, abs=1e-5)


def test_one_network_is_no_ensemble() -> None:
    with pytest.raises(SettingsError, match="An ensemble has two or more"):
        ensemble(count=1)
