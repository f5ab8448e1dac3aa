"""The process in which native libraries read slides: what takes it down takes no run with it.

It imports nothing that is slow or large. Started by :mod:`scripts.slides.isolation`, it answers one request after the
other until its end of the connection is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import select
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from scripts.slides.backends import BACKENDS, Backend, load_library, openslide_properties
from scripts.slides.first_look import kind_of, look_at
from scripts.slides.stamp import Stamp, stamp_of

__all__ = ["serve"]

# A bag is read while the next is made, and a batch of bags may come from a few slides.
OPEN_SLIDES = 4
# Some files open and then cannot be decoded: of each level a corner is read.
CORNER_PX = 16

# Of which native libraries write to either.
STREAMS = (1, 2)
FAILURE = re.compile("error|fail|corrupt", re.IGNORECASE)


def serve(connection_fd: int, memory_fd: int, said_fd: int) -> None:
    """Answer requests.

    A request is the name of a library, the name of a method of :class:`_Requests`, and its arguments. The answer is
    ``(True, result)``, or ``(False, message)`` where it raised.

    Args:
        connection_fd: file descriptor of the connection.
        memory_fd: file descriptor of the memory into which pixels are written; it grows as the other side wants.
        said_fd: file descriptor of an empty file, which holds what native libraries print during a request.
    """
    # Whoever started it decides when it ends, by closing the connection.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if not _ends_with_the_run():
        return
    requests = _Requests(memory_fd)
    loaded: set[str] = set()
    with Connection(connection_fd) as connection:
        while True:
            try:
                library, method, arguments = connection.recv()
            except EOFError:
                return
            # Apart from the request, because what a library prints while it is loaded says nothing about the slide.
            answer = (True, None)
            if library not in loaded:
                answer = _answer(load_library, (library,), said_fd, judged=False)
            if answer[0]:
                loaded.add(library)
                answer = _answer(getattr(requests, method), arguments, said_fd)
            if not answer[0]:
                requests.forget()
            connection.send(answer)


def _ends_with_the_run() -> bool:
    """Have the kernel end this process when the run's end of its standard input closes; False if that is past."""
    # A native call that never returns, perhaps with Python's lock in its hands, hears of nothing else.
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)
    return not select.select([0], [], [], 0)[0]


def _answer(
    method: Callable[..., Any], arguments: tuple[Any, ...], said_fd: int, judged: bool = True
) -> tuple[bool, Any]:
    said: list[str] = []
    try:
        with _overheard(said_fd, said):
            result = method(*arguments)
    except Exception as error:  # told to the other side, which names the slide
        return False, str(error).strip() or type(error).__name__
    # cuCIM goes on after some errors: with pixels that it made up, or without the levels that it could not find.
    errors = [line for line in said if FAILURE.search(line) and "warning" not in line.lower()]
    if errors and judged:
        return False, " ".join(errors)
    sys.stderr.writelines(f"{line}\n" for line in said)
    return True, result


@contextlib.contextmanager
def _overheard(said_fd: int, said: list[str]) -> Iterator[None]:
    """Collect the lines that native libraries print meanwhile; in the file they stay if the process dies of it."""
    own = [os.dup(stream) for stream in STREAMS]
    for stream in STREAMS:
        os.dup2(said_fd, stream)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        for stream, fd in zip(STREAMS, own, strict=True):
            os.dup2(fd, stream)
            os.close(fd)
        size = os.lseek(said_fd, 0, os.SEEK_CUR)
        said.extend(os.pread(said_fd, size, 0).decode(errors="replace").splitlines())
        os.ftruncate(said_fd, 0)
        os.lseek(said_fd, 0, os.SEEK_SET)


class _Requests:
    def __init__(self, memory_fd: int) -> None:
        self.memory_fd = memory_fd
        self.memory: mmap | None = None
        self.slides: OrderedDict[tuple[str, str, Stamp], Backend] = OrderedDict()

    def properties(self, path: str) -> dict[str, str]:
        return openslide_properties(path)

    def look(self, path: str) -> tuple[Any, ...]:
        return tuple(look_at(path))

    def kind(self, path: str) -> tuple[str, str] | None:
        return kind_of(path)

    def open(self, path: str, backend: str, stamp: Stamp) -> list[tuple[int, int]]:
        slide = self._slide(path, backend, stamp)
        for level, (width, height) in enumerate(slide.level_sizes):
            slide.read(0, 0, level, np.empty((min(height, CORNER_PX), min(width, CORNER_PX), 3), dtype=np.uint8))
        return slide.level_sizes

    def read(self, path: str, backend: str, stamp: Stamp, region: tuple[int, int, int, int, int]) -> None:
        left, top, width, height, level = region
        size = width * height * 3
        if self.memory is None or len(self.memory) < size:
            self.memory = mmap(self.memory_fd, 0)  # as large as the other side has made it
        out = np.frombuffer(self.memory, dtype=np.uint8, count=size).reshape(height, width, 3)
        self._slide(path, backend, stamp).read(left, top, level, out)

    def forget(self) -> None:
        """Close all slides. One that failed would not say so again, or, with OpenSlide, not read anything any more."""
        while self.slides:
            self.slides.popitem()[1].close()

    def _slide(self, path: str, backend: str, stamp: Stamp) -> Backend:
        key: Any = (path, backend, tuple(stamp))
        if key not in self.slides:
            _check_same(path, stamp)
            self.slides[key] = BACKENDS[backend](path)
            _check_same(path, stamp)
            if len(self.slides) > OPEN_SLIDES:
                self.slides.popitem(last=False)[1].close()
        self.slides.move_to_end(key)
        return self.slides[key]


def _check_same(path: str, stamp: Stamp) -> None:
    if stamp_of(path) != tuple(stamp):
        raise ValueError("it was replaced while it was read")
