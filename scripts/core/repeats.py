"""The same said of many slides: said once, with a count and the first few names."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["Repeats", "cause_of", "first_names"]

SHOWN_NAMES = 5
# The number of messages of one cause that are shown, if they come one by one; the rest is counted.
SHOWN_MESSAGES = 3
REST = "the same holds for more slides, which are not shown here: `checking` names all of them"


def first_names(names: Sequence[object], count: int | None = None, shown: int = SHOWN_NAMES) -> str:
    """The first few names, and whether there are more: ``"a, b, c, d, e, ..."``.

    Args:
        names: all of them, or the first that are known.
        count: how many there are; by default those that are given.
        shown: how many are shown.
    """
    more = ", ..." if (len(names) if count is None else count) > shown else ""
    return ", ".join(map(str, names[:shown])) + more


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
    """Counts messages that come one by one, by their cause: the first few are shown, each once, and the rest is not.

    Several threads may use it.
    """

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def shown(self, text: str, name: str, rest: str) -> str | None:
        """What to show of a message: itself, for the first one too many that there are more, then nothing.

        Args:
            text: the message.
            name: of its slide.
            rest: what to say of all that are not shown.
        """
        if not self._is_new(text):
            return None
        cause = cause_of(text, (name,))
        with self._lock:
            self._count[cause] += 1
            count = self._count[cause]
        if count <= SHOWN_MESSAGES:
            return text
        return rest if count == SHOWN_MESSAGES + 1 else None

    def log(self, logger: logging.Logger, level: int, text: str, name: str, rest: str = REST) -> None:
        """Log what :meth:`shown` shows of a message.

        Args:
            logger: that of the file that calls.
            level: of the message, and of the line that there are more.
            text: the message.
            name: of its slide.
            rest: what to say of all that are not shown.
        """
        if (shown := self.shown(text, name, rest)) is not None:
            logger.log(level, "%s", shown)

    def log_once(self, logger: logging.Logger, level: int, text: str) -> None:
        """Log a message that is of no slide, whatever others there are: the same words once."""
        if self._is_new(text):
            logger.log(level, "%s", text)

    def _is_new(self, text: str) -> bool:
        with self._lock:
            is_new = text not in self._seen
            self._seen.add(text)
        return is_new
