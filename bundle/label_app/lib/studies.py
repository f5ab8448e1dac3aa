"""The folder of slides that a server is given."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .reasons import SERVER_FAULT, RequestError

__all__ = ["check_ids"]


def check_ids(studies: str, patterns: Sequence[str]) -> None:
    """Refuse slides that share an id: MONAI Label would keep one of them, and give it the other's label.

    Args:
        studies: the folder; an address of another kind of datastore is not looked at.
        patterns: of the names of slides, such as ``*.svs``.

    Raises:
        RequestError: if two files differ in their suffix alone.
    """
    folder = Path(studies)
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    files: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            files[Path(name).stem].append(name)
    for same in files.values():
        if len(same) > 1:
            cause = f"{' and '.join(sorted(same))} would have the same id"
            raise RequestError(SERVER_FAULT, studies, cause, "Rename one, or move it out.")
