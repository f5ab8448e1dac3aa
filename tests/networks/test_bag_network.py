"""What each row adds to each logit, of every method: that it adds up, against plain loops, shared patches, padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks import convert_to_torchscript
from torch import Tensor, nn

from scripts.bags.grid import row_log_weight
from scripts.networks.bag_network import BagNetwork
from scripts.networks.baselines import MSMIL, SSMIL, HighestScaleMIL
from scripts.networks.dsmil import DSMIL
from scripts.networks.methods import METHODS, attention_maps, get_loss, get_network
from scripts.networks.mustmil import MuSTMIL

F, M, K = 8, 4, 3
few = settings(max_examples=20, deadline=None)
methods = pytest.mark.parametrize("method", METHODS)
mapped_methods = pytest.mark.parametrize("method", [method for method in METHODS if attention_maps(method, (5, 10))])
branch_methods = pytest.mark.parametrize("method", ["mustmil", "msmil", "ssmil"])
# Those that have a map of each scale, over that scale's patches, as their last maps.
scale_methods = pytest.mark.parametrize("method", ["mustmil", "msmil", "ssmil", "mean", "abmil", "late_fusion"])
# MONAI's model and TransMIL take the bags of a batch one by one, which TorchScript cannot follow.
weighed = [method for method in METHODS if method not in ("mil_att", "mil_att_trans", "transmil")]
scripted_methods = pytest.mark.parametrize("method", weighed)
seeds = st.integers(0, 2**16)


def network(method: str, num_scales: int = 2, seed: int = 0) -> BagNetwork:
    torch.manual_seed(seed)
    made = get_network(method, num_classes=K, num_scales=num_scales, num_features=F, num_nodes=M)
    return made.double().eval()


def linked_bag(num_rows: int, num_scales: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Features ``[1, N, S, F]`` and log weights of rows that share patches of the lower scales, and the rows."""
    rng = np.random.default_rng(seed)
    rows = np.stack([np.arange(num_rows) // 2 ** (num_scales - 1 - s) for s in range(num_scales)], axis=1)
    patches = rng.normal(size=(num_rows, num_scales, F))
    x = np.stack([patches[rows[:, s], s] for s in range(num_scales)], axis=1)
    return torch.from_numpy(x)[None], torch.from_numpy(row_log_weight(rows)).double()[None], rows


def padded(x: Tensor, log_weight: Tensor, garbage: float, number: int = 3) -> tuple[Tensor, Tensor]:
    size = (len(x), number, x.shape[2])
    return (
        torch.cat([x, torch.full((*size, F), garbage, dtype=x.dtype)], dim=1),
        torch.cat([log_weight, torch.full(size, -math.inf, dtype=x.dtype)], dim=1),
    )


def classifiers(model: Any, head: int) -> list[nn.Linear]:
    """The classifiers of which the logits of an output are the mean."""
    if isinstance(model, DSMIL):
        return [model.myfc, model.instance_classifier]
    return [model.myfc[head] if isinstance(model.myfc, nn.ModuleList) else model.myfc]


def biases(model: BagNetwork) -> Tensor:
    """The classifiers' bias of each output that gives a result, ``[H, K]``."""
    heads = range(1 + max(model.map_heads))
    means = [torch.stack([of.bias.detach() for of in classifiers(model, head)]).mean(dim=0) for head in heads]
    return torch.stack(means)


def sums(model: BagNetwork, maps: Tensor) -> Tensor:
    """The sum over the rows and the maps of each output, ``[B, H, K]`` of ``[B, N, M, K]``."""
    heads = range(1 + max(model.map_heads))
    return torch.stack(
        [sum(maps[:, :, m].sum(dim=1) for m, of in enumerate(model.map_heads) if of == head) for head in heads],  # type: ignore[misc]
        dim=1,
    )


# --- it adds up -------------------------------------------------------------------------------------------


@mapped_methods
@few
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 3), seeds)
def test_the_contributions_of_all_rows_and_the_bias_are_the_logit(
    method: str, scales: int, rows: int, padding: int, seed: int
) -> None:
    model = network(method, scales, seed)
    x, log_weight, _ = linked_bag(rows, scales, seed)
    batch = padded(torch.cat([x, -2 * x]), log_weight.expand(2, -1, -1), 7.0, padding)
    logits, attention, contribution = model.explain(*batch)
    assert contribution.shape == attention.shape == (2, rows + padding, len(model.map_heads), K)
    torch.testing.assert_close(sums(model, contribution) + biases(model), logits, rtol=1e-12, atol=1e-12)


@methods
def test_logits_and_attention_are_those_of_attend(method: str) -> None:
    model = network(method)
    batch = padded(*linked_bag(6, 2, 0)[:2], 7.0)
    logits, attention, _ = model.explain(*batch)
    assert torch.equal(logits, model.attend(*batch)[0])
    assert torch.equal(attention, model.attend(*batch)[1])
    assert torch.equal(logits, model(*batch))


@mapped_methods
def test_in_float32_it_adds_up_to_what_float32_can_tell(method: str) -> None:
    model = network(method).float()
    x, log_weight, _ = linked_bag(400, 2, 0)
    logits, _, contribution = model.explain(x.float(), log_weight.float())
    torch.testing.assert_close(sums(model, contribution) + biases(model), logits, rtol=1e-5, atol=1e-5)


# --- whatever the caller's precision --------------------------------------------------------------------------


casts = pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])


@methods
@casts
def test_an_autocast_around_the_network_does_not_change_a_digit(method: str, cast: torch.dtype) -> None:
    model = network(method).float()
    x, log_weight = (t.float() for t in padded(*linked_bag(50, 2, 0)[:2], 7.0))
    joined = torch.cat([x, log_weight.unsqueeze(-1)], dim=-1)
    calls: list[Callable[[], Tensor | tuple[Tensor, ...]]] = [
        lambda: model.explain(x, log_weight),
        lambda: model.attend(x, log_weight),
        lambda: model(x, log_weight),
        lambda: model(joined),
        lambda: model.calc_head(x, log_weight),
    ]
    for call in calls:
        expected = call()
        with torch.autocast("cpu", dtype=cast):
            found = call()
        pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
        for one, other in pairs:
            assert one.dtype == torch.float32
            assert torch.equal(one, other)  # type: ignore[arg-type]


@methods
def test_an_autocast_for_gpus_is_off_inside(method: str) -> None:
    model, seen = network(method), []
    for layer in model.modules():
        if layer is not model:
            layer.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cuda")))
    torch.set_autocast_enabled("cuda", True)
    try:
        model.explain(*linked_bag(4, 2, 0)[:2])
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert seen
    assert not any(seen)


@methods
@casts
def test_a_probability_just_below_a_half_stays_below(method: str, cast: torch.dtype) -> None:
    model = network(method).float()
    x, log_weight = (t.float() for t in linked_bag(6, 2, 0)[:2])
    logit = math.log(0.4999 / 0.5001)  # which is 0.5 in 11 bits
    for head in range(model(x, log_weight).shape[1]):
        with torch.no_grad():
            change = logit - model(x, log_weight)[0, head]
            for classify in classifiers(model, head):
                classify.bias += change
    with torch.autocast("cpu", dtype=cast):
        probabilities = model(x, log_weight).sigmoid()
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 0.4999), rtol=0, atol=1e-6)
    assert bool((probabilities < 0.5).all())


@methods
@casts
def test_the_loss_and_its_gradient_are_in_full_precision_too(method: str, cast: torch.dtype) -> None:
    x, log_weight = (t.float() for t in linked_bag(6, 2, 0)[:2])

    def step(enabled: bool) -> list[Tensor]:
        model = network(method).float().train()
        model.start_phase(0)
        with torch.autocast("cpu", dtype=cast, enabled=enabled):
            loss = get_loss(method, model)(model(x, log_weight), torch.tensor([[1, 0, 1]]))
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    plain, under_autocast = step(False), step(True)
    assert len(plain) > 3
    for one, other in zip(under_autocast, plain, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@casts
def test_a_backbone_may_be_autocast_and_the_heads_are_not(cast: torch.dtype) -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, F))
    model = MuSTMIL(K, 2, F, M, backbone=backbone)
    patches = torch.randn(1, 4, 2, 3, 2, 2)
    with torch.autocast("cpu", dtype=cast):
        features, explained = model(patches, no_head=True), model.explain(patches)
    assert features.dtype == cast
    for one, other in zip(explained, model.explain(features.float()), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


# --- against the definition, one number at a time -----------------------------------------------------------


def pooled_instances(model: BagNetwork, x: np.ndarray) -> Iterator[tuple[int, list[int], np.ndarray]]:
    """For each output its branch, its maps, and the instances ``[N, width]`` that each map lies on, as ``[m, ...]``."""
    p = {name: value.numpy() for name, value in model.state_dict().items()}
    scales = range(x.shape[1])
    if isinstance(model, HighestScaleMIL):
        yield 0, [0], x[None, :, -1]
        return
    h = [x[:, s] @ p[f"embed.{s}.weight"].T + p[f"embed.{s}.bias"] for s in scales]
    if isinstance(model, MSMIL):
        yield 0, list(scales), np.stack(h)
    if isinstance(model, MuSTMIL):
        yield 0, [0], np.concatenate(h, axis=1)[None]
    if isinstance(model, MuSTMIL | SSMIL):
        first = len(model.map_heads) - len(scales)
        for s in scales:
            yield first + s, [first + s], h[s][None]


@pytest.mark.parametrize("method", ["mustmil", "msmil", "ssmil", "mil_att"])
@few
@given(st.integers(1, 3), st.integers(1, 6), seeds)
def test_a_contribution_is_the_attended_part_of_the_classifiers_product(
    method: str, scales: int, rows: int, seed: int
) -> None:
    model = network(method, scales, seed)
    x, log_weight, _ = linked_bag(rows, scales, seed)
    with torch.no_grad():
        _, attention, contribution = (value[0].numpy() for value in model.explain(x, log_weight))
    p = {name: value.numpy() for name, value in model.state_dict().items()}
    covered = set()
    for branch, maps, instances in pooled_instances(model, x[0].numpy()):
        # MONAI's model has one attention, and its classifier one vector a class.
        weight = p["myfc.weight"][:, None] if method == "mil_att" else p[f"myfc.{branch}.weight"].reshape(K, K, -1)
        for m, of_map in zip(maps, instances, strict=True):
            for j, k in np.ndindex(rows, K):
                wanted = 0.0
                for other in range(weight.shape[1]):
                    for i in range(weight.shape[2]):
                        wanted += attention[j, m, other] * weight[k, other, i] * of_map[j, i]
                assert contribution[j, m, k] == pytest.approx(wanted, rel=1e-9, abs=1e-12)
            covered.add(m)
    assert covered == set(range(len(model.map_heads)))


def test_with_transformed_patches_the_transformed_ones_contribute() -> None:
    model = network("mil_att_trans")
    x = linked_bag(5, 2, 0)[0]
    seen: list[Tensor] = []
    assert model.transformer is not None
    model.transformer.register_forward_hook(lambda _module, _inputs, output: seen.append(output[:, 0]))
    _, attention, contribution = model.explain(x)
    votes = seen[0] @ model.get_parameter("myfc.weight").T  # [N, K]
    torch.testing.assert_close(contribution[0, :, 0], attention[0, :, 0] * votes, rtol=1e-12, atol=1e-12)


# --- rows, shared patches and padding -----------------------------------------------------------------------


@scale_methods
@few
@given(st.integers(2, 3), st.integers(1, 9), seeds)
def test_rows_that_share_a_patch_share_its_contribution_equally(method: str, scales: int, rows: int, seed: int) -> None:
    model = network(method, scales, seed)
    x, log_weight, links = linked_bag(rows, scales, seed)
    contribution = model.explain(x, log_weight)[2][0]  # [N, M, K]
    own = contribution[:, -scales:]  # the maps of the scales come last
    for s in range(scales):
        for patch in np.unique(links[:, s]):
            of_patch = own[links[:, s] == patch, s]
            torch.testing.assert_close(of_patch, of_patch[:1].expand_as(of_patch), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["msmil", "ssmil", "mean", "abmil", "late_fusion"])
def test_a_shared_patch_contributes_what_it_does_in_a_bag_of_unique_patches(method: str) -> None:
    # Of two scales, with two rows to each low patch: the low patches alone are a bag of half the rows.
    model = network(method)
    x, log_weight, links = linked_bag(8, 2, 0)
    contribution = model.explain(x, log_weight)[2][0, :, 0]  # [8, K], of the low scale
    summed = torch.zeros(4, K, dtype=x.dtype).index_add(0, torch.from_numpy(links[:, 0]), contribution)
    if method != "msmil":
        alone = model.explain(x[:, ::2])[2][0, :, 0]
    else:  # in the union the low patches come once, the high ones all
        low, high = x[:, ::2, 0], x[:, :, 1]
        rows = torch.stack([torch.cat([low, torch.zeros_like(low)], dim=1), high], dim=2)
        weight = torch.zeros(1, 8, 2, dtype=x.dtype)
        weight[:, 4:, 0] = -1e9  # no padding, as the row has a high patch, but no attention either
        alone = model.explain(rows, weight)[2][0, :4, 0]
    torch.testing.assert_close(summed, alone, rtol=1e-6, atol=1e-9)


@methods
@pytest.mark.parametrize("garbage", [7.0, -1e300, math.inf, math.nan])
def test_padding_contributes_nothing_and_changes_nothing(method: str, garbage: float) -> None:
    model = network(method)
    x, log_weight, _ = linked_bag(6, 2, 0)
    logits, _, contribution = model.explain(x, log_weight)
    same, _, with_padding = model.explain(*padded(x, log_weight, garbage))
    torch.testing.assert_close(same, logits, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(with_padding[:, :6], contribution, rtol=1e-9, atol=1e-12)
    assert (with_padding[:, 6:] == 0).all()


@pytest.mark.parametrize("method", [method for method in METHODS if method != "transmil"])
@few
@given(st.integers(1, 3), st.integers(2, 9), seeds)
def test_the_order_of_rows_changes_nothing(method: str, scales: int, rows: int, seed: int) -> None:
    model = network(method, scales, seed)
    x, log_weight, _ = linked_bag(rows, scales, seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(rows))
    logits, attention, _ = model.explain(x, log_weight)
    same, permuted, _ = model.explain(x[:, order], log_weight[:, order])
    torch.testing.assert_close(same, logits, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(permuted, attention[:, order], rtol=1e-9, atol=1e-12)


@methods
def test_the_other_bags_of_a_batch_change_nothing(method: str) -> None:
    model = network(method)
    bags = [linked_bag(rows, 2, rows)[:2] for rows in (3, 20, 12)]
    batch = [padded(x, log_weight, 7.0, 20 - x.shape[1]) for x, log_weight in bags]
    logits = model(torch.cat([x for x, _ in batch]), torch.cat([log_weight for _, log_weight in batch]))
    for b, bag in enumerate(bags):
        torch.testing.assert_close(logits[b], model(*bag)[0], rtol=1e-9, atol=1e-12)


# MONAI's model has no weights of rows, and TransMIL takes each row for a patch of its own.
@pytest.mark.parametrize("method", weighed)
def test_rows_that_come_twice_with_half_of_the_weight_change_nothing(method: str) -> None:
    model = network(method)
    x, log_weight, _ = linked_bag(6, 2, 0)
    twice = x.repeat(1, 2, 1, 1), log_weight.repeat(1, 2, 1) - math.log(2)
    torch.testing.assert_close(model(*twice), model(x, log_weight), rtol=1e-9, atol=1e-12)


@methods
def test_bags_that_cannot_be_scored_cannot_be_explained(method: str) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        network(method).explain(torch.zeros(1, 0, 2, F))
    with pytest.raises(ValueError, match="features must be"):
        network(method).explain(torch.zeros(1, 4, 2, F + 2))


# --- what the network can be -------------------------------------------------------------------------------


@branch_methods
def test_outputs_that_a_phase_does_not_train_have_no_contribution(method: str) -> None:
    model = network(method)
    x, log_weight, _ = linked_bag(6, 2, 0)
    for phase in range(len(model.phases)):
        model.start_phase(phase)
        logits, attention, contribution = model.explain(x, log_weight)
        assert torch.equal(contribution.isnan(), attention.isnan())
        for m, head in enumerate(model.map_heads):
            assert bool(contribution[:, :, m].isfinite().all()) == bool(logits[:, head].isfinite().all())


def test_patches_are_explained_as_their_features_are() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, F))
    model = MuSTMIL(K, 2, F, M, backbone=backbone)
    patches = torch.randn(1, 4, 2, 3, 2, 2)
    features = backbone(patches.flatten(0, 2)).reshape(1, 4, 2, F)
    for one, other in zip(model.explain(patches), model.explain(features), strict=True):
        torch.testing.assert_close(one, other)


@scripted_methods
def test_torchscript_explains_the_same(method: str) -> None:
    model = network(method)
    batch = padded(*linked_bag(6, 2, 0)[:2], 7.0)
    for one, other in zip(convert_to_torchscript(model).explain(*batch), model.explain(*batch), strict=True):
        torch.testing.assert_close(one, other)
