"""The losses of all methods: the cross-entropy of the task for each head, weighted and summed."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn.modules.loss import _Loss

from scripts.core.errors import SettingsError
from scripts.core.tasks import get_task
from scripts.networks.bag_network import BagNetwork

__all__ = ["MultiScaleLoss", "PhaseLoss", "head_losses"]


class MultiScaleLoss(_Loss):
    r"""The multi-scale task loss of MuSTMIL (Marini et al., PMLR 156:170-181, 2021).

    .. math:: L = \alpha \, CE(y_{global}, y) + \beta \sum_s CE(y_s, y)

    each CE the cross-entropy of the task (:meth:`scripts.core.tasks.Task.losses`), in the paper the binary one, as a
    mean over bags and classes.

    Args:
        alpha: weight of the global head.
        beta: weight of each scale's head.
        task: one of :data:`scripts.core.tasks.TASKS`.

    Raises:
        SettingsError: if a weight is negative or not finite, both are 0, or there is no such task.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, task: str = "multilabel") -> None:
        super().__init__()
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if not (math.isfinite(weight) and weight >= 0):
                raise SettingsError(name, f"got {weight}", "Set it to 0 or more; the paper has 1.")
        if alpha == 0 and beta == 0:
            raise SettingsError("alpha and beta", "both are 0, so nothing would train", "Set one above 0.")
        self.alpha, self.beta, self.task = alpha, beta, get_task(task).name

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar, from logits ``[B, 1 + S, L]``; otherwise as :func:`head_losses`."""
        losses = head_losses(input, target, self.task)  # [1 + S]
        return self.alpha * losses[0] + self.beta * losses[1:].sum()  # []

    def trained(self) -> slice:
        """The heads that learn: with ``alpha`` 0 not the global one, with ``beta`` 0 none of the scales."""
        return slice(0 if self.alpha > 0 else 1, None if self.beta > 0 else 1)


class PhaseLoss(_Loss):
    """The sum of the cross-entropies of the heads that a network trains in its phase.

    Args:
        network: see :meth:`BagNetwork.start_phase`.
        task: see :class:`MultiScaleLoss`.
    """

    def __init__(self, network: BagNetwork, task: str = "multilabel") -> None:
        super().__init__()
        self.task = get_task(task).name
        # Not an attribute, which would make the network a submodule of its loss.
        self.trained: Callable[[], list[int]] = lambda: network.phases[max(network.phase, 0)]

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar; see :func:`head_losses`."""
        return head_losses(input[:, self.trained()], target, self.task).sum()  # []


def head_losses(input: Tensor, target: Tensor, task: str = "multilabel") -> Tensor:
    """The cross-entropy of each head alone, ``[H]``, a mean over bags and classes.

    Args:
        input: logits ``[B, H, L]``: L is K, and K - 1 in the ordinal task.
        target: labels ``[B, K]`` within 0 to 1, of any dtype.
        task: see :class:`MultiScaleLoss`.

    Raises:
        SettingsError: if there is no such task.
        ValueError: if the shapes do not fit.
    """
    kind = get_task(task)
    are_tables = input.dim() == 3 and target.dim() == 2
    if not are_tables or input.shape[::2] != (target.shape[0], kind.num_logits(target.shape[1])):
        wanted = "logits [B, H, L] and labels [B, K], L being K - 1 in the ordinal task and K in others"
        raise ValueError(f"wanted {wanted}, got {list(input.shape)} and {list(target.shape)}")
    labels = target.to(input.dtype).unsqueeze(1).expand(-1, input.shape[1], -1)  # [B, H, K]
    return kind.losses(input, labels).mean(dim=(0, 2))  # [H]
