"""What is wrong with a cohort: a run raises the first problem that blocks, `checking` lists all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from scripts.core.errors import BundleError, DatalistError
from scripts.core.repeats import cause_of

__all__ = ["BLOCKS", "WARNS", "Problem", "raise_first"]

BLOCKS = "blocks"
WARNS = "warns"


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
        names: what its texts name besides, most important first: problems that differ only in names are shown as one.
    """

    severity: str
    check: str
    where: str
    what: str
    what_to_do: str
    slide: str = ""
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: BundleError, check: str, slide: str = "") -> Problem:
        """The problem that an error describes."""
        return cls(BLOCKS, check, str(error.subject), str(error.cause), error.remedy, slide)

    @property
    def cause(self) -> tuple[str, ...]:
        """What it has in common with the same problem of another slide."""
        names = (self.slide, *self.names, self.where, os.path.basename(self.where), self.where.rpartition("slide ")[2])
        return self.severity, self.check, cause_of(self.what, names), cause_of(self.what_to_do, names)

    @property
    def blocks(self) -> bool:
        """Whether no run can start, or not with this slide."""
        return self.severity == BLOCKS


def raise_first(problems: Iterable[Problem]) -> None:
    """Raise the first problem that blocks, with the number of the others.

    Raises:
        DatalistError: if there is one.
    """
    blocking = [problem for problem in problems if problem.blocks]
    if blocking:
        first, others = blocking[0], len(blocking) - 1
        more = f" `checking` lists {others} more {'problem' if others == 1 else 'problems'}." if others else ""
        raise DatalistError(first.where, first.what, f"{first.what_to_do}{more}")
