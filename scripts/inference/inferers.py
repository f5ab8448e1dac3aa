"""Prediction with trained weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monai.inferers import SimpleInferer
from torch import Tensor

from scripts.weights.record import check_weights

__all__ = ["TrainedInferer"]


class TrainedInferer(SimpleInferer):
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
        """The logits ``[B, H, K]`` of features and log weight ``[B, N, S, F + 1]``; the network may be TorchScript.

        Raises:
            SettingsError: if its weights were not loaded, not completely, are damaged, or of other settings.
        """
        check_weights(network, self.settings)  # type: ignore[arg-type]
        self.origin = getattr(network, "origin", {})
        return super().__call__(inputs, network, *args, **kwargs)
