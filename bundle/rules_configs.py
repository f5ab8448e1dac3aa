"""Rules on the configs: the keys that other programs look for, and parts that can be found."""

from __future__ import annotations

import importlib
import importlib.metadata
import pydoc
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from bundle.checked import Bundle, own_scripts
from bundle.contents import base_config
from scripts.core.errors import SettingsError

__all__ = ["RULES"]

INFERENCE_KEYS = (
    "bundle_root",
    "device",
    "dataset_dir",
    "output_dir",
    "network_def",
    "inferer",
    "preprocessing",
    "postprocessing",
)
TRAIN_KEYS = (
    "bundle_root",
    "device",
    "dataset_dir",
    "output_dir",
    "network_def",
    "train#trainer",
    "train#trainer#max_epochs",
    "train#dataset",
    "train#dataset#data",
    "train#handlers",
    "train#inferer",
    "validate#evaluator",
    "validate#handlers",
    "validate#dataset",
    "validate#dataset#data",
)

# Where a part is used, and the key under which other programs look for it.
USES = {
    "train": {
        "dataset#transform": "preprocessing",
        "trainer#postprocessing": "postprocessing",
        "trainer#inferer": "inferer",
        "trainer#train_handlers": "handlers",
        "trainer#key_train_metric": "key_metric",
    },
    "validate": {
        "dataset#transform": "preprocessing",
        "evaluator#postprocessing": "postprocessing",
        "evaluator#inferer": "inferer",
        "evaluator#val_handlers": "handlers",
        "evaluator#key_val_metric": "key_metric",
    },
}

REFERENCE = re.compile(r"@(\w+(?:#\w+)*)")

# A folder of a person's, as the zoo asks not to have one in a config.
PRIVATE = re.compile(r"(?:/home/|/Users/|/root/|[A-Za-z]:\\Users\\)\S*")


def inference_keys(bundle: Bundle) -> None:
    """The inference config has what the zoo and MONAI Label look for."""
    _need(bundle, "inference", INFERENCE_KEYS)


def train_keys(bundle: Bundle) -> None:
    """The training config has what the zoo looks for, and uses it."""
    if "configs/train.json" not in bundle.files:
        return  # A bundle for inference alone is as good for the zoo.
    config = _need(bundle, "train", TRAIN_KEYS)
    for section, uses in USES.items():
        for use, key in uses.items():
            used = _get(config, f"{section}#{use}")
            if used is not None and used != f"@{section}#{key}":
                raise SettingsError(
                    f"configs/train.json#{section}#{use}",
                    f"is {_short(used)}, so a change of {section}#{key} would change nothing",
                    f"Define {section}#{key}, and write @{section}#{key} here.",
                )
            if used is not None and _get(config, f"{section}#{key}") is None:
                raise SettingsError(f"configs/train.json#{section}#{key}", "is not defined", "Define it: it is used.")


def validation_interval(bundle: Bundle) -> None:
    """The handler that validates in training does so every ``val_interval`` epochs."""
    if "configs/train.json" not in bundle.files:
        return
    config = bundle.config("train")
    for handler in _get(config, "train#handlers") or []:
        if not isinstance(handler, dict) or str(handler.get("_target_")).rpartition(".")[2] != "ValidationHandler":
            continue
        for key, wanted in {"interval": "@val_interval", "validator": "@validate#evaluator"}.items():
            if handler.get(key) != wanted:
                raise SettingsError(
                    "configs/train.json#train#handlers, ValidationHandler",
                    f"has the {key} {_short(handler.get(key))}",
                    f"Write {wanted}.",
                )
        if "val_interval" not in config:
            raise SettingsError("configs/train.json#val_interval", "is not defined", "Define it: it is used.")


def overlays(bundle: Bundle) -> None:
    """What a config changes is there in the config that it is laid over."""
    for name in _configs(bundle):
        base = base_config(PurePosixPath(name).name)
        if base is None:
            continue
        if f"configs/{base}" not in bundle.files:
            raise SettingsError(name, f"is laid over configs/{base}, which is not there", "Add it, or remove this one.")
        config, changes = bundle.json(f"configs/{base}"), bundle.json(name)
        for key in changes:
            section = key.rpartition("#")[0]
            if section and not _has(config, section):
                raise SettingsError(f"{name}#{key}", f"{section} is not in configs/{base}", "Mend the name.")
        text = " ".join(text for _, text in _texts(changes))
        for reference in sorted(set(REFERENCE.findall(text))):
            if not _has(config, reference) and reference not in changes:
                raise SettingsError(
                    name, f"refers to @{reference}, which is neither there nor in configs/{base}", "Mend the name."
                )


def private_folders(bundle: Bundle) -> None:
    """No config names a folder of a person's."""
    for name in _configs(bundle):
        for place, text in _texts(bundle.json(name)):
            found = PRIVATE.search(text)
            if found:
                raise SettingsError(
                    f"{name}#{place}", f"names the folder {found[0]}", "Name none that others do not have."
                )


def parts(bundle: Bundle) -> None:
    """Every part that a config names can be found, in the bundle's ``scripts`` or in an installed package."""
    installed = importlib.metadata.packages_distributions()
    with own_scripts(bundle.root):
        for name in _configs(bundle):
            for place, value in _values(bundle.json(name)):
                if place.rpartition("#")[2] == "_target_" and not isinstance(value, str):
                    raise SettingsError(f"{name}#{place}", f"is {_short(value)}, and no name", "Name a part there.")
            for place, target in _targets(bundle.json(name)):
                package = target.partition(".")[0]
                if package != "scripts" and package not in installed and package not in sys.stdlib_module_names:
                    raise SettingsError(
                        f"{name}#{place}",
                        f"names {target}, which is neither under scripts nor of an installed package",
                        "Put it under scripts/: MONAI Label unloads nothing else of a bundle.",
                    )
                problem = _not_found(target)
                if problem:
                    raise SettingsError(f"{name}#{place}", f"names {target}, {problem}", "Mend the name, or add it.")


def _need(bundle: Bundle, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    config = bundle.config(name)
    missing = [key for key in keys if not _has(config, key)]
    if missing:
        raise SettingsError(f"configs/{name}.json", f"has not the keys {', '.join(missing)}", "Define them.")
    return config


def _has(config: Any, key: str) -> bool:
    for part in key.split("#"):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def _get(config: Any, key: str) -> Any:
    for part in key.split("#"):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _configs(bundle: Bundle) -> list[str]:
    return [name for name in bundle.files if PurePosixPath(name).match("configs/*.json")]


def _values(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The values in a config, those that hold others, too, each with its place."""
    yield place, value
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _values(item, f"{place}#{key}" if place else str(key))


def _texts(config: Any) -> Iterator[tuple[str, str]]:
    """The texts in a config, each with its place."""
    return ((place, value) for place, value in _values(config) if isinstance(value, str))


def _targets(config: Any) -> Iterator[tuple[str, str]]:
    """The modules, classes and functions that a config names, each with its place."""
    for place, text in _texts(config):
        if place.endswith("_target_") and not text.startswith("$"):
            yield place, text
        elif place.startswith("imports#"):
            yield place, re.sub(r"^\$(import|from) +([\w.]+).*$", r"\2", text)
        elif text.startswith("$"):
            # Of an expression what stands under scripts; the rest may be methods of things that are not made here.
            yield from ((place, target) for target in re.findall(r"\bscripts(?:\.\w+)+", text))
            yield from ((place, f"scripts.{target}") for target in re.findall(r"\bworkflow\.\w+", text))


def _not_found(target: str) -> str | None:
    try:
        return None if pydoc.locate(target) is not None else "which is not there"
    except pydoc.ErrorDuringImport as error:
        return f"which cannot be imported ({error.value})"
    except ImportError as error:  # of a name that is imported when it is asked for
        return f"which cannot be imported ({error})"


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        return "written out there"
    return "not there" if value is None else repr(value)


RULES: dict[str, Callable[[Bundle], None]] = {
    "inference keys": inference_keys,
    "train keys": train_keys,
    "val_interval": validation_interval,
    "overlays": overlays,
    "private folders": private_folders,
    "parts": parts,
}
"""The rules of this file by name."""
