"""TransMIL: against torchmil with the same weights, what torchmil leaves out, and the package that it needs."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torchmil.models
from torch import nn

from scripts.core.errors import SettingsError
from scripts.networks.methods import get_network
from scripts.networks.transmil import TransMIL
from tests.networks.test_bag_network import linked_bag, padded
from tests.networks.test_pooling import close_to

F, M, K = 8, 16, 3


def make(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return TransMIL(K, 2, F, M).double().eval()


def as_torchmils(model: Any) -> Any:
    """Without what the paper's code has and torchmil 1.0.2 has not: the output layer and the convolution of values."""
    for layer in model.layers:
        nn.init.eye_(layer.attention.to_out[0].weight)
        nn.init.zeros_(layer.attention.to_out[0].bias)
        nn.init.zeros_(layer.attention.res_conv.weight)
    return model


def oracle(model: Any, k: int) -> Any:
    """torchmil's TransMIL with the weights of ours and, as it has one logit, with those of class k."""
    embed = nn.Sequential(nn.Linear(F, M), nn.ReLU())
    made = torchmil.models.TransMIL((F,), M, n_heads=8, n_landmarks=M // 2, feat_ext=embed).double()
    pairs = [(embed, model.embed), (made.norm, model.norm)]
    convolutions = (made.pos_layer.proj, made.pos_layer.proj1, made.pos_layer.proj2)
    pairs += list(zip(convolutions, model.position.convolutions, strict=True))
    for theirs, ours in zip(made.layers, model.layers, strict=True):
        pairs += [(theirs.norm1, ours.norm), (theirs.att_module.qkv_nn, ours.attention.to_qkv)]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        made.cls_token.copy_(model.class_token)
        made.classifier.weight.copy_(model.myfc.weight[k : k + 1])
        made.classifier.bias.copy_(model.myfc.bias[k : k + 1])
    return made.eval()


# A token alone, squares that are full and others, and more tokens than landmarks.
@pytest.mark.parametrize("num_rows", [1, 2, 4, 5, 9, 23])
def test_it_is_torchmils_on_the_patches_of_the_highest_scale(num_rows: int) -> None:
    model = as_torchmils(make())
    x, log_weight, _ = linked_bag(num_rows, 2, num_rows)
    logits = model(x, log_weight)
    assert logits.shape == (1, 1, K)
    for k in range(K):
        assert logits[0, 0, k].item() == pytest.approx(oracle(model, k)(x[:, :, -1]).item(), rel=1e-6)


def test_a_layer_adds_the_convolution_of_values_and_an_output_layer_as_the_papers_code_does() -> None:
    x, log_weight, _ = linked_bag(9, 2, 0)
    plain = as_torchmils(make())(x, log_weight)
    for name in ("res_conv.weight", "to_out.0.weight"):
        model = as_torchmils(make())
        own = make().layers[0].attention.get_parameter(name)
        with torch.no_grad():
            model.layers[0].attention.get_parameter(name).copy_(own)
        assert not torch.allclose(model(x, log_weight), plain)
    attention = make().layers[0].attention
    assert (attention.heads, attention.num_landmarks, attention.pinv_iterations) == (8, M // 2, 6)
    assert attention.to_qkv.out_features == 3 * M
    assert attention.to_out[1].p == 0.1
    assert attention.res_conv.kernel_size == (33, 1)


def test_it_knows_the_order_of_the_patches() -> None:
    model = make()
    x, log_weight, _ = linked_bag(9, 2, 0)
    assert not torch.allclose(model(x.flip(1), log_weight), model(x, log_weight), atol=1e-6)


def test_padding_between_rows_changes_nothing() -> None:
    model, (own, weight) = make(), linked_bag(3, 2, 0)[:2]
    x, log_weight = padded(own, weight, 7.0, 17)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    order[order < 3] = torch.arange(3)  # the real rows keep their order
    close_to(model(x[:, order], log_weight[:, order]), model(own, weight))


def test_every_weight_trains() -> None:
    model = make().train()
    model(*linked_bag(9, 2, 0)[:2]).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert {name for name, p in model.named_parameters() if not p.grad.any()} == set()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nystrom_attention", None)
    with pytest.raises(
        SettingsError, match="method: transmil needs nystrom-attention, which is not installed. Run: pip install nys"
    ):
        get_network("transmil", num_classes=K, num_features=F)
    get_network("clam_sb", num_classes=K, num_features=F)


def test_too_few_nodes_are_refused() -> None:
    with pytest.raises(SettingsError, match="num_nodes: got 1. Give a whole number from 2 up"):
        TransMIL(K, 2, F, 1)
