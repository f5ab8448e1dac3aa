"""DSMIL: against torchmil for one class and plain loops for several, and the loss of its streams."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchmil.models
from torch import Tensor

from scripts.networks.dsmil import DSMIL, DualStreamLoss
from tests.networks.test_bag_network import linked_bag
from tests.networks.test_pooling import close_to

F, M, K = 8, 4, 3
scales = pytest.mark.parametrize("num_scales", [1, 2, 3])


def make(num_classes: int = K, num_scales: int = 2, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return DSMIL(num_classes, num_scales, F, M).double().eval()


def oracle(model: Any) -> Any:
    """torchmil's DSMIL, which has one class, with the weights of ours."""
    made = torchmil.models.DSMIL((model.query.in_features,), M).double()
    made.q_nn.load_state_dict(model.query.state_dict())
    made.inst_classifier.load_state_dict(model.instance_classifier.state_dict())
    made.bag_classifier.load_state_dict(model.myfc.state_dict())
    return made.eval()


def rows_of(x: Tensor) -> Tensor:
    return torch.cat(list(x.unbind(2)), dim=2)  # [B, N, S * F]


@scales
def test_with_one_class_it_is_torchmils_on_the_features_of_each_row(num_scales: int) -> None:
    model = make(1, num_scales)
    x, log_weight, _ = linked_bag(9, num_scales, 0)
    logits, attention = model.attend(x, log_weight)
    theirs = oracle(model)
    assert logits[0, 0].tolist() == pytest.approx(theirs.predict(rows_of(x)).tolist(), rel=1e-9)
    close_to(attention[0, :, 0], theirs(rows_of(x), return_att=True)[1][0])


@scales
def test_with_several_classes_each_attends_to_what_is_like_its_critical_instance(num_scales: int) -> None:
    model = make(K, num_scales)
    x, log_weight, _ = linked_bag(9, num_scales, 1)
    logits, attention = (value[0].detach().numpy() for value in model.attend(x, log_weight))
    h = rows_of(x)[0].numpy()
    p = {name: value.numpy() for name, value in model.state_dict().items()}
    scores = h @ p["instance_classifier.weight"].T + p["instance_classifier.bias"]
    q = h @ p["query.weight"].T + p["query.bias"]
    pooled, critical = [], scores.argmax(axis=0)
    assert len(set(critical)) > 1
    for k in range(K):
        likeness = [math.exp(sum(q[j] * q[critical[k]]) / math.sqrt(M)) for j in range(len(h))]
        a = np.array(likeness) / sum(likeness)
        assert attention[:, 0, k] == pytest.approx(a, rel=1e-9)
        pooled.append(sum(a[j] * h[j] for j in range(len(h))))
    second = p["myfc.weight"] @ np.concatenate(pooled) + p["myfc.bias"]
    assert logits[0] == pytest.approx((scores.max(axis=0) + second) / 2, rel=1e-9)


def test_the_loss_is_half_of_torchmils_two() -> None:
    model = make(1).train()
    x, log_weight, _ = linked_bag(9, 2, 0)
    for label in (0.0, 1.0):
        _, losses = oracle(model).compute_loss(torch.tensor([label], dtype=torch.float64), rows_of(x))
        wanted = (losses["BCEWithLogitsLoss"] + losses["BCEWithLogitsLoss_max"]) / 2
        loss = DualStreamLoss()(model(x, log_weight), torch.tensor([[label]]))
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)  # torchmil's is in float32


def test_the_heads_logit_is_the_mean_of_the_streams_that_training_gives() -> None:
    model = make()
    x, log_weight, _ = linked_bag(9, 2, 0)
    plain, trained = model(x, log_weight), model.train()(x, log_weight)
    assert plain.shape == (1, 1, K)
    assert trained.shape == (1, 3, K)
    assert torch.equal(trained[:, :1], plain)
    close_to(trained[:, 1:].mean(dim=1), plain[:, 0])


def test_every_weight_trains() -> None:
    model = make().train()
    DualStreamLoss()(model(*linked_bag(9, 2, 0)[:2]), torch.tensor([[1, 0, 1]])).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_rows_that_are_the_same_share_the_critical_instance() -> None:
    model = make()
    x, log_weight, _ = linked_bag(5, 2, 0)
    *_, once = model.explain(x, log_weight)
    *_, twice = model.explain(x.repeat_interleave(2, dim=1), log_weight.repeat_interleave(2, dim=1) - math.log(2))
    close_to(twice[:, 0::2], once / 2)
    close_to(twice[:, 1::2], once / 2)


def test_logits_without_streams_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted logits of the head and of two streams, .*, got \[2, 1, 3\]"):
        DualStreamLoss()(torch.zeros(2, 1, K), torch.zeros(2, K))
