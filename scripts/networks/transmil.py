"""TransMIL: a transformer over the patches of the highest scale, with a class token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.settings import check_settings
from scripts.networks.bag_network import BagNetwork

__all__ = ["TransMIL"]

# As in the paper's code.
NUM_HEADS = 8
NUM_ITERATIONS = 6
DROPOUT = 0.1


class TransMIL(BagNetwork):
    """Transformer-based MIL (Shao et al., NeurIPS 2021, https://arxiv.org/abs/2106.00908), algorithm 2.

    The patches of the highest scale are embedded and, in the order of the rows, filled up to a square by the first of
    them. A class token goes before them; a layer of Nyström attention, the convolutions that encode the position
    (PPEG), and another layer follow; the classifier takes the class token. Unlike in other methods the order of the
    rows counts. Patches are taken to be in one row each, as those of the bundle's bags are.

    It has no attention maps: Nyström attention is a product of three matrices that is no share of anything (it may be
    negative), and no sum over the patches is the logit. Neither can it be exported as TorchScript. The bags of a batch
    pass it one by one, since neither padding nor the other bags may change what the attention approximates.

    The Nyström attention is that of the package nystrom-attention, which the paper's code uses.

    Args:
        num_classes: K, the number of logits.
        num_scales: S, the number of magnifications.
        num_features: F, the length of a patch's feature vector.
        num_nodes: the length of an embedded patch, 512 in the paper, at least 2; half of it is the number of landmarks,
            and an eighth of it (at least 1) the length within each of the 8 heads.
        settings: further arguments of :class:`BagNetwork`, which also says what is raised.

    Raises:
        SettingsError: if ``num_nodes`` is too small.
        ImportError: if the package is not installed (:func:`scripts.networks.methods.get_network` says so in a line).
    """

    def __init__(
        self, num_classes: int, num_scales: int = 2, num_features: int = 512, num_nodes: int = 128, **settings: Any
    ) -> None:
        check_settings(num_nodes=num_nodes)
        super().__init__(num_classes, num_scales, num_features, **settings)
        self.embed = nn.Sequential(nn.Linear(num_features, num_nodes), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, 1, num_nodes))
        self.layers = nn.ModuleList(_Layer(num_nodes) for _ in range(2))
        self.position = _PositionEncoding(num_nodes)
        self.norm = nn.LayerNorm(num_nodes)
        self.myfc = nn.Linear(num_nodes, num_classes)
        self.map_heads = []

    def class_axes(self) -> dict[str, tuple[int, ...]]:
        """A row of the classifier for each class: all of them share the transformer."""
        return {"myfc.weight": (0,), "myfc.bias": (0,)}

    def _branches(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(self.myfc.weight.dtype)
        real = ~torch.isneginf(log_weight[:, :, -1])  # [B, N]
        logits = torch.cat([self._bag(x[b : b + 1, real[b], -1]) for b in range(x.shape[0])])  # [B, K]
        return logits.unsqueeze(1), x.new_zeros(x.shape[0], x.shape[1], 0, self.num_classes)  # [B, 1, K], no maps

    def _explain(self, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, none = self._branches(x, log_weight)
        return logits, none, none

    def _bag(self, x: Tensor) -> Tensor:
        """The logits ``[1, K]`` of one bag ``[1, n, F]``."""
        h = self.embed(x)  # [1, n, num_nodes]
        side = math.isqrt(h.shape[1] - 1) + 1
        h = torch.cat([h, h[:, : side**2 - h.shape[1]]], dim=1)  # [1, side^2, num_nodes]
        h = torch.cat([self.class_token, h], dim=1)  # [1, 1 + side^2, num_nodes]
        first, second = self.layers
        h = second(self.position(first(h), side))  # [1, 1 + side^2, num_nodes]
        logits: Tensor = self.myfc(self.norm(h)[:, 0])  # [1, K]
        return logits


class _Layer(nn.Module):
    """Nyström attention of normalised tokens ``[1, n, width]``, added to them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Of all methods this one needs it.
        from nystrom_attention import NystromAttention

        self.norm = nn.LayerNorm(width)
        self.attention = NystromAttention(
            width,
            dim_head=max(width // NUM_HEADS, 1),
            heads=NUM_HEADS,
            num_landmarks=width // 2,
            pinv_iterations=NUM_ITERATIONS,
            dropout=DROPOUT,
        )

    def forward(self, h: Tensor) -> Tensor:
        attended: Tensor = self.attention(self.norm(h))  # [1, n, width]
        return h + attended


class _PositionEncoding(nn.Module):
    """The Pyramid Position Encoding Generator: depth-wise convolutions of three sizes over the square of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, h: Tensor, side: int) -> Tensor:
        """Tokens ``[1, 1 + side^2, width]`` with their positions; the first of them stays as it is."""
        square = h[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # [1, width, side, side]
        encoded = square + sum(convolve(square) for convolve in self.convolutions)  # [1, width, side, side]
        return torch.cat([h[:, :1], encoded.flatten(2).transpose(1, 2)], dim=1)
