"""What a hostile file holds: a pickle that runs code as it is loaded, and names that mean something elsewhere."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["NAMES", "RunsCode"]

NAMES = (
    "two words",
    'it\'s "quoted" `twice`',
    "größe 大腸 🔬",
    "line\nbreak",
    "-rf",
    "=1+1",
    "$HOME;#&|%s{}",
    "back\\slash*?",
    "tab\tand\x1b[31mred",
    "views",
    "same",
    "SAME",
    "x" * 200,
    "caf\udce9",
)
"""Names of files, without suffix; the last is no UTF-8. All of them can be in one folder of Linux."""


class RunsCode:
    """Its pickle makes a file when it is loaded by anything that runs what a pickle says.

    Args:
        path: the file that is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")

    def run(self) -> None:
        """Load the pickle as a careless program does."""
        pickle.loads(pickle.dumps(self)).close()
