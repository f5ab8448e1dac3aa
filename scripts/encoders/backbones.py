"""Frozen patch encoders: the paper's ConvL, shared by all scales (Marini et al. 2021, section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from scripts.core.devices import use_full_float32
from scripts.core.errors import SettingsError
from scripts.core.settings import check_settings
from scripts.encoders.downloads import HUB, download
from scripts.encoders.entry import EncoderEntry
from scripts.encoders.network_trials import feature_length, fitting_memory_format
from scripts.encoders.own_networks import is_own, own_network
from scripts.encoders.registry import encoder_entry
from scripts.encoders.vision_transformers import INSTALL
from scripts.encoders.weight_files import load_weights, weights_file

__all__ = ["Backbone", "get_backbone", "has_fast_bfloat16"]

OWN_POOLING = "the network's own"


class Backbone(nn.Module):
    """A network with frozen weights, and the patches that it was trained with.

    It stays in evaluation mode, so that batch-norm statistics never move, and no parameter requires a gradient.

    Patches of another size than ``input_px`` are resized once, as floats before they are normalised, with
    antialiasing.

    Args:
        name: the encoder's name, as :func:`get_backbone` takes it.
        network: maps normalised patches ``[n, 3, H, W]`` to features ``[n, num_features]``.
        num_features: length of a feature vector.
        mean: of R, G and B, in 0..255.
        std: standard deviation of R, G and B, in 0..255.
        weights_sha256: SHA-256 of the weights file in hexadecimal.
        amp: whether to run the network in bfloat16, else in float32, without TF32
            (:func:`scripts.core.devices.use_full_float32`). It alone decides, not an autocast around the call.
        input_px: side of the patches that the network takes; ``None`` takes any.
        resize: the interpolation, ``"bilinear"`` or ``"bicubic"``.
        pooling: how a feature vector comes from the network, in words.
        runtime: the one runtime that can compute it; ``None`` for any.
        backbone_input: of an encoder without an entry, the setting as it was used: a file may have said it.
        source_sha256: of the source of the Python function that made it, in hexadecimal.
        memory_format: of the patches that the network gets. With channels last, convolutions on a CPU are about 1.5
            times as fast.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        num_features: int,
        mean: Sequence[float],
        std: Sequence[float],
        weights_sha256: str,
        amp: bool = False,
        input_px: int | None = None,
        resize: str = "bicubic",
        pooling: str | None = None,
        runtime: str | None = None,
        backbone_input: Mapping[str, Any] | None = None,
        source_sha256: str | None = None,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        use_full_float32()
        self.name = name
        self.num_features = num_features
        self.weights_sha256 = weights_sha256
        self.amp = amp
        self.input_px, self.resize, self.pooling, self.runtime = input_px, resize, pooling, runtime
        self.source_sha256 = source_sha256
        # Settings that records of weights store in this form, whatever the config says.
        self.recorded = {} if backbone_input is None else {"backbone_input": dict(backbone_input)}
        self.memory_format = memory_format
        self.network = network.to(memory_format=memory_format)  # type: ignore[call-overload]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode, whatever ``mode`` is: features do not change while the heads train."""
        return super().train(False)

    def settings(self) -> dict[str, Any]:
        """What decides the features of a patch, as plain values."""
        return {
            "backbone": self.name,
            "weights_sha256": self.weights_sha256,
            "mean": [round(value, 4) for value in self.mean.flatten().tolist()],
            "std": [round(value, 4) for value in self.std.flatten().tolist()],
            "input_px": self.input_px,
            "resize": self.resize if self.input_px else None,
            "pooling": self.pooling,
            "amp": self.amp,
            **({"source_sha256": self.source_sha256} if self.source_sha256 else {}),
        }

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Features ``[n, num_features]`` float32 of patches ``[n, 3, H, W]``, RGB, in 0..255; ``n`` may be 0."""
        if len(patches) == 0:
            return self.mean.new_zeros(0, self.num_features)  # [0, F]
        x = patches.to(torch.float32, memory_format=self.memory_format)  # [n, 3, H, W]
        if self.input_px is not None and x.shape[-2:] != (self.input_px, self.input_px):
            size = (self.input_px, self.input_px)
            x = F.interpolate(x, size=size, mode=self.resize, align_corners=False, antialias=True)  # [n, 3, px, px]
        x = (x - self.mean) / self.std  # [n, 3, H, W]
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.amp):
            features: torch.Tensor = self.network(x)  # [n, F]
        return features.float()


def get_backbone(
    name: str, weights: str | Path | None = None, amp: bool = False, given: Mapping[str, Any] | None = None
) -> Backbone:
    """Build a frozen encoder with its weights.

    Args:
        name: one of :data:`scripts.encoders.registry.ENCODERS`, or as
            :func:`scripts.encoders.own_networks.own_network` takes it.
        weights: a weights file, or the folder of a downloaded snapshot; ``"hub"`` downloads the published file if it
            is not in the cache; ``None`` takes the one that is installed or in the cache of ``torch.hub``. The hash in
            the name of a published file (``resnet34-b627a593.pth``) is compared with its content.
        amp: whether to run the network in bfloat16; :func:`has_fast_bfloat16` is a good default.
        given: the setting ``backbone_input``, for encoders that are not in the registry.

    Returns:
        The encoder, in evaluation mode, on the CPU.

    Raises:
        SettingsError: if the name is unknown, a package is not installed, or the weights are missing, damaged or of
            another network.
    """
    given = dict(given or {})
    check_settings(backbone_weights=weights, backbone_input=given)
    # Building initialises weights at random; the caller's random numbers must not depend on that.
    with torch.random.fork_rng(devices=[]):
        return _own(name, weights, amp, given) if is_own(name) else _published(name, weights, amp, given)


def has_fast_bfloat16(device: str | torch.device) -> bool:
    """Whether a device, the CPU or one of the GPUs, computes in bfloat16 natively.

    Raises:
        SettingsError: if there is no such device.
    """
    check_settings(device=device)
    if (device := torch.device(device)).type == "cuda":
        # NVIDIA's since Ampere. PyTorch itself tells it only of the current GPU, and selecting another would occupy it.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch keeps these checks private, so a later version may lack them; then float32 is the safe answer.
    checks = (getattr(torch.cpu, f"_is_{feature}_supported", None) for feature in ("avx512_bf16", "amx_tile"))
    return any(check() for check in checks if check is not None)


def _published(name: str, weights: str | Path | None, amp: bool, given: Mapping[str, Any]) -> Backbone:
    entry = encoder_entry(name)
    if given:
        cause = f"is for encoders without an entry; that of {name} says its size, mean and deviation"
        raise SettingsError("backbone_input", cause, "Leave it out.")
    if weights is None and (weights := entry.default_weights()) is None:
        raise _no_weights(entry)
    network = entry.build()  # before weights of gigabytes are downloaded, because it may need a package
    path = download(entry) if weights == HUB else weights_file(weights, entry)
    sha256 = load_weights(network, path, entry)
    mean, std = ([255 * value for value in values] for values in (entry.mean, entry.std))
    return Backbone(
        name,
        network,
        entry.num_features,
        mean,
        std,
        sha256,
        amp=amp,
        input_px=entry.input_px,
        resize=entry.resize,
        pooling=entry.pooling,
    )


def _no_weights(entry: EncoderEntry) -> SettingsError:
    where = entry.hub or entry.url
    remedy = (
        f"Give --backbone_weights PATH, a file or a snapshot's folder; or --backbone_weights hub, to download {where}."
    )
    if entry.is_gated:
        page = f"https://huggingface.co/{entry.hub}"
        remedy += f" The weights are gated: ask for access at {page}, then run `hf auth login`."
    if entry.hub is not None and find_spec("timm") is None:
        remedy += f" It needs timm as well, which is not installed. {INSTALL}"
    cause = "its weights are not here, and nothing is downloaded unasked"
    return SettingsError(f"backbone {entry.name}", cause, remedy)


def _own(name: str, weights: str | Path | None, amp: bool, given: Mapping[str, Any]) -> Backbone:
    own = own_network(name, weights, given)
    px = own.backbone_input.get("size")
    length = feature_length(name, own.network.eval(), px)
    mean, std = ([255 * value for value in own.backbone_input[key]] for key in ("mean", "std"))
    amp = amp and name != "onnx"  # onnxruntime computes in what the file says.
    return Backbone(
        name,
        own.network,
        length,
        mean,
        std,
        own.weights_sha256,
        amp=amp,
        input_px=px,
        resize=own.resize,
        pooling=OWN_POOLING,
        runtime=own.runtime,
        backbone_input=own.backbone_input,
        source_sha256=own.source_sha256,
        memory_format=fitting_memory_format(own.network, px),
    )
