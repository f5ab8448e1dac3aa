"""Two ranks on this machine, started by ``torchrun`` as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def torchrun(
    folder: Path, program: str, *arguments: str | Path, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run a program, written into ``folder``, in two ranks from the bundle's root, and wait for them.

    Args:
        folder: for the program.
        program: its text.
        arguments: of the program.
        python: starts ``torchrun``, and that the ranks: ``preloaded.python`` does it in less time.
    """
    file = folder / "program.py"
    file.write_text(program)
    return subprocess.run(
        [python, *TORCHRUN, str(file), *map(str, arguments)],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "2", **os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
