"""CONCH and CONCH v1.5: transformers whose tokens are pooled by attention (Lu et al. 2024, Ding et al. 2024).

Modules have the names of the published files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scripts.encoders.vision_transformers import create_timm_model

__all__ = ["Conch", "Conch15"]

INPUT_PX = 448


class Conch(nn.Module):
    """CONCH's image encoder before its projection to texts: ``[n, 3, 448, 448]`` to ``[n, 512]``."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = create_timm_model("vit_base_patch16_224", img_size=INPUT_PX)
        with torch.device("meta"):
            self.attn_pool_contrast = _Pooling(512, 768, num_heads=8)
            self.ln_contrast = nn.LayerNorm(512)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.ln_contrast(self.attn_pool_contrast(_tokens(self.trunk, x)))  # [n, 512]
        return pooled


class Conch15(nn.Module):
    """CONCH v1.5, the patch encoder of TITAN: ``[n, 3, 448, 448]`` to ``[n, 768]``."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = create_timm_model("vit_large_patch16_224", img_size=INPUT_PX, init_values=1.0)
        with torch.device("meta"):
            self.attn_pool_contrast = _PackedPooling(768, 1024, num_heads=8)
            self.ln_contrast = nn.LayerNorm(768)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.ln_contrast(self.attn_pool_contrast(_tokens(self.trunk, x)))  # [n, 768]
        return pooled


def _tokens(trunk: nn.Module, x: Tensor) -> Tensor:
    tokens: Tensor = trunk.forward_features(x)  # type: ignore[operator]  # [n, T, D]
    return tokens


class _Pooling(nn.Module):
    """One learnt query attends to all tokens; keys and values have weights of their own."""

    def __init__(self, size: int, token_size: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, size))
        self.attn = nn.MultiheadAttention(size, num_heads, kdim=token_size, vdim=token_size, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(size), nn.LayerNorm(token_size)

    def forward(self, tokens: Tensor) -> Tensor:
        keys = self.ln_k(tokens)  # [n, T, D]
        query = self.ln_q(self.query).expand(len(keys), 1, -1)  # [n, 1, size]
        pooled: Tensor = self.attn(query, keys, keys, need_weights=False)[0][:, 0]  # [n, size]
        return pooled


class _PackedPooling(nn.Module):
    """One learnt query attends to all tokens; keys and values are one product."""

    def __init__(self, size: int, token_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(1, size))
        self.ln_q, self.ln_k = nn.LayerNorm(size), nn.LayerNorm(token_size)
        self.to_q = nn.Linear(size, size, bias=False)
        self.to_kv = nn.Linear(token_size, 2 * size, bias=False)
        self.to_out = nn.Linear(size, size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), 1, -1)  # [n, 1, size]
        keys, values = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)  # [n, T, size] each
        by_head = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, keys, values))
        pooled = nn.functional.scaled_dot_product_attention(*by_head)  # [n, heads, 1, size / heads]
        out: Tensor = self.to_out(pooled.transpose(1, 2).flatten(-2))[:, 0]  # [n, size]
        return out
