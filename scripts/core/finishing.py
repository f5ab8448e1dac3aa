"""SIGTERM that waits until the slide under way is finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scripts.core.ranks import StoppedError, num_ranks, rank

__all__ = ["finishing_slides"]


@contextmanager
def finishing_slides() -> Iterator[Callable[[], None]]:
    """Put SIGTERM off, and yield what raises a :class:`StoppedError` if it came."""
    told = threading.Event()

    def check() -> None:
        if told.is_set():
            subject = f"rank {rank()}" if num_ranks() > 1 else "extracting"
            cause = "was told to stop (SIGTERM), and begins no other slide"
            raise StoppedError(subject, cause, "The same command goes on from here.")

    if threading.current_thread() is not threading.main_thread():
        yield check  # Signals are the main thread's alone.
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield check
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
