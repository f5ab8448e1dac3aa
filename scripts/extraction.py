"""Extraction: the slides of a datalist into feature banks."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from scripts.augmentation import augmentation_settings, view_transform
from scripts.bags import BagBuilder
from scripts.encoding import Encoder
from scripts.features import bank_path, entry_settings, is_banked, write_bank

__all__ = ["Extractor"]

logger = logging.getLogger(__name__)


class _Missing(NamedTuple):
    view: int
    path: Path
    settings: dict[str, Any]


class Extractor:
    """Writes the feature bank of each slide that has none yet, and of each augmented view that is wanted of it.

    Args:
        entries: the datalist's entries, with ``slide``, ``image`` and, optionally, ``mpp`` and ``mask``.
        bag_builder: makes a slide's bag.
        encoder: encodes its patches.
        feature_dir: where the banks are written, one file a slide and view.
        views: the number of augmented views of each entry, from 0 up; ``None`` is 0 for all.

    Raises:
        ValueError: if there is not one number for each entry.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        bag_builder: BagBuilder,
        encoder: Encoder,
        feature_dir: str | Path,
        views: Sequence[int] | None = None,
    ) -> None:
        if views is not None and len(views) != len(entries):
            raise ValueError(f"views has {len(views)} numbers for {len(entries)} entries")
        self.entries = entries
        self.bag_builder, self.encoder = bag_builder, encoder
        self.feature_dir = Path(feature_dir)
        self.views = [0] * len(entries) if views is None else list(views)

    def run(self) -> None:
        """Extract what is missing, with a progress bar in patches a second and the time left.

        Raises:
            SlideError: if a slide cannot be used.
            SettingsError: if a bank is there that was made with other settings.
        """
        todo = [
            (entry, missing)
            for entry, views in zip(self.entries, self.views, strict=True)
            if (missing := self._missing(entry, views))
        ]
        banks = [bank for _, missing in todo for bank in missing]
        slides = sum(bank.view == 0 for bank in banks)
        views = len(banks) - slides
        self._announce(slides, views)
        if not todo:
            return
        start, patches, orphans, done = time.perf_counter(), 0, 0, 0
        with tqdm(total=0, unit="patch", desc="extracting", dynamic_ncols=True) as bar:
            for number, (entry, missing) in enumerate(todo, start=1):
                # Once for all its views: tissue and grid are those of the slide.
                bag = self.bag_builder(entry)
                patches += sum(len(coords) for coords in bag.grid.coords) * len(missing)
                orphans += bag.grid.orphans
                done += len(missing)
                # What the slides ahead hold is not known before they are opened: as much as those so far.
                bar.total = round(patches / done * len(banks))
                for bank in missing:
                    name = f"{entry['slide']} view {bank.view}" if bank.view else entry["slide"]
                    bar.set_postfix_str(f"slide {number}/{len(todo)} {name}", refresh=True)
                    transform = view_transform(entry["slide"], bank.view)
                    write_bank(bank.path, bag, self.encoder, bank.settings, on_batch=bar.update, transform=transform)
            bar.total = patches
        seconds = time.perf_counter() - start
        logger.info(
            "extracted %d slides%s, %d patches in %.1f s (%.1f patches/s); %d patches left out without an ancestor",
            slides,
            f" and {views} augmented views" if views else "",
            patches,
            seconds,
            patches / seconds,
            orphans,
        )

    def _missing(self, entry: Mapping[str, Any], views: int) -> list[_Missing]:
        plain = {**self.bag_builder.settings(), **self.encoder.settings(), **entry_settings(entry)}
        banks = []
        for view in range(views + 1):
            settings = {**plain, "view": view, **augmentation_settings()} if view else plain
            banks.append(_Missing(view, bank_path(self.feature_dir, entry["slide"], view), settings))
        return [bank for bank in banks if not is_banked(bank.path, bank.settings)]

    def _announce(self, slides: int, views: int) -> None:
        all_slides, all_views = len(self.entries), sum(self.views)
        wanted, there = f"{slides} of {all_slides} slides", f"{all_slides - slides}"
        if all_views:
            wanted += f" and {views} of {all_views} augmented views"
            there += f" and {all_views - views}"
        logger.info("extracting %s into %s (%s are there)", wanted, self.feature_dir, there)
