"""Features and log weights as one tensor, where only one can travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

__all__ = ["LogWeightInferer", "join_log_weight"]


class LogWeightInferer(Inferer):
    """Split the log weight off the features and call the network with both.

    MONAI's engines and MONAI Label hand a network one tensor; the bundle's configs let the log weight of a
    patch ride in it, as the last of F + 1 channels (see :func:`join_log_weight`).
    """

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        Args:
            inputs: ``[B, N, S, F + 1]``: features, then log weight.
            network: called as ``network(features, log_weight, *args, **kwargs)`` with ``[B, N, S, F]`` and
                ``[B, N, S]``.
            args: further arguments of the network.
            kwargs: further keyword arguments of the network.

        Returns:
            What the network returns.

        Raises:
            ValueError: if the inputs have no such shape.
        """
        if inputs.dim() != 4 or inputs.shape[-1] < 2:
            raise ValueError(f"inputs must be features and log weight [B, N, S, F + 1], got {list(inputs.shape)}")
        return network(inputs[..., :-1], inputs[..., -1], *args, **kwargs)


def join_log_weight(features: Tensor, log_weight: Tensor) -> Tensor:
    """Append the log weight to the features as one more channel, in the features' dtype.

    Args:
        features: ``[..., N, S, F]``.
        log_weight: ``[..., N, S]``; -inf for padding.

    Returns:
        ``[..., N, S, F + 1]``.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if features.dim() < 3 or log_weight.shape != features.shape[:-1]:
        raise ValueError(
            f"wanted features [..., N, S, F] and log weight [..., N, S], "
            f"got {list(features.shape)} and {list(log_weight.shape)}"
        )
    return torch.cat([features, log_weight.to(features.dtype).unsqueeze(-1)], dim=-1)  # [..., N, S, F + 1]
