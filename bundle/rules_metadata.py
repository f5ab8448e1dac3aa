"""Rules on ``configs/metadata.json``: its form, its versions, what MONAI Label reads from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema

from bundle.checked import Bundle, NotChecked
from bundle.metadata import METADATA, check_version
from scripts.core.errors import SettingsError

__all__ = ["RULES"]

# Where else a version is written, and how. Those that are not packed are looked at in a repository alone.
VERSION_PLACES = {
    "scripts/__init__.py": r'^__version__ = "(.*)"$',
    "pyproject.toml": r'^version = "(.*)"$',
    "CITATION.cff": r"^version: (.*)$",
}


def form(bundle: Bundle) -> None:
    """The metadata meets the schema."""
    validator = jsonschema.validators.validator_for(bundle.schema)(bundle.schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(bundle.metadata))
    if error is not None:
        place = "#".join(map(str, error.absolute_path))
        raise SettingsError(
            f"{METADATA}{'#' if place else ''}{place}",
            f"does not meet MONAI's schema: {_shortened(error.message)}",
            "Mend it; bundle/zoo_metadata_schema.json says what is asked.",
        )


def version(bundle: Bundle) -> None:
    """The version is a semantic one, the changelog has it, and it is the same everywhere."""
    number = check_version(bundle.metadata.get("version"))
    changelog = bundle.metadata.get("changelog")
    if not isinstance(changelog, dict) or number not in changelog:
        raise SettingsError(f"{METADATA}#changelog", f"does not have {number}", "Say what is new in this version.")
    for name, pattern in VERSION_PLACES.items():
        if name != "scripts/__init__.py" and bundle.kind != "repository":
            continue
        found = re.search(pattern, bundle.text(name), flags=re.MULTILINE)
        other = found[1].strip("\"'") if found else "none"
        if other != number:
            raise SettingsError(name, f"has the version {other}, and {METADATA} {number}", "Make them the same.")


def packages(bundle: Bundle) -> None:
    """The packages' versions are those that are pinned."""
    metadata = bundle.metadata
    wanted = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    versions: dict[str, Any] = {package: metadata.get(key) for package, key in wanted.items()}
    for key in ("required_packages_version", "optional_packages_version"):
        versions.update(metadata.get(key, {}))
    # The zoo's CI installs what is written here, as NAME==VERSION.
    for name, number in versions.items():
        if not isinstance(number, str) or not re.fullmatch(r"[0-9][0-9A-Za-z.+!-]*", number):
            raise SettingsError(f"{METADATA}, {name}", f"has the version {number!r}", "Write one exact version.")
    if bundle.kind != "repository":
        raise NotChecked("a packed bundle has no constraints.txt to compare the versions with")
    pins = dict(
        line.split("==") for line in bundle.text("constraints.txt").splitlines() if re.match(r"[\w.-]+==", line)
    )
    pins = {_normal(name): number.strip() for name, number in pins.items()}
    for name, number in versions.items():
        pin = pins.get(_normal(name), "none")
        if number != pin:
            raise SettingsError(
                f"{METADATA}, {name}", f"has the version {number}, and constraints.txt {pin}", "Make them the same."
            )


def label_names(bundle: Bundle) -> None:
    """MONAI Label finds the classes: of the first output, which is called ``pred``, by number."""
    outputs = _mapping(bundle, "network_data_format", "outputs")
    place = f"{METADATA}#network_data_format#outputs"
    if next(iter(outputs), None) != "pred":
        raise SettingsError(place, f"begins with {next(iter(outputs), 'nothing')!r}", "Put `pred` first.")
    classes = _mapping(bundle, "network_data_format", "outputs", "pred", "channel_def")
    place += "#pred#channel_def"
    if list(classes) != [str(index) for index in range(len(classes))] or not classes:
        raise SettingsError(place, f"has the keys {', '.join(classes) or 'none'}", 'Number the classes: "0", "1", ...')
    # The server lower-cases the names.
    names = [str(name).lower() for name in classes.values()]
    if "background" in names:
        raise SettingsError(
            place, "names a class 'background', which MONAI Label drops", "Give the class another name."
        )
    if len(set(names)) < len(names):
        raise SettingsError(place, "names two classes alike", "Give each class a name of its own.")


def _mapping(bundle: Bundle, *keys: str) -> Mapping[str, Any]:
    value: Any = bundle.metadata
    for depth, key in enumerate(keys, start=1):
        value = value.get(key)
        if not isinstance(value, dict):
            raise SettingsError(f"{METADATA}#{'#'.join(keys[:depth])}", "is missing, or no object", "Add it.")
    result: Mapping[str, Any] = value
    return result


def _normal(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _shortened(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:80]} ... {message[-110:]}"


RULES: dict[str, Callable[[Bundle], None]] = {
    "metadata": form,
    "version": version,
    "packages": packages,
    "label names": label_names,
}
"""The rules of this file by name."""
