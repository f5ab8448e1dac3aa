"""Runs a command, and measures what it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from scripts import BUNDLE_ROOT

__all__ = ["FailedError", "Measured", "measure"]

# Each look walks the page tables of all processes.
LOOK_SECONDS = 0.5
LAST_LINES = 5


class FailedError(Exception):
    """A command that ended with an error; its message has the last lines that it printed."""


class Measured(NamedTuple):
    """When a command began, in seconds since the epoch, how long it took, and the most memory that it had."""

    began_at: float
    seconds: float
    peak_mb: float


def measure(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Measured:
    """Run a command from the bundle's root to its end.

    Memory is that of the process and of all that descend from it, looked at twice a second. What several of them share,
    such as the libraries of forked readers, is counted once (Linux's proportional set size).

    Args:
        command: the program and its arguments.
        log: a file for what it prints.
        environment: variables that are added to those of this process.

    Raises:
        FailedError: if it does not end with 0.
    """
    began_at, start = time.time(), time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=BUNDLE_ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        peak_mb, ended = [0.0], threading.Event()
        looking = threading.Thread(target=_look, args=(process.pid, peak_mb, ended))
        looking.start()
        try:
            process.wait()
            seconds = time.perf_counter() - start
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            ended.set()
            looking.join()
    if process.returncode != 0:
        raise FailedError(f"exit code {process.returncode}\n{last_lines(log)}")
    return Measured(began_at, seconds, peak_mb[0])


def last_lines(log: Path) -> str:
    """The end of what a command printed, of a progress bar its last state."""
    # Not `read_text`, for which each state of a bar is a line.
    text = log.read_bytes().decode(errors="replace")
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-LAST_LINES:])


def _look(pid: int, peak_mb: list[float], ended: threading.Event) -> None:
    """Keep the most memory that a process and its descendants have, until they have ended."""
    while not ended.wait(LOOK_SECONDS):
        peak_mb[0] = max(peak_mb[0], _memory_mb(pid))


def _memory_mb(pid: int) -> float:
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += each.memory_full_info().pss
    return total / 2**20
