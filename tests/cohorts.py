"""A small cohort of drawn slides, and a tiny network in the place of an encoder, for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from scripts.bags.bag import Bag, BagBuilder
from scripts.encoders.backbones import Backbone
from scripts.features.encoding import Encoder
from tests.pyramids import noise, with_tissue, write_pyramid

PATCH_PX = 64
# Sizes in level-0 pixels at 0.5 um/px, where a 10x patch of 64 px covers 128 px and a 5x patch 256 px.
SIZES = ((1024, 512), (900, 780), (768, 640), (1150, 400), (900, 512))
LABELS = ((1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 0), (0, 0, 1))
NUM_TINY_FEATURES = 12


def draw_slide(path: Path, size: tuple[int, int] = SIZES[0], seed: int = 0, mpp: float | None = 0.5) -> Path:
    """A slide of ``size`` (width, height) px with one piece of tissue in which every patch differs.

    The default size has 6 patches of 64 px at 5x, and 20 at 10x; its left is glass.
    """
    width, height = size
    # Edges on the tissue mask's pixels (16 px), clear of the share of tissue at which a patch is kept.
    tissue = with_tissue(height, width, [(368, 16, width - 16, height - 16)])
    texture = cv2.GaussianBlur(noise(height, width, seed), (0, 0), 9)[..., :1].astype(int) - 128
    inside = (tissue != 255).any(axis=-1)
    tissue[inside] = np.clip(tissue[inside] + 4 * texture[inside], 0, 254)
    return write_pyramid(path, tissue, mpp=mpp, downsamples=(1, 4))


def draw_cohort(folder: Path, num_slides: int = len(SIZES)) -> list[dict[str, Any]]:
    """Entries as :mod:`scripts.datalists.datalist` gives them, of slides of different sizes, drawn into ``folder``."""
    return [
        {
            "image": str(draw_slide(folder / f"s{i}.tif", SIZES[i], seed=i)),
            "label": np.array(LABELS[i], dtype=np.float32),
            "slide": f"s{i}",
            "patient": f"p{i}",
        }
        for i in range(num_slides)
    ]


def builder(magnifications: Sequence[float] = (5, 10), **settings: Any) -> BagBuilder:
    """Bags of small patches."""
    return BagBuilder(magnifications, patch_size=PATCH_PX, **settings)


def read_patches(bag: Bag, scale_index: int, patches: Iterable[int]) -> np.ndarray:
    """Patches of one scale, each read alone, RGB ``[n, 3, H, W]``."""
    return np.stack([bag.read_patch(scale_index, int(patch)).transpose(2, 0, 1) for patch in patches])


def tiny_backbone(name: str = "tiny", weights_sha256: str = "0" * 64) -> Backbone:
    """The mean colour of each quarter of a patch, as an encoder."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Backbone(name, network, NUM_TINY_FEATURES, mean=(128.0,) * 3, std=(64.0,) * 3, weights_sha256=weights_sha256)


def conv_backbone() -> Backbone:
    """Two convolutions, of which there is something to quantise, with as many features as the tiny one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3, stride=4), nn.ReLU6(), nn.Conv2d(16, NUM_TINY_FEATURES, 3, stride=2), nn.ReLU6()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone("conv", network, NUM_TINY_FEATURES, (128.0,) * 3, (64.0,) * 3, weights_sha256="c" * 64)


def tiny_encoder(batch_size: int = 5, num_workers: int = 0) -> Encoder:
    """An encoder that costs next to nothing."""
    return Encoder(tiny_backbone(), batch_size=batch_size, num_workers=num_workers)


def join_log_weight(features, log_weight):
    """Features ``[..., N, S, F]`` and log weight ``[..., N, S]`` in the one tensor that is served."""
    return torch.cat([features, log_weight[..., None]], dim=-1)
