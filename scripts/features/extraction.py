"""Extraction: the slides of a datalist into feature banks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.bags.bag import Bag, BagBuilder
from scripts.core.errors import SettingsError, SlideError
from scripts.core.files import output_folder
from scripts.core.ranks import (
    StoppedError,
    from_first_rank,
    is_first_rank,
    num_ranks,
    rank,
    take_turns,
    waiting,
)
from scripts.core.repeats import first_names
from scripts.datalists.failures import FailedSlides
from scripts.features.augmentation import augmentation_settings, view_transform
from scripts.features.bank import bank_path, entry_settings, is_banked, write_bank
from scripts.features.encoding import Encoder
from scripts.features.progress import ExtractionProgress, SlideToExtract
from scripts.slides.checksums import given_sha256, slide_sha256

__all__ = ["Extractor", "left_out"]

logger = logging.getLogger(__name__)

GO_ON = "the same command goes on from here."
REMEDY = f"Mend or replace them, or name them in `leave_out`; {GO_ON}"
OR_ALLOW = f"Mend or replace them, name them in `leave_out`, or go on without them with `allow_missing`; {GO_ON}"
# What it means that banks of an older version lack a setting of scripts.features.bank.ADDED_SETTINGS, and what to do.
LACKING = {
    "slide_sha256": "do not store the `sha256` of their slides: delete them if in doubt",
    "ink": "were made before ink was left out of the tissue, and those of slides with ink contain it: `checking` names "
    "these slides; delete their banks to have them made again",
    "device": "do not store whether a CPU or a GPU made them, whose features differ slightly with `amp`: delete them "
    "if both did",
    "mask_sha256": "do not store the checksum of their masks: delete them if a mask was edited since",
    "mask_tissue": "were made before masks with several values were refused, and before masks of a slide's bounds were "
    "placed there: run `checking`, which looks at the masks; delete their banks in doubt",
}


class Extractor:
    """Writes the feature bank of each slide that has none yet, and of each augmented view that is wanted of it.

    The ranks of ``torchrun`` share the slides out: each takes the next when it is through with its last, the largest
    files first, so that none is left with a large one when the others are through. One rank alone keeps the datalist's
    order, in which a user can follow it. All ranks end together, because what follows reads the banks of all.

    A slide that fails is written down, and the run goes on; it ends with an error all the same, when all else is done.

    On SIGTERM, which ``torchrun`` sends to all ranks when one died, and Slurm before it takes the machine away, the
    slide under way is finished. The next run makes what is missing.

    Args:
        entries: the datalist's entries, with ``slide``, ``image`` and, optionally, ``mpp``, ``mask`` and
            ``mask_tissue``.
        bag_builder: makes a slide's bag.
        encoder: encodes its patches.
        feature_dir: where the banks are written, one file a slide and view.
        views: the number of augmented views of each entry, from 0 up; ``None`` is 0 for all.
        failures: where slides that fail are written down; ``None`` ends the run with the first.
        allow_missing: whether what follows goes on without the slides that failed; ``None`` where nothing follows.
        made_by: told by each bank, see :func:`scripts.features.bank.write_bank`; it decides nothing.

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
        failures: FailedSlides | None = None,
        allow_missing: bool | None = None,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        if views is not None and len(views) != len(entries):
            raise ValueError(f"views has {len(views)} numbers for {len(entries)} entries")
        self.entries = entries
        self.bag_builder, self.encoder = bag_builder, encoder
        self.feature_dir = Path(feature_dir)
        self.views = [0] * len(entries) if views is None else list(views)
        self.failures, self.allow_missing, self.made_by = failures, allow_missing, made_by
        self._unread: list[int] = []
        self._left_out: list[str] | None = None

    def run(self) -> None:
        """Extract what is missing, with a progress bar in patches a second and the time left; a second time, nothing.

        Raises:
            SlideError: if a slide cannot be used, and failures are not written down, or strict.
            FailedSlidesError: at the end, if slides failed, and nothing goes on without them.
            SettingsError: if a bank is there that was made with other settings, the ranks have other settings, or
                nothing can be written into ``feature_dir``.
            StoppedError: if it was told to stop, or another rank failed.
        """
        if self._left_out is not None:
            return
        self._check_ranks()
        if self.failures is not None:
            self.failures.start()
        todo = [SlideToExtract(*slide) for slide in from_first_rank(self._todo)]
        self._announce(todo)
        if todo:
            self._run(todo)
        self._left_out = self._end()

    def left_out(self) -> list[str]:
        """The names of the slides without which ``allow_missing`` goes on; extracts, if that was not done.

        Raises:
            as :meth:`run`.
        """
        if self._left_out is None:
            self.run()
        assert self._left_out is not None
        return self._left_out

    def _run(self, todo: Sequence[SlideToExtract]) -> None:
        output_folder(self.feature_dir)
        if self.failures is not None:
            output_folder(self.failures.path.parent)
        start = time.perf_counter()
        with (
            _finishing_slides() as check_signal,
            tqdm(total=0, unit="patch", desc="extracting", dynamic_ncols=True, disable=not is_first_rank()) as bar,
        ):
            progress = ExtractionProgress(todo, bar)
            try:
                for slide, get_bag in self._bags(take_turns(todo)):
                    check_signal()
                    try:
                        self._extract(slide, get_bag, progress)
                    except SlideError as error:
                        self._record(slide.number, error)
                check_signal()
                for _ in waiting():
                    progress.show()
                    check_signal()
            except StoppedError:
                # torchrun tells all ranks when one has failed, and this one may hear of it from there first.
                check_signal()
                raise
            progress.show()
            bar.total = patches = progress.patches.add()
        seconds = time.perf_counter() - start
        logger.info(
            "extracted %d slides%s, %d patches in %.1f s (%.1f patches/s); %d patches left out without an ancestor",
            progress.plain_banks.add(),
            f" and {progress.view_banks.add()} augmented views" if any(any(slide.views) for slide in todo) else "",
            patches,
            seconds,
            patches / seconds,
            progress.orphans.add(),
        )

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
        for number, (entry, views) in enumerate(zip(self.entries, self.views, strict=True)):
            try:
                settings = self._settings(entry)
            except SlideError as error:
                self._unread.append(number)
                self._record(number, error)
                continue
            paths = [self._path(entry, view) for view in range(views + 1)]
            missing = [v for v, path in enumerate(paths) if not is_banked(path, _of_view(settings, v), lacking)]
            if missing:
                todo.append(SlideToExtract(number, missing, os.path.getsize(entry["image"])))
        for key, older in lacking.items():
            names = first_names([path.relative_to(self.feature_dir) for path in older])
            logger.warning("%d feature banks of an older version (%s) %s", len(older), names, LACKING[key])
        return sorted(todo, key=lambda slide: -slide.size) if num_ranks() > 1 else todo

    def _bags(self, slides: Iterator[SlideToExtract]) -> Iterator[tuple[SlideToExtract, Callable[[], tuple[Bag, str]]]]:
        """Each slide with what gives its bag, for all views, and its SHA-256; one rank makes it ahead of its turn."""
        if num_ranks() > 1:  # A slide that is taken ahead is one that another rank may be waiting for.
            yield from ((slide, partial(self._bag, slide)) for slide in slides)
            return
        last: tuple[SlideToExtract, Future[tuple[Bag, str]]] | None = None
        with ThreadPoolExecutor(1) as thread:
            for slide in slides:
                following = slide, thread.submit(self._bag, slide)
                if last is not None:
                    yield last[0], last[1].result
                last = following
            if last is not None:
                yield last[0], last[1].result

    def _bag(self, slide: SlideToExtract) -> tuple[Bag, str]:
        entry = self.entries[slide.number]
        sha256, stamp = slide_sha256(entry)
        bag = self.bag_builder(entry)
        bag.slide.check_unchanged(since=stamp)
        return bag, sha256

    def _extract(
        self, slide: SlideToExtract, get_bag: Callable[[], tuple[Bag, str]], progress: ExtractionProgress
    ) -> None:
        try:
            bag, sha256 = get_bag()
        except SlideError:
            progress.lose(slide)
            raise
        progress.open(slide, bag)
        for done, view in enumerate(slide.views):
            try:
                self._write(self.entries[slide.number], view, bag, sha256, progress)
            except SlideError:
                progress.give_up(slide, bag, len(slide.views) - done)
                raise
            progress.end_view(view)
        progress.show()

    def _write(self, entry: Mapping[str, Any], view: int, bag: Bag, sha256: str, progress: ExtractionProgress) -> None:
        progress.start_view()
        progress.show(now=f"{entry['slide']} view {view}" if view else entry["slide"])
        transform = view_transform(entry["slide"], view)
        settings = _of_view({**self._settings(entry), "slide_sha256": sha256}, view)
        write_bank(self._path(entry, view), bag, self.encoder, settings, progress.add, transform, self.made_by)

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
        names = from_first_rank(self._missing)
        if names and is_first_rank():
            listed = f"{len(names)} of {len(self.entries)} slides ({first_names(names)})"
            logger.warning("going on without %s, as `allow_missing` says: see %s", listed, self.failures.path)
        return names

    def _missing(self) -> list[str]:
        assert self.failures is not None
        failed = set(self.failures.names())
        return [
            entry["slide"]
            for entry, views in zip(self.entries, self.views, strict=True)
            if entry["slide"] in failed or not all(self._path(entry, view).exists() for view in range(views + 1))
        ]

    def _settings(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        try:
            of_entry = entry_settings(entry)
        except OSError as error:
            cause, remedy = f"cannot be read ({error.strerror})", "Check its rights, or copy it again."
            raise SlideError(error.filename or entry["image"], cause, remedy) from error
        except SettingsError as error:
            raise SlideError(error.subject, error.cause, error.remedy) from error
        of_mask = self.bag_builder.mask_settings(entry)
        return {**self.bag_builder.settings(), **self.encoder.settings(), **of_entry, **of_mask}

    def _path(self, entry: Mapping[str, Any], view: int) -> Path:
        return bank_path(self.feature_dir, entry["slide"], view)

    def _announce(self, todo: Sequence[SlideToExtract]) -> None:
        slides = sum(0 in slide.views for slide in todo)
        views = sum(len(slide.views) for slide in todo) - slides
        all_slides, all_views = len(self.entries), sum(self.views)
        wanted, there = f"{slides} of {all_slides} slides", f"{all_slides - slides - len(self._unread)}"
        if all_views:
            wanted += f" and {views} of {all_views} augmented views"
            there += f" and {all_views - views - sum(self.views[number] for number in self._unread)}"
        logger.info("extracting %s into %s (%s are there)", wanted, self.feature_dir, there)
        unsummed = sum(given_sha256(self.entries[slide.number]) is None for slide in todo)
        if unsummed and is_first_rank():
            logger.warning(
                "%d of these slides have no `sha256` in the datalist: damage that can still be decoded gives other "
                "features, and nothing tells of it. `checking` writes slides.csv, the datalist with the sums.",
                unsummed,
            )


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


def _of_view(settings: Mapping[str, Any], view: int) -> dict[str, Any]:
    return {**settings, "view": view, **augmentation_settings()} if view else dict(settings)


@contextmanager
def _finishing_slides() -> Iterator[Callable[[], None]]:
    """Put SIGTERM off, and give what raises a :class:`StoppedError` when it came."""
    told = threading.Event()

    def check() -> None:
        if told.is_set():
            subject = f"rank {rank()}" if num_ranks() > 1 else "extracting"
            cause = "was told to stop (SIGTERM), and begins no other slide"
            raise StoppedError(subject, cause, "The same command goes on from here.")

    if threading.current_thread() is not threading.main_thread():
        yield check  # Signals are the main thread's alone.
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield check
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
