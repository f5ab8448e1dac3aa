"""Gated attention and what it pools, one number at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scripts.core.errors import SettingsError
from scripts.networks.pooling import GatedBranch, PlainBranch, pooled_votes


def close_to(found: Tensor, wanted: Tensor) -> None:
    """Equal to what float64 tells."""
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_scores_are_those_of_the_papers_equation() -> None:
    torch.manual_seed(0)
    branch, x = GatedBranch(6, 5, num_attentions=3).double().eval(), torch.randn(2, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        h, scores = (value.numpy() for value in branch(x))
    p = {name: value.numpy() for name, value in branch.state_dict().items()}
    assert p["tanh.0.weight"].shape == p["gate.0.weight"].shape == (2, 5)
    for b, j in np.ndindex(2, 4):
        own = p["embed.0.weight"] @ x[b, j].numpy() + p["embed.0.bias"]
        own = np.where(own > 0, own, 0)
        u, v = (p[f"{name}.0.weight"] @ own + p[f"{name}.0.bias"] for name in ("gate", "tanh"))
        for k in range(3):
            terms = zip(p["score.weight"][k], v, u, strict=True)
            wanted = sum(w * math.tanh(a) / (1 + math.exp(-g)) for w, a, g in terms)
            assert scores[b, j, k] == pytest.approx(wanted, rel=1e-12)
        assert h[b, j] == pytest.approx(own, rel=1e-12)


def test_dropout_acts_in_training_mode_alone() -> None:
    torch.manual_seed(0)
    branch, x = GatedBranch(6, 64, dropout=0.25), torch.randn(1, 200, 6)
    trained = branch(x)[0]
    branch.eval()
    plain = branch(x)[0]
    assert torch.equal(branch(x)[0], plain)
    kept = trained[plain > 0] > 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(trained[plain > 0][kept], plain[plain > 0][kept] / 0.75)


def test_votes_are_the_attended_part_of_the_classifiers_product() -> None:
    rng = np.random.default_rng(0)
    h, weight, log_weight = rng.normal(size=(4, 5)), rng.normal(size=(3, 5)), rng.normal(size=4)
    for scores in (rng.normal(size=(4, 1)), rng.normal(size=(4, 3))):
        given = (torch.from_numpy(value) for value in (h[None], scores[None], log_weight[None], weight))
        attention, votes = (value[0].numpy() for value in pooled_votes(*given))
        for j, k in np.ndindex(4, 3):
            own = [math.exp(score[k % len(score)] + g) for score, g in zip(scores, log_weight, strict=True)]
            assert attention[j, k] == pytest.approx(own[j] / sum(own), rel=1e-12)
            assert votes[j, k] == pytest.approx(own[j] / sum(own) * (weight[k] @ h[j]), rel=1e-12)


def test_a_plain_branch_counts_all_patches_the_same() -> None:
    x = torch.randn(2, 3, 4)
    h, scores = PlainBranch()(x)
    assert torch.equal(h, x)
    assert torch.equal(scores, torch.zeros(2, 3, 1))


def test_too_few_nodes_are_refused() -> None:
    with pytest.raises(SettingsError, match="num_nodes: got 1. Give a whole number from 2 up"):
        GatedBranch(6, 1)
