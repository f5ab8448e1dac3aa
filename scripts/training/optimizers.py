"""The optimiser that a training uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from scripts.core.settings import check_settings

__all__ = ["optimizer_class"]


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """An optimiser of torch by its name, of those that take ``lr`` and ``weight_decay`` and need nothing else.

    It is torch's fused form where there is one, which passes over the weights once a step.

    Raises:
        SettingsError: if there is none of that name.
    """
    check_settings(optimizer_name=name)
    optimizer: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, name)
    return optimizer if name == "RMSprop" else partial(optimizer, fused=True)
