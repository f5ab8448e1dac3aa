"""The errors that a user can cause, each a single line: what, why, and what to do next."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from tqdm import tqdm

__all__ = [
    "BundleError",
    "DatalistError",
    "SettingsError",
    "SlideError",
    "fitting",
    "mistake_in",
    "no_memory",
    "no_room",
    "printable",
    "reason_of",
    "show_mistake",
    "show_one_line",
    "unreadable_reason",
]

# Errors of a file system that takes no more data: no fault of the program.
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "it would be larger than allowed",
    errno.EROFS: "the disk is read-only",
}
# Errors of a path that cannot be followed.
NO_WAY = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}
# Texts of a plain RuntimeError of PyTorch, and of CUDA's libraries.
NO_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator: |STATUS_ALLOC_FAILED", re.IGNORECASE)
BUSY = re.compile(r"CUDA error: .*busy or unavailable", re.IGNORECASE)

# Within this time a rank that failed has ended, and torchrun has seen it.
SECONDS_TO_END = 10


class BundleError(Exception):
    """A mistake in the input or the settings, in one line.

    Args:
        subject: the slide, file or key that is at fault.
        cause: what is wrong with it, with the value found.
        remedy: what the user can do next, as a full sentence.

    Attributes:
        is_from_outside: whether something else ended the run, of which this only tells.
    """

    is_from_outside = False

    def __init__(self, subject: object, cause: str, remedy: str) -> None:
        # A cause may quote a library, over several lines.
        super().__init__(printable(" ".join(f"{subject}: {cause}. {remedy}".splitlines())))
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


def printable(text: str) -> str:
    """A text as one line that every terminal can show and every file store: a file's name may contain anything.

    What would move the cursor of a terminal, or cannot be written as UTF-8, is escaped.
    """
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or its kind, where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def unreadable_reason(error: BaseException) -> str:
    """Why PyTorch could not load a file, in short, without its advice to run what the file contains."""
    if isinstance(error, pickle.UnpicklingError):
        if (called := re.search(r"GLOBAL (\S+)", str(error))) is not None:
            return f"to load it would run {called[1]}"
        if (found := re.search(r"WeightsUnpickler error:\s*(.*)", str(error))) is not None:
            return found[1].split(". ")[0]
    return reason_of(error).split(". ")[0]


def show_one_line() -> None:
    """End the process with one line, instead of a traceback, on a :class:`BundleError`.

    MONAI's config parser wraps what a component raises into errors of its own, so the chain of causes is
    searched. Every other exception keeps its traceback: it is a fault of the program. Calling it again does nothing.
    """
    make_record = logging.getLogRecordFactory()
    # The working folder of a run may contain another copy of this package, whose errors are other classes.
    if getattr(make_record, "shown_mistakes", None) is BundleError:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mistake = mistake_in(error)
        if issubclass(kind, KeyboardInterrupt):
            tqdm.write("interrupted", file=sys.stderr)
        elif mistake is None:
            sys.__excepthook__(kind, error, trace)
        else:
            show_mistake(mistake)

    def record_without_trace(*args: Any, **kwargs: Any) -> logging.LogRecord:
        # MONAI's StatsHandler logs what ends a run, with its traceback.
        record = make_record(*args, **kwargs)
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, KeyboardInterrupt) or mistake_in(error):
            record.exc_info = None
        return record

    record_without_trace.shown_mistakes = BundleError  # type: ignore[attr-defined]

    def thread_hook(args: threading.ExceptHookArgs) -> None:
        # TensorBoard writes in a thread, and raises the same again in the main one.
        if args.exc_value is not None and isinstance(args.exc_value, OSError) and mistake_in(args.exc_value):
            tqdm.write(f"error: {mistake_in(args.exc_value)}", file=sys.stderr)
        else:
            threading.__excepthook__(args)

    sys.excepthook, threading.excepthook = hook, thread_hook
    logging.setLogRecordFactory(record_without_trace)


def show_mistake(mistake: BundleError) -> None:
    """Show what ends this process in one line, and give ``torchrun`` the same to show last, if it is the cause."""
    # Through tqdm, which keeps it apart from a progress bar that is still shown.
    tqdm.write(f"error: {mistake}", file=sys.stderr)
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        # torchrun takes the first failure for the cause, by the second; of a rank that leaves no file, the second in
        # which it sees the rank gone.
        second = int(time.time()) + (SECONDS_TO_END if mistake.is_from_outside else 0)
        extra = {"py_callstack": str(mistake), "timestamp": str(second)}
        content = json.dumps({"message": {"message": str(mistake), "extraInfo": extra}})
        # The disk may be what is full, and torchrun fails on half a file.
        with suppress(OSError):
            with open(f"{path}.part", "w", encoding="utf-8") as file:
                file.write(content)
            os.replace(f"{path}.part", path)


def mistake_in(error: BaseException | None) -> BundleError | None:
    """The user's mistake that led to an error, from its chain of causes; ``None`` if there is none.

    A library that found no room for a file, no way to it, or was not let at it, counts as one, too; and so does one
    that found no memory, or no GPU for itself.
    """
    found = next((cause for cause in _chain(error) if isinstance(cause, BundleError)), None)
    if found is not None:
        return found
    # An error that was being handled when another one was raised does not explain it.
    refusals = (_refused(cause) for cause in _chain(error, contexts=False))
    return next((refusal for refusal in refusals if refusal is not None), None)


def no_room(error: BaseException) -> str | None:
    """Why a file system did not take what was written; ``None`` if that is not what an error says."""
    number = getattr(error, "errno", None)
    return f"{NO_ROOM[number]} ({os.strerror(number)})" if number in NO_ROOM else None


def no_memory(error: BaseException) -> str | None:
    """What there was too little memory for; ``None`` if that is not what an error says."""
    if not isinstance(error, RuntimeError | MemoryError):
        return None
    said = " ".join(str(error).split())
    # By name, because this module does not import PyTorch.
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    if not (named or isinstance(error, MemoryError) or NO_MEMORY.search(said)):
        return None
    where = "the GPU's memory" if re.search("cuda|cublas|cudnn|GPU", said, re.IGNORECASE) else "this machine's memory"
    numbers = re.search(
        r"(tried|unable) to allocate [\d.]+ \w+(\. GPU \d+ has .*? is free)?", said, flags=re.IGNORECASE
    )
    return f"does not fit into {where} ({numbers[0] if numbers else said[:100] or type(error).__name__})"


@contextmanager
def fitting(setting: str) -> Iterator[None]:
    """Where memory runs out meanwhile, name the setting that decides how much is needed.

    Raises:
        SettingsError: if it does.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        cause = no_memory(error)
        if cause is None:
            raise
        raise SettingsError(setting, cause, f"Lower `{setting}`, or use another `device`.") from error


def _chain(error: BaseException | None, contexts: bool = True) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (error.__context__ if contexts else None)


def _refused(error: BaseException) -> BundleError | None:
    if (cause := no_memory(error)) is not None:
        remedy = "Lower `batch_size`, `num_nodes`, `cache_gb` or `num_workers`, or use another `device`."
        return SettingsError("the run", cause, remedy)
    if isinstance(error, RuntimeError) and BUSY.search(str(error)):
        cause = "the GPU is in use by another process, and takes one at a time (exclusive mode)"
        remedy = "Wait for that process, set `num_processes` to 1, or, after an extraction, run the same command again."
        return SettingsError("device", cause, remedy)
    if not isinstance(error, OSError):
        return None
    # TensorBoard, which writes into `output_dir`, does not tell the file.
    subject = error.filename or "output_dir"
    if isinstance(error, PermissionError):
        return SettingsError(subject, f"you have no right to it ({error.strerror})", "Choose another path.")
    if error.errno in NO_WAY and error.filename:
        return SettingsError(subject, f"cannot be used ({error.strerror})", "Choose another path.")
    cause = no_room(error)
    if cause is None:
        return None
    return SettingsError(subject, f"cannot be written: {cause}", "Make room, or choose another folder.")
