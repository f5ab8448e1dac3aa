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

    MONAI Label loads weights with ``strict=False``: a file that fits in part, or not at all, would leave the network at
    random weights, and it would answer with scores all the same.

    Args:
        settings: what the network is used with, as plain values by knob; see
            :func:`scripts.weights.record.check_weights`.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.settings = settings

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        Args:
            inputs: ``[B, N, S, F + 1]``: features, then log weight.
            network: a :class:`scripts.networks.bag_network.BagNetwork`, or one exported to TorchScript.
            args: further arguments of the network.
            kwargs: further keyword arguments of the network.

        Returns:
            What the network returns: logits ``[B, H, K]``.

        Raises:
            SettingsError: if its weights were not loaded, not completely, are damaged, or of other settings.
        """
        check_weights(network, self.settings)  # type: ignore[arg-type]
        return super().__call__(inputs, network, *args, **kwargs)
