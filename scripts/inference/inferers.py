"""Prediction with trained weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

from scripts.weights.record import check_weights

__all__ = ["SpreadInferer", "TrainedInferer"]


class SpreadInferer(SimpleInferer):
    """MONAI's inferer, which of an ensemble also returns how far its members are apart.

    One tensor travels from here to the postprocessing, so the spread is its last channels;
    :class:`scripts.inference.decisions.Decided` splits it off.
    """

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The logits ``[B, H, L]``; of an ensemble, logits and spread ``[B, H, L + K]``."""
        if getattr(network, "num_members", 1) == 1:
            return super().__call__(inputs, network, *args, **kwargs)
        found: Any = super().__call__(inputs, network.with_spread, *args, **kwargs)  # type: ignore[attr-defined]
        return torch.cat(found, dim=-1)


class TrainedInferer(SpreadInferer):
    """Run a network, if it has the whole weights of one training.

    MONAI Label loads weights with ``strict=False``: a file that fits in part would leave random weights,
    and the network would give scores all the same.

    Args:
        settings: what the network is used with, see :func:`scripts.weights.record.check_weights`.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.origin: Mapping[str, Any] = {}

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What features and log weight ``[B, N, S, F + 1]`` give; the network may be TorchScript.

        Raises:
            SettingsError: if its weights were not loaded, not completely, are damaged, or of other settings.
        """
        check_weights(network, self.settings)  # type: ignore[arg-type]
        self.origin = getattr(network, "origin", {})
        return super().__call__(inputs, network, *args, **kwargs)
