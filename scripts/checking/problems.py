"""The problems that the steps of a check find."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from scripts.core.errors import BundleError
from scripts.datalists.problems import BLOCKS, WARNS, Problem

__all__ = ["BLOCKS", "WARNS", "Problem", "Problems"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Problems(list[Problem]):
    """The problems of one file.

    Args:
        where: the file or the line of the datalist.
        slide: the name of its slide.
    """

    def __init__(self, where: object = "", slide: str = "") -> None:
        super().__init__()
        self.where, self.slide = str(where), slide

    def add(self, severity: str, check: str, what: str, what_to_do: str) -> None:
        """Add a problem, see :class:`scripts.datalists.problems.Problem`."""
        self.append(Problem(severity, check, self.where, what, what_to_do, self.slide))

    def attempt(self, check: str, step: Callable[[], T]) -> T | None:
        """Take a step of a check. What it raises becomes a problem that blocks, and the other steps go on.

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
