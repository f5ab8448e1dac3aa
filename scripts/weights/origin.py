"""What tells the files of one training from those of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["training_of"]

# With what a training may go on otherwise than it was begun.
MAY_CHANGE = ("epochs", "reader", "encode_batch", "amp", "runtime", "device")


def training_of(record: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """What all files of a training have in common, resumed or not.

    Args:
        record: as :func:`scripts.weights.record.read_record` gives it.
        origin: as :func:`scripts.weights.record.read_origin` gives it; what it lacks is ``None``.
    """
    made_by = origin.get("made_by", {})
    settings = {key: value for key, value in made_by.get("configuration", {}).items() if key not in MAY_CHANGE}
    return {"record": record, "seed": made_by.get("seed"), "data": made_by.get("data"), "settings": settings}
