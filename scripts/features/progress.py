"""The progress bar of an extraction, in bytes of slides, over all ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from tqdm import tqdm

from scripts.core.ranks import SharedCounter, StoppedError

__all__ = ["ExtractionProgress", "SlideToExtract"]

SHOW_SECONDS = 0.1


class SlideToExtract(NamedTuple):
    """The number of a slide's entry, its views that have no bank, and the size of its file in bytes."""

    number: int
    views: list[int]
    size: int

    @property
    def work(self) -> int:
        """The bytes to go through: those of the file, once for each view."""
        return self.size * len(self.views)


class ExtractionProgress:
    """Moves the first rank's bar by the bytes that all ranks have gone through, slides that failed included.

    Args:
        todo: the slides of all ranks.
        bar: the bar of this rank.
    """

    def __init__(self, todo: Sequence[SlideToExtract], bar: tqdm) -> None:
        self.bar, self._num_slides = bar, len(todo)
        bar.total = sum(slide.work for slide in todo)
        self._slides, self._bytes = SharedCounter(), SharedCounter()
        self._finished, self._in_slide, self._added = 0, 0.0, 0
        self._number, self._shown_at = 0, 0.0

    def begin(self, name: str) -> None:
        """Show that a slide comes next."""
        with suppress(StoppedError):
            self._number = self._slides.add(1)
        self.name(name)

    def name(self, now: str) -> None:
        """Show what is encoded now."""
        self.bar.set_postfix_str(f"slide {self._number}/{self._num_slides} {now}", refresh=True)

    def add(self, work: float) -> None:
        """Count bytes of the slide under way."""
        self._in_slide += work
        # Each look at the other ranks is a round trip to torchrun.
        if time.monotonic() - self._shown_at > SHOW_SECONDS:
            self.show()

    def end(self, slide: SlideToExtract) -> None:
        """Count the whole slide, however much of it was encoded."""
        self._finished, self._in_slide = self._finished + slide.work, 0.0
        self.show()

    def show(self) -> None:
        """Bring the bar up to date."""
        self._shown_at = time.monotonic()
        own = self._finished + int(self._in_slide)
        # If another rank failed, the run stops once this one's slide is finished.
        with suppress(StoppedError):
            self.bar.update(self._bytes.add(own - self._added) - self.bar.n)
            self._added = own
