"""What MuSTMIL is compared with: one scale alone, one bag of all scales' patches, and MONAI's own MILModel."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import MILModel
from torch import Tensor, nn

from scripts.networks.bag_network import BagNetwork
from scripts.networks.mustmil import BranchNetwork

__all__ = ["MSMIL", "SSMIL", "HighestScaleMIL"]


class _PhasedNetwork(BranchNetwork):
    """A network that trains one branch at a time: that of each scale with its instance layer, then the union's.

    Its branches are the union of all scales, if there is one, then the scales from low to high.
    """

    def __init__(
        self, has_union: bool, num_classes: int, num_scales: int, num_features: int, num_nodes: int, **settings: Any
    ) -> None:
        if not settings.get("freeze_backbone", True):
            # One backbone for all scales, trained on one after the other, would fit the last one alone.
            raise ValueError("a network with several training phases needs a frozen backbone")
        widths = [num_nodes] * (has_union + num_scales)
        super().__init__(widths, num_classes, num_scales, num_features, num_nodes, **settings)
        self.first = int(has_union)  # the branch of the lowest scale
        self.phases = [[self.first + s] for s in range(num_scales)] + [[0]] * has_union
        self.map_heads = [0] * num_scales if has_union else list(range(num_scales))
        self.start_phase(None)

    def start_phase(self, phase: int | None) -> None:
        super().start_phase(phase)
        results = [0] if self.first else list(range(self.num_scales))
        computed = results if phase is None else self.phases[phase]
        self.computes = [branch in computed for branch in range(len(self.attention))]
        of_union = bool(self.first) and 0 in computed
        self.embeds = [of_union or self.first + s in computed for s in range(self.num_scales)]

    def phase_parameters(self, phase: int) -> list[nn.Parameter]:
        """The weights that a phase trains: its branch's, and those of its scale's instance layer."""
        (branch,) = self.phases[phase]
        layers = [self.attention[branch], self.myfc[branch]]
        if branch >= self.first:
            layers.append(self.embed[branch - self.first])
        return [parameter for layer in layers for parameter in layer.parameters()]

    def _inputs(self, x: Tensor, log_weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        instances = self._embed(x)  # S of [B, N, num_nodes]
        log_weights = [log_weight[:, :, s] for s in range(self.num_scales)]  # S of [B, N]
        if self.first == 1:
            instances.insert(0, torch.cat(instances, dim=1))  # [B, S * N, num_nodes]
            log_weights.insert(0, torch.cat(log_weights, dim=1))  # [B, S * N]
        return instances, log_weights


class SSMIL(_PhasedNetwork):
    """Single-scale MIL: for each scale a network of its own, with MuSTMIL's branch, trained alone.

    The S networks share nothing but the frozen backbone; they are one module so that one file and one
    command contain all of them. The heads and attention maps are the scales from low to high.

    The arguments and errors are those of :class:`MuSTMIL`, and a ValueError if the backbone is not frozen.
    """

    def __init__(
        self, num_classes: int, num_scales: int = 2, num_features: int = 512, num_nodes: int = 128, **settings: Any
    ) -> None:
        super().__init__(False, num_classes, num_scales, num_features, num_nodes, **settings)


class MSMIL(_PhasedNetwork):
    r"""Multi-scale MIL after Hashimoto et al., CVPR 2020 (https://arxiv.org/abs/2001.01599), in S + 1 phases.

    Phases 1 to S train each scale alone, as :class:`SSMIL` does. The last one keeps the instance layers
    IL_s as they are, pools the union of the instances of all scales as one bag, and trains a new attention and
    a new classifier over it:

    .. math:: a_{s,j,k} = softmax_{(s,j)}(w_k^T tanh(V h_{s,j}) + g_{s,j})

    There is one result, the global one. During the training (:meth:`start_phase`) the heads are the global
    one and the scales' from low to high; afterwards the global one alone. The attention has a map for each scale,
    which together sum to 1. docs/decisions.md says where this departs from the paper and from its code.

    The arguments and errors are those of :class:`MuSTMIL`, and a ValueError if the backbone is not frozen.
    """

    def __init__(
        self, num_classes: int, num_scales: int = 2, num_features: int = 512, num_nodes: int = 128, **settings: Any
    ) -> None:
        super().__init__(True, num_classes, num_scales, num_features, num_nodes, **settings)

    def _logits(self, of_branches: list[Tensor]) -> Tensor:
        return torch.stack(of_branches if self.phase >= 0 else of_branches[:1], dim=1)  # [B, 1 or 1 + S, K]

    def _maps(self, of_branches: list[Tensor]) -> Tensor:
        return of_branches[0].unflatten(1, [self.num_scales, -1]).transpose(1, 2)  # [B, N, S, K]


class HighestScaleMIL(BagNetwork):
    """MONAI's :class:`MILModel` as it is, on the patches of the highest scale: the baseline that its users know.

    There is one attention for all classes, which the attention map repeats; the contributions differ. With
    ``att_trans`` they are those of the transformed patches, each of which has seen all others. MONAI's model knows
    no padding, so the bags of a batch pass it one by one.

    Args:
        mil_mode: ``"att"`` or ``"att_trans"``.
        num_classes: K, the number of logits.
        num_nodes: taken as every method takes it, and not used: MONAI's model has sizes of its own.
        settings: further arguments of :class:`BagNetwork`, which also says what is raised.
    """

    def __init__(self, mil_mode: str, num_classes: int, num_nodes: int = 128, **settings: Any) -> None:
        super().__init__(num_classes, mil_mode=mil_mode, **settings)

    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """A row of the classifier for each class: all of them share the attention."""
        return {"myfc.weight": (0,), "myfc.bias": (0,)}

    def _explain(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.to(self.myfc.weight.dtype)
        logits = x.new_zeros(x.shape[0], 1, self.num_classes)  # [B, 1, K]
        attention = x.new_zeros(x.shape[0], x.shape[1], 1, self.num_classes)  # [B, N, 1, K]
        contribution = torch.zeros_like(attention)  # [B, N, 1, K]
        for b in range(x.shape[0]):
            real = ~torch.isneginf(log_weight[b, :, -1])  # [N]
            logits[b], attention[b, real], pooled = self._bag(x[b, real, -1])
            votes = nn.functional.linear(pooled, self.myfc.weight)  # [n, K]
            contribution[b, real] = attention[b, real] * votes.unsqueeze(1)  # [n, 1, K]
        return logits, attention, contribution

    def _bag(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[1, K]``, attention ``[n, 1, 1]`` and what it pooled, ``[n, F]``, of one bag ``[n, F]``."""
        seen: list[tuple[Tensor, Tensor]] = []
        # MONAI's model keeps its attention to itself. What it scores, transformed or not, is what it pools.
        hook = self.attention.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
        try:
            logits = MILModel.calc_head(self, instances.unsqueeze(0))  # [1, K]
        finally:
            hook.remove()
        pooled, score = seen[0]  # [1, n, F], [1, n, 1]
        return logits, torch.softmax(score, dim=1)[0].unsqueeze(1), pooled[0]
