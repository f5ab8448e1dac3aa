"""The losses of all methods: one binary cross-entropy for each head, weighted and summed."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.modules.loss import _Loss

from scripts.core.errors import SettingsError
from scripts.networks.bag_network import BagNetwork

__all__ = ["MultiScaleLoss", "PhaseLoss", "head_losses"]


class MultiScaleLoss(_Loss):
    r"""The multi-scale task loss of MuSTMIL (Marini et al., PMLR 156:170-181, 2021).

    .. math:: L = \alpha \, BCE(y_{global}, y) + \beta \sum_s BCE(y_s, y)

    each BCE a mean over bags and classes.

    Args:
        alpha: weight of the global head.
        beta: weight of each scale's head.

    Raises:
        SettingsError: if a weight is negative or not finite, or both are 0.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if not (math.isfinite(weight) and weight >= 0):
                raise SettingsError(name, f"got {weight}", "Set it to 0 or more; the paper has 1.")
        if alpha == 0 and beta == 0:
            raise SettingsError("alpha and beta", "both are 0, so nothing would train", "Set one above 0.")
        self.alpha, self.beta = alpha, beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar, from logits ``[B, 1 + S, K]``; otherwise as :func:`head_losses`."""
        losses = head_losses(input, target)  # [1 + S]
        return self.alpha * losses[0] + self.beta * losses[1:].sum()  # []


class PhaseLoss(_Loss):
    """The sum of the cross-entropies of the heads that a network trains in its phase.

    Args:
        network: see :meth:`BagNetwork.start_phase`.
    """

    def __init__(self, network: BagNetwork) -> None:
        super().__init__()
        # Not an attribute, which would make the network a submodule of its loss.
        self.trained = lambda: network.phases[max(network.phase, 0)]

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar; see :func:`head_losses`."""
        return head_losses(input[:, self.trained()], target).sum()  # []


def head_losses(input: Tensor, target: Tensor) -> Tensor:
    """The binary cross-entropy of each head alone, ``[H]``, a mean over bags and classes.

    Args:
        input: logits ``[B, H, K]``.
        target: labels ``[B, K]`` within 0 to 1, of any dtype.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if input.dim() != 3 or target.shape != (input.shape[0], input.shape[2]):
        raise ValueError(f"wanted logits [B, H, K] and labels [B, K], got {list(input.shape)} and {list(target.shape)}")
    labels = target.to(input.dtype).unsqueeze(1).expand_as(input)  # [B, H, K]
    return binary_cross_entropy_with_logits(input, labels, reduction="none").mean(dim=(0, 2))  # [H]
