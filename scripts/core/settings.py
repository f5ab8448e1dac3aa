"""The registry of settings, and what depends on it.

A setting has one entry in the table and one line in each config that has it. Checks, resuming, the records of weights,
the provenance of files, the grid of ``searching`` and docs/settings.md follow from these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scripts.core.setting_table import EXPORT_FORMATS, FEATURE_DTYPES, OPTIMIZERS, RUNTIMES, SETTINGS

__all__ = [
    "EXPORT_FORMATS",
    "FEATURE_DTYPES",
    "LATER",
    "OPTIMIZERS",
    "RUNTIMES",
    "SETTINGS",
    "check_settings",
    "is_same_value",
    "values_with_role",
    "with_role",
]

LATER: dict[str, Any] = {
    "overlap": 0.0,
    "grid_origin": "slide",
    "tissue": {},
    "feature_dtype": "float32",
    "precision": "amp",
    "backbone_input": {},
    "prior_correction": True,
    "calibration": "temperature",
    "threshold": 0.5,
    "unit": "slide",
    "instance_weight": 0.3,
    "linking": "linked",
    "class_attention": "joint",
    "attention_entropy": 0.0,
    "classifier_init": "random",
}
"""Settings that files of earlier versions do not store, with the values with which those were made."""
# Settings that are lists whose order has no meaning.
UNORDERED = ("magnifications", "positive_classes")


def with_role(role: str) -> tuple[str, ...]:
    """The names of the settings with a role of :class:`scripts.core.setting_entry.Setting`, in the registry's order."""
    return tuple(name for name, setting in SETTINGS.items() if role in setting.roles)


def values_with_role(settings: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Those of some settings that have a role, by name."""
    return {name: settings[name] for name in with_role(role) if name in settings}


def is_same_value(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting mean the same: the order of magnifications and of positive classes does not.

    Of ``backbone_input``, which need not say what a file or the encoder says, what both say is compared.
    """
    one, other = json.loads(json.dumps([one, other], default=str))
    if name == "backbone_input" and isinstance(one, dict) and isinstance(other, dict):
        return all(one[key] == other[key] for key in one.keys() & other.keys())
    if name in UNORDERED and isinstance(one, list) and isinstance(other, list):
        return sorted(one, key=str) == sorted(other, key=str)
    return bool(one == other)


def check_settings(**settings: Any) -> None:
    """Check values of settings, given by name.

    Raises:
        SettingsError: if a setting has no such value.
        KeyError: if there is no such setting.
    """
    for name, value in settings.items():
        check = SETTINGS[name].check
        if check is not None:
            check(name, value)
