"""Giving the settings at the top of a config other values, without touching anything else of its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["set_defaults"]


def set_defaults(text: str, values: Mapping[str, Any]) -> str:
    """Set top-level keys of a config in JSON.

    Args:
        text: the config, indented by four spaces.
        values: new values by key; keys that the config does not have are passed over.

    Returns:
        The same text, character by character, where a value is not another one.

    Raises:
        ValueError: if it is no object in JSON, or is indented otherwise.
    """
    present = json.loads(text)
    if not isinstance(present, dict):
        raise ValueError("it holds no JSON object")
    for key, value in values.items():
        # A config that takes a setting from the weights needs no other value.
        if key not in present or present[key] == value or str(present[key]).startswith("$"):
            continue
        label = f'\n    "{key}": '
        # Its place is found by its indentation.
        if text.count(label) != 1:
            raise ValueError(f"its key {key} is not on one line, after four spaces")
        start = text.index(label) + len(label)
        _, end = json.JSONDecoder().raw_decode(text, start)
        text = text[:start] + json.dumps(value, ensure_ascii=False) + text[end:]
    return text
