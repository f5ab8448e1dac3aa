"""The names of weights in published files, in those of our networks.

Whatever a function here does not know keeps its name, and is refused later as unknown.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from scripts.encoders.entry import State
from scripts.encoders.vision_transformers import bicubic, bicubic_antialiased, bicubic_by_offset, resized_positions

__all__ = ["conch", "conch_v1_5", "of_dinov2", "of_gpfm", "of_phikon", "of_timm"]

TRUNK, POSITIONS = "trunk.", "trunk.pos_embed"
# Parts of a transformer layer: of transformers' ViT and DINOv2 (feed-forward, and SwiGLU), and timm's.
LAYER_PARTS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
}
LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
OUTSIDE = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}


def of_timm(state: State, _network: nn.Module) -> State:
    """Names of timm."""
    return {TRUNK + key: value for key, value in state.items()}


def of_dinov2_timm(state: State, network: nn.Module) -> State:
    """Names of timm, with position embeddings for another number of patches, which are interpolated as timm does."""
    return resized_positions(of_timm(state, network), _trunk(network), POSITIONS, bicubic_antialiased)


def of_gpfm(state: State, network: nn.Module) -> State:
    """GPFM: names of timm (hub), or those of DINOv2's training, with its head, in chunks of blocks (GitHub)."""
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    if not backbone:
        return of_timm(state, network)
    chunks = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in backbone.items()}
    return of_timm({key: value for key, value in chunks.items() if key != "mask_token"}, network)


def of_phikon(state: State, network: nn.Module) -> State:
    """Phikon: names of transformers' ViT, or those of its first release."""
    first = {key.removeprefix("module.").removeprefix("backbone."): value for key, value in state.items()}
    if "cls_token" in first:
        return of_timm({key: first[key] for key in first if not key.startswith(("head.", "mask_token"))}, network)
    return _of_transformers(state, network)


def of_dinov2(state: State, network: nn.Module) -> State:
    """Names of transformers' DINOv2, with registers or without; positions are interpolated as it does."""
    return resized_positions(_of_transformers(state, network), _trunk(network), POSITIONS, bicubic)


def conch(state: State, _network: nn.Module) -> State:
    """CONCH: of the whole model, which has texts, too, the image encoder."""
    captions = ("visual.attn_pool_caption.", "visual.ln_caption.")
    others = ("text.", "text_decoder.", "logit_scale", "visual.proj_contrast", *captions)
    own = {key.removeprefix("module."): value for key, value in state.items()}
    return {key.removeprefix("visual."): value for key, value in own.items() if not key.startswith(others)}


def conch_v1_5(state: State, network: nn.Module) -> State:
    """CONCH v1.5: positions of 224 px are interpolated as its own code does."""
    return resized_positions(state, _trunk(network), POSITIONS, bicubic_by_offset)


def _trunk(network: nn.Module) -> nn.Module:
    trunk = network.trunk
    assert isinstance(trunk, nn.Module)
    return trunk


def _of_transformers(state: State, network: nn.Module) -> State:
    """Names of transformers' ViT and DINOv2 in those of timm."""
    named: dict[str, Tensor] = {}
    qkv: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("pooler.") or key == "embeddings.mask_token":
            continue
        part, _, kind = key.rpartition(".")
        if part in OUTSIDE:
            named[f"{OUTSIDE[part]}.{kind}"] = value
        elif (layer := LAYER.fullmatch(part)) is None:
            named[key.removeprefix("embeddings.")] = value
        elif (which := layer[2].removeprefix("attention.attention.")) in ("query", "key", "value"):
            qkv.setdefault(f"blocks.{layer[1]}.attn.qkv.{kind}", {})[which] = value
        elif layer[2] in ("layer_scale1", "layer_scale2"):
            named[f"blocks.{layer[1]}.ls{layer[2][-1]}.gamma"] = value
        else:
            named[f"blocks.{layer[1]}.{LAYER_PARTS.get(layer[2], layer[2])}.{kind}"] = value
    for key, parts in qkv.items():
        if len(parts) == 3:
            named[key] = torch.cat([parts["query"], parts["key"], parts["value"]])
    if "position_embeddings" in named:
        named["pos_embed"] = named.pop("position_embeddings")
    if "register_tokens" in named:
        named["reg_token"] = named.pop("register_tokens")
        # timm adds positions to patches alone, where there are registers; DINOv2 to the class token, too.
        if "pos_embed" in named and "cls_token" in named:
            named["cls_token"] = named["cls_token"] + named["pos_embed"][:, :1]
            named["pos_embed"] = named["pos_embed"][:, 1:]
    return of_timm(named, network)
