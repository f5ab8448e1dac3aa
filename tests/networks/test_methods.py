"""The methods by name: their networks, outputs, attention maps, losses and files."""

from __future__ import annotations

import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.core.settings import check_settings
from scripts.networks.abmil import ABMIL, LateFusion, LinkedABMIL, MeanPooling
from scripts.networks.baselines import MSMIL, SSMIL, HighestScaleMIL
from scripts.networks.clam import CLAM, ClusteringLoss
from scripts.networks.dsmil import DSMIL, DualStreamLoss
from scripts.networks.losses import MultiScaleLoss, PhaseLoss, head_losses
from scripts.networks.methods import (
    METHODS,
    attention_maps,
    get_loss,
    get_network,
    method_title,
    result_heads,
    sees_links,
    served_head,
    trained_heads,
)
from scripts.networks.mustmil import MuSTMIL
from scripts.networks.transmil import TransMIL
from scripts.weights.paths import serving_weights

SETTINGS = {"num_classes": 3, "num_scales": 2, "num_features": 8, "num_nodes": 4}


@pytest.mark.parametrize("magnifications", [(10,), (5, 10), (10, 5), (2.5, 5, 10)])
@pytest.mark.parametrize("method", METHODS)
def test_names_are_as_many_as_the_networks_outputs_and_maps(method, magnifications):
    scales = len(magnifications)
    network = get_network(method, **{**SETTINGS, "num_scales": scales}).eval()
    logits, attention = network.attend(torch.randn(2, 5, scales, 8))
    heads, maps = result_heads(method, magnifications), attention_maps(method, magnifications)
    assert logits.shape == (2, len(heads), 3)
    assert attention.shape == (2, 5, len(maps), 3)
    assert [heads.index(spec.head) for spec in maps] == network.map_heads
    assert len({spec.name for spec in maps}) == len(maps)
    named = trained_heads(method, magnifications)
    assert sorted(h for phase in network.phases for h in phase) == list(range(len(named)))
    assert set(heads) <= set(named)


@pytest.mark.parametrize("method", METHODS)
def test_only_a_method_that_sees_links_predicts_otherwise_where_lower_patches_change_rows(method):
    torch.manual_seed(0)
    network = get_network(method, **SETTINGS).double().eval()
    x, log_weight = torch.randn(1, 7, 2, 8).double(), -torch.rand(1, 7, 2).double()
    log_weight[..., 1] = 0.0
    other, weight, order = x.clone(), log_weight.clone(), torch.randperm(7)
    other[:, :, 0], weight[:, :, 0] = x[:, order, 0], log_weight[:, order, 0]
    is_same = torch.allclose(network(x, log_weight), network(other, weight), rtol=0, atol=1e-12)
    assert is_same != sees_links(method)
    assert sees_links(method) == (method in ("mustmil", "abmil_linked", "dsmil"))


def test_the_methods_of_the_paper_and_of_monai():
    kinds = {"mustmil": MuSTMIL, "ssmil": SSMIL, "msmil": MSMIL, "mil_att": HighestScaleMIL}
    for method, kind in kinds.items():
        assert type(get_network(method, **SETTINGS)) is kind
    assert hasattr(get_network("mil_att_trans", **SETTINGS), "transformer")
    assert method_title("mil_att") == "MILModel att"
    assert result_heads("mustmil", [10, 5]) == ["global", "5x", "10x"]
    assert result_heads("msmil", [5, 10]) == ["global"]
    assert trained_heads("msmil", [5, 10]) == ["global", "5x", "10x"]
    assert result_heads("ssmil", [5, 10]) == ["5x", "10x"]
    assert result_heads("mil_att", [5, 10]) == ["10x"]
    assert [served_head(heads) for heads in (["global", "5x", "10x"], ["5x", "10x"], ["10x"])] == [0, 1, 0]
    assert [(m.name, m.head, m.scale_index) for m in attention_maps("mustmil", [5, 10])] == [
        ("global", "global", 1), ("5x", "5x", 0), ("10x", "10x", 1),
    ]  # fmt: skip
    assert [(m.name, m.head, m.scale_index) for m in attention_maps("msmil", [5, 10])] == [
        ("global_5x", "global", 0), ("global_10x", "global", 1),
    ]  # fmt: skip


def test_the_methods_of_others():
    kinds = {
        "mean": MeanPooling, "abmil": ABMIL, "abmil_linked": LinkedABMIL, "late_fusion": LateFusion,
        "clam_sb": CLAM, "clam_mb": CLAM, "dsmil": DSMIL, "transmil": TransMIL,
    }  # fmt: skip
    for method, kind in kinds.items():
        assert type(get_network(method, **SETTINGS)) is kind
    assert [get_network(method, **SETTINGS).is_multi for method in ("clam_sb", "clam_mb")] == [False, True]
    assert {method: result_heads(method, [5, 10]) for method in kinds} == {
        "mean": ["5x", "10x"], "abmil": ["5x", "10x"], "abmil_linked": ["global"], "late_fusion": ["global"],
        "clam_sb": ["10x"], "clam_mb": ["10x"], "dsmil": ["global"], "transmil": ["10x"],
    }  # fmt: skip
    maps = {method: [(m.name, m.head, m.scale_index) for m in attention_maps(method, [5, 10])] for method in kinds}
    of_scales, of_rows = [("5x", "5x", 0), ("10x", "10x", 1)], [("global", "global", 1)]
    assert maps == {
        "mean": of_scales, "abmil": of_scales, "abmil_linked": of_rows,
        "late_fusion": [("global_5x", "global", 0), ("global_10x", "global", 1)],
        "clam_sb": of_scales[1:], "clam_mb": of_scales[1:], "dsmil": of_rows, "transmil": [],
    }  # fmt: skip


def test_each_method_has_the_loss_of_its_paper():
    losses = {method: type(get_loss(method, get_network(method, **SETTINGS))) for method in METHODS}
    others = {"mustmil": MultiScaleLoss, "clam_sb": ClusteringLoss, "clam_mb": ClusteringLoss, "dsmil": DualStreamLoss}
    assert losses == {method: others.get(method, PhaseLoss) for method in METHODS}


def test_mustmil_weighs_its_outputs_and_a_baseline_has_the_loss_of_its_phase():
    assert isinstance(get_loss("mustmil", get_network("mustmil", **SETTINGS), 0.5, 2.0), MultiScaleLoss)
    network = get_network("msmil", **SETTINGS)
    loss = get_loss("msmil", network, alpha=0.0, beta=0.0)  # which are MuSTMIL's
    assert isinstance(loss, PhaseLoss)
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    for phase, (head,) in enumerate(network.phases):
        network.start_phase(phase)
        logits = network(torch.randn(1, 5, 2, 8))
        assert loss(logits, labels) == head_losses(logits, labels)[head]
        loss(logits, labels).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.phase_parameters(phase))


def test_one_file_serves_all_outputs_of_a_method(tmp_path):
    names = [serving_weights(tmp_path, method, [5, 10]).name for method in METHODS]
    assert dict(zip(METHODS, names, strict=True)) == {
        "mustmil": "model.pt",
        "msmil": "model.pt",
        "ssmil": "model_10x.pt",
        "mil_att": "model_10x.pt",
        "mil_att_trans": "model_10x.pt",
        "mean": "model_10x.pt",
        "abmil": "model_10x.pt",
        "abmil_linked": "model.pt",
        "late_fusion": "model.pt",
        "clam_sb": "model_10x.pt",
        "clam_mb": "model_10x.pt",
        "dsmil": "model.pt",
        "transmil": "model_10x.pt",
    }


def test_an_unknown_method_is_refused_with_the_known_ones():
    for call in (
        lambda: get_network("clam", **SETTINGS),
        lambda: result_heads("clam", [5, 10]),
        lambda: attention_maps("clam", [5, 10]),
        lambda: get_loss("clam", None),
    ):
        with pytest.raises(SettingsError, match=r"method: got 'clam'\. Choose one of mustmil, msmil, ssmil, mil_att"):
            call()


def test_the_setting_takes_every_method():
    for method in METHODS:
        check_settings(method=method)
    with pytest.raises(SettingsError, match="Choose one of mustmil, msmil, ssmil, mil_att, mil_att_trans"):
        check_settings(method="clam")


@pytest.mark.parametrize("method", METHODS)
def test_with_zeros_classifiers_alone_start_otherwise_and_attention_waits_for_them(method):
    made = {}
    for start in ("random", "zeros"):
        torch.manual_seed(0)
        made[start] = get_network(method, classifier_init=start, **SETTINGS)
    first = dict(made["random"].named_parameters())
    for name, values in made["zeros"].named_parameters():
        assert torch.equal(values, torch.zeros_like(values) if name.startswith("myfc.") else first[name])
    network, x, target = made["zeros"], torch.randn(2, 5, 2, 8), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    network.start_phase(len(network.phases) - 1)
    loss = get_loss(method, network, instance_weight=0.0)  # CLAM's loss on instances has gradients of its own
    loss(network(x), target).backward()
    learns = {name: bool(values.grad is not None and values.grad.any()) for name, values in network.named_parameters()}
    assert any(learns[name] for name in learns if name.startswith("myfc."))
    own = [name for name in learns if name.startswith("instance_classifier.")] if method == "dsmil" else []
    assert [name for name in learns if learns[name] and not name.startswith("myfc.")] == own


def test_another_start_of_classifiers_is_refused():
    with pytest.raises(SettingsError, match="classifier_init: got 'ones'. Choose one of random, zeros"):
        get_network("mustmil", classifier_init="ones", **SETTINGS)
