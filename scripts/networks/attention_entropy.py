"""How evenly attention is spread over the patches of a bag, and the term of a loss that spreads or concentrates it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from scripts.core.settings import check_settings
from scripts.networks.losses import MultiScaleLoss, PhaseLoss

__all__ = ["AttentionEntropyLoss", "attention_entropies", "attention_entropy"]


class AttentionEntropyLoss(_Loss):
    r"""The loss of the heads, less a weight times the mean entropy of their attention.

    .. math:: L = L_{heads} - \lambda \, E

    E is the mean of :func:`attention_entropy` over the bags of the batch, classes, and heads that train. Above 0
    the weight spreads attention, as AEM does (Zhang et al. 2024, https://arxiv.org/abs/2406.15303); below 0 it
    concentrates it. AEM has one head and does not divide by log n: the weight that acts as strongly here is AEM's times
    log n and times the number of heads.

    Args:
        of_heads: the loss of the heads.
        weight: :math:`\lambda`, from -10 to 10.
        num_heads: H, the number of heads of the network in training.

    Raises:
        SettingsError: if the weight is outside of that.
    """

    def __init__(self, of_heads: MultiScaleLoss | PhaseLoss, weight: float, num_heads: int) -> None:
        super().__init__()
        check_settings(attention_entropy=weight)
        self.of_heads, self.weight, self.num_heads = of_heads, weight, num_heads

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            input: logits of the heads and entropies of their attention, ``[B, 2 * H, L]``, as
                :class:`scripts.networks.mustmil.BranchNetwork` gives them in training mode.
            target: labels ``[B, K]``.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if input.shape[1] != 2 * self.num_heads:
            wanted = f"logits and entropies of {self.num_heads} heads, [B, {2 * self.num_heads}, L]"
            raise ValueError(f"wanted {wanted}, got {list(input.shape)}")
        logits, entropies = input.chunk(2, dim=1)  # [B, H, L] each
        loss: Tensor = self.of_heads(logits, target)  # []
        return loss - self.weight * entropies[:, self.of_heads.trained()].mean()  # []


def attention_entropies(attention: list[Tensor], log_weights: list[Tensor]) -> list[Tensor]:
    """:func:`attention_entropy` of each of some branches."""
    return [attention_entropy(a, g) for a, g in zip(attention, log_weights, strict=True)]


def attention_entropy(attention: Tensor, log_weight: Tensor) -> Tensor:
    r"""The entropy of attention over the distinct patches of each bag, as a fraction of the largest possible.

    With attention :math:`a_i` on each of n patches,

    .. math:: H = -\frac{1}{\log n} \sum_i a_i \log a_i

    which is 1 where all patches have the same attention, and 0 where one has all of it. The only patch of a bag has the
    same attention as all others, so that H is 1; it has no gradient.

    c rows that share a patch have log weight g = -log(c), and :math:`a_j = a_i / c` of its attention. So
    :math:`a_j (\log a_j - g_j)` adds up to :math:`a_i \log a_i` over them, and :math:`e^{g_j}` to one patch.
    Rows with log weight 0 count as a patch each; those with -inf are padding, and count as none.

    Args:
        attention: ``[B, n, K]``, which sums to 1 over n.
        log_weight: ``[B, n]``.

    Returns:
        ``[B, K]``, within 0 to 1; without meaning where attention is NaN, as that of heads that are not computed is.
    """
    weight = log_weight.to(attention.dtype)  # [B, n]
    # Where attention is 0, also by underflow, the limit is 0 in value and gradient; log(0) and inf - inf are not.
    is_none = attention < torch.finfo(attention.dtype).tiny  # [B, n, K]
    log_a = attention.masked_fill(is_none, 1.0).log()  # [B, n, K]
    shared = weight.masked_fill(torch.isneginf(weight), 0.0).unsqueeze(-1)  # [B, n, 1]
    entropy = (attention * (shared - log_a)).sum(dim=1)  # [B, K]
    num_patches = weight.exp().sum(dim=1, keepdim=True)  # [B, 1], whole numbers but for rounding
    # The limit of 2 keeps 0 / 0 out of the gradient of a bag with one patch.
    fraction = entropy / num_patches.clamp(min=2.0).log()  # [B, K]
    return torch.where(num_patches < 1.5, torch.ones_like(fraction), fraction)
