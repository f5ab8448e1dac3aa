"""CLAM: its bag logits against torchmil, its instance loss against torchmil's choice of patches and plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchmil.models
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.networks.clam import CLAM, ClusteringLoss
from scripts.networks.losses import head_losses
from scripts.networks.methods import get_loss, get_network
from tests.networks.test_bag_network import linked_bag, padded
from tests.networks.test_pooling import close_to

F, M, K = 8, 6, 3
kinds = pytest.mark.parametrize("is_multi", [False, True])


def make(is_multi: bool, num_classes: int = K, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return CLAM(is_multi, num_classes, num_features=F, num_nodes=M).double().eval()


def without_dropout(model: Any) -> Any:
    """The network in training mode, which gives the logits of instances, but with every patch as it is."""
    for layer in model.train().modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model


class SmoothSVM(nn.Module):
    """The smooth top-1 SVM loss with margin and temperature 1 as its paper has it, over two classes.

    That of torchmil 1.0.2 takes the labels that its CLAM gives it, [n, 1], for a table, and compares patches with the
    labels of others; its other choice, BCEWithLogitsLoss, does not take two logits and one label.
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        losses = []
        for z, label in zip(x, y[:, 0].long().tolist(), strict=True):
            margins = [z[c] + float(c != label) - z[label] for c in (0, 1)]
            losses.append(torch.logsumexp(torch.stack(margins), dim=0))
        return torch.stack(losses).mean()


def oracle(model: Any, k: int) -> Any:
    """torchmil's CLAM-SB with the weights of ours and, as it has one logit, with those of class k."""
    embed = nn.Sequential(nn.Linear(F, M), nn.ReLU())
    made = torchmil.models.CLAM_SB((F,), M // 2, "tanh", k_sample=8, gated=True, feat_ext=embed).double()
    pairs = (
        (embed[0], model.branch.embed[0]),
        (made.pool.fc1.module, model.branch.tanh[0]),
        (made.pool.fc_gated.module, model.branch.gate[0]),
        (made.pool.fc2, model.branch.score),
    )
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    made.inst_loss_fn = SmoothSVM()
    with torch.no_grad():
        made.classifier.module.weight.copy_(model.myfc.weight[k : k + 1])
        made.classifier.module.bias.copy_(model.myfc.bias[k : k + 1])
        for c, classify in enumerate(made.inst_classifiers):
            rows = slice(2 * c, 2 * c + 2)
            classify.module.weight.copy_(model.instance_classifier.weight[rows])
            classify.module.bias.copy_(model.instance_classifier.bias[rows])
    return made.eval()


# --- bag logits ---------------------------------------------------------------------------------------------


def test_clam_sb_is_torchmils_on_the_patches_of_the_highest_scale() -> None:
    model = make(False)
    x, log_weight, _ = linked_bag(9, 2, 0)
    logits, attention = model.attend(x, log_weight)
    for k in range(K):
        logit, scores = oracle(model, k)(x[:, :, -1], return_att=True)
        assert logits[0, 0, k].item() == pytest.approx(logit.item(), rel=1e-9)
        close_to(attention[0, :, 0, k], torch.softmax(scores[0], dim=0))


def test_each_class_of_clam_mb_has_an_attention_and_a_classifier_of_its_own() -> None:
    model = make(True)
    x, log_weight, _ = linked_bag(9, 2, 0)
    logits, attention = model.attend(x, log_weight)
    h, scores = (value[0] for value in model.branch(x[:, :, -1]))  # [N, M], [N, K]
    for k in range(K):
        a = [math.exp(score) for score in scores[:, k].tolist()]
        pooled = sum(own / sum(a) * patch for own, patch in zip(a, h, strict=True))
        wanted = (model.myfc.weight[k] * pooled).sum() + model.myfc.bias[k]
        assert logits[0, 0, k].item() == pytest.approx(wanted.item(), rel=1e-9)
        close_to(attention[0, :, 0, k], torch.tensor(a, dtype=x.dtype) / sum(a))
    assert not torch.allclose(attention[..., 0], attention[..., 1])


# --- instances ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 5, 8, 12, 40])
@pytest.mark.parametrize("label", [0, 1])
def test_the_instance_loss_of_two_exclusive_classes_is_torchmils(num_rows: int, label: int) -> None:
    model = without_dropout(make(False, num_classes=2))
    x, log_weight, _ = linked_bag(num_rows, 2, 3)
    loss = ClusteringLoss(1.0, "multiclass")(model(x, log_weight), torch.eye(2)[[label]])
    theirs = oracle(model, 0)
    _, scores, embedded = theirs(x[:, :, -1], return_att=True, return_emb=True)
    # The sum over the two classifiers, of which CLAM's code takes the mean.
    wanted = theirs.compute_inst_loss(scores, embedded, torch.tensor([label])) / 2
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)  # torchmil's is in float32


def expected(model: Any, x: NDArray[np.float64], label: NDArray[np.float64]) -> float:
    """The instance loss of one bag ``[n, F]``, patch by patch."""
    h, scores = (value[0].detach().numpy() for value in model.branch(torch.from_numpy(x)[None]))
    weight, bias = (value.detach().numpy() for value in model.instance_classifier.parameters())
    of_classes = []
    for k, has in enumerate(label):
        order = sorted(range(len(x)), key=lambda j: scores[j, k % scores.shape[1]])
        most, least = order[::-1][:8], order[:8]
        losses = []
        for j, is_shown in [*((j, has == 1) for j in most), *((j, False) for j in least if has == 1)]:
            without, shows = (weight[2 * k + c] @ h[j] + bias[2 * k + c] for c in (0, 1))
            own, other = (shows, without) if is_shown else (without, shows)
            losses.append(math.log(1 + math.exp(1 + other - own)))
        of_classes.append(np.mean(losses))
    return float(np.mean(of_classes))


@kinds
def test_classes_are_clustered_where_a_slide_has_them_and_lowered_where_it_has_not(is_multi: bool) -> None:
    model = without_dropout(make(is_multi))
    bags = [linked_bag(rows, 2, rows)[:2] for rows in (3, 20, 12)]
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=np.float64)
    batch = [padded(x, g, 7.0, 20 - x.shape[1]) for x, g in bags]
    logits = model(torch.cat([x for x, _ in batch]), torch.cat([g for _, g in batch]))
    assert logits.shape == (3, 1 + 16, K)
    loss = ClusteringLoss(1.0)(logits, torch.from_numpy(labels))
    alone = [expected(model, x[0, :, -1].numpy(), label) for (x, _), label in zip(bags, labels, strict=True)]
    assert loss.item() == pytest.approx(np.mean(alone), rel=1e-9)


def test_of_ordered_classes_each_step_is_clustered() -> None:
    model = without_dropout(make(True, num_classes=2))
    x, log_weight, _ = linked_bag(12, 2, 0)
    for grade, steps in enumerate([[0, 0], [1, 0], [1, 1]]):
        loss = ClusteringLoss(1.0, "ordinal")(model(x, log_weight), torch.eye(3)[[grade]])
        assert loss.item() == pytest.approx(expected(model, x[0, :, -1].numpy(), np.array(steps)), rel=1e-9)


@kinds
def test_bag_and_instances_are_weighed(is_multi: bool) -> None:
    model, labels = without_dropout(make(is_multi)), torch.tensor([[1, 0, 1]])
    logits = model(*linked_bag(12, 2, 0)[:2])
    bag, instances = (ClusteringLoss(w)(logits, labels).item() for w in (0.0, 1.0))
    assert bag == head_losses(logits[:, :1], labels).item()
    assert ClusteringLoss(0.3)(logits, labels).item() == pytest.approx(0.7 * bag + 0.3 * instances)


@kinds
@pytest.mark.parametrize("num_rows", [1, 4, 30])
def test_every_weight_gets_a_finite_gradient_also_from_a_bag_with_padding(is_multi: bool, num_rows: int) -> None:
    model = make(is_multi).train()
    x, log_weight, _ = linked_bag(num_rows, 2, 0)
    loss = ClusteringLoss()(model(*padded(x, log_weight, math.nan)), torch.tensor([[1, 0, 1]]))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert bool(model.instance_classifier.weight.grad.any())


@kinds
def test_instances_follow_the_heads_in_training_mode_alone(is_multi: bool) -> None:
    model = without_dropout(make(is_multi))
    x, log_weight, _ = linked_bag(12, 2, 0)
    trained = model(x, log_weight)
    assert torch.equal(model.eval()(x, log_weight), trained[:, :1])


def test_the_dropout_is_clams() -> None:
    rates = {
        method: {layer.p for layer in get_network(method, num_classes=1).modules() if isinstance(layer, nn.Dropout)}
        for method in ("clam_sb", "clam_mb", "abmil")
    }
    assert rates == {"clam_sb": {0.25}, "clam_mb": {0.25}, "abmil": {0.0}}


def test_the_setting_reaches_the_loss() -> None:
    network = get_network("clam_mb", num_classes=K, num_features=F, num_nodes=M)
    assert get_loss("clam_mb", network).instance_weight == 0.3
    assert get_loss("clam_mb", network, instance_weight=0.5).instance_weight == 0.5


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(SettingsError, match=f"instance_weight: got {weight}. Set it within 0 to 1"):
        ClusteringLoss(weight)


def test_logits_without_instances_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted logits of a bag and of its instances, .*, got \[2, 1, 3\]"):
        ClusteringLoss()(torch.zeros(2, 1, K), torch.zeros(2, K))
