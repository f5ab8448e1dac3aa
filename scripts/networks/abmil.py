"""Attention pooling of one scale, of linked rows and of all scales apart, and the mean that needs no attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scripts.networks.bag_network import BagNetwork
from scripts.networks.pooling import GatedBranch, PlainBranch, PoolingNetwork, pooled_votes

__all__ = ["ABMIL", "LateFusion", "LinkedABMIL", "MeanPooling"]


class _OfScales(PoolingNetwork):
    """A branch and a head for each scale, over the scale's unique patches."""

    def _inputs(self, x: Tensor, log_weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        inputs = [x[:, :, s] for s in range(self.num_scales)]  # S of [B, N, F]
        return inputs, [log_weight[:, :, s] for s in range(self.num_scales)]  # S of [B, N]


class MeanPooling(_OfScales):
    """The mean of the features of a scale's unique patches, and a linear classifier, for each scale.

    The attention is the same for each patch.

    Args:
        num_classes: K, the number of logits of each head.
        num_scales: S, the number of magnifications.
        num_features: F, the length of a patch's feature vector.
        num_nodes: taken as every method takes it, and not used: features are not embedded.
        settings: further arguments of :class:`BagNetwork`, which also says what is raised.
    """

    def __init__(
        self, num_classes: int, num_scales: int = 2, num_features: int = 512, num_nodes: int = 128, **settings: Any
    ) -> None:
        branches: list[nn.Module] = [PlainBranch() for _ in range(num_scales)]
        super().__init__(
            branches, num_features, num_classes, num_scales=num_scales, num_features=num_features, **settings
        )


class ABMIL(_OfScales):
    """Attention-based MIL with gated attention (Ilse et al., ICML 2018), for each scale.

    https://proceedings.mlr.press/v80/ilse18a.html. One attention for all classes (:class:`GatedBranch`, eq. 9), and a
    linear classifier of what it pools (eq. 7). The scales share nothing but the backbone.

    The arguments and errors are those of :class:`scripts.networks.mustmil.MuSTMIL`.
    """

    def __init__(
        self, num_classes: int, num_scales: int = 2, num_features: int = 512, num_nodes: int = 128, **settings: Any
    ) -> None:
        branches: list[nn.Module] = [GatedBranch(num_features, num_nodes) for _ in range(num_scales)]
        super().__init__(branches, num_nodes, num_classes, num_scales=num_scales, num_features=num_features, **settings)


class LinkedABMIL(PoolingNetwork):
    """One :class:`ABMIL` over linked rows: an instance is the features of all scales of a row, one after the other.

    A row is a patch of the highest scale, and has its log weight. There is one head, the global one.

    The arguments and errors are those of :class:`scripts.networks.mustmil.MuSTMIL`.
    """

    def __init__(
        self, num_classes: int, num_scales: int = 2, num_features: int = 512, num_nodes: int = 128, **settings: Any
    ) -> None:
        branches: list[nn.Module] = [GatedBranch(num_scales * num_features, num_nodes)]
        super().__init__(branches, num_nodes, num_classes, num_scales=num_scales, num_features=num_features, **settings)

    def _inputs(self, x: Tensor, log_weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [x.flatten(2)], [log_weight[:, :, -1]]  # [B, N, S * F], [B, N]


class LateFusion(BagNetwork):
    """Gated attention of each scale apart, and one classifier of the pooled vectors of all scales, one after the other.

    Links between patches are not used: scales meet in the classifier, as in slideflow's multi-magnification attention
    MIL (``MultiModal_Attention_MIL``; https://github.com/slideflow/slideflow). There is one head, the global one, and
    a map of it for each scale; over each, attention sums to 1.

    The arguments and errors are those of :class:`scripts.networks.mustmil.MuSTMIL`.
    """

    def __init__(
        self, num_classes: int, num_scales: int = 2, num_features: int = 512, num_nodes: int = 128, **settings: Any
    ) -> None:
        super().__init__(num_classes, num_scales, num_features, **settings)
        self.branches = nn.ModuleList(GatedBranch(num_features, num_nodes) for _ in range(num_scales))
        self.myfc = nn.Linear(num_scales * num_nodes, num_classes)
        self.map_heads = [0] * num_scales

    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """A row of the classifier for each class: all of them share the attention."""
        return {"myfc.weight": (0,), "myfc.bias": (0,)}

    def _explain(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.myfc.weight.chunk(self.num_scales, dim=1)  # S of [K, num_nodes]
        attention: list[Tensor] = []
        contribution: list[Tensor] = []
        for s, branch in enumerate(self.branches):
            h, scores = branch(x[:, :, s].to(weights[s].dtype))  # [B, N, num_nodes], [B, N, 1]
            a, c = pooled_votes(h, scores, log_weight[:, :, s], weights[s])  # [B, N, K] each
            attention.append(a)
            contribution.append(c)
        added = torch.stack(contribution, dim=2)  # [B, N, S, K]
        logits = added.sum(dim=(1, 2)) + self.myfc.bias  # [B, K]
        return logits.unsqueeze(1), torch.stack(attention, dim=2), added
