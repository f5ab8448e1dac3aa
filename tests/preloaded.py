"""Commands in processes of their own that need not load torch and MONAI again: forked from one that has done so.

Each is what ``python -m MODULE ...`` is, but for the seconds in which it loads: no state of another command is in it,
and it ends as an interpreter ends. Where a command is started by others (a shell, ``torchrun``, ``multiprocessing``),
:attr:`Preloaded.python` stands for Python: a small program that has the command forked, hands on signals, and ends as
the command does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.conftest import ROOT
from tests.preloaded_python import ask, request

__all__ = ["Forked", "Preloaded"]

SERVER, CLIENT = (str(ROOT / "tests" / f"preloaded_{name}.py") for name in ("server", "python"))
GIVEN_UP_AFTER_S = 600


class Forked:
    """A process that was forked: what :class:`subprocess.Popen` gives of one, as far as tests need it."""

    def __init__(self, socket: socket.socket, arguments: Sequence[str]) -> None:
        self.args, self._socket = list(arguments), socket
        self.returncode: int | None = None
        self.pid = self._next(None)

    def _next(self, timeout: float | None) -> int:
        self._socket.settimeout(timeout)
        return int(self._socket.recv(64))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, as :mod:`subprocess` gives it."""
        if self.returncode is None:
            try:
                self.returncode = self._next(timeout)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._socket.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, or ``None`` while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None


class Preloaded:
    """A process from which commands are forked; ``with`` ends it, and what still runs.

    Args:
        folder: an empty folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.python = str(folder / "python")
        """Stands for ``sys.executable``."""
        self.address = str(folder / "socket")
        program = f"#!{sys.executable} -IS\n{Path(CLIENT).read_text(encoding='utf-8')}\n"
        program += f"if __name__ == '__main__':\n    main({self.address!r}, {sys.executable!r})\n"
        Path(self.python).write_text(program, encoding="utf-8")
        os.chmod(self.python, 0o755)
        call = [sys.executable, SERVER, self.address, self.python, str(folder / "bytecode")]
        self._process = subprocess.Popen(call, cwd=folder, stdin=subprocess.PIPE)

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def popen(
        self,
        call: Sequence[str | Path],
        stdout: IO[Any],
        stderr: IO[Any],
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> Forked:
        """Start what would be ``python ARGUMENTS``, as :class:`subprocess.Popen` does.

        Args:
            call: Python's name, which does not count, and what follows it.
            stdout: a file.
            stderr: a file.
            cwd: the folder to run it in.
            env: its environment.
            start_new_session: whether it is the first of a session and process group of its own.
        """
        arguments = list(map(str, call[1:]))
        told = request(arguments, dict(env or os.environ), str(cwd), start_new_session)
        if told is None:
            raise ValueError(f"{arguments}: cannot be forked")
        with open(os.devnull, "rb") as nothing:
            fds = {0: nothing.fileno(), 1: stdout.fileno(), 2: stderr.fileno()}
            while not os.path.exists(self.address):
                assert self._process.poll() is None
                time.sleep(0.02)
            return Forked(ask(self.address, told, fds), [self.python, *arguments])

    def run(self, module: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """What ``python -m MODULE ARGUMENTS`` from a folder comes to; killed if it takes ten minutes."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            process = self.popen([self.python, "-m", module, *arguments], stdout, stderr, folder)
            try:
                process.wait(GIVEN_UP_AFTER_S)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
            code = process.wait()
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(process.args, code, stdout.read(), stderr.read())
