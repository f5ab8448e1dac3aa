"""Pooling of scales, rows and their means: against torchmil and NumPy on unique patches, and what trains what."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torchmil.models
from numpy.typing import NDArray
from torch import Tensor

from scripts.networks.abmil import ABMIL, LateFusion, LinkedABMIL, MeanPooling
from scripts.networks.bag_network import BagNetwork
from scripts.networks.losses import PhaseLoss, head_losses
from tests.networks.test_bag_network import F, K, M, linked_bag

kinds = pytest.mark.parametrize("kind", [MeanPooling, ABMIL])
scales = pytest.mark.parametrize("num_scales", [1, 2, 3])


def make(kind: type[BagNetwork], num_scales: int = 2, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(num_classes=K, num_scales=num_scales, num_features=F, num_nodes=M).double().eval()


def unique(x: Tensor, links: NDArray[np.int64], scale: int) -> Tensor:
    """The features ``[1, n_s, F]`` of a scale's patches, each once."""
    _, firsts = np.unique(links[:, scale], return_index=True)
    return x[:, firsts, scale]


def oracle(branch: Any, classify: Any, k: int) -> Any:
    """torchmil's ABMIL with the weights of a branch and, as it has one logit, with those of class k."""
    embed = copy.deepcopy(branch.embed).float()  # torchmil tries it on features of float32
    made = torchmil.models.ABMIL((embed[0].in_features,), M // 2, "tanh", gated=True, feat_ext=embed).double()
    embed.load_state_dict(branch.embed.state_dict())
    pairs = (
        (made.pool.fc1.module, branch.tanh[0]),
        (made.pool.fc_gated.module, branch.gate[0]),
        (made.pool.fc2, branch.score),
    )
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        made.classifier.module.weight.copy_(classify.weight[k : k + 1])
        made.classifier.module.bias.copy_(classify.bias[k : k + 1])
    return made.eval()


def torchmils(branch: Any, classify: Any, patches: Tensor) -> tuple[list[float], NDArray[np.float64]]:
    """torchmil's logits of each class, and its attention after the softmax."""
    found = [oracle(branch, classify, k)(patches, return_att=True) for k in range(K)]
    return [logit.item() for logit, _ in found], torch.softmax(found[0][1][0], dim=0).detach().numpy()


def summed(attention: Tensor, links: NDArray[np.int64], scale: int) -> NDArray[np.float64]:
    """Of rows ``[N]``, over those that share a patch."""
    found = np.zeros(links[:, scale].max() + 1)
    np.add.at(found, links[:, scale], attention.detach().numpy())
    return found


@scales
def test_abmil_is_torchmils_on_the_unique_patches_of_each_scale(num_scales: int) -> None:
    model = make(ABMIL, num_scales)
    x, log_weight, links = linked_bag(9, num_scales, 0)
    logits, attention = model.attend(x, log_weight)
    assert logits.shape == (1, num_scales, K)
    for s in range(num_scales):
        wanted, of_patches = torchmils(model.branches[s], model.myfc[s], unique(x, links, s))
        assert logits[0, s].tolist() == pytest.approx(wanted, rel=1e-6)
        for k in range(K):
            assert summed(attention[0, :, s, k], links, s) == pytest.approx(of_patches, rel=1e-6)


@scales
def test_linked_abmil_is_torchmils_on_the_features_of_each_row(num_scales: int) -> None:
    model = make(LinkedABMIL, num_scales)
    x, log_weight, _ = linked_bag(9, num_scales, 0)
    logits, attention = model.attend(x, log_weight)
    joined = torch.cat(list(x.unbind(2)), dim=2)  # [1, N, S * F]
    wanted, of_rows = torchmils(model.branches[0], model.myfc[0], joined)
    assert logits[0, 0].tolist() == pytest.approx(wanted, rel=1e-6)
    assert attention[0, :, 0, 0].tolist() == pytest.approx(of_rows, rel=1e-6)


@scales
def test_late_fusion_classifies_what_the_scales_pool_apart(num_scales: int) -> None:
    model = make(LateFusion, num_scales)
    x, log_weight, links = linked_bag(9, num_scales, 0)
    logits, attention = model.attend(x, log_weight)
    pooled = []
    for s in range(num_scales):
        branch, patches = model.branches[s], unique(x, links, s)
        h, scores = branch(patches)
        a = np.exp(scores[0, :, 0].detach().numpy())
        pooled.append((a / a.sum()) @ h[0].detach().numpy())
        for k in range(K):
            assert summed(attention[0, :, s, k], links, s) == pytest.approx(a / a.sum(), rel=1e-6)
    p = {name: value.numpy() for name, value in model.state_dict().items()}
    assert logits[0, 0].tolist() == pytest.approx(p["myfc.weight"] @ np.concatenate(pooled) + p["myfc.bias"], rel=1e-6)


@scales
def test_the_mean_is_that_of_each_scales_unique_patches(num_scales: int) -> None:
    model = make(MeanPooling, num_scales)
    x, log_weight, links = linked_bag(9, num_scales, 0)
    logits, attention = model.attend(x, log_weight)
    for s in range(num_scales):
        patches = unique(x, links, s)[0].numpy()
        p = {name: value.numpy() for name, value in model.myfc[s].state_dict().items()}
        assert logits[0, s].tolist() == pytest.approx(p["weight"] @ patches.mean(axis=0) + p["bias"], rel=1e-6)
        assert summed(attention[0, :, s, 0], links, s) == pytest.approx(np.full(len(patches), 1 / len(patches)))


# --- one phase trains each scale as alone -------------------------------------------------------------------


@kinds
def test_no_weight_of_a_scale_gets_a_gradient_from_the_loss_of_another(kind: type[BagNetwork]) -> None:
    names = [name for name, _ in make(kind).named_parameters()]
    for s in range(2):
        model = make(kind)
        x, log_weight, _ = linked_bag(6, 2, 0)
        head_losses(model(x, log_weight), torch.tensor([[1, 0, 1]]))[s].backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert reached == {name for name in names if name.split(".")[1] == str(s)}


def trained(kind: type[BagNetwork], heads: Sequence[int]) -> dict[str, Tensor]:
    """The weights after a few steps on the losses of some heads."""
    model = make(kind).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)
    for step in range(5):
        x, log_weight, _ = linked_bag(4 + step, 2, step)
        optimizer.zero_grad()
        logits, labels = model(x, log_weight), torch.tensor([[step % 2, 1, 0]])
        loss = PhaseLoss(model)(logits, labels) if len(heads) == 2 else head_losses(logits, labels)[heads[0]]
        loss.backward()
        optimizer.step()
    return model.state_dict()


@kinds
def test_one_phase_with_a_sum_of_losses_gives_the_weights_of_separate_trainings(kind: type[BagNetwork]) -> None:
    together, before = trained(kind, [0, 1]), make(kind).state_dict()
    for s in range(2):
        alone = trained(kind, [s])
        own = [name for name in alone if name.split(".")[1] == str(s)]
        assert own
        for name in own:
            assert torch.equal(alone[name], together[name]), name
            assert not torch.equal(alone[name], before[name]), name


@pytest.mark.parametrize("kind", [MeanPooling, ABMIL, LinkedABMIL, LateFusion])
def test_every_weight_trains(kind: type[BagNetwork]) -> None:
    model = make(kind)
    x, log_weight, _ = linked_bag(6, 2, 0)
    PhaseLoss(model)(model(x, log_weight), torch.tensor([[1, 0, 1]])).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
