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
from collections.abc import Callable, Iterator
from mmap import mmap
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scripts import BUNDLE_ROOT
from scripts.slides.first_look import Look
from scripts.slides.stamp import Stamp

__all__ = ["ReaderError", "has_cucim", "open_levels", "read_kind", "read_look", "read_pixels", "read_properties"]

# The largest region takes a second; a network's file system may take its time.
ANSWER_SECONDS = 300.0
# Of what a native library printed before it took its process down.
SAID_BYTES = 4096
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from scripts.slides.reader_process import serve; "
PROGRAM += "serve(*map(int, sys.argv[2:]))"
# Slides are decoded on the CPU. A reader that saw a GPU could take memory on it, one reader for each thread.
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}

T = TypeVar("T")


class ReaderError(Exception):
    """What a native reader said, or how its process ended."""


class _DeadReaderError(ReaderError):
    pass


def has_cucim() -> bool:
    """Whether cuCIM is installed."""
    return importlib.util.find_spec("cucim") is not None


def open_levels(path: str | Path, backend: str, stamp: Stamp) -> list[tuple[int, int]]:
    """(width, height) in pixels of each level of a slide, of which a corner can be read.

    Args:
        path: the slide's file.
        backend: ``"cucim"``, ``"openslide"`` or, for levels in SubIFDs, ``"tifffile"``.
        stamp: of the file.

    Raises:
        ReaderError: if the backend cannot read it, does not answer, or dies of it.
    """
    return _asked(lambda process: process.ask(backend, "open", str(path), backend, stamp))


def read_properties(path: str | Path) -> dict[str, str]:
    """What a file says of itself, by OpenSlide; nothing of a format that OpenSlide does not know.

    Raises:
        ReaderError: if OpenSlide does not answer, or dies of it.
    """
    return _asked(lambda process: process.ask("openslide", "properties", str(path)))


def read_look(path: str | Path) -> Look:
    """What a first look at a slide's file shows: see :func:`scripts.slides.first_look.look_at`.

    Raises:
        ReaderError: if the file cannot be read, or the process does not answer, or dies of it.
    """
    return Look(*_asked(lambda process: process.ask("tifffile", "look", str(path))))


def read_kind(path: str | Path) -> tuple[str, str] | None:
    """What a file is that no reader opens, and what to do: see :func:`scripts.slides.first_look.kind_of`.

    Raises:
        ReaderError: as :func:`read_look`.
    """
    return _asked(lambda process: process.ask("tifffile", "kind", str(path)))


def read_pixels(
    path: str | Path, backend: str, stamp: Stamp, left: int, top: int, width: int, height: int, level: int
) -> NDArray[np.uint8]:
    """A region of a level within its border, RGB ``[height, width, 3]``; the place and size are in its pixels.

    Raises:
        ReaderError: if the backend cannot read it, does not answer, or dies of it.
    """
    size = width * height * 3

    def read(process: _Process) -> NDArray[np.uint8]:
        memory = process.memory_of(size)
        process.ask(backend, "read", str(path), backend, stamp, (left, top, width, height, level))
        return np.frombuffer(memory, dtype=np.uint8, count=size).reshape(height, width, 3).copy()

    return _asked(read)


class _Process:
    def __init__(self) -> None:
        self._memory_fd, self._size = _new_file(), 0
        self._memory: mmap | None = None
        self._said_fd = _new_file()
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), self._memory_fd, self._said_fd)
            # Nothing is written to its input: that this closes when the run ends is what ends a reader that is stuck.
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(BUNDLE_ROOT), *map(str, fds)],
                env={**os.environ, **NO_GPU},
                pass_fds=fds,
                stdin=subprocess.PIPE,
            )
        self._connection = Connection(ours.detach())

    @property
    def is_closed(self) -> bool:
        return self._connection.closed

    def memory_of(self, size: int) -> mmap:
        """At least so many bytes that both processes see."""
        if self._memory is None or self._size < size:
            os.ftruncate(self._memory_fd, size)
            self._memory, self._size = mmap(self._memory_fd, size), size
        return self._memory

    def ask(self, backend: str, method: str, *arguments: Any) -> Any:
        try:
            self._connection.send((backend, method, arguments))
            if not self._connection.poll(ANSWER_SECONDS):
                self.end()
                raise ReaderError(f"{backend} gave no answer for {ANSWER_SECONDS:g} seconds")
            succeeded, result = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _DeadReaderError(f"{backend} {self._cause_of_death()}") from error
        except BaseException:  # an interrupt, after which the answer would be taken for that of the next question
            self.end()
            raise
        if not succeeded:
            raise ReaderError(result)
        return result

    def _cause_of_death(self) -> str:
        self._connection.close()
        code = self._process.wait()
        said = os.pread(self._said_fd, SAID_BYTES, 0).decode(errors="replace").splitlines()
        self.end()
        if code >= 0:
            return f"ended with status {code}"
        name = signal.Signals(-code).name
        cause = "was killed, perhaps for want of memory" if name == "SIGKILL" else f"crashed ({name})"
        return f"{cause}: {said[-1]}" if said else cause

    def end(self) -> None:
        """End the process; twice does no harm."""
        self._connection.close()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            os.close(self._said_fd)
            self._memory_fd = -1
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


def _new_file() -> int:
    """A file in memory, without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("slide")
    with tempfile.TemporaryFile() as file:  # where there is none (macOS), on a disk
        return os.dup(file.fileno())


_idle: list[_Process] = []
_lock = threading.Lock()


def _asked(question: Callable[[_Process], T]) -> T:
    """The answer to a question, which is to blame only for the death of a process that had no other before."""
    waiting = _take_idle()
    if waiting is not None:
        with contextlib.suppress(_DeadReaderError), _returned(waiting):
            return question(waiting)
    with _returned(_Process()) as process:
        return question(process)


def _take_idle() -> _Process | None:
    with _lock:
        return _idle.pop() if _idle else None


@contextlib.contextmanager
def _returned(process: _Process) -> Iterator[_Process]:
    """A process that nobody else asks meanwhile; it stays for the next who wants one."""
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
