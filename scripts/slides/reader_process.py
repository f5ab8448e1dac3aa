"""The process in which native libraries read slides: a library that takes it down does not take the run down.

It imports nothing that is slow or large. Started by :mod:`scripts.slides.isolation`, it answers one request after the
other until its end of the connection is closed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import select
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np

from scripts.slides.backends import BACKENDS, Backend, load_library, openslide_properties
from scripts.slides.checksums import Stamp, stamp_of
from scripts.slides.first_look import kind_of, look_at
from scripts.slides.opened import Opened

__all__ = ["serve"]

# A bag is read while the next is made, and a batch of bags may come from a few slides.
OPEN_SLIDES = 4
# Some files open and then cannot be decoded: of each level a corner is read.
CORNER_PX = 16
# Standard output and error, where native libraries print.
STREAMS = (1, 2)
FAILURE = re.compile("error|fail|corrupt", re.IGNORECASE)
LEAVE_OUT = "Is it a whole slide image, and complete? Copy it again, or leave it out of the datalist."

T = TypeVar("T")


def serve(connection_fd: int, memory_fd: int, said_fd: int) -> None:
    """Answer requests.

    A request is the name of a public method of :class:`_Reader` and its arguments. Before each call of a library comes
    ``("uses", library)``; in the end ``("answer", result)``, or ``("failure", message)`` where it raised.

    Args:
        connection_fd: file descriptor of the connection.
        memory_fd: file descriptor of the memory into which pixels are written; it grows as the other side wants.
        said_fd: file descriptor of an empty file, which contains what native libraries print during a call.
    """
    # Whoever started it decides when it ends, by closing the connection.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if not _ends_with_the_run():
        return
    with Connection(connection_fd) as connection:
        reader = _Reader(connection, memory_fd, said_fd)
        while True:
            try:
                method, arguments = connection.recv()
            except EOFError:
                return
            try:
                answer = "answer", getattr(reader, method)(*arguments)
            except Exception as error:  # the other side names the slide
                answer = "failure", _message(error)
            connection.send(answer)


class _Reader:
    def __init__(self, connection: Connection, memory_fd: int, said_fd: int) -> None:
        self._connection, self._memory_fd, self._said_fd = connection, memory_fd, said_fd
        self._memory: mmap | None = None
        self._loaded: set[str] = set()
        self._slides: OrderedDict[tuple[str, str, Stamp], Backend] = OrderedDict()

    def open(self, path: str, stamp: Stamp, backends: Sequence[str], passed: Sequence[str]) -> tuple[Any, ...]:
        """See :func:`scripts.slides.isolation.open_slide`."""
        opened = self._attempt(look_at, path) or Opened()
        if opened.fault is not None:
            return tuple(opened)
        passed = [*passed]
        for backend in backends:
            if backend == "tifffile" and not opened.subifd_levels:
                continue
            try:
                level_sizes = self._use(backend, self._open_levels, path, stamp, backend)
            except Exception as error:  # each library raises its own kind
                passed.append(f"{backend}: {_message(error)}")
                continue
            properties = self._use("openslide", openslide_properties, path)
            return tuple(
                opened._replace(backend=backend, passed=passed, level_sizes=level_sizes, properties=properties)
            )
        cause = f"cannot be read as a slide ({'; '.join(passed)})"
        return tuple(opened._replace(refusal=self._attempt(kind_of, path) or (cause, LEAVE_OUT)))

    def read(self, path: str, stamp: Stamp, backend: str, region: tuple[int, int, int, int, int]) -> None:
        """See :func:`scripts.slides.isolation.read_pixels`; the pixels are written into the memory."""
        left, top, width, height, level = region
        size = width * height * 3
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap(self._memory_fd, 0)  # as large as the other side has made it
        out = np.frombuffer(self._memory, dtype=np.uint8, count=size).reshape(height, width, 3)
        self._use(backend, lambda: self._slide(path, stamp, backend).read(left, top, level, out))

    def _attempt(self, function: Callable[[str], T], path: str) -> T | None:
        """What tifffile and pydicom find out; nothing of a file that is too damaged: its reader will say it."""
        try:
            return self._use("tifffile", function, path)
        except Exception:  # tifffile raises whatever its parsers come upon
            return None

    def _use(self, library: str, function: Callable[..., T], *arguments: Any) -> T:
        self._connection.send(("uses", library))
        try:
            if library not in self._loaded:
                # Apart from the call, because what a library prints while it is loaded says nothing about the slide.
                overhear(self._said_fd, load_library, library, judged=False)
                self._loaded.add(library)
            return overhear(self._said_fd, function, *arguments)
        except Exception:
            # A slide that failed would not say so again, or, with OpenSlide, not read anything any more.
            while self._slides:
                self._slides.popitem()[1].close()
            raise

    def _open_levels(self, path: str, stamp: Stamp, backend: str) -> list[tuple[int, int]]:
        slide = self._slide(path, stamp, backend)
        for level, (width, height) in enumerate(slide.level_sizes):
            slide.read(0, 0, level, np.empty((min(height, CORNER_PX), min(width, CORNER_PX), 3), dtype=np.uint8))
        return slide.level_sizes

    def _slide(self, path: str, stamp: Stamp, backend: str) -> Backend:
        key = (path, backend, stamp)
        if key not in self._slides:
            self._slides[key] = BACKENDS[backend](path)
            if stamp_of(path) != stamp:
                raise ValueError("it was replaced while it was read")
            if len(self._slides) > OPEN_SLIDES:
                self._slides.popitem(last=False)[1].close()
        self._slides.move_to_end(key)
        return self._slides[key]


def overhear(said_fd: int, function: Callable[..., T], *arguments: Any, judged: bool = True) -> T:
    """Call a function that uses a native library; an error that the library prints is one.

    cuCIM goes on after some errors: with pixels that it made up, or without the levels that it could not find.

    Args:
        said_fd: file descriptor of an empty file, which keeps what is printed if the process dies of the call.
        function: what to call.
        arguments: of the function.
        judged: whether what is printed is of this call; else it is passed on to standard error, as warnings are.

    Raises:
        Exception: of the function, or a ``ValueError`` with the errors that were printed.
    """
    own = [os.dup(stream) for stream in STREAMS]
    for stream in STREAMS:
        os.dup2(said_fd, stream)
    try:
        result = function(*arguments)
    finally:
        ctypes.CDLL(None).fflush(None)
        for stream, fd in zip(STREAMS, own, strict=True):
            os.dup2(fd, stream)
            os.close(fd)
        said = os.pread(said_fd, os.lseek(said_fd, 0, os.SEEK_CUR), 0).decode(errors="replace").splitlines()
        os.ftruncate(said_fd, 0)
        os.lseek(said_fd, 0, os.SEEK_SET)
    errors = [line for line in said if FAILURE.search(line) and "warning" not in line.lower()]
    if errors and judged:
        raise ValueError(" ".join(errors))
    sys.stderr.writelines(f"{line}\n" for line in said)
    return result


def _ends_with_the_run() -> bool:
    """Have the kernel end this process when the run's end of its standard input closes; False if that is past."""
    # Nothing else reaches a native call that never returns, perhaps with Python's lock in its hands.
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)
    return not select.select([0], [], [], 0)[0]


def _message(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
