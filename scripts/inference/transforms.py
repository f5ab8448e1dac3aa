"""From a slide's path to the network's input, and from its scores to what is served."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.bags.bag import BagBuilder
from scripts.bags.grid import of_rows
from scripts.datalists.slide_files import slide_name
from scripts.features.encoding import Encoder

__all__ = ["EncodeSlided", "ServingHeadd"]


class EncodeSlided(MapTransform):
    """From a slide's path to its bag: a MetaTensor ``[N, S, F + 1]`` of features and, last, log_weight.

    One tensor, because it is all that MONAI Label and an exported model take; the network splits it. The entry's
    ``mpp``, ``mask``, ``mask_tissue`` and ``sha256`` are used if it has them. Beside it come ``corners``,
    ``patch_level0`` and ``base_mpp``, as in the items of :class:`scripts.training.datasets.PatchBagDataset`, and what
    QuPath shows of the slide, ``bounds_level0`` float64 ``[4]``: (x, y, width, height) in level-0 pixels.

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
        if "image_path" in encoded and "device" in encoded:
            # MONAI Label's request: it names the device, and this transform may have been made for another request.
            self.encoder.to(str(encoded["device"]))
        for key in self.key_iterator(encoded):
            path = str(encoded[key])
            entry = {**{str(k): v for k, v in encoded.items()}, "image": path}
            bag, _ = self.bag_builder.verified(entry)
            # Written in place: of a large slide they are most of what is in memory.
            shape = (bag.grid.num_rows, len(bag.grid.scales), self.encoder.num_features + 1)
            joined = np.empty(shape, dtype=np.float32)
            self.encoder.encode_rows(bag, out=joined[..., :-1])
            joined[..., -1] = bag.grid.log_weight()
            encoded[key] = MetaTensor(joined, meta={"filename_or_obj": path, "mpp": bag.slide.base_mpp})
            encoded["corners"] = torch.from_numpy(of_rows(bag.grid.coords, bag.grid.rows))
            encoded["patch_level0"] = torch.tensor([s.patch_level0 for s in bag.grid.scales], dtype=torch.float64)
            encoded["base_mpp"] = bag.slide.base_mpp
            encoded["bounds_level0"] = torch.tensor(bag.slide.bounds_level0, dtype=torch.float64)
            encoded.setdefault("slide", slide_name(path))
        return encoded


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
        self.index = list(heads).index("global") if "global" in heads else len(heads) - 1

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Choose the scores of each key."""
        chosen = dict(data)
        for key in self.key_iterator(chosen):
            chosen["head_scores"], chosen[key] = chosen[key], chosen[key][self.index]
        return chosen
