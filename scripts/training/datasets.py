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

from scripts.bags.bag import BagBuilder
from scripts.bags.grid import of_rows
from scripts.core.errors import SettingsError
from scripts.core.magnification import check_magnifications
from scripts.datalists.failures import without
from scripts.datalists.label_files import as_entries
from scripts.datalists.labels import CLASS_NAMES
from scripts.features.augmentation import count_views, view_transform
from scripts.features.bank import BankedBag, bank_path, read_bank
from scripts.features.encoding import PatchTransform
from scripts.slides.monai_reader import MagnificationReader
from scripts.slides.slide import Slide
from scripts.training.sampler import DrawnView

__all__ = [
    "BankBagDataset",
    "PatchBagDataset",
    "PatchGridDataset",
    "bag_dataset",
    "pad_bags",
    "training_views",
]

SOURCES = ("bank", "patches")

# Patches are transformed when they are read, so there may be any number of views: at this many, each pass over a
# slide is a new one.
ENDLESS_VIEWS = 2**31 - 1
PATCHES_AT_ONCE = 64

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


class _BagDataset(Dataset):
    """Items by the index of a slide, for its plain patches, or by a :class:`DrawnView`."""

    def _transform(self, index: int | DrawnView) -> Any:
        drawn = index if isinstance(index, DrawnView) else DrawnView(index, 0)
        item = self._read(drawn.index, drawn.view)
        return item if self.transform is None else self.transform(item)

    def _read(self, index: int, view: int) -> dict[str, Any]:
        raise NotImplementedError


class PatchBagDataset(_BagDataset):
    """Bags of linked patches, read from the slides when they are asked for.

    Asked for a :class:`DrawnView`, it applies the view's transform to the patches.

    An item has ``image`` uint8 ``[N, S, 3, H, W]`` (row j holds a patch of each scale, from low to high),
    ``log_weight`` float32 ``[N, S]``, ``label`` float32 ``[K]`` if the entry has one, and ``slide``. Where its
    patches lie: ``corners`` float64 ``[N, S, 2]``, (x, y) of their top left corners in level-0 pixels;
    ``patch_level0`` float64 ``[S]``, their sides in level-0 pixels; ``base_mpp``, micrometres per pixel of level 0.

    Args:
        data: the datalist's entries.
        bag_builder: makes a slide's bag.
        transform: applied to each item.
        num_workers: threads that read the patches; 0 reads them in turn. Choose 0 where a DataLoader has workers:
            OpenCV, used by a thread that is just ending while a process is forked, may stop the new one for good.

    Raises:
        SlideError: if a slide cannot be used; also when it is asked for.
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
        self._bags = []
        for entry in tqdm(data, desc="finding tissue", unit="slide", leave=False):
            bag, _ = bag_builder.verified(entry)
            self._bags.append(bag)
        self.num_workers = num_workers

    def _read(self, index: int, view: int) -> dict[str, Any]:
        bag, transform = self._bags[index], view_transform(self.data[index]["slide"], view)
        unique = bag.read_all(self.num_workers)
        if transform is not None:
            for patches in unique:
                _transform_patches(patches, transform)
        grid = bag.grid
        return _item(
            self.data[index],
            image=of_rows(unique, grid.rows),
            log_weight=grid.log_weight(),
            corners=of_rows(grid.coords, grid.rows),
            patch_level0=[scale.patch_level0 for scale in grid.scales],
            base_mpp=bag.slide.base_mpp,
        )


class BankBagDataset(_BagDataset):
    """Bags of linked patches as features, from the feature bank.

    Asked for a :class:`DrawnView`, it reads the bank of that view.

    An item is that of :class:`PatchBagDataset`, with ``image`` float32 ``[N, S, F]``, in memory scale by scale.

    Args:
        data: the datalist's entries.
        feature_dir: where the banks are.
        magnifications: the scales.
        transform: applied to each item.
        views: the number of augmented views of each slide that will be asked for; ``None`` is 0 for all.
        cache_gb: banks are kept in memory once they were read, up to so many gigabytes; the others are read anew.

    Raises:
        SettingsError: if a slide or a view has no bank, or one for other magnifications.
        ValueError: if there is not one number of views for each slide.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        feature_dir: str | Path,
        magnifications: Sequence[float],
        transform: Callable | None = None,
        views: Sequence[int] | None = None,
        cache_gb: float = 0.0,
    ) -> None:
        super().__init__(data, transform)
        self.feature_dir = Path(feature_dir)
        self._cache: dict[Path, BankedBag] = {}
        self._free_bytes = cache_gb * 1e9
        self.magnifications = check_magnifications(magnifications)
        slides = [entry["slide"] for entry in data]
        self._check_banks([(slide, 0) for slide in slides], "slides", "Run `extracting` with the same datalist first.")
        if views is not None:
            augmented = [(slide, v) for slide, n in zip(slides, views, strict=True) for v in range(1, n + 1)]
            self._check_banks(augmented, "augmented views", "Extract them first, as `training` does.")

    def _check_banks(self, wanted: Sequence[tuple[str, int]], kind: str, remedy: str) -> None:
        missing = [
            f"{slide} view {view}" if view else slide
            for slide, view in wanted
            if not bank_path(self.feature_dir, slide, view).exists()
        ]
        if missing:
            raise SettingsError(
                self.feature_dir,
                f"has no feature bank of {len(missing)} of {len(wanted)} {kind} ({', '.join(missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''})",
                remedy,
            )

    def _read(self, index: int, view: int) -> dict[str, Any]:
        entry = self.data[index]
        bag = self._bank(bank_path(self.feature_dir, entry["slide"], view))
        return _item(
            entry,
            image=bag.row_features(),
            log_weight=bag.log_weight(),
            corners=bag.row_corners(),
            patch_level0=bag.patch_level0,
            base_mpp=bag.base_mpp,
        )

    def _bank(self, path: Path) -> BankedBag:
        bag = self._cache.get(path)
        if bag is None:
            bag = read_bank(path, self.magnifications)
            if bag.nbytes <= self._free_bytes:
                self._cache[path] = bag
                self._free_bytes -= bag.nbytes
        return bag


def bag_dataset(
    source: str,
    data: Sequence[Mapping[str, Any]],
    bag_builder: BagBuilder,
    feature_dir: str | Path,
    transform: Callable | None = None,
    num_workers: int = 0,
    views: Sequence[int] | None = None,
    cache_gb: float = 0.0,
    task: str = "multilabel",
    class_names: Sequence[str] = CLASS_NAMES,
    left_out: Sequence[str] = (),
    positive_classes: Sequence[str] | None = None,
) -> Dataset:
    """The bag dataset of a source: ``"bank"`` or ``"patches"``.

    Args:
        source: which.
        data: the datalist's entries, or what :func:`scripts.datalists.label_files.as_entries` makes such of.
        bag_builder: makes a slide's bag.
        feature_dir: where the banks are.
        transform: applied to each item.
        num_workers: of :class:`PatchBagDataset`.
        views: of :class:`BankBagDataset`.
        cache_gb: of :class:`BankBagDataset`.
        task: what labels are read for.
        class_names: the classes in order.
        left_out: the names of slides without which the workflow goes on; ``views`` has no numbers for them.
        positive_classes: as in :func:`scripts.datalists.datalist.load_partition`.

    Raises:
        SettingsError: if there is no such source.
        DatalistError: if there is no slide, or none is left, or a label cannot be used.
    """
    _check_source(source)
    data = without(as_entries(data, task, class_names, positive_classes), left_out)
    if source == "patches":
        logger.info("%d bags of patches, read from the slides", len(data))
        return PatchBagDataset(data, bag_builder, transform, num_workers)
    logger.info("%d bags of features, from the feature bank in %s", len(data), feature_dir)
    return BankBagDataset(data, feature_dir, bag_builder.magnifications, transform, views, cache_gb)


def training_views(
    source: str, data: Sequence[Mapping[str, Any]], views: int, left_out: Sequence[str] = ()
) -> list[int] | None:
    """How many augmented views of each slide a training draws from.

    Args:
        source: ``"bank"``, where each view is extracted, or ``"patches"``, where they are made on the fly.
        data: the datalist's entries, with ``label`` ``[K]``.
        views: the number of views of slides of the rarest classes, see
            :func:`scripts.features.augmentation.count_views`; 0 is no augmentation.
        left_out: the names of slides without which the workflow goes on; the others keep their numbers.

    Returns:
        A number for each entry that is not left out, without limit for patches; ``None`` without augmentation, or
        without entries.

    Raises:
        SettingsError: if there is no such source, or ``views`` is no whole number from 0 up.
    """
    _check_source(source)
    if not data:
        return None
    counts = count_views(np.stack([np.asarray(entry["label"]) for entry in data]), views)
    if views == 0:
        return None
    counts = counts if source == "bank" else [ENDLESS_VIEWS] * len(data)
    return [count for count, entry in zip(counts, data, strict=True) if not left_out or entry["slide"] not in left_out]


def _check_source(source: str) -> None:
    if source not in SOURCES:
        raise SettingsError("source", f"got {source!r}", f"Choose one of {', '.join(SOURCES)}.")


def pad_bags(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate bags of different sizes: the shorter ones are padded with rows of zeros and log_weight -inf.

    Args:
        items: of a bag dataset, with ``image`` ``[N, S, ...]`` and ``log_weight`` ``[N, S]``.

    Returns:
        ``image`` ``[B, max N, S, ...]``, ``log_weight`` ``[B, max N, S]`` and ``slide``, a list of names; and of
        what all items have: ``label`` ``[B, K]``, ``corners`` ``[B, max N, S, 2]`` (NaN where a row is padding),
        ``patch_level0`` ``[B, S]`` and ``base_mpp`` ``[B]``, the last three float64.
    """
    if len(items) == 1:
        batch: dict[str, Any] = {key: items[0][key].unsqueeze(0) for key in ("image", "log_weight")}
    else:
        batch = {
            "image": _pad([item["image"] for item in items], 0),
            "log_weight": _pad([item["log_weight"] for item in items], -torch.inf),
        }
    batch["slide"] = [item["slide"] for item in items]
    if all("label" in item for item in items):
        batch["label"] = torch.stack([torch.as_tensor(item["label"]) for item in items])
    if all("corners" in item for item in items):
        batch["corners"] = _pad([item["corners"] for item in items], torch.nan)
    for key in ("patch_level0", "base_mpp"):
        if all(key in item for item in items):
            batch[key] = torch.stack([torch.as_tensor(item[key], dtype=torch.float64) for item in items])
    return batch


def _pad(bags: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    """``[B, max N, S, ...]`` of bags ``[N, S, ...]``, in memory scale by scale if the bags are so."""
    first, longest = bags[0], max(len(bag) for bag in bags)
    if first.is_contiguous():
        padded = first.new_empty((len(bags), longest, *first.shape[1:]))
    else:
        padded = first.new_empty((first.shape[1], len(bags), longest, *first.shape[2:])).movedim(0, 2)
    for row, bag in zip(padded, bags, strict=True):
        row[: len(bag)] = bag
        row[len(bag) :] = value
    return padded


def _item(
    entry: Mapping[str, Any],
    image: NDArray[Any],
    log_weight: NDArray[np.float32],
    corners: NDArray[np.float64],
    patch_level0: Sequence[float],
    base_mpp: float,
) -> dict[str, Any]:
    item = {
        CommonKeys.IMAGE: torch.from_numpy(image),
        "log_weight": torch.from_numpy(log_weight),
        "corners": torch.from_numpy(corners),
        "patch_level0": torch.tensor(patch_level0, dtype=torch.float64),
        "base_mpp": base_mpp,
        "slide": entry["slide"],
    }
    if CommonKeys.LABEL in entry:
        item[CommonKeys.LABEL] = torch.as_tensor(entry[CommonKeys.LABEL], dtype=torch.float32)
    return item


def _transform_patches(patches: NDArray[np.uint8], transform: PatchTransform) -> None:
    """Transform patches ``[n, 3, H, W]`` in place, a few at a time; threads make it no faster."""
    for start in range(0, len(patches), PATCHES_AT_ONCE):
        patches[start : start + PATCHES_AT_ONCE] = transform(patches[start : start + PATCHES_AT_ONCE])
