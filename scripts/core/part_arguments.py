"""Overrides of a config's parts that end in a traceback: arguments that none takes, plain values in their place."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent
from monai.bundle.utils import EXPR_KEY, ID_REF_KEY

__all__ = ["an_argument_of", "is_part", "is_section", "replaced_parts", "unknown_arguments"]

# MONAI takes `_debug_` from among the arguments.
MONAI_KEYS = frozenset(ConfigComponent.non_arg_keys) | {"_debug_"}


def is_part(value: Any) -> bool:
    """Whether this is a mapping that MONAI makes an object of."""
    return bool(ConfigComponent.is_instantiable(value))


def is_section(value: Any) -> bool:
    """Whether this is a mapping that holds parts, and is none."""
    return isinstance(value, Mapping) and not is_part(value) and any(is_part(part) for part in value.values())


def unknown_arguments(
    config: Mapping[str, Any],
    known: Mapping[str, Any],
    locator: ComponentLocator,
    evaluate: Callable[[str], Any] | None = None,
) -> dict[str, str | None]:
    """What was added to the parts of the files, at any depth, and neither their targets nor MONAI take.

    A target that is an expression of the user's own, cannot be located, does not tell its arguments or takes any is
    MONAI's to judge.

    Args:
        config: the config with all overrides.
        known: what its files hold.
        locator: what finds the targets that are names of MONAI's own, without their module.
        evaluate: gives the value of an id, of which an expression of the files is the target; they are MONAI's, too,
            without.

    Returns:
        Ids (``train#trainer#max_epoch``), each with the id of the nearest argument, or ``None``.
    """
    unknown: dict[str, str | None] = {}
    for id_, part, own in _overridden(config, known):
        added = [key for key in part if key not in own] if is_part(part) and is_part(own) else []
        arguments = None
        if added and _is_plain(part["_target_"]):
            arguments = _arguments(_located(part, locator))
        elif added and evaluate is not None and part["_target_"] == own["_target_"]:
            arguments = _arguments(evaluate(f"{id_}#_target_"))
        if arguments is None:
            continue
        names = {name.lower(): name for name in arguments | MONAI_KEYS}
        for key in added:
            if key not in names.values():
                close = difflib.get_close_matches(key.lower(), names, n=1)
                unknown[f"{id_}#{key}"] = f"{id_}#{names[close[0]]}" if close else None
    return unknown


def replaced_parts(config: Mapping[str, Any], known: Mapping[str, Any]) -> list[tuple[str, Any, Mapping[str, Any]]]:
    """Where the files have a part or a section, at any depth, and the config a plain number, text or boolean.

    Args:
        config: the config with all overrides.
        known: what its files hold.

    Returns:
        Ids, each with the value and what the files have. An expression, a reference, a mapping, ``None`` and an object
        of Python may stand for a part.
    """
    found = _overridden(config, known)
    return [(id_, value, own) for id_, value, own in found if (is_part(own) or is_section(own)) and _is_plain(value)]


def an_argument_of(id_: str, part: Mapping[str, Any]) -> str | None:
    """The id of the first argument that is a reference, of a part or of those in it; ``None`` if there is none."""
    for key, value in part.items():
        inner = f"{id_}#{key}"
        if key not in MONAI_KEYS and isinstance(value, str) and value.startswith(ID_REF_KEY):
            return inner
        found = an_argument_of(inner, value) if isinstance(value, Mapping) else None
        if found:
            return found
    return None


def _overridden(config: Any, known: Any, id_: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    # What the config has wherever the files have a mapping.
    shared: list[tuple[Any, Any, Any]] = []
    if isinstance(known, Mapping):
        if id_:
            yield id_, config, known
        if isinstance(config, Mapping):
            shared = [(key, config[key], own) for key, own in known.items() if key in config]
    elif isinstance(known, list) and isinstance(config, list):
        shared = [(i, value, own) for i, (value, own) in enumerate(zip(config, known, strict=False))]
    for key, value, own in shared:
        yield from _overridden(value, own, f"{id_}#{key}" if id_ else str(key))


def _located(part: Mapping[str, Any], locator: ComponentLocator) -> Any:
    if not isinstance(part["_target_"], str):
        return part["_target_"]
    try:
        return locate(ConfigComponent(part, locator=locator).resolve_module_name())
    except ErrorDuringImport:
        return None


def _arguments(target: Any) -> set[str] | None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None  # no callable, or one of C that does not tell
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in by_name}


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return not value.startswith((EXPR_KEY, ID_REF_KEY))
    return isinstance(value, int | float)
