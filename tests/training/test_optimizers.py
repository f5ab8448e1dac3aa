"""Optimisers do what torch's own do."""

from __future__ import annotations

import pytest
import torch

from scripts.core.settings import OPTIMIZERS
from scripts.training.optimizers import optimizer_class


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_moves_weights_as_torchs_own_does(name):
    weights = [torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_() for _ in range(2)]
    made = optimizer_class(name)([weights[0]], lr=0.01, weight_decay=0.1)
    plain = getattr(torch.optim, name)([weights[1]], lr=0.01, weight_decay=0.1, foreach=False)
    for step in range(5):
        for weight, optimizer in zip(weights, (made, plain), strict=True):
            weight.grad = torch.cos(torch.arange(12.0) * (step + 1)).reshape(3, 4)
            optimizer.step()
    assert torch.allclose(*weights, rtol=0, atol=1e-6)
    assert not torch.allclose(weights[0], torch.linspace(-1, 1, 12).reshape(3, 4), atol=1e-3)
