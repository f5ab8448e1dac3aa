"""The INT8 network of a run: that of trained weights or of banks, or else made, on patches of the training slides."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scripts.bags.bag import Bag, BagBuilder
from scripts.core.errors import SettingsError, SlideError
from scripts.core.files import output_folder
from scripts.core.ranks import from_first_rank
from scripts.encoders.backbones import Backbone
from scripts.encoders.int8_networks import Int8Network, find_int8, fitting_int8, write_int8
from scripts.encoders.quantising import quantise

__all__ = ["NUM_PATCHES", "Int8", "sample_patches"]

logger = logging.getLogger(__name__)

Entries = Sequence[Mapping[str, Any]]

NUM_PATCHES = 128
"""Patches from which the ranges of activations come. More of them bring features little closer to float32, and take
longer (docs/benchmarks.md, INT8)."""

# From so many slides, so that no stain or tissue decides alone.
NUM_SLIDES = 16
# Libraries that decide what the network is.
LIBRARIES = ("torch", "openvino", "nncf")


class Int8:
    """The INT8 network that a run encodes with.

    Args:
        feature_dir: the banks, beside which it is stored; ``None`` where there are none.
        seed: chooses the patches that it is made with.
        sha256: of the network that the run has to use, because weights were trained with it; ``None`` where it is free.
        folders: where that is looked for, before ``feature_dir``.

    Raises:
        SettingsError: if the network of the weights is missing or damaged.
    """

    def __init__(
        self,
        feature_dir: str | Path | None = None,
        seed: int = 0,
        sha256: str | None = None,
        folders: Sequence[str | Path] = (),
    ) -> None:
        self.feature_dir, self.seed = None if feature_dir is None else Path(feature_dir), seed
        places = [Path(folder) for folder in (*folders, *([] if feature_dir is None else [feature_dir]))]
        self._network = None if sha256 is None else find_int8(sha256, places)

    @property
    def network(self) -> Int8Network:
        """The network.

        Raises:
            SettingsError: if there is none yet.
        """
        if self._network is None:
            cause = "is int8, and these weights were not trained on features of an INT8 network"
            raise SettingsError("precision", cause, "Leave it out, or train with it.")
        return self._network

    def prepare(self, backbone: Backbone, entries: Entries, bag_builder: BagBuilder) -> None:
        """Find the network of the banks, or make it and store it there, on the first rank; the others wait.

        Args:
            backbone: what is quantised.
            entries: the slides whose patches it is made with.
            bag_builder: makes their bags.

        Raises:
            SettingsError: if there are several, or another than that of the weights; if NNCF is missing or cannot
                quantise the backbone, no slide gives a patch, or nothing can be written into ``feature_dir``.
            StoppedError: if another rank failed.
        """
        folder = self.feature_dir
        assert folder is not None, "banks have a folder"
        sha256 = from_first_rank(lambda: self._in(folder, backbone, entries, bag_builder).sha256)
        if self._network is None:
            self._network = find_int8(sha256, [folder])

    def make_for(self, backbone: Backbone, bag: Bag) -> None:
        """Make a network on the patches of one bag, in memory alone, where there is none: to measure its speed."""
        patch = [bag.grid.scales[0].patch_size_px] * 2
        if self._network is None and self.feature_dir is not None:
            self._network = fitting_int8(self.feature_dir, backbone.settings(), patch)
        if self._network is None:
            patches = _some_patches(bag, NUM_PATCHES, np.random.default_rng(self.seed))
            xml, weights = quantise(backbone, _stacked(patches))
            self._network = Int8Network(Path("unsaved"), "", {"patch": patch}, xml, weights)

    def _in(self, folder: Path, backbone: Backbone, entries: Entries, bag_builder: BagBuilder) -> Int8Network:
        found = fitting_int8(folder, backbone.settings(), [bag_builder.patch_size] * 2)
        if self._network is None and found is not None:
            logger.info("INT8: the network in %s is used", found.path)
            return found
        if self._network is not None:
            if found is not None and found.sha256 != self._network.sha256:
                cause = f"contains the INT8 network {found.path.name}, and these weights have {self._network.path.name}"
                raise SettingsError(folder, cause, "Choose another `feature_dir`.")
            return self._network
        output_folder(folder)
        patches, slides = sample_patches(entries, bag_builder, self.seed)
        count = len(patches)
        logger.info("INT8: quantising %s on %d patches of %d slides, which takes a while", backbone.name, count, slides)
        about = {
            "encoder": backbone.settings(),
            "patch": list(patches.shape[2:]),
            "patches": len(patches),
            "slides": slides,
            "seed": self.seed,
            "versions": {name: metadata.version(name) for name in LIBRARIES},
        }
        quantised = quantise(backbone, patches)
        # Another run may have made one meanwhile, whose banks are there by now.
        if (found := fitting_int8(folder, backbone.settings(), [bag_builder.patch_size] * 2)) is not None:
            logger.info("INT8: the network in %s is used, which another run has made meanwhile", found.path)
            return found
        made = write_int8(folder, about, *quantised)
        logger.info("INT8: wrote %s", made.path)
        return made


def sample_patches(
    entries: Entries, bag_builder: BagBuilder, seed: int, count: int = NUM_PATCHES
) -> tuple[Tensor, int]:
    """Some patches of some slides, as many of each magnification where the slides have them.

    Slides that cannot be used are passed over: extraction tells of them.

    Args:
        entries: the slides.
        bag_builder: makes their bags.
        seed: chooses slides and patches.
        count: the most patches.

    Returns:
        the patches ``[n, 3, H, W]`` uint8, fewer if the slides have fewer; and the number of their slides.

    Raises:
        SettingsError: if no slide has a patch.
    """
    found: list[NDArray[np.uint8]] = []
    slides = 0
    of_slide = -(-count // max(1, min(len(entries), NUM_SLIDES)))
    for number in np.random.default_rng(seed).permutation(len(entries)):
        entry = entries[number]
        with bag_builder.staging.holding(entry):
            try:
                own = _some_patches(
                    bag_builder.verified(entry)[0], of_slide, np.random.default_rng([seed, int(number)])
                )
            except SlideError:
                continue
        slides += bool(own)
        found.extend(own)
        if len(found) >= count:
            break
    if not found:
        cause = "is int8, and no slide has a patch from which the ranges of the network could come"
        raise SettingsError("precision", cause, "Run `checking` to see why.")
    return _stacked(found[:count]), slides


def _some_patches(bag: Bag, count: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """So many patches of a bag, fewer if it has fewer; as many of each scale: RGB ``[H, W, 3]``."""
    of_scales = [len(coords) for coords in bag.grid.coords]
    share = -(-count // len(of_scales))
    return [
        bag.read_patch(scale_index, int(patch))
        for scale_index, patches in enumerate(of_scales)
        for patch in np.sort(rng.choice(patches, min(share, patches), replace=False))
    ][:count]


def _stacked(patches: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)  # [n, 3, H, W]
