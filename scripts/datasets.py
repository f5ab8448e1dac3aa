"""Patch-grid datasets, and the bag datasets on top of them: from patches on the fly, or from the feature bank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, PatchWSIDataset
from monai.utils import CommonKeys, WSIPatchKeys
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.bags import BagBuilder
from scripts.errors import SettingsError
from scripts.features import bank_path, read_bank
from scripts.magnification import check_magnifications
from scripts.readers import MagnificationReader
from scripts.slides import Slide

__all__ = ["BankBagDataset", "PatchBagDataset", "PatchGridDataset", "bag_dataset", "pad_bags"]

SOURCES = ("bank", "patches")

logger = logging.getLogger(__name__)


class PatchGridDataset(PatchWSIDataset):
    """Every unique patch of the slides' linked grids, each scale at its magnification.

    An item is as in MONAI's ``PatchWSIDataset``: ``image`` is a MetaTensor ``[3, H, W]`` uint8 whose metadata
    has ``location`` (top, left in level-0 pixels), ``magnification`` and ``patch`` (its index in the grid's
    scale), and ``label`` is the slide's.

    Args:
        data: the datalist's entries.
        bag_builder: makes a slide's bag.
        transform: applied to each item.
        include_label: whether items carry the slide's label.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        bag_builder: BagBuilder,
        transform: Callable | None = None,
        include_label: bool = True,
    ) -> None:
        self._slides: dict[str, Slide] = {}
        patches: list[dict[str, Any]] = []
        for entry in data:
            bag = bag_builder(entry)
            self._slides[str(entry[CommonKeys.IMAGE])] = bag.slide
            for scale, coords in zip(bag.grid.scales, bag.grid.coords, strict=True):
                shared = {**entry, "magnification": scale.magnification, WSIPatchKeys.LEVEL.value: scale.level}
                patches += [
                    {**shared, WSIPatchKeys.LOCATION.value: (y, x), "patch": patch}
                    for patch, (x, y) in enumerate(coords)
                ]
        super().__init__(
            data=patches,
            patch_size=bag_builder.patch_size,
            transform=transform,
            include_label=include_label,
            center_location=False,
            additional_meta_keys=("magnification", "patch"),
            reader=MagnificationReader(reader=bag_builder.reader, read_level=bag_builder.read_level),
        )

    def _get_wsi_object(self, sample: dict) -> Slide:
        return self._slides[str(sample[CommonKeys.IMAGE])]

    def _get_data(self, sample: dict) -> tuple[Any, dict]:
        return self.wsi_reader.get_data(
            self._get_wsi_object(sample),
            location=self._get_location(sample),
            size=self._get_size(sample),
            power=sample["magnification"],
        )


class PatchBagDataset(Dataset):
    """Bags of linked patches, read from the slides when they are asked for.

    An item has ``image`` uint8 ``[N, S, 3, H, W]`` (row j holds a patch of each scale, from low to high),
    ``log_weight`` float32 ``[N, S]``, ``label`` float32 ``[K]`` if the entry has one, and ``slide``.

    Args:
        data: the datalist's entries.
        bag_builder: makes a slide's bag.
        transform: applied to each item.
        num_workers: threads that read the patches; 0 reads them in turn.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        bag_builder: BagBuilder,
        transform: Callable | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(data, transform)
        # Tissue and grid are found once.
        self._bags = [bag_builder(entry) for entry in tqdm(data, desc="finding tissue", unit="slide", leave=False)]
        self.num_workers = num_workers

    def _transform(self, index: int) -> Any:
        bag = self._bags[index]
        unique = [bag.read_all(s, self.num_workers) for s in range(len(bag.grid.scales))]
        rows = np.stack([patches[bag.grid.rows[:, s]] for s, patches in enumerate(unique)], axis=1)
        return _apply(self.transform, _item(self.data[index], rows, bag.grid.log_weight()))


class BankBagDataset(Dataset):
    """Bags of linked patches as features, from the feature bank.

    An item is that of :class:`PatchBagDataset`, with ``image`` float32 ``[N, S, F]``.

    Args:
        data: the datalist's entries.
        feature_dir: where the banks are.
        magnifications: the scales.
        transform: applied to each item.

    Raises:
        SettingsError: if a slide has no bank, or one for other magnifications.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        feature_dir: str | Path,
        magnifications: Sequence[float],
        transform: Callable | None = None,
    ) -> None:
        super().__init__(data, transform)
        self.feature_dir = Path(feature_dir)
        self.magnifications = check_magnifications(magnifications)
        missing = [e["slide"] for e in data if not bank_path(self.feature_dir, e["slide"]).exists()]
        if missing:
            raise SettingsError(
                self.feature_dir,
                f"has no feature bank of {len(missing)} of {len(data)} slides ({', '.join(missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''})",
                "Run `extracting` with the same datalist first.",
            )

    def _transform(self, index: int) -> Any:
        entry = self.data[index]
        bag = read_bank(bank_path(self.feature_dir, entry["slide"]), self.magnifications)
        return _apply(self.transform, _item(entry, bag.row_features(), bag.log_weight()))


def bag_dataset(
    source: str,
    data: Sequence[Mapping[str, Any]],
    bag_builder: BagBuilder,
    feature_dir: str | Path,
    transform: Callable | None = None,
    num_workers: int = 0,
) -> Dataset:
    """The bag dataset of a source: ``"bank"`` or ``"patches"``.

    The arguments are those of :class:`BankBagDataset` and :class:`PatchBagDataset`.

    Raises:
        SettingsError: if there is no such source.
    """
    if source not in SOURCES:
        raise SettingsError("source", f"got {source!r}", f"Choose one of {', '.join(SOURCES)}.")
    if source == "patches":
        logger.info("%d bags of patches, read from the slides", len(data))
        return PatchBagDataset(data, bag_builder, transform, num_workers)
    logger.info("%d bags of features, from the feature bank in %s", len(data), feature_dir)
    return BankBagDataset(data, feature_dir, bag_builder.magnifications, transform)


def pad_bags(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate bags of different sizes: the shorter ones are padded with rows of zeros and log_weight -inf.

    Args:
        items: of a bag dataset, with ``image`` ``[N, S, ...]`` and ``log_weight`` ``[N, S]``.

    Returns:
        ``image`` ``[B, max N, S, ...]``, ``log_weight`` ``[B, max N, S]``, ``label`` ``[B, K]`` if there are
        labels, and ``slide``, a list of names.
    """
    longest = max(len(item["image"]) for item in items)
    batch: dict[str, Any] = {
        "image": torch.stack([_padded(item["image"], longest, 0) for item in items]),
        "log_weight": torch.stack([_padded(item["log_weight"], longest, -torch.inf) for item in items]),
        "slide": [item["slide"] for item in items],
    }
    if all("label" in item for item in items):
        batch["label"] = torch.stack([torch.as_tensor(item["label"]) for item in items])
    return batch


def _padded(rows: torch.Tensor, length: int, value: float) -> torch.Tensor:
    if len(rows) == length:
        return rows
    padding = rows.new_full((length - len(rows), *rows.shape[1:]), value)
    return torch.cat([rows, padding])


def _item(entry: Mapping[str, Any], image: NDArray[Any], log_weight: NDArray[np.float32]) -> dict[str, Any]:
    item = {
        CommonKeys.IMAGE: torch.from_numpy(image),
        "log_weight": torch.from_numpy(log_weight),
        "slide": entry["slide"],
    }
    if CommonKeys.LABEL in entry:
        item[CommonKeys.LABEL] = torch.as_tensor(entry[CommonKeys.LABEL], dtype=torch.float32)
    return item


def _apply(transform: Callable | None, item: dict[str, Any]) -> Any:
    return item if transform is None else transform(item)
