"""One policy for a slide that fails: it is written down, the run goes on, and its end says what is missing."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import IterableDataset
from tqdm import tqdm

from scripts.core.errors import BundleError, DatalistError, SettingsError, SlideError, mistake_in
from scripts.core.files import output_folder
from scripts.core.ranks import SharedCounter, from_first_rank, is_first_rank, num_ranks, wait_for_ranks
from scripts.core.repeats import Repeats, first_names

__all__ = ["FailedSlides", "FailedSlidesError", "PassingSlides", "without"]

COLUMNS = ("slide", "image", "step", "reason")
REMEDY = "Mend or replace them, and run them again; what could be made of the others is there."


class FailedSlidesError(BundleError):
    """A run that did all it could, and lacks slides that failed."""


class FailedSlides:
    """The slides that failed in a run, as ``failed.csv``: slide, image, step and reason.

    The file tells of the latest run: there is none where no slide failed. Each failure is in it at once, so a run that
    is killed leaves what was known. The ranks of ``torchrun`` share the file.

    Args:
        output_dir: where the file is written.
        step: what the slides failed in, as the file and the last line say: ``"extracting"``, ``"inferring"``.
        strict: end the run with the first slide that fails.
    """

    def __init__(self, output_dir: str | Path, step: str, strict: bool = False) -> None:
        self.path = Path(output_dir) / "failed.csv"
        self.step, self.strict = step, strict
        self._own: list[str] = []
        self._count: SharedCounter | None = None
        self._repeats = Repeats()

    def start(self) -> None:
        """Make the folder, and remove what an earlier run left; all ranks call it, before any slide is looked at.

        Raises:
            SettingsError: if the folder cannot be made or written to, or that file cannot be removed.
        """
        self._own, self._count, self._repeats = [], SharedCounter(), Repeats()
        from_first_rank(self._remove)

    def record(self, entry: Mapping[str, Any], error: SlideError) -> None:
        """Write down that a slide failed, and warn; of slides that fail for the same reason of the first few alone.

        Args:
            entry: the slide's, with ``slide`` and ``image``.
            error: why.

        Raises:
            SlideError: the same, if the run is strict.
            SettingsError: if nothing can be written into ``output_dir``.
        """
        assert self._count is not None, "start comes first"
        slide = str(entry["slide"])
        self._append([slide, str(entry["image"]), self.step, str(error)])
        self._own.append(slide)
        self._count.add(1)
        if self.strict:
            raise error
        text = f"slide {slide} failed: {error}"
        if (shown := self._repeats.shown(text, slide, f"more slides fail in this way: see {self.path}")) is not None:
            tqdm.write(f"warning: {self.step}: {shown}", file=sys.stderr)

    def names(self) -> list[str]:
        """The slides that failed: on the first rank of all ranks, on another its own."""
        if num_ranks() == 1 or not is_first_rank() or not self.path.exists():
            return list(self._own)
        with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [row["slide"] for row in csv.DictReader(file)]

    def end(self, num_slides: int, remedy: str = REMEDY) -> None:
        """End the run if a slide failed; all ranks call it when all are through.

        Args:
            num_slides: the slides of the run, those that failed included.
            remedy: what the user can do next.

        Raises:
            FailedSlidesError: if a slide failed, on the first rank.
            StoppedError: if a slide failed, on the other ranks.
        """
        assert self._count is not None, "start comes first"
        count = self._count.add()
        if not count:
            return
        if not is_first_rank():
            # The first rank tells of all. That it has, is what ends this wait.
            wait_for_ranks()
        names = self.names()
        cause = f"{count} of {num_slides} slides failed ({first_names(names, count)}): see {self.path}"
        raise FailedSlidesError(self.step, cause, remedy)

    def _remove(self) -> None:
        output_folder(self.path.parent)
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            cause = f"is of an earlier run, and cannot be removed ({error.strerror})"
            raise SettingsError(self.path, cause, "Choose an `output_dir` that you may write to.") from error

    def _append(self, row: Sequence[str]) -> None:
        output_folder(self.path.parent)
        with open(self.path, "ab") as file:
            # Another rank may be writing, and whoever is first writes the header.
            fcntl.flock(file, fcntl.LOCK_EX)
            rows = [row] if os.fstat(file.fileno()).st_size else [COLUMNS, row]
            text = io.StringIO(newline="")
            csv.writer(text).writerows(rows)
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))


class PassingSlides(IterableDataset):
    """What a transform makes of slides, one after the other, without those that fail in it; with a progress bar.

    How many pass is not known before, so it has no length.

    Args:
        data: the slides' entries.
        transform: applied to each; raises a :class:`SlideError`, or what comes of one, where a slide fails.
        failures: where those are written down; its ``start`` comes before the first slide.
        desc: what the progress bar calls it.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable, failures: FailedSlides, desc: str = "inferring"
    ) -> None:
        super().__init__(data, transform)
        self.failures, self.desc = failures, desc

    def __iter__(self) -> Iterator[Any]:
        """What became of each slide that passes."""
        # No generator, which would keep a slide's features in memory while the next slide is encoded.
        made = map(self._pass, tqdm(self.data, desc=self.desc, unit="slide", dynamic_ncols=True))
        return filter(lambda item: item is not None, made)

    def _pass(self, entry: Mapping[str, Any]) -> Any:
        assert self.transform is not None
        try:
            return self.transform(entry)
        except Exception as error:
            # MONAI's transforms wrap it.
            mistake = mistake_in(error)
            if not isinstance(mistake, SlideError):
                raise
            self.failures.record(entry, mistake)
            return None


def without(data: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> list[Mapping[str, Any]]:
    """The entries whose slides are not left out.

    Args:
        data: the entries of a partition.
        left_out: names of slides, of this partition or another.

    Raises:
        DatalistError: if there were slides, and none is left.
    """
    left = [entry for entry in data if entry["slide"] not in left_out]
    if data and not left:
        names = ", ".join(str(entry["slide"]) for entry in data)
        raise DatalistError(
            "datalist", f"no slide of a partition is left, of {names}", "Mend or replace slides: failed.csv says why."
        )
    return left
