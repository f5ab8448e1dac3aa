"""Overrides that do nothing, refused with what to do instead: MONAI's runner takes any."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.scripts import create_workflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, MERGE_KEY
from monai.utils import ensure_tuple

from scripts.core.errors import SettingsError
from scripts.core.part_arguments import an_argument_of, is_section, replaced_parts, unknown_arguments

__all__ = ["refuse_unknown", "running_workflow", "unknown_keys"]

# What MONAI's experiment tracking puts at the top of a config, and lets a user override.
_TRACKING: dict[str, Any] = DEFAULT_EXP_MGMT_SETTINGS
TRACKING_KEYS = frozenset(key for settings in _TRACKING.values() for key in settings["configs"])
# Always there when tracking is on, and not otherwise.
TRACKING_SIGN = "save_execute_config"
# What MONAI takes for itself, and has defaults for.
OWN_OPTIONS = frozenset(inspect.signature(ConfigWorkflow).parameters)
FILE_PATTERNS = ("*.json", "*.yaml", "*.yml")


def refuse_unknown() -> None:
    """Refuse what was handed to the running workflow and cannot act as its user meant.

    That is a knob, an argument of a part, or something to run that is in none of its config files, a plain value in
    place of a part, and a ``None`` that MONAI's runner passed over.

    To be called while a config's ``initialize`` is evaluated. Where no :class:`~monai.bundle.ConfigWorkflow` is
    running, as where a program reads the config with :class:`~monai.bundle.ConfigParser` alone, there are no
    overrides to look at, and nothing happens.

    Raises:
        SettingsError: if there is such an override.
    """
    frames = list(_callers())
    workflow = _workflow(frames)
    if workflow is None:
        return
    files = _config_files(workflow, frames)
    known = ConfigParser.load_config_files([str(file) for file in files])
    config = {key: value for key, value in workflow.parser.get().items() if key != ConfigParser.meta_key}
    if workflow.run_id not in workflow.parser:
        ids = [key for key, value in known.items() if isinstance(value, list) and value != known.get(workflow.init_id)]
        close = difflib.get_close_matches(workflow.run_id, ids, n=1)
        remedy = f"Did you mean {close[0]}?" if close else "Run what the guide names for this config."
        raise SettingsError(workflow.run_id, f"no such workflow in {', '.join(map(str, files))}", remedy)
    # A user may add parts of any name, and say what to run of them.
    named = {workflow.run_id, workflow.init_id, workflow.final_id}
    if TRACKING_SIGN in config:
        named |= TRACKING_KEYS
    ignored = _ignored(workflow, frames)
    # Not in the config, for MONAI left it out, but named by the user all the same.
    config |= {key: None for key in ignored if key not in config and len(ReferenceResolver.split_id(key)) == 1}
    arguments = unknown_arguments(config, known, workflow.parser.locator, workflow.parser.get_parsed_content)
    unknown = [*unknown_keys(config, known, named), *arguments]
    if unknown:
        subject, names = ", ".join(unknown), ", ".join(str(file) for file in files)
        cause = f"no such knob{'s' if len(unknown) > 1 else ''} of {names}"
        raise SettingsError(subject, cause, _remedy(unknown, known, arguments))
    for id_, value, part in replaced_parts(config, known):
        argument = an_argument_of(id_, part)
        remedy = f"Override its arguments (--{argument})" if argument else "Leave the option out"
        cause = f"is a part of the config, and got {value!r}"
        raise SettingsError(id_, cause, f"{remedy}, or give an expression, a reference or a part with a _target_.")
    if ignored:
        raise SettingsError(
            ", ".join(ignored),
            "None cannot be given to MONAI's runner, which would ignore it",
            "Leave the option out, or put null into a file of your own, given as a second config.",
        )


def running_workflow() -> ConfigWorkflow | None:
    """The workflow one of whose expressions calls this; ``None`` where a config is read without one."""
    return _workflow(list(_callers()))


def unknown_keys(config: Mapping[str, Any], known: Mapping[str, Any], named: Iterable[str] = ()) -> list[str]:
    """What is in a config, is not in its files, and is used by nothing.

    Args:
        config: the config with all overrides.
        known: what its files hold.
        named: keys at the top that are used from outside.

    Returns:
        Keys at the top, and ids of what was added to a section (``train#x``: a section holds parts, and is
        none).
    """
    used = {id_ for text in _texts(config) for id_ in ReferenceResolver.match_refs_pattern(text)}
    used = {"::".join(ReferenceResolver.split_id(id_)) for id_ in used}
    unknown = []
    for key in config:
        if key not in known and key not in named and not _is_used(key, used):
            unknown.append(key)
        elif is_section(known.get(key)) and isinstance(config[key], Mapping):
            added = [part for part in config[key] if part not in known[key]]
            unknown += [f"{key}#{part}" for part in added if not _is_used(f"{key}::{part}", used)]
    return unknown


def _callers() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _workflow(frames: Sequence[FrameType]) -> ConfigWorkflow | None:
    # An expression is evaluated without a name for the config that it stands in. But it is evaluated by methods of
    # the config's parser, and these by methods of the workflow: initialize -> _run_expr -> parser -> expression.
    parser = None
    for frame in frames:
        found = frame.f_locals.get("self")
        if parser is None and isinstance(found, ConfigParser):
            parser = found
        if isinstance(found, ConfigWorkflow):
            # Else a config was read inside of another's workflow.
            return found if found.parser is parser else None
    return None


def _made_by_runner(workflow: ConfigWorkflow, frames: Sequence[FrameType]) -> Mapping[str, Any]:
    # The variables of what makes workflows for `monai.bundle.run`; none where Python code made the workflow itself.
    for frame in frames:
        if frame.f_code is create_workflow.__code__ and frame.f_locals.get("workflow_") is workflow:
            return frame.f_locals
    return {}


def _ignored(workflow: ConfigWorkflow, frames: Sequence[FrameType]) -> list[str]:
    # The runner drops each None that it is called with. One in an args_file, or handed to a workflow itself, acts.
    given = _made_by_runner(workflow, frames).get("kwargs", {})
    keys = [key for key, value in given.items() if value is None and key not in OWN_OPTIONS]
    ids = ["#".join(ReferenceResolver.split_id(key.removeprefix(MERGE_KEY))) for key in keys]
    return [id_ for id_ in ids if workflow.parser.get(id_, default=id_) is not None]


def _config_files(workflow: ConfigWorkflow, frames: Sequence[FrameType]) -> list[Path]:
    # A workflow forgets its files once it has read them. What made it has their names.
    named = _made_by_runner(workflow, frames).get("config_file")
    if named is not None:
        return [Path(file) for file in ensure_tuple(named)]
    # A workflow that Python code made: its files are those of its folder all of whose keys it has.
    keys = workflow.parser.get().keys()
    found = [path for pattern in FILE_PATTERNS for path in workflow.config_root_path.glob(pattern)]
    ids = {path: _ids(path) for path in found}
    files = [path for path, own in ids.items() if own and {id_[0] for id_ in own} <= keys]
    # What is laid over others has ids in their sections.
    files.sort(key=lambda path: (max(map(len, ids[path])), path.name))
    if not files:
        raise SettingsError(
            workflow.config_root_path,
            "none of its configs is the one that is running",
            "Start the workflow with a config of this folder first in the list of its files.",
        )
    return files


def _ids(path: Path) -> list[list[str]]:
    try:
        content = ConfigParser.load_config_file(path)
    except (ValueError, yaml.YAMLError):
        return []  # what cannot be read was not read
    if not isinstance(content, dict):
        return []
    return [ReferenceResolver.split_id(key.removeprefix(MERGE_KEY)) for key in content]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _is_used(key: str, used: Iterable[str]) -> bool:
    return any(id_ == key or id_.startswith(f"{key}::") for id_ in used)


def _remedy(unknown: Sequence[str], known: Mapping[str, Any], arguments: Mapping[str, str | None]) -> str:
    names = [arguments[key] if key in arguments else _nearest(key, known) for key in unknown]
    nearest = [name for name in names if name]
    if nearest:
        return f"Did you mean {', '.join(nearest)}?"
    return "The knobs stand at the top of that file, and in docs/guide.md."


def _nearest(key: str, known: Mapping[str, Any]) -> str | None:
    section, _, part = key.rpartition("#")
    names = {name.lower(): name for name in (known[section] if section else known)}
    close = difflib.get_close_matches(part.lower(), names, n=1)
    if not close:
        return None
    return f"{section}#{names[close[0]]}" if section else names[close[0]]
