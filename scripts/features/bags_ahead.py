"""Bags of slides, made ahead of their turn by threads of their own while other slides are encoded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from scripts.bags.bag import Bag, BagBuilder
from scripts.core.ranks import num_ranks
from scripts.core.turns import Turns
from scripts.features.progress import SlideToExtract
from scripts.slides.staging import AHEAD, pulled_ahead

__all__ = ["GetBag", "bags_ahead"]

# What finds the tissue of a large slide needs more memory than its bag.
THREADS = 2
BAGS_AHEAD = 2

# Waits for a slide's bag and the SHA-256 of its file.
GetBag = Callable[[], tuple[Bag, str | None]]


def bags_ahead(
    todo: Sequence[SlideToExtract], entries: Sequence[Mapping[str, Any]], bag_builder: BagBuilder
) -> Generator[tuple[SlideToExtract, GetBag]]:
    """The slides that this rank takes from the queue of all ranks, each with what gives its bag.

    Checksum, tissue and grid are made in threads: a process alone is a few slides ahead. One of several ranks is one
    slide ahead, as long as each other rank still finds one. Slides on slow storage are copied before; whoever takes
    them ends that.

    Args:
        todo: the slides, the same on each rank.
        entries: the datalist's entries, of which ``todo`` has the numbers.
        bag_builder: makes the bags; an error of its is raised by what gives the bag.

    Raises:
        StoppedError: if another rank failed, or cannot be reached.
    """
    staging, is_alone = bag_builder.staging, num_ranks() == 1
    turns, bags = Turns(todo), BAGS_AHEAD if is_alone else 1
    # Another rank may be waiting for a slide that is copied before its bag is made.
    taken = list(map(staging.takes, entries))
    copies = AHEAD - 1 if is_alone and any(taken) else 0

    def begun(slide: SlideToExtract) -> SlideToExtract:
        staging.begin(entries[slide.number])
        return slide

    def made(slide: SlideToExtract) -> tuple[SlideToExtract, GetBag]:
        return slide, threads.submit(bag_builder.verified, entries[slide.number], always=True).result

    threads = ThreadPoolExecutor(THREADS, "bags")
    # Without the copies, which end first, the threads would wait for them.
    with threads, closing(staging):
        try:
            yield from pulled_ahead(map(made, pulled_ahead(map(begun, turns), copies)), bags, turns.has_spare)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
