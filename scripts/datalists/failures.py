"""One policy for a slide that fails: it is recorded, the run goes on, and its last line says what is missing."""

from __future__ import annotations

import csv
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from monai.data import IterableDataset
from tqdm import tqdm

from scripts.core.errors import BundleError, DatalistError, SettingsError, SlideError, mistake_in
from scripts.core.files import output_folder
from scripts.core.ranks import SharedCounter, from_first_rank, is_first_rank, num_ranks, wait_for_ranks
from scripts.core.repeats import Repeats, first_names
from scripts.core.stopping import finishing_slides
from scripts.core.turns import Turns
from scripts.slides.staging import AHEAD, SlideStaging, pulled_ahead

__all__ = ["FailedSlides", "FailedSlidesError", "PassingSlides", "without"]

COLUMNS = ("slide", "image", "step", "reason")
STOPPED = "What is finished is written; the same command begins anew."
REMEDY = "Mend or replace them, and run the same command again; the results of the others are there."


class FailedSlidesError(BundleError):
    """A run that finished all slides but those that failed."""


class FailedSlides:
    """The slides that failed in a run, as ``failed.csv``: slide, image, step and reason.

    The file is that of the latest run, and there is none where no slide failed. Each failure is written at once, so a
    run that is killed leaves what was known. The ranks of ``torchrun`` share the file.

    Args:
        output_dir: where the file is written.
        step: what the slides failed in: ``"extracting"``, ``"inferring"``.
        strict: end the run with the first slide that fails.
    """

    def __init__(self, output_dir: str | Path, step: str, strict: bool = False) -> None:
        self.path = Path(output_dir) / "failed.csv"
        self.step, self.strict = step, strict
        self._own: list[str] = []
        self._count: SharedCounter | None = None
        self._repeats = Repeats()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Make the folder, and remove the file of an earlier run; all ranks call it, before any slide is opened.

        Raises:
            SettingsError: if the folder cannot be made or written to, or that file cannot be removed.
        """
        self._own, self._count, self._repeats = [], SharedCounter(), Repeats()
        from_first_rank(self._remove)

    def record(self, entry: Mapping[str, Any], error: SlideError) -> None:
        """Record that a slide failed, once, and warn, of slides that fail for the same reason only for the first few.

        Raises:
            SlideError: ``error``, if the run is strict.
            SettingsError: if nothing can be written into ``output_dir``.
        """
        assert self._count is not None, "start comes first"
        slide = str(entry["slide"])
        with self._lock:  # Heatmaps are drawn in a thread of their own.
            if slide in self._own:  # Heatmaps and report show the same slide.
                return
            self._append([slide, str(entry["image"]), self.step, str(error)])
            self._own.append(slide)
            self._count.add(1)
        if self.strict:
            raise error
        text = f"slide {slide} failed: {error}"
        if (shown := self._repeats.shown(text, slide, f"more slides fail in this way: see {self.path}")) is not None:
            tqdm.write(f"warning: {self.step}: {shown}", file=sys.stderr)

    def names(self) -> list[str]:
        """The slides that failed: on the first rank those of all ranks, on another its own."""
        if num_ranks() == 1 or not is_first_rank():
            return list(self._own)
        return [row["slide"] for row in self.rows()]

    def rows(self) -> list[dict[str, str]]:
        """The lines of the file: ``slide``, ``image``, ``step`` and ``reason`` of each slide that failed."""
        # Before the start the file is that of an earlier run.
        if self._count is None or not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))

    def end(self, num_slides: int, remedy: str = REMEDY) -> None:
        """End the run with an error if a slide failed; all ranks call it when all have finished.

        Args:
            num_slides: the number of slides of the run, including those that failed.
            remedy: what the user can do next.

        Raises:
            FailedSlidesError: on the first rank.
            StoppedError: on the other ranks.
        """
        assert self._count is not None, "start comes first"
        count = self._count.add()
        if not count:
            return
        if not is_first_rank():
            # The first rank raises for all, which ends this wait.
            wait_for_ranks()
        names = self.names()
        cause = f"{count} of {num_slides} slides failed ({first_names(names, count)}): see {self.path}"
        raise FailedSlidesError(self.step, cause, remedy)

    def _remove(self) -> None:
        output_folder(self.path.parent)
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            cause = f"is left from an earlier run and cannot be removed ({error.strerror})"
            raise SettingsError(self.path, cause, "Choose an `output_dir` that you may write to.") from error

    def _append(self, row: Sequence[str]) -> None:
        output_folder(self.path.parent)
        with open(self.path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            # Another rank may be writing, and whoever is first writes the header.
            fcntl.flock(file, fcntl.LOCK_EX)
            csv.writer(file).writerows([row] if os.fstat(file.fileno()).st_size else [COLUMNS, row])


class PassingSlides(IterableDataset):
    """The results of a transform on slides, one by one with a progress bar, without the slides that fail in it.

    It has no length, since nobody knows before how many pass. The ranks of ``torchrun`` take slides from one queue,
    once all have begun. On SIGTERM the slide under way is finished.

    Args:
        data: the slides' entries.
        transform: applied to each; raises a :class:`SlideError`, perhaps as a cause, where a slide fails.
        failures: records those, once it is started; its step is the name of the progress bar.
        staging: copies slides ahead of their turn; a copy is there until the next result is asked for.
    """

    what = "slide"

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable,
        failures: FailedSlides,
        staging: SlideStaging | None = None,
    ) -> None:
        super().__init__(data, transform)
        self.entries, self.failures, self.staging = list(data), failures, staging

    @property
    def order(self) -> list[str]:
        """The names of all, in order."""
        return [str(entry["slide"]) for entry in self.entries]

    def __iter__(self) -> Iterator[Any]:
        # What an earlier run left is removed by then.
        wait_for_ranks()
        hidden, total = not is_first_rank(), len(self.entries)
        bar = tqdm(desc=self.failures.step, total=total, unit=self.what, dynamic_ncols=True, disable=hidden)
        # No generator, which would keep a slide's features in memory while the next slide is encoded.
        made = map(self._pass, self._copied(self._turns(bar)))
        return filter(lambda item: item is not None, made)

    def _turns(self, bar: tqdm) -> Iterator[Mapping[str, Any]]:
        """The entries whose turn it is, while the bar shows how many of all have been taken."""
        with finishing_slides(self.failures.step, STOPPED) as check_signal, bar:
            for taken, entry in Turns(list(enumerate(self.entries))):
                check_signal()
                bar.update(taken - bar.n)
                yield entry
            check_signal()
            bar.update(len(self.entries) - bar.n)

    def _slides(self, entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """The slides of an entry."""
        return [entry]

    def _copied(self, entries: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The entries, while the slides of the next are copied."""
        staging = self.staging
        slides = [slide for entry in self.entries for slide in self._slides(entry)]
        # All are asked: what an address needs is missed before the first slide.
        taken = [] if staging is None else list(map(staging.takes, slides))
        if staging is None or not any(taken):
            yield from entries
            return

        def begun(entry: Mapping[str, Any]) -> Mapping[str, Any]:
            staging.begin(*self._slides(entry))
            return entry

        with closing(staging):
            # Another rank may be waiting for a slide that is taken ahead.
            for entry in pulled_ahead(map(begun, entries), AHEAD if num_ranks() == 1 else 1):
                yield entry
                staging.end(*self._slides(entry))

    def _pass(self, entry: Mapping[str, Any]) -> Any:
        assert self.transform is not None
        try:
            return self.transform(entry)
        except Exception as error:
            mistake = mistake_in(error)
            if not isinstance(mistake, SlideError):
                raise
            self.failures.record(entry, mistake if self.staging is None else self.staging.named(mistake))
            return None


def without(data: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> list[Mapping[str, Any]]:
    """The entries of a partition without those of the slides in ``left_out``, which may be of another partition.

    Raises:
        DatalistError: if there were slides, and none is left.
    """
    left = [entry for entry in data if entry["slide"] not in left_out]
    if data and not left:
        cause = f"no slide of a partition is left, of {', '.join(str(entry['slide']) for entry in data)}"
        raise DatalistError("datalist", cause, "Mend or replace slides: failed.csv says why.")
    return left
