"""The errors that a user can cause, each a single line: what, why, and what to do next."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm

__all__ = ["BundleError", "DatalistError", "SettingsError", "SlideError", "mistake_in", "show_one_line"]


class BundleError(Exception):
    """A mistake in the input or the settings, in one line.

    Args:
        subject: the slide, file or key that is at fault.
        cause: what is wrong with it, with the value found.
        remedy: what the user can do next, as a full sentence.
    """

    def __init__(self, subject: object, cause: str, remedy: str) -> None:
        # What a library says in a cause may run over several lines.
        super().__init__(" ".join(f"{subject}: {cause}. {remedy}".splitlines()))
        self.subject, self.cause, self.remedy = subject, cause, remedy

    def __reduce__(self) -> tuple[type[BundleError], tuple[object, str, str]]:
        # A DataLoader worker sends its exception to the main process pickled.
        return type(self), (self.subject, self.cause, self.remedy)


class SlideError(BundleError):
    """A slide, or the mask of one, that cannot be used."""


class DatalistError(BundleError):
    """A datalist, or an entry of one, that cannot be used."""


class SettingsError(BundleError):
    """A setting, weights file or checkpoint that cannot be used."""


def show_one_line() -> None:
    """End the process with one line, instead of a traceback, on a :class:`BundleError`.

    MONAI's config parser wraps what a component raises into errors of its own, so the chain of causes is
    searched. Every other exception keeps its traceback: it is a fault of the program. Calling it again does nothing.
    """
    make_record = logging.getLogRecordFactory()
    if getattr(make_record, "shows_one_line", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mistake = mistake_in(error)
        if issubclass(kind, KeyboardInterrupt):
            sys.stderr.write("interrupted\n")
        elif mistake is None:
            sys.__excepthook__(kind, error, trace)
        else:
            # Through tqdm, which keeps it apart from a progress bar that is still drawn.
            tqdm.write(f"error: {mistake}", file=sys.stderr)

    def record_without_trace(*args: Any, **kwargs: Any) -> logging.LogRecord:
        # MONAI's StatsHandler logs what ends a run, with its traceback.
        record = make_record(*args, **kwargs)
        if record.exc_info and record.exc_info[1] and mistake_in(record.exc_info[1]):
            record.exc_info = None
        return record

    record_without_trace.shows_one_line = True  # type: ignore[attr-defined]
    sys.excepthook = hook
    logging.setLogRecordFactory(record_without_trace)


def mistake_in(error: BaseException | None) -> BundleError | None:
    """The user's mistake that led to an error, from its chain of causes; ``None`` if there is none."""
    while error is not None:
        if isinstance(error, BundleError):
            return error
        error = error.__cause__ or error.__context__
    return None
