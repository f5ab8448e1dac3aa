"""The origin of a file of weights: which output they are best for, the name that it got, and what made it.

Unlike the record (:mod:`scripts.weights_record`), which all files of a training have in common, it is the file's own.
Older files have none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["misplaced", "origin_in", "plain_metadata", "training_of"]

# With what a training may go on otherwise than it was begun.
MAY_CHANGE = ("epochs", "reader", "encode_batch", "amp", "runtime", "device")
# The names that a training gives to its files of weights.
NAMES = re.compile(r"model(?:_([0-9.]+x))?\.pt")


def plain_metadata(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What PyTorch keeps of a module beside the tensors of its state dict; empty if there is nothing."""
    metadata = getattr(state, "_metadata", None)
    own = metadata.get("") if isinstance(metadata, Mapping) else None
    return own if isinstance(own, Mapping) else {}


def origin_in(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The origin in the metadata of a state dict.

    Returns:
        as :func:`scripts.weights_record.read_origin` gives it; empty if there is none, ``None`` if it is damaged.
    """
    if "origin" not in metadata:
        return {}
    try:
        origin: Any = json.loads(metadata["origin"])
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(origin, dict) or not all(isinstance(origin.get(key, ""), str) for key in ("best_for", "file")):
        return None
    made_by = origin.get("made_by", {})
    parts = (
        [made_by, *(made_by.get(key, {}) for key in ("configuration", "data"))] if isinstance(made_by, dict) else [None]
    )
    if not all(isinstance(part, dict) for part in parts):
        return None
    return origin


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
        record: as :func:`scripts.weights_record.read_record` gives it.
        origin: as :func:`scripts.weights_record.read_origin` gives it; what it does not tell is ``None``.
    """
    made_by = origin.get("made_by", {})
    settings = {key: value for key, value in made_by.get("configuration", {}).items() if key not in MAY_CHANGE}
    return {"record": record, "seed": made_by.get("seed"), "data": made_by.get("data"), "settings": settings}
