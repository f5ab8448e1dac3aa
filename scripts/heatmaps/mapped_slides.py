"""Slides with the maps of their bags, made once for all handlers that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.bags.bag import BagBuilder
from scripts.heatmaps.bag_maps import BagMaps
from scripts.heatmaps.legend import Title
from scripts.heatmaps.top_patches import gallery
from scripts.networks.methods import MapSpec
from scripts.slides.frames import Frame
from scripts.slides.slide import Slide

__all__ = ["MappedSlide", "MappedSlides"]


class MappedSlide:
    """One slide with its maps. A patch that several galleries show is read once.

    Args:
        opened: the slide.
        maps: of its bag.
        specs: their names, in order.
        bag_builder: made the bag.

    Raises:
        SlideError: if the slide is too coarse for the magnifications.
    """

    def __init__(self, opened: Slide, maps: BagMaps, specs: Sequence[MapSpec], bag_builder: BagBuilder) -> None:
        self.opened, self.maps, self._specs = opened, maps, list(specs)
        self._scales = [opened.scale(m, bag_builder.patch_size) for m in bag_builder.magnifications]
        self._read = cache(lambda s, corner: opened.read_patch(self._scales[s], corner))

    def gallery(
        self, m: int, class_index: int, kinds: Sequence[str], count: int, title: Title, frame: Frame
    ) -> NDArray[np.uint8]:
        """The top patches of the m-th map for a class, RGB ``[h, w, 3]``: see :func:`top_patches.gallery`.

        Raises:
            SlideError: if a patch cannot be read.
        """
        heats = [self.maps(m, class_index, kind) for kind in kinds]
        corners, scale_index = self.maps.corners, self._specs[m].scale_index
        return gallery(heats, count, title, corners, self._scales, scale_index, self._read, frame)


class MappedSlides:
    """The slides of a run, by the items of its batches.

    Args:
        network: has ``explain``.
        maps: the network's maps, in its order.
        bag_builder: opens the slides as they were opened for their bags.
        data: the datalist's entries, whose ``slide`` the items name.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        maps: Sequence[MapSpec],
        bag_builder: BagBuilder,
        data: Sequence[Mapping[str, Any]],
    ) -> None:
        self.network, self.maps, self.bag_builder = network, list(maps), bag_builder
        self.entries = {str(entry["slide"]): entry for entry in data}
        self._last: tuple[Mapping[str, Any], MappedSlide] | None = None

    def __call__(self, item: Mapping[str, Any]) -> MappedSlide:
        """The slide of an item; the last one is kept for the next handler that asks for it.

        Raises:
            SlideError: if it cannot be read.
        """
        if self._last is None or self._last[0] is not item:
            self._last = None  # Two slides with their patches need not be in memory.
            opened = self.bag_builder.open_slide(self.entries[str(item["slide"])])
            maps = BagMaps(self.network, self.maps, item)
            self._last = item, MappedSlide(opened, maps, self.maps, self.bag_builder)
        return self._last[1]
