"""A problem of a cohort: how bad it is, where it lies, what to do about it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from scripts.core.errors import BundleError
from scripts.core.repeats import cause_of

__all__ = ["BLOCKS", "WARNS", "Problem", "Problems"]

BLOCKS = "blocks"
WARNS = "warns"

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One line of ``checking.csv``.

    Args:
        severity: :data:`BLOCKS` where a run would stop, lose the slide or compute from wrong data, else :data:`WARNS`.
        check: what was looked at, in a word: ``"file"``, ``"label"``, ``"resolution"``, ...
        where: the datalist's line, the file, or the partition.
        what: what is wrong, with the value found.
        what_to_do: the next step, as a full sentence.
        slide: the slide's name, where it is one slide's problem.
        names: what its texts name beside that, most important first: problems that differ in names alone are shown as
            one.
    """

    severity: str
    check: str
    where: str
    what: str
    what_to_do: str
    slide: str = ""
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: BundleError, check: str, severity: str = BLOCKS, slide: str = "") -> Problem:
        """The problem that an error tells of."""
        return cls(severity, check, str(error.subject), str(error.cause), error.remedy, slide)

    @property
    def cause(self) -> tuple[str, ...]:
        """What it has in common with the same problem of another slide."""
        names = (self.slide, *self.names, self.where, os.path.basename(self.where), self.where.rpartition("slide ")[2])
        return self.severity, self.check, cause_of(self.what, names), cause_of(self.what_to_do, names)

    @property
    def blocks(self) -> bool:
        """Whether it stands in the way of a run."""
        return self.severity == BLOCKS


class Problems(list[Problem]):
    """The problems that were found so far.

    Args:
        where: the file or line that :meth:`add` and :meth:`attempt` speak of.
        slide: the name of its slide.
    """

    def __init__(self, where: object = "", slide: str = "") -> None:
        super().__init__()
        self.where, self.slide = str(where), slide

    def add(self, severity: str, check: str, what: str, what_to_do: str) -> None:
        """Note a problem."""
        self.append(Problem(severity, check, self.where, what, what_to_do, self.slide))

    def attempt(self, check: str, step: Callable[[], T]) -> T | None:
        """Take a step of a check; what it raises is a problem that blocks, after which the other steps go on.

        Args:
            check: what the step looks at, see :class:`Problem`.
            step: the step.

        Returns:
            What the step returns; ``None`` if it raised.
        """
        try:
            return step()
        except BundleError as error:
            self.append(Problem.of(error, check, slide=self.slide))
        # A damaged file can make a library raise anything. Nothing is lost: it is a problem of that slide.
        except Exception as error:
            logger.debug("%s: %s", self.where, check, exc_info=True)
            what = f"looking at its {check} failed ({type(error).__name__}: {error})"
            self.add(BLOCKS, check, what, "Is the file complete? Copy it again, or leave the slide out.")
        return None
