"""Bags of linked patches as MONAI datasets: read from the slides, or from the feature bank."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.utils import CommonKeys
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.bags.bag import Bag, BagBuilder
from scripts.bags.grid import of_rows
from scripts.bags.linking import Linking
from scripts.core.errors import SettingsError, fitting
from scripts.core.magnification import check_magnifications
from scripts.core.repeats import first_names
from scripts.core.settings import check_settings
from scripts.datalists.label_files import as_entries
from scripts.datalists.labels import CLASS_NAMES
from scripts.datalists.units import SLIDE, bags_of, is_patient, slides_in, warn_of_patients
from scripts.features.augmentation import count_views, view_transform
from scripts.features.bank import MAKE_FIRST, BankedBag, BankReader, bank_path
from scripts.features.encoding import Encoder
from scripts.training.joined_slides import join_slides
from scripts.training.patch_grid import Entry, PatchGridDataset
from scripts.training.sampler import SampledView

__all__ = ["BankBagDataset", "PatchBagDataset", "bag_dataset", "pad_bags", "training_views", "views_of_slides"]

# Patches are augmented when they are read, so there may be any number of views: with this many, each use of a slide
# is a new view.
ENDLESS_VIEWS = 2**31 - 1
# Patches that are read ahead of the one that is used: the limit bounds the memory whatever the slide's size.
READ_AHEAD = 64

logger = logging.getLogger(__name__)


class _BagDataset(Dataset):
    """Items by the index of a bag, for its plain patches, or by a :class:`SampledView`, of which all slides have one.

    ``data`` are the entries of bags (:func:`scripts.datalists.units.bags_of`): slides, or patients.
    """

    def _transform(self, index: int | SampledView) -> Any:
        sampled = index if isinstance(index, SampledView) else SampledView(index, 0)
        entry: Any = self.data[sampled.index]
        read = [_tensors(self._read(slide, sampled.view)) for slide in slides_in(entry)]
        item = join_slides(read) if is_patient(entry) else read[0]
        item["slide"] = entry["slide"]
        if CommonKeys.LABEL in entry:
            item["label"] = torch.as_tensor(entry[CommonKeys.LABEL], dtype=torch.float32)
        return item if self.transform is None else self.transform(item)

    def _read(self, entry: Entry, view: int) -> dict[str, Any]:
        """What the item of a slide contains besides ``slide`` and ``label``, with NumPy arrays for tensors."""
        raise NotImplementedError


class PatchBagDataset(_BagDataset):
    """Bags of linked patches, read from the slides each time; a :class:`SampledView` gives augmented patches.

    An item contains ``image``, of which row j is a patch of each scale, from low to high: with an encoder features
    ``[N, S, F]`` float32, each unique patch encoded once; without one patches ``[N, S, 3, H, W]`` uint8. Besides
    ``log_weight`` float32 ``[N, S]``, ``label`` float32 ``[K]`` if the entry has one, and ``slide``. Where its
    patches lie: ``corners`` float64 ``[N, S, 2]``, (x, y) of their top left corners in level-0 pixels;
    ``patch_level0`` float64 ``[S]``, their sides in level-0 pixels; ``base_mpp``, micrometres per pixel of level 0. The
    item of a patient is that of :func:`scripts.training.joined_slides.join_slides`.

    Args:
        data: the datalist's entries, or those of patients (:func:`scripts.datalists.units.bags_of`).
        bag_builder: makes a slide's bag.
        transform: applied to each item.
        num_workers: threads that read the patches; 0 reads them in turn. Choose 0 where a DataLoader has workers:
            OpenCV, used by a thread that is just ending while a process is forked, may stop the new one for good.
        encoder: encodes the patches on its device, in batches of its size, with its runtime.
        linking: see :class:`scripts.bags.linking.Linking`; ``"pooled"`` needs an encoder.

    Raises:
        SlideError: if a slide cannot be used; also when it is asked for.
        SettingsError: if it cannot be linked so.
    """

    def __init__(
        self,
        data: Sequence[Entry],
        bag_builder: BagBuilder,
        transform: Callable | None = None,
        num_workers: int = 0,
        encoder: Encoder | None = None,
        linking: str = "linked",
    ) -> None:
        super().__init__(data, transform)
        self.linking = Linking(linking, len(bag_builder.magnifications))
        if linking == "pooled" and encoder is None:
            raise SettingsError("linking", "got 'pooled', and patches have no features yet", "Give an encoder.")
        self._bags: dict[str, Bag] = {}  # tissue and grid are found once
        slides = [slide for entry in data for slide in slides_in(entry)]
        for entry in tqdm(slides, desc="finding tissue", unit="slide", leave=False):
            self._bags[entry["slide"]], _ = bag_builder.verified(entry)
        self.num_workers, self.encoder = num_workers, encoder

    def _read(self, entry: Entry, view: int) -> dict[str, Any]:
        bag = self._bags[entry["slide"]]
        augment = view_transform(entry["slide"], view)
        reading = self._patches(PatchGridDataset([entry], lambda _: bag, include_label=False))
        size = None if self.encoder is None else self.encoder.batch_size  # None: all at once
        values = []
        while patches := list(islice(reading, size)):
            batch = np.stack(patches)  # [n, 3, H, W]
            values.append(self._encode(batch if augment is None else augment(batch)))
        bag.slide.check_unchanged()
        grid = bag.grid
        unique = np.split(np.concatenate(values), np.cumsum([len(coords) for coords in grid.coords])[:-1])
        return {
            **self.linking.rows_of(entry["slide"], grid.rows, grid.coords, lambda rows: of_rows(unique, rows)),
            "patch_level0": np.array([scale.patch_level0 for scale in grid.scales]),
            "base_mpp": bag.slide.base_mpp,
        }

    def _patches(self, dataset: PatchGridDataset) -> Iterator[NDArray[np.uint8]]:
        def read(patch: int) -> NDArray[np.uint8]:
            return dataset[patch][CommonKeys.IMAGE].numpy()

        if self.num_workers == 0:
            yield from map(read, range(len(dataset)))
            return
        with ThreadPoolExecutor(self.num_workers) as threads:
            ahead = deque(threads.submit(read, patch) for patch in range(min(READ_AHEAD, len(dataset))))
            for patch in range(READ_AHEAD, len(dataset) + READ_AHEAD):
                yield ahead.popleft().result()
                if patch < len(dataset):
                    ahead.append(threads.submit(read, patch))

    def _encode(self, patches: NDArray[np.uint8]) -> NDArray[Any]:
        if (encoder := self.encoder) is None:
            return patches
        batch = torch.from_numpy(patches).contiguous(memory_format=torch.channels_last)
        with fitting("encode_batch"), torch.no_grad():
            forward = encoder.prepare(batch.shape[-1])
            features = encoder.rounded(forward(batch.to(encoder.device)).cpu().numpy())
        return features.astype(np.float32)  # [n, F]


class BankBagDataset(_BagDataset):
    """Bags of linked patches as features, from the feature bank; a :class:`SampledView` reads the bank of that view.

    An item is that of :class:`PatchBagDataset` with an encoder; ``image`` is in memory scale by scale.

    Args:
        data: the datalist's entries, or those of patients (:func:`scripts.datalists.units.bags_of`).
        feature_dir: where the banks are.
        magnifications: the scales.
        transform: applied to each item.
        views: the number of augmented views of each bag that will be asked for; ``None`` is 0 for all.
        cache_gb: banks are kept in memory once they were read, up to so many gigabytes; the others are read anew.
        linking: see :class:`scripts.bags.linking.Linking`.

    Raises:
        SettingsError: if a slide or a view has no bank, or one for other magnifications, or it cannot be linked so.
    """

    def __init__(
        self,
        data: Sequence[Entry],
        feature_dir: str | Path,
        magnifications: Sequence[float],
        transform: Callable | None = None,
        views: Sequence[int] | None = None,
        cache_gb: float = 0.0,
        linking: str = "linked",
    ) -> None:
        super().__init__(data, transform)
        self.feature_dir = Path(feature_dir)
        self._cache: dict[Path, BankedBag] = {}
        self._free_bytes = cache_gb * 1e9
        self._reader = BankReader(check_magnifications(magnifications))
        self.linking = Linking(linking, len(self._reader.magnifications))
        slides = [[slide["slide"] for slide in slides_in(entry)] for entry in data]
        self._check_banks([(slide, 0) for of_bag in slides for slide in of_bag], "slides", MAKE_FIRST)
        if views is not None:
            bags = zip(slides, views, strict=True)
            augmented = [(slide, v) for of_bag, n in bags for slide in of_bag for v in range(1, n + 1)]
            self._check_banks(augmented, "augmented views", "Extract them first, as `training` does.")

    def _check_banks(self, wanted: Sequence[tuple[str, int]], kind: str, remedy: str) -> None:
        missing = [
            f"{slide} view {view}" if view else slide
            for slide, view in wanted
            if not bank_path(self.feature_dir, slide, view).exists()
        ]
        if missing:
            cause = f"has no feature bank of {len(missing)} of {len(wanted)} {kind} ({first_names(missing)})"
            raise SettingsError(self.feature_dir, cause, remedy)

    def _read(self, entry: Entry, view: int) -> dict[str, Any]:
        bag = self._bank(bank_path(self.feature_dir, entry["slide"], view))
        return {
            **self.linking.rows_of(entry["slide"], bag.rows, bag.coords, bag.row_features),
            "patch_level0": np.array(bag.patch_level0),
            "base_mpp": bag.base_mpp,
        }

    def _bank(self, path: Path) -> BankedBag:
        bag = self._cache.get(path)
        if bag is None:
            bag = self._reader.read(path)
            if bag.nbytes <= self._free_bytes:
                self._cache[path] = bag
                self._free_bytes -= bag.nbytes
        return bag


def bag_dataset(
    source: str,
    data: Sequence[Entry],
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
    encoder: Encoder | None = None,
    unit: str = SLIDE,
    linking: str = "linked",
) -> Dataset:
    """The bag dataset of a source: ``"bank"`` (:class:`BankBagDataset`) or ``"patches"`` (:class:`PatchBagDataset`).

    Args:
        source: which; ``views`` and ``cache_gb`` are for the bank, ``num_workers`` and ``encoder`` for patches.
        data: the datalist's entries, or what :func:`scripts.datalists.label_files.as_entries` makes such of, for this
            ``task`` with these ``class_names`` and ``positive_classes``.
        left_out: the names of slides without which the workflow goes on; ``views`` has no numbers for bags of these.
        unit: what a bag is, see :func:`scripts.datalists.units.bags_of`; ``views`` are of bags.
        linking: how its rows are made, see :class:`scripts.bags.linking.Linking`.

    Raises:
        SettingsError: if there is no such source, unit or linking.
        DatalistError: if there is no slide, or none is left, or a label cannot be used.
    """
    check_settings(source=source)
    data = bags_of(as_entries(data, task, class_names, positive_classes), unit, left_out)
    warn_of_patients(data)
    if source == "patches":
        logger.info("%d bags of patches, read from the slides", len(data))
        return PatchBagDataset(data, bag_builder, transform, num_workers, encoder, linking)
    logger.info("%d bags of features, from the feature bank in %s", len(data), feature_dir)
    return BankBagDataset(data, feature_dir, bag_builder.magnifications, transform, views, cache_gb, linking)


def training_views(
    source: str, data: Sequence[Entry], views: int, left_out: Sequence[str] = (), unit: str = SLIDE
) -> list[int] | None:
    """How many augmented views of each bag a training samples from.

    Args:
        source: ``"bank"``, where each view is extracted, or ``"patches"``, where they are made on the fly.
        data: the datalist's entries, with ``label`` ``[K]``.
        views: of bags of the rarest classes, see :func:`scripts.features.augmentation.count_views`.
        left_out: the names of slides without which the workflow goes on; the other bags keep their numbers.
        unit: what a bag is, see :func:`scripts.datalists.units.bags_of`.

    Returns:
        A number for each bag that is not left out, without limit for patches; ``None`` without augmentation, or
        without entries.

    Raises:
        SettingsError: if there is no such source or unit, or ``views`` is no whole number from 0 up.
    """
    check_settings(source=source, unit=unit)
    if not data:
        return None
    bags = bags_of(data, unit)
    counts = count_views(np.stack([np.asarray(bag["label"]) for bag in bags]), views)
    if views == 0:
        return None
    is_left = [any(slide.get("slide") not in left_out for slide in slides_in(bag)) for bag in bags]
    kept = [count for count, is_kept in zip(counts, is_left, strict=True) if is_kept]
    return kept if source == "bank" else [ENDLESS_VIEWS] * len(kept)


def views_of_slides(source: str, data: Sequence[Entry], views: int, unit: str = SLIDE) -> list[int]:
    """For each of the datalist's entries the number of its augmented views, as :func:`training_views`, 0 without."""
    bags = bags_of(data, unit)
    counts = training_views(source, data, views, unit=unit) or [0] * len(bags)
    of_slide = {slide["slide"]: n for bag, n in zip(bags, counts, strict=True) for slide in slides_in(bag)}
    return [of_slide[entry["slide"]] for entry in data]


def pad_bags(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate bags of different sizes: the shorter ones are padded with rows of zeros and log_weight -inf.

    Args:
        items: of a bag dataset, with ``image`` ``[N, S, ...]`` and ``log_weight`` ``[N, S]``.

    Returns:
        ``image`` ``[B, max N, S, ...]``, ``log_weight`` ``[B, max N, S]`` and ``slide``, a list of names; and of
        what all items have: ``label`` ``[B, K]``, ``corners`` ``[B, max N, S, 2]`` (NaN where a row is padding),
        ``patch_level0`` ``[B, S]`` and ``base_mpp`` ``[B]``, the last three float64.
    """
    batch: dict[str, Any] = {"slide": [item["slide"] for item in items]}
    padded = {"image": 0, "log_weight": -torch.inf, "corners": torch.nan, "slide_of_row": -1}
    if all("slide_of_row" in item for item in items):
        padded |= {"patch_level0": torch.nan, "base_mpp": torch.nan}
    for key, padding in padded.items():
        if all(key in item for item in items):
            batch[key] = _pad([item[key] for item in items], padding)
    if all("label" in item for item in items):
        batch["label"] = torch.stack([torch.as_tensor(item["label"]) for item in items])
    for key in ("patch_level0", "base_mpp"):
        if key not in padded and all(key in item for item in items):
            batch[key] = torch.stack([torch.as_tensor(item[key], dtype=torch.float64) for item in items])
    return batch


def _tensors(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in item.items()}


def _pad(bags: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    """``[B, max N, S, ...]`` of bags ``[N, S, ...]``, in memory scale by scale if the bags are so."""
    first, longest = bags[0], max(len(bag) for bag in bags)
    if len(bags) == 1:
        return first.unsqueeze(0)
    if first.is_contiguous():
        padded = first.new_empty((len(bags), longest, *first.shape[1:]))
    else:
        padded = first.new_empty((first.shape[1], len(bags), longest, *first.shape[2:])).movedim(0, 2)
    for row, bag in zip(padded, bags, strict=True):
        row[: len(bag)] = bag
        row[len(bag) :] = value
    return padded
