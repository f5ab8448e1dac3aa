"""Work that goes on in threads while the caller makes more of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["OneBehind", "in_background"]

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


class OneBehind:
    """Calls functions in a thread, in turn, while the caller makes what the next calls are about.

    No more than one subject is behind, which bounds the memory: the first call about another waits for all before it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "behind")
        self._begun: deque[Future[None]] = deque()
        self._subject: object = None

    def __call__(self, subject: object, function: Callable[[], None]) -> None:
        """Call ``function`` when it is its turn.

        Raises:
            as :meth:`wait`, if ``subject`` is another object than that of the call before; then nothing is called.
        """
        if subject is not self._subject:
            self.wait()
        future = self._thread.submit(function)
        self._subject = subject
        self._begun.append(future)

    def wait(self) -> None:
        """Wait until all calls have ended.

        Raises:
            the first error of a call, in the order in which they were made; what has not begun by then is not done.
        """
        begun, self._begun, self._subject = self._begun, deque(), None
        try:
            while begun:
                begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
