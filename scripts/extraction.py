"""Extraction: the slides of a datalist into feature banks."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.bags import BagBuilder
from scripts.encoding import Encoder
from scripts.features import bank_path, entry_settings, is_banked, write_bank

__all__ = ["Extractor"]

logger = logging.getLogger(__name__)


class Extractor:
    """Writes the feature bank of each slide that has none yet.

    Args:
        entries: the datalist's entries, with ``slide``, ``image`` and, optionally, ``mpp`` and ``mask``.
        bag_builder: makes a slide's bag.
        encoder: encodes its patches.
        feature_dir: where the banks are written, one file a slide.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        bag_builder: BagBuilder,
        encoder: Encoder,
        feature_dir: str | Path,
    ) -> None:
        self.entries = entries
        self.bag_builder, self.encoder = bag_builder, encoder
        self.feature_dir = Path(feature_dir)

    def run(self) -> None:
        """Extract what is missing, with a progress bar in patches a second and the time left.

        Raises:
            SlideError: if a slide cannot be used.
            SettingsError: if a bank is there that was made with other settings.
        """
        settings = {**self.bag_builder.settings(), **self.encoder.settings()}
        todo = []
        for entry in self.entries:
            path, wanted = bank_path(self.feature_dir, entry["slide"]), {**settings, **entry_settings(entry)}
            if not is_banked(path, wanted):
                todo.append((entry, path, wanted))
        logger.info(
            "extracting %d of %d slides into %s (%d are there)",
            len(todo),
            len(self.entries),
            self.feature_dir,
            len(self.entries) - len(todo),
        )
        if not todo:
            return
        start, patches, orphans = time.perf_counter(), 0, 0
        with tqdm(total=0, unit="patch", desc="extracting", dynamic_ncols=True) as bar:
            for done, (entry, path, wanted) in enumerate(todo):
                bag = self.bag_builder(entry)
                patches += sum(len(coords) for coords in bag.grid.coords)
                orphans += bag.grid.orphans
                # What the slides ahead hold is not known before they are opened: as much as those so far.
                bar.total = round(patches / (done + 1) * len(todo))
                bar.set_postfix_str(f"slide {done + 1}/{len(todo)} {entry['slide']}", refresh=True)
                write_bank(path, bag, self.encoder, wanted, on_batch=bar.update)
            bar.total = patches
        seconds = time.perf_counter() - start
        logger.info(
            "extracted %d slides, %d patches in %.1f s (%.1f patches/s); %d patches left out without an ancestor",
            len(todo),
            patches,
            seconds,
            patches / seconds,
            orphans,
        )
