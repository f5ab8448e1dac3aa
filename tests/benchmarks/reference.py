"""The pipeline to beat: what published patch extraction scripts do, step by step.

OpenSlide reads every patch at the finest level, PIL makes it smaller, a PNG of it goes to disk; a DataLoader reads the
PNGs, and a float32 ResNet34 with the channels first encodes each row's patches: a 5x patch again for each of its
10x patches. The grid is ours, so that both encode the same rows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from scripts.bags.bag import Bag
from scripts.encoders.backbones import Backbone

__all__ = ["extract"]


class PNGRows(Dataset):
    """The PNGs of each row's patches, ``[S, 3, H, W]`` uint8."""

    def __init__(self, folder: Path, rows: NDArray[np.int64]) -> None:
        self.folder, self.rows = folder, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        patches = [np.asarray(Image.open(png(self.folder, s, patch))) for s, patch in enumerate(self.rows[index])]
        return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)


def png(folder: Path, scale_index: int, patch: int) -> Path:
    """The file of a patch."""
    return folder / f"{scale_index}_{patch}.png"


def extract(bag: Bag, backbone: Backbone, folder: Path, batch_size: int = 32, num_workers: int = 2) -> torch.Tensor:
    """Features ``[N, S, F]`` of a bag's rows.

    Args:
        bag: the slide's bag.
        backbone: a float32 backbone whose weights have the channels first.
        folder: for the PNGs.
        batch_size: patches that are encoded together.
        num_workers: threads that cut patches, then processes that read PNGs.
    """
    slide = OpenSlide(str(bag.slide.path))

    def cut(job: tuple[int, int]) -> None:
        scale_index, patch = job
        scale = bag.grid.scales[scale_index]
        x, y = bag.grid.coords[scale_index][patch]
        side = round(scale.patch_level0)
        region = slide.read_region((round(x), round(y)), 0, (side, side)).convert("RGB")
        region.resize((scale.patch_size_px,) * 2, Image.Resampling.BOX).save(png(folder, scale_index, patch))

    jobs = [(s, patch) for s, coords in enumerate(bag.grid.coords) for patch in range(len(coords))]
    with ThreadPoolExecutor(num_workers) as threads:
        list(threads.map(cut, jobs))
    rows = PNGRows(folder, bag.grid.rows)
    scales = len(bag.grid.scales)
    features = []
    with torch.inference_mode():
        for batch in DataLoader(rows, batch_size=batch_size // scales, num_workers=num_workers):
            encoded = forward(backbone, batch.flatten(0, 1))
            features.append(encoded.unflatten(0, (-1, scales)))
    return torch.cat(features)


def forward(backbone: Backbone, patches: torch.Tensor) -> torch.Tensor:
    """The backbone on float32 patches with the channels first."""
    normalised: torch.Tensor = (patches.float().contiguous() - backbone.mean) / backbone.std
    features: torch.Tensor = backbone.network(normalised)
    return features
