"""All maps that a network gives of the slides of one bag."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
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


def open_mapped(bag_builder: BagBuilder, entry: Mapping[str, Any], maps: BagMaps) -> tuple[Slide, BagMaps]:
    """The slide on which maps lie, and the maps with that slide's resolution.

    Imported features may know the resolution of level 0 less exactly than the slide, or where the slide does not.

    Args:
        bag_builder: opens the slide.
        entry: of the datalist.
        maps: of the slide.

    Raises:
        SlideError: if the slide cannot be read, or its resolution is another one.
    """
    opened = bag_builder.open_slide(entry, maps.base_mpp)
    opened.check_mpp(maps.base_mpp)
    reach = np.nanmax(maps.corners.reshape(-1, 2), axis=0)
    if (reach >= opened.size_level0).any():
        size = " x ".join(map(str, opened.size_level0))
        cause = f"has {size} px, and its features are of a patch at ({reach[0]:g}, {reach[1]:g})"
        raise SlideError(opened.path, cause, "Give the slide that the features are of.")
    return opened, maps.of_slide(maps.index, opened.base_mpp)


class BagMaps:
    """The attention and the contribution of one bag, which passes the network's heads once more, alone.

    They are those of one slide: where the bag has several, of the first, and :meth:`of_slide` gives the others.
    ``base_mpp`` is that of the slide, and ``index`` its place in the bag.

    Args:
        network: has :meth:`scripts.networks.bag_network.BagNetwork.explain`.
        specs: the network's maps, in its order.
        item: the bag: ``image`` ``[N, S, F]`` with ``log_weight`` ``[N, S]``, or both in one as ``[N, S, F + 1]``, and
            ``corners`` ``[N, S, 2]``, ``patch_level0`` ``[S]`` and ``base_mpp`` (see
            :class:`scripts.training.datasets.PatchBagDataset`), or what
            :func:`scripts.training.joined_slides.join_slides` makes of these.

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
        corners, sides = (torch.as_tensor(item[key]).cpu().numpy() for key in ("corners", "patch_level0"))
        mpps = torch.as_tensor(item["base_mpp"], dtype=torch.float64).cpu().numpy()
        of_slide = torch.as_tensor(item.get("slide_of_row", torch.zeros(len(corners)))).cpu().numpy()
        # Padding belongs to no slide.
        slides = [of_slide == index for index in range(int(of_slide.max()) + 1)]
        self._rows, self._all_corners = slides, corners
        self._all_sides, self._mpps = sides.reshape(-1, sides.shape[-1]), mpps.reshape(-1)
        self._gathered: dict[tuple[int, int, str], list[PatchMap]] = {}
        self._show(0, None)

    def of_slide(self, index: int, base_mpp: float | None = None) -> BagMaps:
        """Those of a slide of the bag, from 0 up. The bag does not pass the network again.

        Args:
            index: of the slide.
            base_mpp: micrometres per pixel of its level 0, where that is known better than by the bag.
        """
        other = copy.copy(self)
        other._show(index, base_mpp)
        return other

    def _show(self, index: int, base_mpp: float | None) -> None:
        self.index, self._corners, self._sides = index, self._all_corners[self._rows[index]], self._all_sides[index]
        self.base_mpp = float(self._mpps[index]) if base_mpp is None else base_mpp
        self._made: dict[tuple[int, int, str], PatchMap] = {}

    def __call__(self, m: int, class_index: int, kind: str) -> PatchMap:
        """The m-th map for a class, of a kind of :data:`scripts.heatmaps.attention_maps.KINDS`."""
        # Kept: pictures and tables show the same map several times, and its ranks take long.
        key = m, class_index, kind
        if key not in self._made:
            of_bag = self._of_bag(*key)
            others = [heat.values for index, heat in enumerate(of_bag) if index != self.index]
            self._made[key] = replace(
                of_bag[self.index], base_mpp=self.base_mpp, others=np.concatenate([np.zeros(0), *others])
            )
        return self._made[key]

    def _of_bag(self, m: int, class_index: int, kind: str) -> list[PatchMap]:
        """The map on each slide of the bag, without the others."""
        key, scale = (m, class_index, kind), self._specs[m].scale_index
        if key not in self._gathered:
            values = self._values[kind][:, m, class_index]
            self._gathered[key] = [
                gather_rows(values[rows], self._all_corners[rows, scale], float(sides[scale]), float(mpp), kind)
                for rows, sides, mpp in zip(self._rows, self._all_sides, self._mpps, strict=False)
            ]
        return self._gathered[key]

    @property
    def share(self) -> float:
        """The fraction of the attention of the first map, mean over classes, that lies on this slide, in 0..1."""
        attention = self._values[KINDS[0]][:, 0].mean(axis=1)
        return float(attention[self._rows[self.index]].sum() / attention.sum())

    @property
    def sides_level0(self) -> tuple[float, ...]:
        """The side of a patch of each scale in level-0 pixels, from low to high."""
        return tuple(map(float, self._sides))

    @property
    def corners(self) -> NDArray[np.float64]:
        """``[N, S, 2]``, (x, y) of each of the slide's rows' patches in level-0 pixels."""
        return self._corners

    def patches(self, scale_index: int) -> tuple[NDArray[np.float64], float]:
        """The unique patches of a scale in the order of its maps: corners ``[n, 2]`` and side in level-0 pixels."""
        nothing = np.zeros(len(self._corners))
        side = float(self._sides[scale_index])
        return gather_rows(nothing, self._corners[:, scale_index], side, self.base_mpp).corners, side
