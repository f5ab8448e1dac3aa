"""A limit of time for a test of what might never end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["within"]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail the test when the block takes longer; in the main thread alone.

    Args:
        seconds: the limit.
    """

    def end(*_: object) -> None:
        # No kind of Exception: the product catches what libraries raise.
        pytest.fail(f"took longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
