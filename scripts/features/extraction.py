"""Extraction: the slides of a datalist into feature banks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SettingsError, SlideError
from scripts.core.files import output_folder
from scripts.core.ranks import (
    SharedCounter,
    StoppedError,
    from_first_rank,
    is_first_rank,
    num_ranks,
    rank,
    waiting,
)
from scripts.core.repeats import first_names
from scripts.core.setting_checks import path as any_path
from scripts.core.stopping import finishing_slides
from scripts.datalists.failures import FailedSlides
from scripts.features.augmentation import view_transform
from scripts.features.bags_ahead import GetBag, bags_ahead
from scripts.features.bank import bank_path
from scripts.features.bank_settings import bank_settings, is_banked, of_view, warn_of_older
from scripts.features.bank_writing import NewView, write_banks
from scripts.features.encoding import Encoder
from scripts.features.imported import ImportedFeatures, refuse_imported
from scripts.features.progress import ExtractionProgress, SlideToExtract
from scripts.slides.checksums import given_sha256
from scripts.slides.remote import is_remote, sizes

__all__ = ["Extractor", "left_out"]

logger = logging.getLogger(__name__)

GO_ON = "the same command goes on from here."
REMEDY = f"Mend or replace them, or name them in `leave_out`; {GO_ON}"
OR_ALLOW = f"Mend or replace them, name them in `leave_out`, or go on without them with `allow_missing`; {GO_ON}"
# Counted while banks are written; the log line at the end has the sums over all ranks.
COUNTED = ("slides", "views", "patches", "orphans")
# Views of a slide that are made from one reading of it. Each takes memory for its batch, its pixels of the blocks that
# are read ahead and its collected features, and keeps a file open.
VIEWS_AT_ONCE = 8


class Extractor:
    """Writes the feature bank of each slide, and of each of its augmented views, that has none yet.

    The ranks of ``torchrun`` share the slides: each takes the next when it has finished its last, the largest files
    first, so that none is left with a large one at the end. One rank alone keeps the datalist's order. All ranks end
    together, because what follows reads the banks of all. Bags are made ahead (:mod:`scripts.features.bags_ahead`).

    A slide that fails is recorded, and the run goes on; it ends with an error when all else is done.

    Slides on slow storage are copied while others are encoded (:mod:`scripts.slides.staging`).

    On SIGTERM, which ``torchrun`` sends to all ranks when one died, and Slurm before it takes the machine away, the
    slide under way is finished. The next run makes what is missing.

    Args:
        entries: the datalist's entries, with ``slide``, ``image`` and, optionally, ``mpp``, ``mask`` and
            ``mask_tissue``.
        bag_builder: makes a slide's bag.
        encoder: encodes its patches.
        feature_dir: where the banks are written, one file a slide and view.
        views: the number of augmented views of each entry, from 0 up; ``None`` is 0 for all.
        failures: where slides that fail are recorded; ``None`` ends the run with the first.
        allow_missing: whether what follows goes on without the slides that failed; ``None`` where nothing follows.
        made_by: stored in each bank, see :func:`scripts.features.bank_writing.write_banks`.
        ranges_from: the entries with whose patches an INT8 network is made, where there is none; by default all.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        bag_builder: BagBuilder,
        encoder: Encoder,
        feature_dir: str | Path,
        views: Sequence[int] | None = None,
        failures: FailedSlides | None = None,
        allow_missing: bool | None = None,
        made_by: Mapping[str, Any] | None = None,
        ranges_from: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.entries, self.ranges_from = entries, entries if ranges_from is None else ranges_from
        self.bag_builder, self.encoder = bag_builder, encoder
        any_path()("feature_dir", feature_dir)
        self.feature_dir = Path(feature_dir)
        self.views = [0] * len(entries) if views is None else list(views)
        self.failures, self.allow_missing, self.made_by = failures, allow_missing, made_by
        if failures is not None and isinstance(encoder, ImportedFeatures):
            failures.step = "importing"  # which makes what is missing
        self._unread: list[int] = []
        self._left_out: list[str] | None = None

    def prepare(self) -> None:
        """Find or make the INT8 network of an encoder that computes in INT8; errors as :meth:`Int8.prepare`."""
        if self.encoder.int8 is not None:
            self.encoder.int8.prepare(self.encoder.backbone, self.ranges_from, self.bag_builder)

    def run(self) -> None:
        """Extract what is missing, with a progress bar; a second time, nothing.

        Raises:
            SlideError: if a slide cannot be used, and failures are not recorded, or strict.
            FailedSlidesError: at the end, if slides failed, and nothing goes on without them.
            SettingsError: if there is a bank that was made with other settings, the ranks have different settings, or
                nothing can be written into ``feature_dir``.
            StoppedError: on SIGTERM, or if another rank failed.
        """
        self.left_out()

    def left_out(self) -> list[str]:
        """The names of the slides without which ``allow_missing`` goes on; extracts first, if that was not done.

        Raises:
            as :meth:`run`.
        """
        if self._left_out is None:
            if isinstance(self.encoder, ImportedFeatures) and self.allow_missing is None:
                raise refuse_imported("there is nothing to extract", "Run `importing`, or choose another `backbone`.")
            self.prepare()
            self._check_ranks()
            if self.failures is not None:
                self.failures.start()
            todo = [SlideToExtract(*slide) for slide in from_first_rank(self._todo)]
            self._announce(todo)
            if todo:
                self._run(todo)
            self._left_out = self._end()
        return self._left_out

    def _run(self, todo: Sequence[SlideToExtract]) -> None:
        output_folder(self.feature_dir)
        self.encoder.keep_int8(self.feature_dir)
        if self.failures is not None:
            output_folder(self.failures.path.parent)
        start, counts = time.perf_counter(), Counter[str]()
        bar = tqdm(
            desc="extracting", total=0, unit="B", unit_scale=True, dynamic_ncols=True, disable=not is_first_rank()
        )
        staging, goes_on = self.bag_builder.staging, "The same command goes on from here."
        with (
            finishing_slides("extracting", goes_on) as check_signal,
            bar,
            closing(bags_ahead(todo, self.entries, self.bag_builder)) as bags,
        ):
            progress = ExtractionProgress(todo, bar)
            try:
                for slide, get_bag in bags:
                    check_signal()
                    try:
                        self._extract(slide, get_bag, progress, counts)
                    except SlideError as error:
                        self._record(slide.number, staging.named(error))
                    staging.end(self.entries[slide.number])
                    progress.end(slide)
                check_signal()
                sums = {name: SharedCounter() for name in COUNTED}
                for name, counter in sums.items():
                    counter.add(counts[name])
                for _ in waiting():
                    progress.show()
                    check_signal()
            except StoppedError:
                # torchrun signals all ranks when one has failed; this one may hear of it from the others first.
                check_signal()
                raise
            progress.show()
        seconds, patches = time.perf_counter() - start, sums["patches"].add()
        logger.info(
            "extracted %d slides%s, %d patches in %.1f s (%.1f patches/s); %d patches left out without an ancestor",
            sums["slides"].add(),
            f" and {sums['views'].add()} augmented views" if any(any(slide.views) for slide in todo) else "",
            patches,
            seconds,
            patches / seconds,
            sums["orphans"].add(),
        )

    def _extract(
        self, slide: SlideToExtract, get_bag: GetBag, progress: ExtractionProgress, counts: Counter[str]
    ) -> None:
        entry = self.entries[slide.number]
        name = entry["slide"]
        progress.begin(name)
        bag, sha256 = get_bag()
        settings = {**bank_settings(entry, self.bag_builder, self.encoder), "slide_sha256": sha256}
        patches = bag.grid.num_patches
        for first in range(0, len(slide.views), VIEWS_AT_ONCE):
            views = slide.views[first : first + VIEWS_AT_ONCE]
            augmented = sum(view > 0 for view in views)
            if augmented:
                progress.name(f"{name}, {augmented} views")
            write_banks(
                [
                    NewView(bank_path(self.feature_dir, name, v), of_view(settings, v), view_transform(name, v))
                    for v in views
                ],
                bag,
                self.encoder,
                lambda encoded: progress.add(slide.size * encoded / patches),
                self.made_by,
            )
            counts.update(patches=patches * len(views), slides=len(views) - augmented, views=augmented)
            counts.update(orphans=0 if first else bag.grid.orphans)

    def _check_ranks(self) -> None:
        # Machines differ in what they are fast at, by which `amp` is chosen, and in what they can compile.
        own = json.loads(json.dumps(self._common_settings()))
        first = from_first_rank(self._common_settings)
        differs = [key for key in own if own[key] != first[key]]
        if differs:
            both = ", ".join(f"{key} {first[key]!r} on rank 0, {own[key]!r} on rank {rank()}" for key in differs)
            cause = f"the ranks would not do the same work ({both})"
            raise SettingsError(differs[0], cause, f"Set {' and '.join(differs)} for all of them.")

    def _common_settings(self) -> dict[str, Any]:
        slides = json.dumps([(entry["slide"], views) for entry, views in zip(self.entries, self.views, strict=True)])
        return {
            **self.bag_builder.settings(),
            **self.encoder.settings(),
            "feature_dir": str(self.feature_dir),
            "datalist": f"{len(self.entries)} slides, {hashlib.sha256(slides.encode()).hexdigest()[:8]}",
        }

    def _todo(self) -> list[SlideToExtract]:
        todo: list[SlideToExtract] = []
        lacking: dict[str, list[Path]] = {}
        self._unread = []
        size_of = sizes([entry["image"] for entry in self.entries if is_remote(entry["image"])])
        for number, (entry, views) in enumerate(zip(self.entries, self.views, strict=True)):
            paths = [bank_path(self.feature_dir, entry["slide"], view) for view in range(views + 1)]
            # What is asked of a server takes time.
            is_new = is_remote(entry["image"]) and not any(path.exists() for path in paths)
            try:
                settings = {} if is_new else bank_settings(entry, self.bag_builder, self.encoder)
            except SlideError as error:
                self._unread.append(number)
                self._record(number, error)
                continue
            missing = [view for view, path in enumerate(paths) if not is_banked(path, of_view(settings, view), lacking)]
            if missing and isinstance(self.encoder, ImportedFeatures):
                self._unread.append(number)
                self._record(number, self.encoder.missing(f"slide {entry['slide']}"))
            elif missing:
                image = entry["image"]
                size = size_of[image] if image in size_of else os.path.getsize(image)
                todo.append(SlideToExtract(number, missing, size))
        warn_of_older(lacking, self.feature_dir)
        return sorted(todo, key=lambda slide: -slide.size) if num_ranks() > 1 else todo

    def _announce(self, todo: Sequence[SlideToExtract]) -> None:
        slides = sum(0 in slide.views for slide in todo)
        views = sum(len(slide.views) for slide in todo) - slides
        all_slides, all_views = len(self.entries), sum(self.views)
        wanted, there = f"{slides} of {all_slides} slides", f"{all_slides - slides - len(self._unread)}"
        if all_views:
            wanted += f" and {views} of {all_views} augmented views"
            there += f" and {all_views - views - sum(self.views[number] for number in self._unread)}"
        logger.info("extracting %s into %s (%s are there)", wanted, self.feature_dir, there)
        without = sum(given_sha256(self.entries[slide.number]) is None for slide in todo)
        if without and is_first_rank():
            logger.warning(
                "%d of these slides have no `sha256` in the datalist: damage that can still be decoded changes "
                "features without a sign. `checking` writes slides.csv, the datalist with the checksums.",
                without,
            )

    def _record(self, number: int, error: SlideError) -> None:
        if self.failures is None:
            raise error
        self.failures.record(self.entries[number], error)

    def _end(self) -> list[str]:
        """The names of the slides that are left out; none, or an error, unless that is allowed."""
        if self.failures is None:
            return []
        if not self.allow_missing:
            self.failures.end(len(self.entries), REMEDY if self.allow_missing is None else OR_ALLOW)
            return []
        # The first rank decides for all: another may not see yet what has just been written.
        names = from_first_rank(partial(self._missing, self.failures))
        if names and is_first_rank():
            listed = f"{len(names)} of {len(self.entries)} slides ({first_names(names)})"
            logger.warning("going on without %s, as `allow_missing` says: see %s", listed, self.failures.path)
        return names

    def _missing(self, failures: FailedSlides) -> list[str]:
        failed = set(failures.names())
        return [
            name
            for name, views in zip((entry["slide"] for entry in self.entries), self.views, strict=True)
            if name in failed or not all(bank_path(self.feature_dir, name, v).exists() for v in range(views + 1))
        ]


def left_out(extractor: Extractor, source: str, allow_missing: bool) -> list[str]:
    """The names of the slides without which a workflow goes on.

    Args:
        extractor: makes the banks.
        source: ``"bank"``, or ``"patches"``, which are read from the slides themselves.
        allow_missing: whether it goes on without slides that fail.

    Raises:
        SettingsError: if that is asked of patches.
    """
    if not allow_missing:
        return []
    if source == "patches":
        cause = "is for the feature bank; with `source` patches a training reads the slides in every epoch"
        raise SettingsError("allow_missing", cause, "Set `source` to bank, or leave `allow_missing` out.")
    return extractor.left_out()
