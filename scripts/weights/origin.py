"""The origin of a file of weights: which output they are best for, the name that it got, and what made it.

Unlike the record (:mod:`scripts.weights.record`), which all files of a training have in common, it is the file's own.
Older files have none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["misplaced", "training_of"]

# With what a training may go on otherwise than it was begun.
MAY_CHANGE = ("epochs", "reader", "encode_batch", "amp", "runtime", "device")
# The names that a training gives to its files of weights.
NAMES = re.compile(r"model(?:_([0-9.]+x))?\.pt")


def misplaced(path: str | Path, origin: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong, and what to do, where a file has the name of another output's weights; else ``None``.

    Args:
        path: the file.
        origin: as :func:`origin_in` gives it.
    """
    path, written_as = Path(path), origin.get("file")
    named = NAMES.fullmatch(path.name)
    if named is None or not written_as or written_as == path.name:
        return None
    cause = (
        f"has the name of the best weights for {named[1] or 'global'}, and holds those that are best for "
        f"{origin.get('best_for')}"
    )
    return cause, f"Call it {written_as}, as training did, and put the file that was {path.name} in its place."


def training_of(record: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one training from another, whenever its files were written.

    Args:
        record: as :func:`scripts.weights.record.read_record` gives it.
        origin: as :func:`scripts.weights.record.read_origin` gives it; what it does not tell is ``None``.
    """
    made_by = origin.get("made_by", {})
    settings = {key: value for key, value in made_by.get("configuration", {}).items() if key not in MAY_CHANGE}
    return {"record": record, "seed": made_by.get("seed"), "data": made_by.get("data"), "settings": settings}
