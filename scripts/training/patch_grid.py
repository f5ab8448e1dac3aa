"""The unique patches of slides' linked grids as a MONAI dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.data import PatchWSIDataset
from monai.utils import CommonKeys, WSIPatchKeys

from scripts.bags.bag import Bag
from scripts.slides.monai_reader import MagnificationReader

__all__ = ["PatchGridDataset"]

Entry = Mapping[str, Any]


class PatchGridDataset(PatchWSIDataset):
    """Every unique patch of the slides' linked grids, each scale at its magnification.

    MONAI's own ``PatchWSIDataset`` reads levels of the file, whatever magnification these have. An item is as there:
    ``image`` is a MetaTensor ``[3, H, W]`` uint8, and ``label`` is the slide's. The metadata also contain
    ``magnification`` and ``patch``, the patch's index in the grid of its scale; ``location`` is (top, left) in level-0
    pixels. The patches are in the grid's order: slide by slide, and scale by scale from low to high.

    Args:
        data: the datalist's entries.
        bag_builder: makes an entry's bag, a :class:`scripts.bags.bag.BagBuilder`.
        transform: applied to each item.
        include_label: whether items carry the slide's label.
    """

    def __init__(
        self,
        data: Sequence[Entry],
        bag_builder: Callable[[Entry], Bag],
        transform: Callable | None = None,
        include_label: bool = True,
    ) -> None:
        patches: list[dict[str, Any]] = []
        for entry in data:
            bag = bag_builder(entry)
            for scale, coords in zip(bag.grid.scales, bag.grid.coords, strict=True):
                shared = {**entry, CommonKeys.IMAGE: bag.slide, WSIPatchKeys.SIZE: scale.patch_size_px}
                shared["magnification"] = scale.magnification
                patches += [
                    {**shared, WSIPatchKeys.LOCATION: (y, x), "patch": patch}
                    for patch, (x, y) in enumerate(coords.tolist())
                ]
        super().__init__(
            data=patches,
            transform=transform,
            include_label=include_label,
            center_location=False,
            additional_meta_keys=("magnification", "patch"),
            reader=MagnificationReader(),
        )

    def _get_data(self, sample: dict) -> tuple[Any, dict]:
        location, size = self._get_location(sample), self._get_size(sample)
        return self.wsi_reader.get_data(sample[CommonKeys.IMAGE], location, size, power=sample["magnification"])
