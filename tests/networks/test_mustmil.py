"""The network: against the paper's equations in plain loops, linked rows, padding, and its contracts."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks import convert_to_torchscript
from monai.networks.nets import MILModel, milmodel
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.networks.losses import MultiScaleLoss
from scripts.networks.mustmil import MuSTMIL

INF = math.inf
F, M, K = 6, 4, 3
few = settings(max_examples=25, deadline=None)
scale_counts = st.integers(1, 3)
seeds = st.integers(0, 2**16)


def network(num_scales: int = 2, seed: int = 0, **kwargs: object) -> MuSTMIL:
    torch.manual_seed(seed)
    return MuSTMIL(K, num_scales, F, M, **kwargs)  # type: ignore[arg-type]


def backbone() -> nn.Module:
    """A convolution with batch norm, [n, 3, H, W] -> [n, F]."""
    return nn.Sequential(nn.Conv2d(3, F, 3), nn.BatchNorm2d(F), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def bags(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Everything a module holds, whatever it leaves out of its state dict."""
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


# --- the paper's equations, one number at a time, in float64 ---------------------------------------------


def linear(weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    rows = [sum(weight[i, j] * x[j] for j in range(len(x))) for i in range(len(weight))]
    return np.array(rows) + (0.0 if bias is None else bias)


def branch(p: dict[str, np.ndarray], index: int, h: list[np.ndarray], g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One branch on the h of each row: logits [K], attention [N, K]."""
    score = [
        linear(
            p[f"attention.{index}.2.weight"],
            None,
            np.tanh(linear(p[f"attention.{index}.0.weight"], p[f"attention.{index}.0.bias"], row)),
        )
        for row in h
    ]
    a = np.zeros((len(h), K))
    for k in range(K):
        total = sum(math.exp(score[j][k] + g[j]) for j in range(len(h)))
        for j in range(len(h)):
            a[j, k] = math.exp(score[j][k] + g[j]) / total
    z = [sum(a[j, k] * h[j] for j in range(len(h))) for k in range(K)]
    return linear(p[f"myfc.{index}.weight"], p[f"myfc.{index}.bias"], np.concatenate(z)), a


def reference(model: MuSTMIL, x: Tensor, g: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits [1 + S, K] and attention [N, 1 + S, K] of one bag [N, S, F] with log weights [N, S]."""
    p = {name: value.double().numpy() for name, value in model.state_dict().items()}
    scales = [
        [linear(p[f"embed.{s}.weight"], p[f"embed.{s}.bias"], row) for row in x[:, s].double().numpy()]
        for s in range(x.shape[1])
    ]
    joined = [np.concatenate([scale[j] for scale in scales]) for j in range(len(x))]
    weights = g.double().numpy()
    results = [branch(p, 0, joined, weights[:, -1])]
    results += [branch(p, 1 + s, scales[s], weights[:, s]) for s in range(len(scales))]
    return np.stack([y for y, _ in results]), np.stack([a for _, a in results], axis=1)


@few
@given(scale_counts, st.integers(1, 5), st.integers(1, 2), seeds)
def test_computes_the_equations_of_the_paper(scales: int, rows: int, batch: int, seed: int) -> None:
    model = network(scales, seed)
    x = bags((batch, rows, scales, F), seed)
    log_weight = -torch.rand(batch, rows, scales, generator=torch.Generator().manual_seed(seed))

    logits, attention = model.attend(x, log_weight)

    for b in range(batch):
        wanted_logits, wanted_attention = reference(model, x[b], log_weight[b])
        np.testing.assert_allclose(logits[b].detach(), wanted_logits, atol=1e-5)
        np.testing.assert_allclose(attention[b].detach(), wanted_attention, atol=1e-5)


def test_without_log_weights_every_row_is_plain() -> None:
    model, x = network(), bags((2, 5, 2, F))
    wanted = np.stack([reference(model, bag, torch.zeros(5, 2))[0] for bag in x])
    np.testing.assert_allclose(model(x).detach(), wanted, atol=1e-5)
    assert torch.equal(model(x), model(x, torch.zeros(2, 5, 2)))


def test_a_bag_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    model, x = network(), bags((3, 5, 2, F))
    assert close(model(x)[1:2], model(x[1:2]))


# --- rows, shared patches and padding ---------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 4), st.integers(0, 8))
def test_weights_of_shared_patches_make_linked_rows_equal_unique_patches(seed: int, unique: int, more: int) -> None:
    model = network(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    parent = torch.cat([torch.arange(unique), torch.randint(unique, (more,), generator=generator)])
    low, high = bags((unique, F), seed), bags((unique + more, F), seed + 1)
    x = torch.stack([low[parent], high], dim=1)  # [N, 2, F]
    shared = torch.bincount(parent)[parent]
    log_weight = torch.stack([-shared.log(), torch.zeros(len(parent))], dim=1)  # [N, 2]

    logits, attention = model.attend(x[None], log_weight[None])

    p = {name: value.double().numpy() for name, value in model.state_dict().items()}
    h = [linear(p["embed.0.weight"], p["embed.0.bias"], patch) for patch in low.double().numpy()]
    wanted_logits, wanted_attention = branch(p, 1, h, np.zeros(unique))
    np.testing.assert_allclose(logits[0, 1].detach(), wanted_logits, atol=1e-5)
    summed = torch.zeros(unique, K).index_add_(0, parent, attention[0, :, 1].detach())
    np.testing.assert_allclose(summed, wanted_attention, atol=1e-5)


def test_shared_patches_change_their_own_scale_only() -> None:
    model, x = network(), bags((1, 4, 2, F))
    log_weight = torch.zeros(1, 4, 2)
    log_weight[0, :3, 0] = -math.log(3)
    plain, weighted = model(x), model(x, log_weight)
    assert not close(plain[:, 1], weighted[:, 1])
    assert close(plain[:, [0, 2]], weighted[:, [0, 2]])


@few
@given(scale_counts, st.integers(1, 6), seeds)
def test_the_order_of_rows_does_not_matter(scales: int, rows: int, seed: int) -> None:
    model, x = network(scales, seed), bags((2, rows, scales, F), seed)
    log_weight = -bags((2, rows, scales), seed + 1).abs()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    logits, attention = model.attend(x, log_weight)
    moved_logits, moved_attention = model.attend(x[:, order], log_weight[:, order])
    assert close(logits, moved_logits)
    assert close(attention[:, order], moved_attention)


@pytest.mark.parametrize("garbage", [0.0, 7.0, -1e30, INF, math.nan])
def test_padding_changes_nothing_whatever_it_holds(garbage: float) -> None:
    model, x = network(), bags((2, 3, 2, F))
    padded = torch.cat([x, torch.full((2, 4, 2, F), garbage)], dim=1)
    log_weight = torch.zeros(2, 7, 2)
    log_weight[:, 3:] = -INF

    logits, attention = model.attend(padded, log_weight)
    assert close(logits, model(x))
    assert torch.all(attention[:, 3:] == 0)
    gradients = torch.autograd.grad(logits.sum(), list(model.parameters()))
    wanted = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    assert all(close(got, want) for got, want in zip(gradients, wanted, strict=True))


def test_features_are_copied_for_padding_that_is_not_silent_alone() -> None:
    model, x, log_weight = network(), bags((2, 5, 2, F)), torch.zeros(2, 5, 2)
    assert model._checked(x, log_weight)[0] is x
    log_weight[1, 3:] = -INF
    x[1, 3:] = 0.0
    assert model._checked(x, log_weight)[0] is x
    x[1, 4, 1, 2] = math.nan
    silent = model._checked(x, log_weight)[0]
    assert torch.equal(silent[1, 3:], torch.zeros(2, 2, F))
    assert torch.equal(silent[1, :3], x[1, :3])
    assert x[1, 4, 1, 2].isnan()


@few
@given(scale_counts, st.integers(1, 5), st.integers(0, 3), seeds)
def test_attention_is_a_distribution_over_the_real_rows(scales: int, rows: int, padding: int, seed: int) -> None:
    model, x = network(scales, seed), bags((2, rows + padding, scales, F), seed)
    log_weight = torch.zeros(2, rows + padding, scales)
    log_weight[:, rows:] = -INF
    attention = model.attend(x, log_weight)[1]
    assert attention.shape == (2, rows + padding, 1 + scales, K)
    assert close(attention[:, :rows].sum(dim=1), torch.ones(2, 1 + scales, K))
    assert torch.all(attention >= 0)
    assert torch.all(attention[:, rows:] == 0)


def test_a_single_row_has_all_the_attention() -> None:
    logits, attention = network().attend(bags((1, 1, 2, F)))
    assert torch.all(attention == 1)
    assert logits.isfinite().all()


def test_a_bag_without_a_real_row_is_named() -> None:
    log_weight = torch.zeros(3, 4, 2)
    log_weight[1] = -INF
    with pytest.raises(ValueError, match=r"at least one row that is not padding, got none in \[1\] of the batch"):
        network()(bags((3, 4, 2, F)), log_weight)
    log_weight[1, :, 1] = 0
    with pytest.raises(ValueError, match=r"none in \[1\] of the batch"):
        network()(bags((3, 4, 2, F)), log_weight)
    with pytest.raises(ValueError, match="a bag needs at least one row, got features"):
        network()(bags((1, 0, 2, F)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padding_is_safe_in_half_precision(dtype: torch.dtype) -> None:
    model, x = network(), bags((2, 5, 2, F))
    log_weight = torch.zeros(2, 5, 2)
    log_weight[:, 3:] = -INF
    x[:, 3:] = 1e30
    cast = copy.deepcopy(model).to(dtype)
    logits, attention = cast.attend(x.clamp(max=1e4).to(dtype), log_weight)
    logits.sum().backward()
    assert logits.dtype == dtype
    assert torch.allclose(logits.float(), model(x, log_weight), atol=0.05)
    assert torch.all(attention[:, 3:] == 0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cast.parameters())


# --- shapes and settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(1, 4, 3, F)), r"features must be \[B, N, 2, 6\], got \[1, 4, 3, 6\]"),
        (lambda m: m(torch.zeros(1, 4, 2, F + 2)), r"features must be \[B, N, 2, 6\], got \[1, 4, 2, 8\]"),
        (
            lambda m: m(torch.zeros(4, 2, F)),
            r"x must be features \[B, N, 2, 6\] or patches .* got \[4, 2, 6\]",
        ),
        (lambda m: m(torch.zeros(1, 4, 2, 3, 8, 8)), "this network has no backbone, got patches"),
        (lambda m: m.calc_head(torch.zeros(4, F)), r"features must be \[B, N, 2, 6\], got \[4, 6\]"),
        (
            lambda m: m(torch.zeros(1, 4, 2, F), torch.zeros(1, 4)),
            r"log_weight must be \[1, 4, 2\], got \[1, 4\]",
        ),
    ],
)
def test_a_wrong_shape_says_what_was_wanted_and_what_came(call: Callable[[MuSTMIL], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(network())


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"num_nodes: got 1. Give a whole number from 2 up"):
        MuSTMIL(K, num_nodes=1)
    with pytest.raises(ValueError, match="must be positive, got 0 and 64"):
        MuSTMIL(K, num_scales=0)
    with pytest.raises(ValueError, match="Number of classes must be positive"):
        MuSTMIL(0)


def test_a_torchvision_name_must_give_the_features_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tiny(nn.Module):
        def __init__(self, weights: str | None) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fc(x.mean(dim=(2, 3)))
            return result

    monkeypatch.setattr(milmodel, "models", types.SimpleNamespace(tiny=Tiny))
    with pytest.raises(SettingsError, match=r"num_features: is 6, but 'tiny' gives 3 features. Set it to 3"):
        MuSTMIL(K, num_features=6, backbone="tiny")
    model = MuSTMIL(K, num_features=3, num_nodes=M, backbone="tiny", pretrained=False)
    assert model(bags((1, 2, 2, 3, 5, 5))).shape == (1, 3, K)


def test_the_default_sizes_are_the_papers() -> None:
    model = MuSTMIL(5)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["embed.0.weight"] == shapes["embed.1.weight"] == (128, 512)
    assert shapes["attention.0.0.weight"] == (64, 256)
    assert shapes["attention.1.0.weight"] == shapes["attention.2.0.weight"] == (64, 128)
    assert shapes["attention.2.2.weight"] == (5, 64)
    assert shapes["myfc.0.weight"] == (5, 5 * 256)
    assert shapes["myfc.2.weight"] == (5, 5 * 128)


# --- what trains ------------------------------------------------------------------------------------------


def gradient(model: MuSTMIL, loss: MultiScaleLoss) -> dict[str, float]:
    """The largest gradient of each parameter."""
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    loss(model(bags((2, 5, model.num_scales, F))), target).backward()
    return {name: 0.0 if p.grad is None else p.grad.abs().max().item() for name, p in model.named_parameters()}


def test_every_parameter_trains() -> None:
    assert all(value > 0 for value in gradient(network(3), MultiScaleLoss()).values())


def test_the_global_loss_reaches_every_scale_and_the_multi_scale_branch_only() -> None:
    for name, value in gradient(network(3), MultiScaleLoss(beta=0)).items():
        assert (value > 0) == name.startswith(("embed.", "attention.0.", "myfc.0.")), name


def test_the_scale_losses_do_not_reach_the_multi_scale_branch() -> None:
    for name, value in gradient(network(3), MultiScaleLoss(alpha=0)).items():
        assert (value == 0) == name.startswith(("attention.0.", "myfc.0.")), name


@pytest.mark.parametrize("only_trainable", [True, False])
def test_nothing_of_a_frozen_backbone_moves_in_training(only_trainable: bool) -> None:
    model = network(backbone=backbone()).train()
    before = snapshot(model.net)
    heads_before = snapshot(model.embed)
    parameters = [p for p in model.parameters() if p.requires_grad or not only_trainable]
    optimizer = torch.optim.Adam(parameters, lr=0.1, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        loss = MultiScaleLoss()(model(bags((2, 4, 2, 3, 8, 8), step)), torch.ones(2, K))
        loss.backward()
        optimizer.step()
    assert not model.net.training
    assert not any(p.requires_grad for p in model.net.parameters())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model.net).items())
    assert not any(torch.equal(value, heads_before[name]) for name, value in snapshot(model.embed).items())


def test_an_unfrozen_backbone_trains_is_saved_and_loads() -> None:
    model = network(backbone=backbone(), freeze_backbone=False).train()
    before = snapshot(model.net)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    MultiScaleLoss()(model(bags((2, 4, 2, 3, 8, 8))), torch.ones(2, K)).backward()
    optimizer.step()
    moved = {name for name, value in snapshot(model.net).items() if not torch.equal(value, before[name])}
    assert {"0.weight", "1.weight", "1.running_mean"} <= moved

    other = network(seed=1, backbone=backbone(), freeze_backbone=False)
    other.load_state_dict(model.state_dict())
    x = bags((1, 4, 2, 3, 8, 8))
    assert torch.equal(other.eval()(x), model.eval()(x))


# --- patches and features ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encode_batch", [1, 3, 64])
def test_patches_score_as_their_features_do(encode_batch: int) -> None:
    net = backbone().eval()
    model = network(backbone=net, encode_batch=encode_batch).train()
    x = bags((2, 4, 2, 3, 8, 8))
    features = torch.stack([torch.stack([net(row) for row in bag]) for bag in x])  # [2, 4, 2, F]
    assert close(model(x, no_head=True), features)
    assert not model(x, no_head=True).requires_grad
    assert close(model(x), network()(features))
    assert close(model(features), network()(features))


def test_no_more_patches_at_once_than_encode_batch() -> None:
    seen: list[int] = []
    net = backbone()
    net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    network(backbone=net, encode_batch=5)(bags((1, 4, 2, 3, 8, 8)))
    assert seen == [5, 3]


def test_integer_patches_reach_the_backbone_as_they_are() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.uint8
            return (x / 255).mean(dim=(2, 3)).repeat(1, 2)

    x = torch.randint(256, (1, 4, 2, 3, 8, 8), dtype=torch.uint8)
    assert network(backbone=Scale())(x).isfinite().all()


def test_networks_on_features_and_on_patches_share_checkpoints() -> None:
    features, patches = network(seed=1), network(seed=2, backbone=backbone())
    net = snapshot(patches.net)
    assert features.state_dict().keys() == patches.state_dict().keys()
    x = bags((1, 4, 2, F))

    assert not close(patches.calc_head(x), features(x))
    patches.load_state_dict(features.state_dict(), strict=True)
    assert torch.equal(patches.calc_head(x), features(x))
    assert all(torch.equal(value, net[name]) for name, value in snapshot(patches.net).items())

    trained = network(seed=3, backbone=backbone())
    features.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(trained.calc_head(x), features(x))


def test_checkpoints_stay_strict() -> None:
    patches = network(backbone=backbone())
    net = snapshot(patches.net)
    state = patches.state_dict()
    del state["embed.0.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"embed.0.weight\""):
        patches.load_state_dict(state)
    fine_tuned = network(seed=1, backbone=backbone(), freeze_backbone=False).state_dict()
    for frozen in (patches, network()):
        with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"net.0.weight\""):
            frozen.load_state_dict(fine_tuned)
        unexpected = frozen.load_state_dict(fine_tuned, strict=False).unexpected_keys
        assert sorted(unexpected) == sorted(key for key in fine_tuned if key.startswith("net."))
    assert all(torch.equal(value, net[name]) for name, value in snapshot(patches.net).items())


def test_the_backbone_stays_out_of_the_checkpoint_inside_another_module() -> None:
    wrapped = nn.ModuleDict({"module": network(backbone=backbone())})
    state = wrapped.state_dict()
    assert state.keys() == {f"module.{name}" for name in network().state_dict()}
    wrapped.load_state_dict(state)


def test_a_deep_copy_is_whole_and_independent() -> None:
    model = network(backbone=backbone())
    twin = copy.deepcopy(model)
    x = bags((1, 4, 2, 3, 8, 8))
    assert torch.equal(twin(x), model(x))
    assert twin.state_dict().keys() == model.state_dict().keys()
    nn.init.zeros_(twin.get_parameter("embed.0.weight"))
    assert not close(twin(x), model(x))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))
    del model
    twin.load_state_dict(twin.state_dict())


# --- MONAI and export -------------------------------------------------------------------------------------


def test_it_is_used_as_a_mil_model_is() -> None:
    model = network(backbone=backbone())
    assert isinstance(model, MILModel)
    x = bags((2, 4, 2, 3, 8, 8))
    features = model(x, no_head=True)
    assert features.shape == (2, 4, 2, F)
    assert torch.equal(model.calc_head(features), model(x))
    assert isinstance(model.net, nn.Module)
    assert len(model.attention) == len(model.myfc) == 3


@pytest.mark.parametrize("on_patches", [False, True])
@pytest.mark.parametrize("use_trace", [False, True])
def test_torchscript_gives_the_same_outputs(on_patches: bool, use_trace: bool) -> None:
    model = network(backbone=backbone()).eval() if on_patches else network().eval()
    x = bags((2, 4, 2, 3, 8, 8) if on_patches else (2, 4, 2, F))
    log_weight = torch.zeros(2, 4, 2)
    log_weight[0, 2:] = -INF
    exported = convert_to_torchscript(model, inputs=(x, log_weight), use_trace=use_trace)
    assert close(exported(x, log_weight), model(x, log_weight))
    log_weight[:, 0] = -INF
    assert close(exported(x.flip(1), log_weight), model(x.flip(1), log_weight))
    if not use_trace:
        assert close(exported(x), model(x))
        assert close(exported.attend(x, log_weight)[1], model.attend(x, log_weight)[1])


@pytest.mark.parametrize("export", [lambda m: m, torch.jit.script], ids=["network", "TorchScript"])
def test_features_and_log_weight_may_come_as_one_tensor(export: Callable[[MuSTMIL], MuSTMIL]) -> None:
    model = MuSTMIL(K, 2, F, M).eval()
    x, log_weight = torch.randn(2, 5, 2, F), -torch.rand(2, 5, 2)
    log_weight[1, 3:] = -INF
    joined = torch.cat([x, log_weight.unsqueeze(-1)], dim=3)
    exported = export(model)
    for call in ("forward", "attend", "explain"):
        one, two = getattr(exported, call)(joined), getattr(model, call)(x, log_weight)
        for a, b in zip(one, two, strict=True) if isinstance(one, tuple) else [(one, two)]:
            assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(model(joined), model(x), atol=1e-4)


def test_torch_export_gives_the_same_outputs() -> None:
    model, x = network(backbone=backbone()).eval(), bags((1, 4, 2, 3, 8, 8))
    exported = torch.export.export(model, (x, torch.zeros(1, 4, 2)))
    assert close(exported.module()(x, torch.zeros(1, 4, 2)), model(x))
