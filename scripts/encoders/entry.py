"""What the registry of encoders says of each one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "EncoderEntry", "Naming", "State"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

State = Mapping[str, Tensor]
# From the names and shapes in a published file to those of our network, which the second argument is.
Naming = Callable[[State, nn.Module], State]


def as_published(state: State, _network: nn.Module) -> State:
    """The names of the file."""
    return state


@dataclass(frozen=True)
class EncoderEntry:
    """One published encoder.

    Args:
        name: what ``backbone`` is set to.
        title: the name that its makers gave it.
        num_features: length of a feature vector.
        build: makes the network, without weights: normalised patches ``[n, 3, H, W]`` to features
            ``[n, num_features]``.
        mean: of R, G and B, in 0..1.
        std: standard deviation of R, G and B, in 0..1.
        pooling: how a feature vector comes from the network, in words.
        input_px: side of the patches that it takes; patches of another size are resized. ``None`` takes any.
        resize: the interpolation, ``"bilinear"`` or ``"bicubic"``, both with antialiasing.
        naming: the names of the published file in those of the network.
        dropped: beginnings of names in the file that the features do not need, such as a classifier's.
        default_weights: gives the file that is installed or was downloaded, or ``None``.
        url: of the weights, where anybody may download them.
        hub: the repository on the Hugging Face hub.
        hub_files: the weights file in ``hub``, by the names that it may have.
        precision: in which its makers or peers compute it.
        magnification: at which it is published, 10x being 1 um/px.
        licence: of the weights.
        is_gated: whether the hub asks who downloads them.
        paper: where it is described.
        sources: where these values were read.
    """

    name: str
    title: str
    num_features: int
    build: Callable[[], nn.Module]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pooling: str = "average of the feature map"
    input_px: int | None = None
    resize: str = "bicubic"
    naming: Naming = as_published
    dropped: tuple[str, ...] = ()
    default_weights: Callable[[], Path | None] = lambda: None
    url: str | None = None
    hub: str | None = None
    hub_files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    precision: str = "float32"
    magnification: str = "any"
    licence: str = ""
    is_gated: bool = False
    paper: str = ""
    sources: tuple[str, ...] = ()
