"""Features that another tool extracted, in the place of a backbone's: the settings of ``importing``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from scripts.core.errors import SettingsError
from scripts.core.setting_checks import Check, magnifications, number, path, resolution

__all__ = ["IMPORTED", "features_are", "folders", "needs_slides"]

IMPORTED = "imported"
"""The ``backbone`` of a run whose features ``importing`` wrote into the feature bank."""


def needs_slides(backbone: str) -> bool:
    """Whether the slides of a run have to be there: of imported features they need not.

    MONAI's config parser takes an expression with the word "import" in it for a statement: hence the function.
    """
    return backbone != IMPORTED


def folders(key: str, value: Any) -> None:
    """A folder, a list of folders, or ``None``."""
    listed = value if isinstance(value, list | tuple) else [value]
    if value is not None and (not listed or not all(isinstance(one, str | os.PathLike) and one for one in listed)):
        raise SettingsError(key, f"got {value!r}", "Give a folder, or a list of folders.")


def features_are(key: str, value: Any) -> None:
    """What the user says of features that another tool extracted: a dictionary."""
    numbers = number(0.001)
    kinds: dict[str, tuple[Check, bool]] = {  # the check of one value, and whether there may be one for each folder
        "encoder": (_text, False),
        "patch_size": (number(1), False),
        "patch_size_level0": (numbers, True),
        "mpp": (resolution, False),
        "magnifications": (lambda name, one: magnifications(name, [one]), True),
        "patches": (path(), True),
    }
    if not isinstance(value, Mapping) or value.keys() - kinds.keys():
        remedy = "Give a dictionary with some of {}, for example {}.".format(
            ", ".join(kinds), "{'encoder': 'uni', 'mpp': 0.25}"
        )
        raise SettingsError(key, f"got {value!r}", remedy)
    for name, given in value.items():
        check, may_be_listed = kinds[name]
        for one in given if may_be_listed and isinstance(given, list | tuple) and given else [given]:
            check(f"{key}#{name}", one)


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(key, f"got {value!r}", "Give a name as text.")
