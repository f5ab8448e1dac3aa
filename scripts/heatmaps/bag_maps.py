"""All maps that a network gives of one slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.utils import eval_mode
from monai.utils import CommonKeys
from numpy.typing import NDArray

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SlideError
from scripts.heatmaps.attention_maps import KINDS, PatchMap, gather_rows
from scripts.networks.methods import MapSpec
from scripts.slides.slide import Slide

__all__ = ["BagMaps", "open_mapped"]


def open_mapped(
    bag_builder: BagBuilder, entry: Mapping[str, Any], item: Mapping[str, Any]
) -> tuple[Slide, dict[str, Any]]:
    """The slide on which the maps of a bag lie, and the bag with that slide's resolution.

    Imported features may know the resolution of level 0 less exactly than the slide, or where the slide does not.

    Args:
        bag_builder: opens the slide.
        entry: of the datalist.
        item: the bag, see :class:`BagMaps`.

    Raises:
        SlideError: if the slide cannot be read, or its resolution is another one.
    """
    known_mpp = float(item["base_mpp"])
    opened = bag_builder.open_slide(entry, known_mpp)
    opened.check_mpp(known_mpp)
    reach = np.asarray(item["corners"]).reshape(-1, 2).max(axis=0)
    if (reach >= opened.size_level0).any():
        size = " x ".join(map(str, opened.size_level0))
        cause = f"has {size} px, and its features are of a patch at ({reach[0]:g}, {reach[1]:g})"
        raise SlideError(opened.path, cause, "Give the slide that the features are of.")
    return opened, {**item, "base_mpp": opened.base_mpp}


class BagMaps:
    """The attention and the contribution of one bag, which passes the network's heads once more, alone.

    Args:
        network: has :meth:`scripts.networks.bag_network.BagNetwork.explain`.
        specs: the network's maps, in its order.
        item: the bag: ``image`` ``[N, S, F]`` with ``log_weight`` ``[N, S]``, or both in one as ``[N, S, F + 1]``, and
            ``corners`` ``[N, S, 2]``, ``patch_level0`` ``[S]`` and ``base_mpp`` (see
            :class:`scripts.training.datasets.PatchBagDataset`).

    Raises:
        ValueError: if the network has another number of maps.
    """

    def __init__(self, network: torch.nn.Module, specs: Sequence[MapSpec], item: Mapping[str, Any]) -> None:
        bag = [torch.as_tensor(item[key])[None] for key in (CommonKeys.IMAGE, "log_weight") if key in item]
        device = next(network.parameters(), bag[0]).device
        with eval_mode(network):
            _, *explained = network.explain(*(tensor.to(device) for tensor in bag))  # type: ignore[operator]
        found = [values[0].float().cpu().numpy() for values in explained]  # [N, M, K] each
        if found[0].shape[1] != len(specs):
            raise ValueError(f"the network has {found[0].shape[1]} attention maps, and {len(specs)} were named")
        self._specs, self._values = list(specs), dict(zip(KINDS, found, strict=True))
        self._corners, self._sides = (torch.as_tensor(item[key]).cpu().numpy() for key in ("corners", "patch_level0"))
        self._base_mpp = float(item["base_mpp"])
        self._made: dict[tuple[int, int, str], PatchMap] = {}

    def __call__(self, m: int, class_index: int, kind: str) -> PatchMap:
        """The m-th map for a class, of a kind of :data:`scripts.heatmaps.attention_maps.KINDS`."""
        # Kept: pictures and tables show the same map several times, and its ranks take long.
        if (m, class_index, kind) not in self._made:
            scale = self._specs[m].scale_index
            rows = self._values[kind][:, m, class_index]
            heat = gather_rows(rows, self._corners[:, scale], float(self._sides[scale]), self._base_mpp, kind)
            self._made[m, class_index, kind] = heat
        return self._made[m, class_index, kind]

    @property
    def sides_level0(self) -> tuple[float, ...]:
        """The side of a patch of each scale in level-0 pixels, from low to high."""
        return tuple(map(float, self._sides))

    @property
    def corners(self) -> NDArray[np.float64]:
        """``[N, S, 2]``, (x, y) of each row's patches in level-0 pixels."""
        return self._corners

    def patches(self, scale_index: int) -> tuple[NDArray[np.float64], float]:
        """The unique patches of a scale in the order of its maps: corners ``[n, 2]`` and side in level-0 pixels."""
        nothing = np.zeros(len(self._corners))
        side = float(self._sides[scale_index])
        return gather_rows(nothing, self._corners[:, scale_index], side, self._base_mpp).corners, side
