"""Checks of settings: each takes a setting's name and value, and raises a :class:`SettingsError` at a wrong one."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch

from scripts.core.errors import SettingsError
from scripts.core.magnification import check_magnifications
from scripts.core.ranks import check_device

__all__ = [
    "AUTO",
    "Check",
    "backbone_input",
    "choice",
    "device",
    "magnifications",
    "names",
    "number",
    "path",
    "resolution",
    "several",
    "switch",
    "threshold",
]

Check = Callable[[str, Any], None]

AUTO = "auto"
"""The value of a setting that this machine decides (:mod:`scripts.core.machine`)."""


# No setting is larger, and a whole number that is no float would fail later.
MOST = sys.float_info.max


def number(least: float, most: float = math.inf, is_optional: bool = False, or_auto: bool = False) -> Check:
    """Numbers from ``least`` to ``most``, whole ones where ``least`` is written as such; and ``"auto"``, if allowed."""
    kind = "a whole number" if isinstance(least, int) else "a number"
    limits = [limit if isinstance(limit, int) else f"{limit:g}" for limit in (least, most)]
    upper = " up" if most == math.inf else f" to {limits[1]}"

    def check(key: str, value: Any) -> None:
        if (value is None and is_optional) or (or_auto and value == AUTO):
            return
        fits = isinstance(value, int if isinstance(least, int) else int | float) and not isinstance(value, bool)
        # Not by `isfinite`, which fails at whole numbers that are too large for a float; NaN is within no limits.
        if not fits or not (least <= value <= min(most, MOST)):
            raise SettingsError(
                key, f"got {value!r}", f"Give {kind} from {limits[0]}{upper}{', or auto' if or_auto else ''}."
            )

    return check


def path(is_optional: bool = False, is_joined: bool = False) -> Check:
    """Paths; texts alone where a config adds the rest of a path (``is_joined``)."""

    def check(key: str, value: Any) -> None:
        if value is None and is_optional:
            return
        if not isinstance(value, str if is_joined else str | os.PathLike) or not os.fspath(value):
            # `--output_dir 2024` is a number.
            example = f", for example ./{value}" if isinstance(value, int) else ""
            raise SettingsError(key, f"got {value!r}", f"Give a path as text{example}.")

    return check


def choice(*choices: str, packages: Mapping[str, str] = MappingProxyType({})) -> Check:
    """One of several names.

    Args:
        choices: the names.
        packages: what has to be installed, as pip calls it, by the name that needs it.
    """

    def check(key: str, value: Any) -> None:
        if value not in choices:
            raise SettingsError(key, f"got {value!r}", f"Choose one of {', '.join(choices)}.")
        package = packages.get(value)
        if package is not None and find_spec(package.replace("-", "_")) is None:
            raise SettingsError(key, f"{value} needs {package}, which is not installed", f"Run: pip install {package}.")

    return check


def several(*choices: str) -> Check:
    """One of several names, or a list of some of them."""

    def check(key: str, value: Any) -> None:
        chosen = [value] if isinstance(value, str) else value
        if not isinstance(chosen, list | tuple) or not chosen or any(one not in choices for one in chosen):
            raise SettingsError(key, f"got {value!r}", f"Give {' or '.join(choices)}, or a list of these.")

    return check


def switch(key: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise SettingsError(key, f"got {value!r}", "Give True or False.")


def resolution(key: str, value: Any) -> None:
    """Micrometres per pixel, or ``None``."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SettingsError(key, f"got {value!r}", "Give micrometres per pixel at full resolution, such as 0.25.")


def device(key: str, value: Any) -> None:
    """A CPU, or a GPU that is there and that this rank may use."""
    remedy = "Give cpu, cuda, or cuda:N with a GPU that is there."
    try:
        found = torch.device(value)
    except (RuntimeError, TypeError):
        raise SettingsError(key, f"got {value!r}", remedy) from None
    if found.type not in ("cpu", "cuda"):
        raise SettingsError(key, f"got {value!r}", remedy)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise SettingsError(key, f"got {value!r}, and torch sees {torch.cuda.device_count()} GPUs", remedy)
    check_device(found)


def names(key: str, value: Any) -> None:
    """A list of names, or ``None``."""
    if value is not None and not (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)):
        raise SettingsError(key, f"got {value!r}", "Give a list of names, for example ['cancer', 'normal'].")


def magnifications(key: str, value: Any) -> None:
    check_magnifications(value, key)


def threshold(key: str, value: Any) -> None:
    """A probability, or a rule by which validation slides choose one."""
    number = value
    if isinstance(value, str) and value.startswith("sensitivity="):
        try:
            number = float(value.removeprefix("sensitivity="))
        except ValueError:
            number = None
    if value not in ("f1", "youden") and not (_is_number(number) and 0 < number < 1):
        remedy = "Give a number between 0 and 1, f1, youden, or a sensitivity between 0 and 1, as sensitivity=0.95."
        raise SettingsError(key, f"got {value!r}", remedy)


def backbone_input(key: str, value: Any) -> None:
    """The patches that an encoder was trained with: some of ``size``, ``mean`` and ``std``."""
    example = "for example {'size': 224, 'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}"
    if not isinstance(value, Mapping):
        raise SettingsError(key, f"got {value!r}", f"Give a dictionary, {example}.")
    if unknown := value.keys() - {"size", "mean", "std"}:
        found = ", ".join(map(repr, sorted(unknown, key=str)))
        raise SettingsError(key, f"has {found}", f"Give size, mean and std, {example}.")
    if "size" in value:
        number(1, 4096)(f"{key}#size", value["size"])
    for name in ("mean", "std"):
        numbers = value.get(name, [0.5] * 3)
        fits = isinstance(numbers, list | tuple) and len(numbers) == 3
        least = 0.001 if name == "std" else 0  # records store four digits
        if not fits or not all(_is_number(one) and least <= one <= 1 for one in numbers):
            remedy = f"Give three numbers in {least}..1, of R, G and B, {example}."
            raise SettingsError(f"{key}#{name}", f"got {numbers!r}", remedy)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
