"""Native libraries at arm's length: each question about a slide goes to a process of its own, one for each thread.

A file on which a library crashes or hangs costs that slide, not the run.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from mmap import mmap
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scripts import BUNDLE_ROOT
from scripts.slides.checksums import Stamp
from scripts.slides.opened import Opened

__all__ = ["ReaderError", "open_slide", "read_pixels", "start_reader"]

# The largest region takes a second; a network's file system may take its time.
ANSWER_SECONDS = 300.0
# So much is kept of what a native library printed before it took its process down.
SAID_BYTES = 4096
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from scripts.slides.reader_process import serve; "
PROGRAM += "serve(*map(int, sys.argv[2:]))"
# Slides are decoded on the CPU. A reader that saw a GPU could take memory on it, one reader for each thread.
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}

T = TypeVar("T")


class ReaderError(Exception):
    """What a native library said, or how its process ended."""


class _LostError(ReaderError):
    """A process that gave no answer, or died, while it used a library."""

    def __init__(self, cause: str, library: str) -> None:
        super().__init__(cause)
        self.library = library


class _DiedError(_LostError):
    pass


def start_reader() -> None:
    """Start a process that waits for the first question, unless one does: it loads what it needs meanwhile."""
    with _lock:
        if not _idle:
            _idle.append(_Process())


def open_slide(path: str | Path, stamp: Stamp, backends: Sequence[str], passed: Sequence[str] = ()) -> Opened:
    """All that can be known of a slide without its pixels, found out by one question.

    Args:
        path: the slide's file.
        stamp: of the file.
        backends: the readers to try in turn: ``"cucim"``, ``"openslide"`` and, for levels in SubIFDs, ``"tifffile"``;
            one takes a slide if it can read a corner of each level. One that crashes or hangs is not tried again.
        passed: why readers before these do not take it.

    Raises:
        ReaderError: if what no reader can do without fails: the process itself, or OpenSlide's properties of the file.
    """
    try:
        return Opened(*_ask(lambda process: process.ask("open", str(path), stamp, backends, passed)))
    except _LostError as error:
        if error.library not in backends:
            raise ReaderError(f"{error.library or 'its reader'}: {error}") from error
        others = [backend for backend in backends if backend != error.library]
        return open_slide(path, stamp, others, (*passed, f"{error.library}: {error}"))


def read_pixels(
    path: str | Path, stamp: Stamp, backend: str, left: int, top: int, width: int, height: int, level: int
) -> NDArray[np.uint8]:
    """A region of a level within its border, RGB ``[height, width, 3]``; place and size are in the level's pixels.

    Raises:
        ReaderError: if the backend cannot read it, does not answer, or dies of it.
    """
    size = width * height * 3

    def read(process: _Process) -> NDArray[np.uint8]:
        memory = process.memory_of(size)
        process.ask("read", str(path), stamp, backend, (left, top, width, height, level))
        return np.frombuffer(memory, dtype=np.uint8, count=size).reshape(height, width, 3).copy()

    return _ask(read)


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
        self.connection = Connection(ours.detach())

    def memory_of(self, size: int) -> mmap:
        """At least so many bytes that both processes see."""
        if self._memory is None or self._size < size:
            os.ftruncate(self._memory_fd, size)
            self._memory, self._size = mmap(self._memory_fd, size), size
        return self._memory

    def ask(self, method: str, *arguments: Any) -> Any:
        library, kind = "", "uses"
        try:
            self.connection.send((method, arguments))
            while kind == "uses":
                if not self.connection.poll(ANSWER_SECONDS):
                    raise _LostError(f"gave no answer for {ANSWER_SECONDS:g} seconds", library)
                kind, content = self.connection.recv()
                library = content if kind == "uses" else library
        except (EOFError, OSError) as error:
            raise _DiedError(self._cause_of_death(), library) from error
        except BaseException:  # an interrupt, after which the answer would be taken for that of the next question
            self.end()
            raise
        if kind == "failure":
            raise ReaderError(content)
        return content

    def _cause_of_death(self) -> str:
        self.connection.close()
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
        self.connection.close()
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


def _ask(question: Callable[[_Process], T]) -> T:
    """The answer to a question, which is to blame only for the death of a process that had no other before."""
    with _lock:
        waiting = _idle.pop() if _idle else None
    if waiting is not None:
        with contextlib.suppress(_DiedError):
            return _ask_one(waiting, question)
    return _ask_one(_Process(), question)


def _ask_one(process: _Process, question: Callable[[_Process], T]) -> T:
    """The answer of a process that nobody else asks meanwhile; it then waits for the next question."""
    try:
        return question(process)
    finally:
        if not process.connection.closed:
            with _lock:
                _idle.append(process)


@atexit.register
def _end_all() -> None:
    with _lock:
        while _idle:
            _idle.pop().end()


def _forget() -> None:
    # The processes of a forked parent answer only the parent.
    global _lock
    _idle.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
