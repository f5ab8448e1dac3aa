"""What methods share that pool a bag by attention and classify the pooled vector by one linear map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.settings import check_settings
from scripts.networks.bag_network import BagNetwork

__all__ = ["GatedBranch", "PlainBranch", "PoolingNetwork", "pooled_votes"]


class PlainBranch(nn.Module):
    """Instances that are the features as they are, of which all count the same."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Instances ``[B, n, F]`` and their scores before the softmax ``[B, n, 1]``, 0, of features ``[B, n, F]``."""
        return x, x.new_zeros(x.shape[0], x.shape[1], 1)


class GatedBranch(nn.Module):
    r"""Embedded instances, and their gated attention (Ilse et al., ICML 2018, eq. 9).

    https://proceedings.mlr.press/v80/ilse18a.html. In the paper's letters, before the softmax over instances j:

    .. math:: w^T (\tanh(V h_j) \odot sigm(U h_j)), \qquad h_j = ReLU(IL(x_j))

    V and U have biases, as in the paper's code; w has none, which softmax cancels.

    Args:
        num_features: the length of x.
        num_nodes: the length of h, at least 2 (else a SettingsError); V and U map it to half of that.
        num_attentions: how many w there are.
        dropout: the fraction of h, and of what V and U give, that a training step leaves out.
    """

    def __init__(self, num_features: int, num_nodes: int, num_attentions: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        check_settings(num_nodes=num_nodes)
        half = num_nodes // 2
        self.embed = nn.Sequential(nn.Linear(num_features, num_nodes), nn.ReLU(), nn.Dropout(dropout))
        self.tanh = nn.Sequential(nn.Linear(num_nodes, half), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(num_nodes, half), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(half, num_attentions, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Instances ``[B, n, num_nodes]`` and their scores before the softmax ``[B, n, num_attentions]``.

        Args:
            x: features ``[B, n, F]``.
        """
        h = self.embed(x)  # [B, n, num_nodes]
        return h, self.score(self.tanh(h) * self.gate(h))  # [B, n, num_attentions]


def pooled_votes(h: Tensor, scores: Tensor, log_weight: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""The attention of each instance, and what it adds to each logit.

    Pooling and a linear classifier W are both linear: :math:`W \sum_j a_j h_j = \sum_j a_j W h_j`. With an attention
    for each class, class k has the k-th one and row k of W.

    Args:
        h: instances ``[B, n, width]``.
        scores: before the softmax ``[B, n, 1]``, of one attention for all classes, or ``[B, n, K]``.
        log_weight: ``[B, n]``, see :meth:`BagNetwork.forward`.
        weight: of the classifier, ``[K, width]``.

    Returns:
        Attention and contribution, ``[B, n, K]`` each. The sum of the latter over the instances and the classifier's
        bias are the logits.
    """
    a = torch.softmax(scores + log_weight.to(scores.dtype).unsqueeze(-1), dim=1)  # [B, n, 1 or K]
    votes = nn.functional.linear(h, weight)  # [B, n, K]
    return a.expand_as(votes), a * votes


class PoolingNetwork(BagNetwork):
    """One or more branches, each with its attention, its linear classifier and its head; they share no weights.

    The heads, as the attention maps and the entries of ``branches`` and ``myfc``, are in the order of the branches. One
    phase trains all of them on the sum of their losses: since no two share a weight, the gradient of each is that of
    its own loss, as if each were trained alone. A subclass says which features each branch takes (``_inputs``).

    Args:
        branches: each a module that gives instances and scores, as :class:`GatedBranch` does.
        width: the length of their instances.
        num_classes: K, the number of logits of each head.
        settings: further arguments of :class:`BagNetwork`.
    """

    def __init__(self, branches: list[nn.Module], width: int, num_classes: int, **settings: Any) -> None:
        super().__init__(num_classes, **settings)
        self.branches = nn.ModuleList(branches)
        self.myfc: nn.ModuleList = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(width, num_classes) for _ in branches
        )
        self.phases = [list(range(len(branches)))]
        self.map_heads = list(range(len(branches)))

    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """A row of each classifier for each class: all of them share the attention."""
        names = [f"myfc.{head}" for head in range(len(self.myfc))]
        return {f"{name}.{part}": (0,) for name in names for part in ("weight", "bias")}

    def _inputs(self, x: Tensor, log_weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The features ``[B, N, F]`` and the log weights ``[B, N]`` of each branch."""
        raise NotImplementedError

    def _explain(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, log_weights = self._inputs(x, log_weight)
        logits: list[Tensor] = []
        attention: list[Tensor] = []
        contribution: list[Tensor] = []
        for head, (branch, classify) in enumerate(zip(self.branches, self.myfc)):  # noqa: B905 (TorchScript)
            weight: Tensor = classify.weight  # type: ignore[assignment]
            bias: Tensor = classify.bias  # type: ignore[assignment]
            h, scores = branch(inputs[head].to(weight.dtype))  # [B, N, width], [B, N, 1]
            a, c = pooled_votes(h, scores, log_weights[head], weight)  # [B, N, K] each
            logits.append(c.sum(dim=1) + bias)  # [B, K]
            attention.append(a)
            contribution.append(c)
        return torch.stack(logits, dim=1), torch.stack(attention, dim=2), torch.stack(contribution, dim=2)
