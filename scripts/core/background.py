"""Work that goes on in threads while the caller makes more of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["in_background"]

THREADS = 2
# Calls that nobody has begun. The limit bounds the memory of their arguments.
WAITING = 2


@contextmanager
def in_background() -> Iterator[Callable[..., None]]:
    """Give a function that calls a function, with its arguments, in a thread; when the block ends, all calls have.

    A call waits while there are more than a few before it. The first error of a call, in the order in which they were
    made, is raised by a later call or at the end of the block. After an error, what has not begun is not done.
    """
    begun: deque[Future[None]] = deque()
    with ThreadPoolExecutor(THREADS, "background") as threads:

        def call(function: Callable[..., None], *arguments: object) -> None:
            while len(begun) >= THREADS + WAITING:
                begun.popleft().result()
            begun.append(threads.submit(function, *arguments))

        try:
            yield call
            while begun:
                begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
