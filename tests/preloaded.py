"""Commands in processes of their own that need not load torch and MONAI again: forked from one that has done so.

Each is what ``python -m MODULE ...`` is, but for the four seconds: no state of another command is in it, and it
ends as an interpreter ends.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT

__all__ = ["Preloaded"]

MODULES = ("fire", "ignite.handlers", "monai.bundle", "monai.engines", "monai.handlers", "torch.utils.tensorboard")
GIVEN_UP_AFTER_S = 600


class Preloaded:
    """A process from which commands are forked, one at a time; ``with`` ends it."""

    def __init__(self) -> None:
        program = [sys.executable, "-m", "tests.preloaded"]
        self._process = subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, module: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """What ``python -m MODULE ARGUMENTS`` from a folder comes to; killed if it takes ten minutes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as temporary:
            outputs = [Path(temporary, name) for name in ("stdout", "stderr")]
            files = list(map(str, outputs))
            request = {"module": module, "arguments": arguments, "outputs": files, "folder": str(folder)}
            print(json.dumps(request), file=self._process.stdin, flush=True)
            code = int(self._process.stdout.readline())
            told = [path.read_text(encoding="utf-8") for path in outputs]
        return subprocess.CompletedProcess([sys.executable, "-m", module, *arguments], code, *told)


def _next_command() -> tuple[str, list[str]] | None:
    """Fork at each request. Returns in the process that is to run it, and ``None`` in this one, after the last."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(GIVEN_UP_AFTER_S)
            for target, path in enumerate([os.devnull, *request["outputs"]]):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), target)
            os.chdir(request["folder"])
            sys.path[0] = request["folder"]
            return request["module"], request["arguments"]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    command = _next_command()
    if command is not None:
        sys.argv[1:] = command[1]
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
