"""Seconds within functions while a program runs, whatever threads call them."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

__all__ = ["Function", "Spent", "timed", "timing"]

# What has a function, a class, a module or an object, and the function's name there.
Function = tuple[Any, str]


@dataclass
class Spent:
    """What a stage took, without what the stages took that it called.

    Args:
        calls: of its functions; of one that yields, one for each item and one for the end.
        seconds: of all threads together.
        cpu_s: processor seconds of the threads that called its functions. What other threads or processes computed for
            them meanwhile is not among these.
        beside_s: those of ``seconds`` that passed in other threads than the one which times.
    """

    calls: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    beside_s: float = 0.0


@contextmanager
def timing(stages: Mapping[str, Sequence[Function]]) -> Iterator[dict[str, Spent]]:
    """Time functions while the block runs; when it ends they are what they were.

    A function is found under its name when it is called: one that somebody took before the block, such as a handler
    that was attached, is not timed.

    Args:
        stages: the functions of each stage, by its name.

    Yields:
        what each stage took, complete when the block has ended.

    Raises:
        SystemExit: at the end, if a function was never called.
    """
    stopwatch = _Stopwatch(stages)
    with ExitStack() as replaced:
        for stage, functions in stages.items():
            for owner, name in functions:
                function = stopwatch.timed(stage, (owner, name))
                replaced.enter_context(mock.patch.object(owner, name, function))
        yield stopwatch.spent
    for owner, name in (function for functions in stages.values() for function in functions):
        if (id(owner), name) not in stopwatch.called:
            raise SystemExit(f"{getattr(owner, '__name__', type(owner).__name__)} has no {name} that was called")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


class _Stopwatch:
    def __init__(self, stages: Mapping[str, Sequence[Function]]) -> None:
        self.spent = {stage: Spent() for stage in stages}
        self.called: set[tuple[int, str]] = set()
        self._thread, self._lock, self._open = threading.get_ident(), threading.Lock(), threading.local()

    def timed(self, stage: str, function: Function) -> Callable[..., Any]:
        """The function, which adds its time to the stage."""
        (owner, name), plain = function, getattr(*function)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.called.add((id(owner), name))
            with self._within(stage):
                return plain(*args, **kwargs)

        def items(*args: Any, **kwargs: Any) -> Iterator[Any]:
            self.called.add((id(owner), name))
            every = plain(*args, **kwargs)
            while True:
                with self._within(stage):
                    try:
                        item = next(every)
                    except StopIteration:
                        return
                yield item

        return items if inspect.isgeneratorfunction(plain) else call

    @contextmanager
    def _within(self, stage: str) -> Iterator[None]:
        # Of each call that this thread is in, innermost last, the time of the calls within.
        calls = self._open.__dict__.setdefault("calls", [])
        within = [0.0, 0.0]
        calls.append(within)
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            taken = time.perf_counter() - wall, time.thread_time() - cpu
            calls.pop()
            if calls:
                calls[-1][:] = (sum(of_one) for of_one in zip(calls[-1], taken, strict=True))
            seconds, cpu_s = taken[0] - within[0], taken[1] - within[1]
            with self._lock:
                spent = self.spent[stage]
                spent.calls += 1
                spent.seconds += seconds
                spent.cpu_s += cpu_s
                spent.beside_s += seconds if threading.get_ident() != self._thread else 0.0
