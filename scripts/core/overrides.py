"""Options that would do nothing, refused with what to do instead: MONAI's runner takes any."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from scripts import BUNDLE_ROOT
from scripts.core.errors import SettingsError
from scripts.core.running import ADVANCED

__all__ = ["INIT_ID", "check_section", "place_advanced", "refuse_unknown", "unused_keys"]

# Keys that MONAI's experiment tracking adds to a config, and lets a user override.
_TRACKING: dict[str, Any] = DEFAULT_EXP_MGMT_SETTINGS
TRACKING_KEYS = frozenset(key for settings in _TRACKING.values() for key in settings["configs"])
INIT_ID = "initialize"
"""The key that every whole config has, and no file that is laid over one."""
# Always there when tracking is on, and not otherwise.
TRACKING_SIGN = "save_execute_config"
# Keys that MONAI reads without a reference.
OWN_KEYS = frozenset({ConfigParser.meta_key, "imports"})


def place_advanced(parser: ConfigParser) -> None:
    """Move options that are settings of the section ``advanced`` there, and let the parser see them."""
    advanced = parser.get(ADVANCED, {})
    moved = {name: parser.get(name) for name in advanced if name in parser.get()}
    if moved:
        for name, value in moved.items():
            del parser.get()[name]
            advanced[name] = value
        parser.parse(reset=True)


def check_section(workflow: ConfigWorkflow) -> None:
    """Refuse a section ``advanced`` that is not the config's own, with other values.

    Raises:
        SettingsError: if it was replaced, as a second config file does that has one, or if it has another setting.
    """
    section = workflow.parser.get().get(ADVANCED, {})
    if not isinstance(section, Mapping):
        remedy = "Give each of its settings as an option: --reader openslide."
        raise SettingsError(ADVANCED, f"got {section!r}, and is a section of settings", remedy)
    for content in _files(workflow):
        own = content.get(ADVANCED, {})
        if lost := sorted(own.keys() - section.keys()):
            remedy = "Write its settings at the top of the second config file, or give them as options."
            raise SettingsError(ADVANCED, f"was replaced as a whole, without {', '.join(lost)}", remedy)
        if other := sorted(section.keys() - own.keys()) if own else []:
            remedy = (
                f"Give --{other[0]}." if other[0] in content else "docs/settings.md lists the options of each config."
            )
            raise SettingsError(f"{ADVANCED}#{other[0]}", "the config has no such option", remedy)


def refuse_unknown(workflow: ConfigWorkflow) -> None:
    """Refuse options that cannot act, and workflows that the config does not have.

    Raises:
        SettingsError: if there is a key, at the top or in a section of components, that nothing refers to; or if
            there is no workflow of the name that is to be run.
    """
    config = workflow.parser.get()
    if workflow.run_id not in workflow.parser:
        close = difflib.get_close_matches(
            workflow.run_id, [key for key in config if isinstance(config[key], list)], n=1
        )
        remedy = f"Did you mean {close[0]}?" if close else "docs/index.md lists the workflows and their configs."
        raise SettingsError(workflow.run_id, "the config has no such workflow", remedy)
    used = OWN_KEYS | {workflow.run_id, workflow.init_id, workflow.final_id, "run"} | _keys_of_files(workflow)
    if TRACKING_SIGN in config:
        used |= TRACKING_KEYS
    unknown = [key for key in unused_keys(config) if key not in used]
    if unknown:
        names = [name for name in (_nearest(key, config, unknown) for key in unknown) if name]
        remedy = f"Did you mean {', '.join(names)}?" if names else "docs/settings.md lists the options of each config."
        cause = f"the config has no such option{'s' if len(unknown) > 1 else ''}"
        raise SettingsError(", ".join(unknown), cause, remedy)


def _keys_of_files(workflow: ConfigWorkflow) -> set[str]:
    """The keys of the running config's files: an option may take away what referred to a key of theirs."""
    return {
        key
        for content in _files(workflow)
        if INIT_ID in content  # else any config could have been given one of its few keys as an option
        for key in (*content, *(f"{ADVANCED}#{name}" for name in content.get(ADVANCED, {})))
    }


def _files(workflow: ConfigWorkflow) -> Iterator[dict[str, Any]]:
    """The content of the running config's files.

    A workflow forgets its files once it has read them. They are those all of whose keys it has.
    """
    folders = {Path(folder).resolve() for folder in (workflow.config_root_path, BUNDLE_ROOT / "configs")}
    config = workflow.parser.get()
    for file in (path for folder in folders for path in folder.glob("*.json")):
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue  # what cannot be read was not read by MONAI either
        if isinstance(content, dict) and {key for key in content if "#" not in key} <= config.keys():
            yield content


def unused_keys(config: Mapping[str, Any]) -> list[str]:
    """The ids, at the top of a config and in its sections, that nothing in it refers to."""
    used = {id_ for text in _texts(config) for id_ in ReferenceResolver.match_refs_pattern(text)}

    def is_used(id_: str) -> bool:
        return any(found == id_ or found.startswith(f"{id_}::") for found in used)

    sections = [key for key, value in config.items() if _is_section(key, value) and key not in used]
    unused = [key for key in config if not is_used(key)]
    return unused + [f"{key}#{name}" for key in sections for name in config[key] if not is_used(f"{key}::{name}")]


def _is_section(key: str, value: Any) -> bool:
    """Whether this is a mapping of components or of settings, and no component itself."""
    if not isinstance(value, Mapping) or ConfigComponent.is_instantiable(value):
        return False
    return key == ADVANCED or any(ConfigComponent.is_instantiable(item) for item in value.values())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _nearest(id_: str, config: Mapping[str, Any], unknown: list[str]) -> str | None:
    section, _, key = id_.rpartition("#")
    present = [*config[section]] if section else [*config, *config.get(ADVANCED, {})]
    names = {name.lower(): name for name in present if (f"{section}#{name}" if section else name) not in unknown}
    close = difflib.get_close_matches(key.lower(), names, n=1)
    if not close:
        return None
    return f"{section}#{names[close[0]]}" if section else names[close[0]]
