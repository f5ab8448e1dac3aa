"""Vision transformers of timm, from tokens to one feature vector a patch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.core.errors import SettingsError, reason_of

__all__ = [
    "INSTALL",
    "POOLINGS",
    "SWIGLU",
    "TokenPooling",
    "build",
    "create_timm_model",
    "import_timm",
    "resized_positions",
]

POOLINGS = {"token": "class token", "token+mean": "class token and mean of the patch tokens"}
SWIGLU: dict[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": nn.SiLU}
"""The feed-forward layers of DINOv2's largest networks, as arguments of timm."""

INSTALL = "Run: pip install timm safetensors huggingface-hub, with a torchvision of the same build as torch."
"""What to do where timm is missing."""


class TokenPooling(nn.Module):
    """A vision transformer of timm whose tokens become one feature vector; registers are dropped.

    Args:
        trunk: the transformer.
        pooling: a key of :data:`POOLINGS`.
    """

    def __init__(self, trunk: nn.Module, pooling: str) -> None:
        super().__init__()
        self.trunk, self.with_mean = trunk, pooling == "token+mean"

    def forward(self, x: Tensor) -> Tensor:
        """From patches ``[n, 3, H, W]`` to ``[n, D]``, or ``[n, 2 D]`` with the mean."""
        tokens: Tensor = self.trunk.forward_features(x)  # type: ignore[operator]  # [n, T, D]
        token = tokens[:, 0]  # [n, D]
        if not self.with_mean:
            return token
        patches = tokens[:, self.trunk.num_prefix_tokens :]  # [n, T', D]
        return torch.cat([token, patches.mean(dim=1)], dim=1)


def build(timm_name: str, pooling: str = "token", **arguments: Any) -> Callable[[], nn.Module]:
    """What makes a transformer with pooled tokens, its parameters on the meta device.

    Args:
        timm_name: timm's name of the architecture.
        pooling: a key of :data:`POOLINGS`.
        arguments: of timm's class, ``mlp_layer`` by its name in ``timm.layers``.
    """
    assert pooling in POOLINGS
    return lambda: TokenPooling(create_timm_model(timm_name, **{"img_size": 224, **arguments}), pooling)


def create_timm_model(timm_name: str, device: str = "meta", **arguments: Any) -> nn.Module:
    """A network of timm, without a classifier unless ``num_classes`` is among the arguments.

    Args:
        timm_name: its name, of those that timm has itself: a repository's name would be looked up on the hub.
        device: ``"meta"``, on which parameters take no memory, and none is initialised only to be replaced; or
            ``"cpu"``, for networks with constants that files of weights do not have.
        arguments: of timm's class.

    Raises:
        SettingsError: if timm is not installed, or has no such model.
    """
    timm = import_timm()
    if isinstance(layer := arguments.get("mlp_layer"), str):
        arguments = {**arguments, "mlp_layer": getattr(timm.layers, layer)}
    try:
        if not timm.is_model(timm_name):
            raise ValueError("it has no such model")
        with torch.device(device):
            network: nn.Module = timm.create_model(timm_name, pretrained=False, **{"num_classes": 0, **arguments})
    except Exception as error:  # timm raises whatever a network's own constructor does
        cause = f"timm {timm.__version__} cannot build {timm_name} ({reason_of(error)})"
        raise SettingsError("backbone", cause, "timm.list_models() lists what it has.") from error
    return network


def import_timm() -> Any:
    """The package timm.

    Raises:
        SettingsError: if it cannot be imported, which may be torchvision's fault.
    """
    # Without an account of the hub's nothing is fetched, and timm warns of it.
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        import timm
        import timm.layers
    # A torchvision that does not fit torch raises a RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise SettingsError("backbone", f"needs timm, which cannot be imported ({error})", INSTALL) from error
    return timm


def resized_positions(
    state: Mapping[str, Tensor], trunk: Any, key: str, resize: Callable[[Tensor, int], Tensor]
) -> dict[str, Tensor]:
    """A state dict whose position embeddings have the number that the trunk needs.

    Args:
        state: of the trunk; its embeddings are ``[1, prefix + g * g, D]``.
        trunk: the transformer that they are for.
        key: of the embeddings.
        resize: from a grid ``[1, D, g, g]`` and the side that is needed to that grid.
    """
    positions, needed = state.get(key), trunk.pos_embed.shape[1]
    if positions is None or positions.ndim != 3 or positions.shape[1] == needed:
        return dict(state)
    prefix = trunk.num_prefix_tokens if not trunk.no_embed_class else 0
    side, needed_side = (round((count - prefix) ** 0.5) for count in (positions.shape[1], needed))
    if side * side + prefix != positions.shape[1]:
        return dict(state)
    grid = positions[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = resize(grid.float(), needed_side).permute(0, 2, 3, 1).flatten(1, 2)
    return {**state, key: torch.cat([positions[:, :prefix].float(), resized], dim=1)}


def bicubic(grid: Tensor, side: int) -> Tensor:
    """As transformers' DINOv2 interpolates positions: without antialiasing."""
    return F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)


def bicubic_antialiased(grid: Tensor, side: int) -> Tensor:
    """As timm interpolates positions."""
    return F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=True)


def bicubic_by_offset(grid: Tensor, side: int) -> Tensor:
    """As DINO's first code interpolates positions: by a factor to which a tenth of a position was added."""
    factor = (side + 0.1) / grid.shape[-1]
    return F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic", align_corners=False)
