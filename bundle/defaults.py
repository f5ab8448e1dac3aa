"""Giving the settings of a config other values, without touching anything else of its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scripts.core.running import ADVANCED

__all__ = ["set_defaults"]


def set_defaults(text: str, values: Mapping[str, Any]) -> str:
    """Set settings of a config in JSON, which stand at its top or in its section ``advanced``.

    Args:
        text: the config, indented by four spaces.
        values: new values by setting; settings that the config does not have are passed over.

    Returns:
        The same text, character by character, where a value is not another one.

    Raises:
        ValueError: if it is no object in JSON, or is indented otherwise.
    """
    present = json.loads(text)
    if not isinstance(present, dict):
        raise ValueError("it holds no JSON object")
    for key, value in values.items():
        section, indent = (present, 4) if key in present else (present.get(ADVANCED, {}), 8)
        # A config that takes a setting from the weights needs no other value.
        if key not in section or section[key] == value or str(section[key]).startswith("$"):
            continue
        label = f'\n{" " * indent}"{key}": '
        # Its place is found by its indentation.
        if text.count(label) != 1:
            raise ValueError(f"its key {key} is not on one line, after {indent} spaces")
        start = text.index(label) + len(label)
        _, end = json.JSONDecoder().raw_decode(text, start)
        text = text[:start] + json.dumps(value, ensure_ascii=False) + text[end:]
    return text
