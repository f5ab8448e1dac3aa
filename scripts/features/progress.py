"""The progress bar of an extraction: what all ranks have done, and how much is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from tqdm import tqdm

from scripts.bags.bag import Bag
from scripts.core.ranks import SharedCounter, StoppedError

__all__ = ["ExtractionProgress", "SlideToExtract"]

SHOW_SECONDS = 0.1


class SlideToExtract(NamedTuple):
    """What is to be done of a slide: the number of its entry, the views without a bank, its file's size in bytes."""

    number: int
    views: list[int]
    size: int

    @property
    def work(self) -> int:
        """The bytes to go through: those of the file, once for each view."""
        return self.size * len(self.views)


class ExtractionProgress:
    """What the ranks of a run have done together, and the first one's bar that shows it.

    Args:
        todo: the slides of all ranks.
        bar: of this rank, in patches.
    """

    def __init__(self, todo: Sequence[SlideToExtract], bar: tqdm) -> None:
        self.todo, self.bar = todo, bar
        self._not_added, self._shown_at = 0, 0.0
        self._of_view = 0
        self.slides, self.work, self.patches, self.encoded, self.orphans = (SharedCounter() for _ in range(5))
        self.lost_work, self.plain_banks, self.view_banks = (SharedCounter() for _ in range(3))

    def open(self, slide: SlideToExtract, bag: Bag) -> None:
        """The slide comes next; how much is left is estimated anew."""
        self.slides.add(1)
        self.orphans.add(bag.grid.orphans)
        patches = self.patches.add(_num_patches(bag) * len(slide.views))
        # What the slides ahead hold is not known before they are opened: for their bytes as much as those so far.
        left = sum(slide.work for slide in self.todo) - self.lost_work.add()
        self.bar.total = round(patches / self.work.add(slide.work) * left)

    def start_view(self) -> None:
        """A bank of the opened slide is begun."""
        self._of_view = 0

    def end_view(self, view: int) -> None:
        """The bank of a view is there."""
        (self.view_banks if view else self.plain_banks).add(1)

    def lose(self, slide: SlideToExtract) -> None:
        """The slide failed before it was opened."""
        self.slides.add(1)
        self.lost_work.add(slide.work)

    def give_up(self, slide: SlideToExtract, bag: Bag, views: int) -> None:
        """The opened slide failed, and so many of its views are not there; what was encoded of one does not count."""
        self.patches.add(-_num_patches(bag) * views)
        self.work.add(-slide.size * views)
        self.lost_work.add(slide.size * views)
        if views == len(slide.views):
            self.orphans.add(-bag.grid.orphans)
        self._not_added -= self._of_view
        self.show()

    def add(self, encoded: int) -> None:
        """So many patches were encoded."""
        self._not_added += encoded
        self._of_view += encoded
        # Each look at the other ranks is a round trip to torchrun.
        if time.monotonic() - self._shown_at > SHOW_SECONDS:
            self.show()

    def show(self, now: str = "") -> None:
        """Bring the bar up to date; ``now`` is what is being encoded."""
        self._shown_at = time.monotonic()
        # That another rank failed is told when this one's slide is finished.
        with suppress(StoppedError):
            if now:
                self.bar.set_postfix_str(f"slide {self.slides.add()}/{len(self.todo)} {now}", refresh=True)
            self.bar.update(self.encoded.add(self._not_added) - self.bar.n)
            self._not_added = 0


def _num_patches(bag: Bag) -> int:
    return sum(len(coords) for coords in bag.grid.coords)
