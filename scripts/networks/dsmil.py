"""DSMIL: the instance that speaks most for a class, and attention to instances like it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from scripts.core.tasks import get_task
from scripts.networks.bag_network import BagNetwork
from scripts.networks.losses import head_losses

__all__ = ["DSMIL", "DualStreamLoss"]


class DSMIL(BagNetwork):
    r"""Dual-stream MIL over linked rows (Li et al., CVPR 2021, https://arxiv.org/abs/2011.08939).

    An instance h_j is the features of all scales of a row, one after the other, as the paper joins magnifications. In
    its letters, for class k, with the log weight g_j of the highest scale:

    .. math::
        m_k &= \arg\max_j W_{0,k} h_j, \qquad q_j = W_q h_j \\
        a_{j,k} &= softmax_j(q_j \cdot q_{m_k} / \sqrt{d} + g_j) \\
        y_k &= \tfrac12 (W_{0,k} h_{m_k} + W_{b,k} [\sum_j a_{j,1} h_j, ..., \sum_j a_{j,K} h_j])

    The paper pools v_j = W_v h_j, of which W_b takes a linear map too, so W_v is left out; its code divides by the root
    of the length d of q. Rows that are the same share the place of the critical instance m_k.

    There is one head, the global one. The attention is that of the second stream. In training mode the logits are
    three: the head's, and those of the first and the second stream, which :class:`DualStreamLoss` takes.

    The arguments and errors are those of :class:`scripts.networks.mustmil.MuSTMIL`; ``num_nodes`` is d, 128 in the
    paper's code.
    """

    def __init__(
        self, num_classes: int, num_scales: int = 2, num_features: int = 512, num_nodes: int = 128, **settings: Any
    ) -> None:
        super().__init__(num_classes, num_scales, num_features, **settings)
        width = num_scales * num_features
        self.query = nn.Linear(width, num_nodes)
        self.instance_classifier = nn.Linear(width, num_classes)
        self.myfc = nn.Linear(num_classes * width, num_classes)

    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """A row of each classifier for each class, and in that of the second stream a part for each attention."""
        names = ("instance_classifier.weight", "instance_classifier.bias", "myfc.bias")
        return {**dict.fromkeys(names, (0,)), "myfc.weight": (0, 1)}

    def _branches(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        logits, a, _ = self._streams(self._instances(x), log_weight[:, :, -1])
        return logits, a.unsqueeze(2)  # [B, 1, K], in training mode [B, 3, K]; [B, N, 1, K]

    def _explain(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self._instances(x)
        logits, a, critical = self._streams(h, log_weight[:, :, -1])
        first = critical * nn.functional.linear(h, self.instance_classifier.weight)  # [B, N, K]
        weight = self.myfc.weight.unflatten(1, [self.num_classes, -1])  # [K, K (of the attention), width]
        votes = torch.einsum("kcw,bnw->bnkc", weight, h)  # [B, N, K, K (of the attention)]
        second = (votes * a.unsqueeze(2)).sum(dim=3)  # [B, N, K]
        return logits, a.unsqueeze(2), (first + second).unsqueeze(2) / 2

    def _instances(self, x: Tensor) -> Tensor:
        return x.flatten(2).to(self.myfc.weight.dtype)  # [B, N, S * F]

    def _streams(self, h: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the attention of the second stream, and where the critical instances are.

        Args:
            h: instances ``[B, N, width]``.
            log_weight: ``[B, N]``.

        Returns:
            Logits ``[B, 1, K]``, in training mode ``[B, 3, K]``, and twice ``[B, N, K]``; each of these sums to 1.
        """
        scores = self.instance_classifier(h)  # [B, N, K]
        of_real = scores.masked_fill(torch.isneginf(log_weight).unsqueeze(-1), -math.inf)  # [B, N, K]
        critical = (of_real == of_real.amax(dim=1, keepdim=True)).to(h.dtype)  # [B, N, K]
        critical = critical / critical.sum(dim=1, keepdim=True)
        first = (critical * scores).sum(dim=1)  # [B, K]
        q = self.query(h)  # [B, N, d]
        likeness = q @ (q.transpose(1, 2) @ critical) / math.sqrt(q.shape[2])  # [B, N, K]
        a = torch.softmax(likeness + log_weight.to(h.dtype).unsqueeze(-1), dim=1)  # [B, N, K]
        second = self.myfc((a.transpose(1, 2) @ h).flatten(1))  # [B, K]
        logits = ((first + second) / 2).unsqueeze(1)  # [B, 1, K]
        if self.training:
            logits = torch.cat([logits, first.unsqueeze(1), second.unsqueeze(1)], dim=1)  # [B, 3, K]
        return logits, a, critical


class DualStreamLoss(_Loss):
    """The loss of DSMIL: the mean of the cross-entropies of its two streams, as in the paper's code.

    Args:
        task: see :class:`scripts.networks.losses.MultiScaleLoss`.
    """

    def __init__(self, task: str = "multilabel") -> None:
        super().__init__()
        self.task = get_task(task).name

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            input: what :class:`DSMIL` gives in training mode, ``[B, 3, L]``.
            target: labels ``[B, K]``.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if input.shape[1] != 3:
            raise ValueError(f"wanted logits of the head and of two streams, [B, 3, L], got {list(input.shape)}")
        return head_losses(input[:, 1:], target, self.task).mean()  # []
