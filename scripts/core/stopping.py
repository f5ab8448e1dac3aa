"""SIGTERM that waits until a slide is finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scripts.core.ranks import StoppedError, num_ranks, rank

__all__ = ["finishing_slides"]


@contextmanager
def finishing_slides(step: str, remedy: str) -> Iterator[Callable[[], None]]:
    """Put SIGTERM off, and yield what raises a :class:`StoppedError` if it came.

    ``torchrun`` sends it to all ranks when one died, and Slurm before it takes the machine away. Outside of the main
    thread, whose alone signals are, nothing is put off.

    Args:
        step: what is done with slides: ``"extracting"``, ``"inferring"``.
        remedy: what the user can do next.
    """
    told = threading.Event()

    def check() -> None:
        if told.is_set():
            subject = f"rank {rank()}" if num_ranks() > 1 else step
            raise StoppedError(subject, "was told to stop (SIGTERM), and begins no other slide", remedy)

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield check
    finally:
        # A generator that an error left unfinished may be closed by any thread.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
