"""The transform that turns a slide's path into the network's input."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.bags import BagBuilder
from scripts.encoding import Encoder, of_rows
from scripts.inferers import join_log_weight

__all__ = ["EncodeSlided"]


class EncodeSlided(MapTransform):
    """From a slide's path to its bag: a MetaTensor ``[N, S, F + 1]`` of features and, last, log_weight.

    One tensor, because it is all that MONAI Label and an exported model take; the config's ``inferer`` splits
    it. The entry's ``mpp`` and ``mask`` are used if it has them. Where the patches lie comes beside it, as in
    the items of :class:`scripts.datasets.PatchBagDataset`: ``corners``, ``patch_level0`` and ``base_mpp``.

    Args:
        keys: the key of the path.
        bag_builder: makes the slide's bag.
        encoder: encodes its patches.
    """

    def __init__(self, keys: KeysCollection, bag_builder: BagBuilder, encoder: Encoder) -> None:
        super().__init__(keys)
        self.bag_builder, self.encoder = bag_builder, encoder

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Encode the slide of each key.

        Raises:
            SlideError: if the slide cannot be used.
        """
        encoded = dict(data)
        for key in self.key_iterator(encoded):
            path = str(encoded[key])
            bag = self.bag_builder({**{str(k): v for k, v in encoded.items()}, "image": path})
            features = torch.from_numpy(self.encoder.encode_rows(bag))
            log_weight = torch.from_numpy(bag.grid.log_weight())
            encoded[key] = MetaTensor(
                join_log_weight(features, log_weight), meta={"filename_or_obj": path, "mpp": bag.slide.base_mpp}
            )
            encoded["corners"] = torch.from_numpy(of_rows(bag.grid.coords, bag.grid.rows))
            encoded["patch_level0"] = torch.tensor([s.patch_level0 for s in bag.grid.scales], dtype=torch.float64)
            encoded["base_mpp"] = bag.slide.base_mpp
            encoded.setdefault("slide", Path(path).stem)
        return encoded
