"""The baselines: what they pool, against plain loops; what they share with MuSTMIL; MONAI's own model as it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.networks import convert_to_torchscript
from monai.networks.nets import MILModel
from torch import nn

from scripts.bags.grid import row_log_weight
from scripts.networks.baselines import MSMIL, SSMIL, HighestScaleMIL
from scripts.networks.mustmil import MuSTMIL

F, M, K = 6, 4, 3
NETWORKS = {"ssmil": SSMIL, "msmil": MSMIL}


def make(kind, seed=0, **settings):
    torch.manual_seed(seed)
    return kind(num_classes=K, num_scales=settings.pop("num_scales", 2), num_features=F, num_nodes=M, **settings)


def bag(num_rows=6, seed=0, num_scales=2):
    """Features [1, N, S, F] of linked rows in which patches of the lower scales are shared, and their log weights."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.arange(num_rows) // 2 ** (num_scales - 1 - s) for s in range(num_scales)], dim=1)
    patches = torch.randn(num_rows, num_scales, F, generator=generator)
    x = torch.stack([patches[rows[:, s], s] for s in range(num_scales)], dim=1)
    return x.unsqueeze(0), torch.from_numpy(row_log_weight(rows.numpy())).unsqueeze(0), rows


def branch(network, index, instances):
    """The paper's branch over a set of unique instances [n, M], in float64 and one number at a time."""
    p = {key: value.double().numpy() for key, value in network.state_dict().items()}
    scores = [
        p[f"attention.{index}.2.weight"]
        @ np.tanh(p[f"attention.{index}.0.weight"] @ h + p[f"attention.{index}.0.bias"])
        for h in instances
    ]
    a = np.zeros((len(instances), K))
    for k in range(K):
        total = sum(math.exp(score[k]) for score in scores)
        a[:, k] = [math.exp(score[k]) / total for score in scores]
    z = np.concatenate([sum(a[j, k] * instances[j] for j in range(len(instances))) for k in range(K)])
    return p[f"myfc.{index}.weight"] @ z + p[f"myfc.{index}.bias"], a


def unique_instances(network, x, rows, scale):
    """IL_s of each unique patch of a scale, [n_s, M] float64."""
    p = {key: value.double().numpy() for key, value in network.state_dict().items()}
    firsts = [int((rows[:, scale] == patch).nonzero()[0]) for patch in range(int(rows[:, scale].max()) + 1)]
    features = x[0, firsts, scale].double().numpy()
    return features @ p[f"embed.{scale}.weight"].T + p[f"embed.{scale}.bias"]


# --- single scales -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_scales", [1, 2, 3])
def test_ssmil_is_the_papers_branch_on_the_unique_patches_of_each_scale(num_scales):
    network = make(SSMIL, num_scales=num_scales)
    x, log_weight, rows = bag(8, num_scales=num_scales)
    logits, attention = network.attend(x, log_weight)
    assert logits.shape == (1, num_scales, K)
    for s in range(num_scales):
        wanted, wanted_attention = branch(network, s, unique_instances(network, x, rows, s))
        np.testing.assert_allclose(logits[0, s].detach(), wanted, atol=1e-5)
        summed = np.zeros_like(wanted_attention)
        np.add.at(summed, rows[:, s].numpy(), attention[0, :, s].detach().numpy())
        np.testing.assert_allclose(summed, wanted_attention, atol=1e-5)


def test_a_scale_of_ssmil_is_mustmils_branch_of_that_scale():
    mustmil, ssmil = make(MuSTMIL), make(SSMIL, seed=1)
    ssmil.embed.load_state_dict(mustmil.embed.state_dict())
    for s in range(2):
        ssmil.attention[s].load_state_dict(mustmil.attention[1 + s].state_dict())
        ssmil.myfc[s].load_state_dict(mustmil.myfc[1 + s].state_dict())
    x, log_weight, _ = bag()
    assert torch.equal(ssmil(x, log_weight), mustmil(x, log_weight)[:, 1:])


# --- the union of all scales -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_scales", [1, 2, 3])
def test_msmil_pools_the_unique_patches_of_all_scales_as_one_bag(num_scales):
    network = make(MSMIL, num_scales=num_scales)
    x, log_weight, rows = bag(8, num_scales=num_scales)
    logits, attention = network.attend(x, log_weight)
    union = [unique_instances(network, x, rows, s) for s in range(num_scales)]
    wanted, wanted_attention = branch(network, 0, np.concatenate(union))
    assert logits.shape == (1, 1, K)
    assert attention.shape == (1, 8, num_scales, K)
    np.testing.assert_allclose(logits[0, 0].detach(), wanted, atol=1e-5)
    summed = [np.zeros((len(patches), K)) for patches in union]
    for s in range(num_scales):
        np.add.at(summed[s], rows[:, s].numpy(), attention[0, :, s].detach().numpy())
    np.testing.assert_allclose(np.concatenate(summed), wanted_attention, atol=1e-5)


def test_msmils_attention_is_one_bag_over_all_scales():
    x, log_weight, _ = bag()
    _, attention = make(MSMIL).attend(x, log_weight)
    assert torch.allclose(attention.sum(dim=(1, 2)), torch.ones(1, K))


# --- phases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SSMIL, MSMIL])
def test_a_phase_gives_its_own_output_and_nothing_of_the_others(kind):
    network = make(kind)
    x, log_weight, _ = bag()
    trained = set()
    for phase, heads in enumerate(network.phases):
        network.start_phase(phase)
        logits = network(x, log_weight)
        assert [h for h in range(logits.shape[1]) if logits[0, h].isfinite().all()] == heads
        assert logits[0, [h for h in range(logits.shape[1]) if h not in heads]].isnan().all()
        trained |= {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in network.named_parameters()}
    network.start_phase(None)
    assert network(x, log_weight).isfinite().all()


def test_the_last_phase_of_msmil_leaves_every_instance_layer_to_the_last_bit():
    network = make(MSMIL)
    x, log_weight, _ = bag()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1, weight_decay=0.1)
    for phase in (0, 1):  # so that momentum and weight decay could go on pulling
        network.start_phase(phase)
        network(x, log_weight)[:, 1 + phase].sum().backward()
        optimizer.step()
    network.start_phase(2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)  # as MONAI's trainer does it
        network(x, log_weight)[:, 0].sum().backward()
        optimizer.step()
    moved = {
        key.rsplit(".", 1)[0] for key, value in network.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == {"attention.0.0", "attention.0.2", "myfc.0"}


@pytest.mark.parametrize("kind", [SSMIL, MSMIL])
def test_a_backbone_is_never_trained(kind):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, F))
    network = make(kind, backbone=backbone)
    for phase in (*range(len(network.phases)), None):
        network.start_phase(phase)
        assert not any(p.requires_grad for p in backbone.parameters())
    with pytest.raises(ValueError, match="several training phases needs a frozen backbone"):
        make(kind, backbone=backbone, freeze_backbone=False)


# --- common to all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SSMIL, MSMIL, lambda **kw: HighestScaleMIL("att", **kw)])
def test_padding_changes_nothing_and_gets_no_attention(kind):
    network = make(kind).eval()
    x, log_weight, _ = bag()
    padded_x = torch.cat([x, torch.full((1, 3, 2, F), 1e4)], dim=1)
    padded_weight = torch.cat([log_weight, torch.full((1, 3, 2), -torch.inf)], dim=1)
    logits, attention = network.attend(x, log_weight)
    padded_logits, padded_attention = network.attend(padded_x, padded_weight)
    assert torch.allclose(padded_logits, logits, atol=1e-6)
    assert torch.allclose(padded_attention[:, :6], attention, atol=1e-6)
    assert (padded_attention[:, 6:] == 0).all()


@pytest.mark.parametrize("kind", [SSMIL, MSMIL])
def test_torchscript_gives_the_same(kind):
    network = make(kind).eval()
    x, log_weight, _ = bag()
    scripted = convert_to_torchscript(network)
    assert torch.allclose(scripted(x, log_weight), network(x, log_weight), atol=1e-6)
    for one, other in zip(scripted.attend(x, log_weight), network.attend(x, log_weight), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", [SSMIL, MSMIL])
def test_patches_pass_the_backbone(kind):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, F))
    network = make(kind, backbone=backbone)
    patches = torch.randn(1, 4, 2, 3, 2, 2)
    features = backbone(patches.flatten(0, 2)).reshape(1, 4, 2, F)
    assert torch.allclose(network(patches), network(features), atol=1e-6)


# --- MONAI's model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["att", "att_trans"])
def test_monais_model_is_monais_model_on_the_highest_scale(mode):
    torch.manual_seed(0)
    num_features = 8  # att_trans has eight attention heads
    ours = HighestScaleMIL(mode, K, num_features=num_features).eval()
    theirs = MILModel(K, mil_mode=mode, backbone=nn.Identity(), backbone_num_features=num_features, pretrained=False)
    theirs.load_state_dict(ours.state_dict())
    theirs.eval()
    x = torch.randn(2, 5, 2, num_features)
    assert torch.equal(ours(x)[:, 0], torch.cat([theirs.calc_head(bag[None, :, -1]) for bag in x]))


def test_monais_attention_is_that_of_its_pooling():
    torch.manual_seed(0)
    network = HighestScaleMIL("att", K, num_features=F).eval()
    x = torch.randn(1, 5, 2, F)
    logits, attention = network.attend(x)
    assert attention.shape == (1, 5, 1, K)
    assert torch.allclose(attention.sum(dim=1), torch.ones(1, 1, K))
    pooled = (attention[0, :, 0, :1] * x[0, :, 1]).sum(dim=0)
    assert torch.allclose(network.myfc(pooled), logits[0, 0], atol=1e-6)
