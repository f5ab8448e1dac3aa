"""The queue from which the ranks of a run take their work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from scripts.core.ranks import SharedCounter, num_ranks

__all__ = ["Turns"]

T = TypeVar("T")


class Turns(Iterator[T]):
    """A queue that the ranks share: each takes the next item when it is through with its last, until none is left.

    Args:
        items: the same on each rank.

    Raises:
        StoppedError: if another rank failed, or cannot be reached.
    """

    def __init__(self, items: Sequence[T]) -> None:
        self._items, self._taken = items, SharedCounter()

    def __next__(self) -> T:
        if (index := self._taken.add(1) - 1) >= len(self._items):
            raise StopIteration
        return self._items[index]

    def has_spare(self) -> bool:
        """Whether an item can be taken ahead of its turn, because each other rank would still find one."""
        return len(self._items) - self._taken.add() >= num_ranks()
