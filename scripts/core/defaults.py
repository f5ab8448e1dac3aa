"""The defaults of a training's settings, which stand in its config and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from scripts import BUNDLE_ROOT
from scripts.core.running import ADVANCED
from scripts.core.settings import SETTINGS

__all__ = ["training_defaults"]


@cache
def training_defaults() -> Mapping[str, Any]:
    """The settings of ``configs/train.json`` by name, as they are written there: an expression is not evaluated."""
    config = json.loads((BUNDLE_ROOT / "configs" / "train.json").read_text(encoding="utf-8"))
    return {name: value for name, value in {**config, **config[ADVANCED]}.items() if name in SETTINGS}
