"""The config that is running: MONAI evaluates an expression without a name for the config that it stands in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.core.settings import SETTINGS, check_settings

__all__ = ["ADVANCED", "running_parser", "running_workflow", "settings_in"]

ADVANCED = "advanced"
"""The section of a config with the settings that few users change. An option sets them as if they stood at the top."""


def running_parser() -> ConfigParser | None:
    """The parser one of whose expressions calls this; ``None`` outside of a config."""
    for frame in _callers():
        if isinstance(found := frame.f_locals.get("self"), ConfigParser):
            return found
    return None


def running_workflow() -> ConfigWorkflow | None:
    """The workflow one of whose expressions calls this; ``None`` where a config is read without one."""
    parser = running_parser()
    for frame in _callers():
        found = frame.f_locals.get("self")
        # Else a config is read inside of another's workflow.
        if isinstance(found, ConfigWorkflow):
            return found if found.parser is parser else None
    return None


def settings_in(parser: ConfigParser) -> dict[str, Any]:
    """The settings of a config, by name, with their values.

    Raises:
        SettingsError: if a setting has no such value.
    """
    settings = {}
    for name in SETTINGS:  # paths come first, to which configs add the rest of others
        if name in parser.get():
            settings[name] = parser.get_parsed_content(name)
        elif name in parser.get(ADVANCED, {}):
            settings[name] = parser.get_parsed_content(f"{ADVANCED}#{name}")
        else:
            continue
        check_settings(**{name: settings[name]})
    return settings


def _callers() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
