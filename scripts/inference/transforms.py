"""From a slide's path to the network's input, and from its scores to what is served."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from scripts.bags.bag import BagBuilder
from scripts.bags.linking import Linking
from scripts.core.errors import SlideError
from scripts.datalists.slide_files import slide_name
from scripts.features.bank import BankedBag, bank_path, read_bank, stored_level0
from scripts.features.bank_settings import bank_settings, is_banked, warn_of_older
from scripts.features.bank_writing import write_bank
from scripts.features.encoding import Encoder
from scripts.features.imported import ImportedFeatures
from scripts.networks.methods import served_head
from scripts.slides.staging import SlideStaging

__all__ = ["EncodeSlided", "ServingHeadd"]

logger = logging.getLogger(__name__)

# Features and log weight ``[N, S, F + 1]`` of a slide, and where its patches lie.
_Made = tuple[NDArray[np.float32], dict[str, Any]]


class EncodeSlided(MapTransform):
    """From a slide's path to its bag: a MetaTensor ``[N, S, F + 1]`` of features and, last, log_weight.

    One tensor, because it is all that MONAI Label and an exported model take; the network splits it. The entry's
    ``mpp``, ``mask``, ``mask_tissue`` and ``sha256`` are used if it has them. Beside it come ``corners``,
    ``patch_level0`` and ``base_mpp``, as in the items of :class:`scripts.training.datasets.PatchBagDataset`, and what
    QuPath shows of the slide, ``bounds_level0`` float64 ``[4]``: (x, y, width, height) in level-0 pixels.

    With a ``feature_dir`` a slide is encoded once: its features come from its bank, which is written where there is
    none yet. They are the same to the last digit. Imported features are read alone; their slides need not be there.

    Args:
        keys: the key of the path.
        bag_builder: makes the slide's bag.
        encoder: encodes its patches.
        feature_dir: where the feature bank is; ``None`` neither reads nor writes one.
        linking: how rows are made, see :class:`scripts.bags.linking.Linking`, which also says what is refused.
    """

    def __init__(
        self,
        keys: KeysCollection,
        bag_builder: BagBuilder,
        encoder: Encoder,
        feature_dir: str | Path | None = None,
        linking: str = "linked",
    ) -> None:
        super().__init__(keys)
        self.linking = Linking(linking, len(bag_builder.magnifications))
        self.bag_builder, self.encoder = bag_builder, encoder
        self.feature_dir = None if feature_dir is None else Path(feature_dir)

    @property
    def staging(self) -> SlideStaging | None:
        """Copies the slides; ``None`` where features are imported, whose slides need not be there."""
        return None if isinstance(self.encoder, ImportedFeatures) else self.bag_builder.staging

    def check_banks(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Look at the banks of all slides before the first one is encoded.

        Slides that cannot be read are passed over: they fail when it is their turn.

        Args:
            data: the slides' entries, with ``image`` and ``slide``.

        Raises:
            SettingsError: if there is a bank that was made with other settings.
        """
        if self.feature_dir is None:
            return
        lacking: dict[str, list[Path]] = {}
        count = 0
        for entry in data:
            try:
                settings = bank_settings(entry, self.bag_builder, self.encoder)
            except SlideError:
                continue
            count += is_banked(bank_path(self.feature_dir, str(entry["slide"])), settings, lacking)
        warn_of_older(lacking, self.feature_dir)
        others = "the others fail" if isinstance(self.encoder, ImportedFeatures) else "those of the others are added"
        logger.info("%d of %d slides have features in %s; %s", count, len(data), self.feature_dir, others)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Encode the slide of each key, or read its features.

        Raises:
            SlideError: if the slide cannot be used.
            SettingsError: if its bank was made with other settings or of another file, is damaged, or cannot be
                written.
        """
        encoded = dict(data)
        if "image_path" in encoded and "device" in encoded:
            # MONAI Label's request: it names the device, and this transform may have been made for another request.
            self.encoder.to(str(encoded["device"]))
        for key in self.key_iterator(encoded):
            path = str(encoded[key])
            encoded.setdefault("slide", slide_name(path))
            entry = {**{str(k): v for k, v in encoded.items()}, "image": path}
            joined, place = self._encode(entry) if self.feature_dir is None else self._read(entry, self.feature_dir)
            encoded[key] = MetaTensor(joined, meta={"filename_or_obj": path, "mpp": place["base_mpp"]})
            encoded.update(place)
        return encoded

    def _encode(self, entry: Mapping[str, Any]) -> _Made:
        bag, _ = self.bag_builder.verified(entry)
        grid = bag.grid
        # Written in place: of a large slide they are most of what is in memory.
        joined = np.empty((grid.num_rows, len(grid.scales), self.encoder.num_features + 1), dtype=np.float32)

        def encode(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            return self.encoder.encode_rows(replace(bag, grid=replace(grid, rows=rows)), out=joined[..., :-1])

        linked = self.linking.rows_of(str(entry["slide"]), grid.rows, grid.coords, encode)
        joined[..., -1] = linked["log_weight"]
        sides = [scale.patch_level0 for scale in grid.scales]
        return joined, _place(bag.slide.base_mpp, bag.slide.bounds_level0, linked["corners"], sides)

    def _read(self, entry: Mapping[str, Any], feature_dir: Path) -> _Made:
        path, settings = bank_path(feature_dir, entry["slide"]), bank_settings(entry, self.bag_builder, self.encoder)
        is_there, imported = is_banked(path, settings), isinstance(self.encoder, ImportedFeatures)
        if not is_there and isinstance(self.encoder, ImportedFeatures):
            raise self.encoder.missing(f"slide {entry['slide']}")
        if not is_there:
            bag, sha256 = self.bag_builder.verified(entry, always=True)
            write_bank(path, bag, self.encoder, {**settings, "slide_sha256": sha256})
        bank = read_bank(path, self.bag_builder.magnifications)
        joined = np.empty((*bank.rows.shape, self.encoder.num_features + 1), dtype=np.float32)

        def fill(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            for s, (features, patches) in enumerate(zip(bank.features, rows.T, strict=True)):
                joined[:, s, :-1] = features[patches]
            return joined[..., :-1]

        linked = self.linking.rows_of(str(entry["slide"]), bank.rows, bank.coords, fill)
        joined[..., -1] = linked["log_weight"]
        if imported and not os.path.exists(entry["image"]):
            base_mpp, bounds = bank.base_mpp, _bounds(bank, stored_level0(path)[0])
        else:
            slide = self.bag_builder.open_slide(entry, bank.base_mpp)
            slide.check_mpp(bank.base_mpp)
            slide.check_size(stored_level0(path)[0])
            base_mpp, bounds = slide.base_mpp, slide.bounds_level0
        return joined, _place(base_mpp, bounds, linked["corners"], bank.patch_level0)


def _place(
    base_mpp: float, bounds_level0: Sequence[float], corners: NDArray[np.float64], sides: Sequence[float]
) -> dict[str, Any]:
    """Where the patches lie."""
    return {
        "corners": torch.from_numpy(corners),
        "patch_level0": torch.tensor(sides, dtype=torch.float64),
        "base_mpp": base_mpp,
        "bounds_level0": torch.tensor(bounds_level0, dtype=torch.float64),
    }


def _bounds(bank: BankedBag, size: tuple[int, int] | None) -> tuple[float, ...]:
    """The bounds of a slide that is not there: all of it, or as far as its patches reach."""
    reach = np.max([c.max(axis=0) + side for c, side in zip(bank.coords, bank.patch_level0, strict=True)], axis=0)
    return (0.0, 0.0, *map(float, reach if size is None else size))


class ServingHeadd(MapTransform):
    """From the scores of all heads ``[H, K]`` to those of the one that is served ``[K]``.

    MONAI Label shows one vector of scores: that of the global head or, without one, of the highest magnification. The
    scores of all heads stay under ``head_scores``.

    Args:
        keys: the key of the scores.
        heads: see :func:`scripts.networks.methods.result_heads`.
    """

    def __init__(self, keys: KeysCollection, heads: Sequence[str]) -> None:
        super().__init__(keys)
        self.index = served_head(heads)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Choose the scores of each key."""
        chosen = dict(data)
        for key in self.key_iterator(chosen):
            chosen["head_scores"], chosen[key] = chosen[key], chosen[key][self.index]
        return chosen
