"""Native readers at arm's length: each call goes to a process of its own, of which there is one for each thread."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from mmap import mmap
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ReaderError", "has_cucim", "open_levels", "read_pixels", "read_properties", "stamp_of"]

# The largest region takes a second; a network's file system may take its time.
ANSWER_SECONDS = 300.0
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from scripts.reader_process import serve; "
PROGRAM += "serve(int(sys.argv[2]), int(sys.argv[3]))"

Stamp = tuple[int, int, int, int]


class ReaderError(Exception):
    """What a native reader said, or how its process ended."""


def has_cucim() -> bool:
    """Whether cuCIM is installed."""
    return importlib.util.find_spec("cucim") is not None


def stamp_of(path: str | Path) -> Stamp:
    """What tells a file from another of the same name, so that a slide that was replaced is opened anew."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_levels(path: str | Path, backend: str, stamp: Stamp) -> list[tuple[int, int]]:
    """(width, height) in pixels of each level of a slide, of which a corner can be read.

    Args:
        path: the slide's file.
        backend: ``"cucim"`` or ``"openslide"``.
        stamp: of the file.

    Raises:
        ReaderError: if the backend cannot read it, does not answer, or dies of it.
    """
    with _borrowed() as process:
        levels: list[tuple[int, int]] = process.ask(backend, "open", str(path), backend, stamp)
        return levels


def read_properties(path: str | Path) -> dict[str, str]:
    """What a file says of itself, by OpenSlide; nothing of a format that OpenSlide does not know.

    Raises:
        ReaderError: if OpenSlide does not answer, or dies of it.
    """
    with _borrowed() as process:
        properties: dict[str, str] = process.ask("openslide", "properties", str(path))
        return properties


def read_pixels(
    path: str | Path, backend: str, stamp: Stamp, left: int, top: int, width: int, height: int, level: int
) -> NDArray[np.uint8]:
    """A region of a level within its border, RGB ``[height, width, 3]``; the place and size are in its pixels.

    Raises:
        ReaderError: if the backend cannot read it, does not answer, or dies of it.
    """
    with _borrowed() as process:
        memory = process.memory_of(width * height * 3)
        process.ask(backend, "read", str(path), backend, stamp, (left, top, width, height, level))
        pixels = np.frombuffer(memory, dtype=np.uint8, count=width * height * 3).copy()
    return pixels.reshape(height, width, 3)


class _Process:
    def __init__(self) -> None:
        self._memory_fd, self._size = _new_memory(), 0
        self._memory: mmap | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), self._memory_fd)
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(ROOT), *map(str, fds)], pass_fds=fds, stdin=subprocess.DEVNULL
            )
        self._connection = Connection(ours.detach())

    @property
    def is_closed(self) -> bool:
        return self._connection.closed

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def memory_of(self, size: int) -> mmap:
        """At least so many bytes that both processes see."""
        if self._memory is None or self._size < size:
            os.ftruncate(self._memory_fd, size)
            self._memory, self._size = mmap(self._memory_fd, size), size
        return self._memory

    def ask(self, backend: str, method: str, *arguments: Any) -> Any:
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(ANSWER_SECONDS):
                self.end()
                raise ReaderError(f"{backend} gave no answer for {ANSWER_SECONDS:g} seconds")
            succeeded, result = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ReaderError(f"{backend} {self._cause_of_death()}") from error
        except BaseException:  # an interrupt, after which the answer would be taken for that of the next question
            self.end()
            raise
        if not succeeded:
            raise ReaderError(result)
        return result

    def _cause_of_death(self) -> str:
        self._connection.close()
        code = self._process.wait()
        self.end()
        if code >= 0:
            return f"ended with status {code}"
        name = signal.Signals(-code).name
        return "was killed, perhaps for want of memory" if name == "SIGKILL" else f"crashed ({name})"

    def end(self) -> None:
        """End the process; twice does no harm."""
        self._connection.close()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _new_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("slide")
    with tempfile.TemporaryFile() as file:  # where there is none (macOS), a file without a name
        return os.dup(file.fileno())


_idle: list[_Process] = []
_lock = threading.Lock()


@contextlib.contextmanager
def _borrowed() -> Iterator[_Process]:
    """A process that nobody else asks meanwhile; it stays for the next who wants one."""
    process = None
    with _lock:
        while _idle and process is None:
            process = _idle.pop()
            # One that ended while nobody asked it anything has no slide to blame.
            if process.has_ended():
                process.end()
                process = None
    process = process or _Process()
    try:
        yield process
    finally:
        if not process.is_closed:
            with _lock:
                _idle.append(process)


@atexit.register
def _end_all() -> None:
    with _lock:
        while _idle:
            _idle.pop().end()


def _forget() -> None:
    # The processes of a forked parent answer the parent alone.
    global _lock
    _idle.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
