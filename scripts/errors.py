"""The errors that a user can cause, each a single line: what, why, and what to do next."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["BundleError", "DatalistError", "SettingsError", "SlideError", "show_one_line"]


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
    searched. Every other exception keeps its traceback: it is a fault of the program.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, BundleError):
                sys.stderr.write(f"error: {cause}\n")
                return
            cause = cause.__cause__ or cause.__context__
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
