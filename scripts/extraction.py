"""Extraction: the slides of a datalist into feature banks."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from scripts.augmentation import augmentation_settings, view_transform
from scripts.bags import Bag, BagBuilder
from scripts.encoding import Encoder
from scripts.errors import SettingsError
from scripts.features import bank_path, entry_settings, is_banked, write_bank
from scripts.files import output_folder
from scripts.ranks import (
    SharedCounter,
    StoppedError,
    from_first_rank,
    is_first_rank,
    num_ranks,
    rank,
    take_turns,
    waiting,
)

__all__ = ["Extractor"]

logger = logging.getLogger(__name__)

SHOW_SECONDS = 0.1


class _Slide(NamedTuple):
    """What is to be done of a slide: the number of its entry, the views without a bank, its file's size in bytes."""

    number: int
    views: list[int]
    size: int

    @property
    def work(self) -> int:
        return self.size * len(self.views)


class _Progress:
    """What the ranks of a run have done together, and the first one's bar that shows it."""

    def __init__(self, todo: Sequence[_Slide], bar: tqdm) -> None:
        self.todo, self.bar = todo, bar
        self._not_added, self._shown_at = 0, 0.0
        self.slides, self.work, self.patches, self.encoded, self.orphans = (SharedCounter() for _ in range(5))

    def open(self, slide: _Slide, bag: Bag) -> None:
        self.slides.add(1)
        self.orphans.add(bag.grid.orphans)
        patches = self.patches.add(sum(len(coords) for coords in bag.grid.coords) * len(slide.views))
        # What the slides ahead hold is not known before they are opened: for their bytes as much as those so far.
        self.bar.total = round(patches / self.work.add(slide.work) * sum(slide.work for slide in self.todo))

    def add(self, encoded: int) -> None:
        self._not_added += encoded
        # Each look at the other ranks is a round trip to torchrun.
        if time.monotonic() - self._shown_at > SHOW_SECONDS:
            self.show()

    def show(self, now: str = "") -> None:
        self._shown_at = time.monotonic()
        # That another rank failed is told when this one's slide is finished.
        with suppress(StoppedError):
            if now:
                self.bar.set_postfix_str(f"slide {self.slides.add()}/{len(self.todo)} {now}", refresh=True)
            self.bar.update(self.encoded.add(self._not_added) - self.bar.n)
            self._not_added = 0


class Extractor:
    """Writes the feature bank of each slide that has none yet, and of each augmented view that is wanted of it.

    The ranks of ``torchrun`` share the slides out: each takes the next when it is through with its last, the largest
    files first, so that none is left with a large one when the others are through. One rank alone keeps the datalist's
    order, in which a user can follow it. All ranks end together, because what follows reads the banks of all.

    On SIGTERM, which ``torchrun`` sends to all ranks when one died, and Slurm before it takes the machine away, the
    slide under way is finished. The next run makes what is missing.

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
            SettingsError: if a bank is there that was made with other settings, the ranks have other settings, or
                nothing can be written into ``feature_dir``.
            StoppedError: if it was told to stop, or another rank failed.
        """
        self._check_ranks()
        todo = [_Slide(*slide) for slide in from_first_rank(self._todo)]
        slides = sum(0 in slide.views for slide in todo)
        views = sum(len(slide.views) for slide in todo) - slides
        self._announce(slides, views)
        if not todo:
            return
        output_folder(self.feature_dir)
        start = time.perf_counter()
        with (
            _finishing_slides() as check_signal,
            tqdm(total=0, unit="patch", desc="extracting", dynamic_ncols=True, disable=not is_first_rank()) as bar,
        ):
            progress = _Progress(todo, bar)
            try:
                for slide, bag in self._bags(take_turns(todo)):
                    check_signal()
                    self._extract(slide, bag, progress)
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
            slides,
            f" and {views} augmented views" if views else "",
            patches,
            seconds,
            patches / seconds,
            progress.orphans.add(),
        )

    def _check_ranks(self) -> None:
        # Machines differ in what they are fast at, by which `amp` is chosen, and in what they can compile.
        own = self.encoder.settings()
        first = from_first_rank(self.encoder.settings)
        differs = [key for key in own if own[key] != first[key]]
        if differs:
            both = ", ".join(f"{key} {first[key]!r} on rank 0, {own[key]!r} on rank {rank()}" for key in differs)
            cause = f"the ranks would write banks that differ ({both})"
            raise SettingsError(differs[0], cause, f"Set {' and '.join(differs)} for all of them.")

    def _todo(self) -> list[_Slide]:
        todo = []
        for number, (entry, views) in enumerate(zip(self.entries, self.views, strict=True)):
            settings = self._settings(entry)
            missing = [v for v in range(views + 1) if not is_banked(self._path(entry, v), _of_view(settings, v))]
            if missing:
                todo.append(_Slide(number, missing, os.path.getsize(entry["image"])))
        return sorted(todo, key=lambda slide: -slide.size) if num_ranks() > 1 else todo

    def _bags(self, slides: Iterator[_Slide]) -> Iterator[tuple[_Slide, Bag]]:
        """Each slide with its bag, one for all its views; one rank alone makes it while the slide before is encoded."""
        if num_ranks() > 1:  # A slide that is taken ahead is one that another rank may be waiting for.
            yield from ((slide, self.bag_builder(self.entries[slide.number])) for slide in slides)
            return
        last: tuple[_Slide, Future[Bag]] | None = None
        with ThreadPoolExecutor(1) as thread:
            for slide in slides:
                following = slide, thread.submit(self.bag_builder, self.entries[slide.number])
                if last is not None:
                    yield last[0], last[1].result()
                last = following
            if last is not None:
                yield last[0], last[1].result()

    def _extract(self, slide: _Slide, bag: Bag, progress: _Progress) -> None:
        entry = self.entries[slide.number]
        settings = self._settings(entry)
        progress.open(slide, bag)
        for view in slide.views:
            progress.show(now=f"{entry['slide']} view {view}" if view else entry["slide"])
            transform = view_transform(entry["slide"], view)
            path, of_view = self._path(entry, view), _of_view(settings, view)
            write_bank(path, bag, self.encoder, of_view, on_batch=progress.add, transform=transform)
        progress.show()

    def _settings(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.bag_builder.settings(), **self.encoder.settings(), **entry_settings(entry)}

    def _path(self, entry: Mapping[str, Any], view: int) -> Path:
        return bank_path(self.feature_dir, entry["slide"], view)

    def _announce(self, slides: int, views: int) -> None:
        all_slides, all_views = len(self.entries), sum(self.views)
        wanted, there = f"{slides} of {all_slides} slides", f"{all_slides - slides}"
        if all_views:
            wanted += f" and {views} of {all_views} augmented views"
            there += f" and {all_views - views}"
        logger.info("extracting %s into %s (%s are there)", wanted, self.feature_dir, there)


def _of_view(settings: Mapping[str, Any], view: int) -> dict[str, Any]:
    return {**settings, "view": view, **augmentation_settings()} if view else dict(settings)


@contextmanager
def _finishing_slides() -> Iterator[Callable[[], None]]:
    """Put SIGTERM off, and give what raises a :class:`StoppedError` when it came."""
    told = threading.Event()

    def check() -> None:
        if told.is_set():
            subject = f"rank {rank()}" if num_ranks() > 1 else "extracting"
            cause = "was told to stop (SIGTERM), and has finished its slide"
            raise StoppedError(subject, cause, "The same command goes on from here.")

    if threading.current_thread() is not threading.main_thread():
        yield check  # Signals are the main thread's alone.
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield check
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
