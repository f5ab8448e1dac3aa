"""The same said of many slides: said once, with a count and the first few names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["Repeats", "cause_of", "first_names"]

SHOWN_NAMES = 5
# Of messages that come one by one so many are shown before the rest is only counted.
SHOWN_MESSAGES = 3


def first_names(names: Sequence[object], count: int | None = None) -> str:
    """The first few names, and whether there are more: ``"a, b, c, d, e, ..."``.

    Args:
        names: all of them, or the first that are known.
        count: how many there are; by default those that are given.
    """
    shown = ", ".join(map(str, names[:SHOWN_NAMES]))
    return shown + (", ..." if (len(names) if count is None else count) > SHOWN_NAMES else "")


def cause_of(text: str, names: Iterable[str] = ()) -> str:
    """A message without what differs from slide to slide: names, paths, numbers, checksums.

    Args:
        text: the message.
        names: of its slide, in all ways in which the message may name it.
    """
    for name in sorted({name for name in names if name}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "*", text)
    sep = re.escape(os.sep)
    # Between two separators a path may hold spaces.
    text = re.sub(rf"\S*{sep}\S*(?: \S*{sep}\S*)*", "*", text)
    return re.sub(r"\b[0-9a-f]{16,}\b|\d+(?:\.\d+)?(?:e[+-]?\d+)?", "*", text)


class Repeats:
    """Counts messages that come one by one, by their cause, so that the first few are shown and the rest is not."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def shown(self, text: str, name: str, rest: str) -> str | None:
        """What to show of a message: itself, for the first one too many that there are more, then nothing.

        Args:
            text: the message.
            name: of its slide.
            rest: what to say of all that are not shown.
        """
        cause = cause_of(text, (name,))
        self._count[cause] += 1
        if self._count[cause] <= SHOWN_MESSAGES:
            return text
        return rest if self._count[cause] == SHOWN_MESSAGES + 1 else None
