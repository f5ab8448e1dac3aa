"""What ``comparing`` trains: a method, or a variant of one, as ``"mustmil beta=0"`` names it."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from scripts.bags.linking import Linking
from scripts.core.defaults import training_defaults
from scripts.core.errors import SettingsError
from scripts.core.settings import SETTINGS, check_settings, with_role
from scripts.networks.methods import USED_BY, check_method, learning_heads, method_title, sees_links
from scripts.weights.operating_point import check_rules

__all__ = ["Variant", "read_variants"]

OWN = ("method", "seed")
"""What ``comparing`` varies by itself."""


@dataclass(frozen=True)
class Variant:
    """A method with settings of its own.

    Args:
        method: one of :data:`scripts.networks.methods.METHODS`.
        settings: those in which its trainings differ from what all share, by name; none for the method as it is.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What files call it: ``"mustmil beta=0"``."""
        return " ".join([self.method, *self._words])

    @property
    def title(self) -> str:
        """What tables and figures call it: ``"MuSTMIL beta=0"``."""
        return " ".join([method_title(self.method), *self._words])

    @property
    def folder(self) -> str:
        """The name of the folder of its runs: ``"mustmil_beta=0"``."""
        return re.sub(r"[^\w.=+-]", "_", self.name)

    def heads(self, shared: Mapping[str, Any]) -> list[str]:
        """The heads that its trainings train, with the settings that all share."""
        used = {**shared, **self.settings}
        return learning_heads(self.method, used["magnifications"], used.get("alpha", 1.0), used.get("beta", 1.0))

    @property
    def _words(self) -> list[str]:
        return [f"{name}={_text(self.settings[name])}" for name in sorted(self.settings)]


def read_variants(items: Sequence[Any], shared: Mapping[str, Any]) -> list[Variant]:
    """The variants that a comparison names.

    Args:
        items: each a method's name, or a name and settings, ``"mustmil linking=shuffled views=0"``: literals of Python
            or words, in any order.
        shared: the settings that all trainings share, by name.

    Raises:
        SettingsError: if an item cannot be trained, names a setting that all trainings have to share, changes nothing,
            or is there twice.
    """
    variants = [_read(item, shared) for item in items]
    for (one, first), (other, second) in combinations(zip(items, variants, strict=True), 2):
        if first.method == second.method and _decisive(first, shared) == _decisive(second, shared):
            raise SettingsError("methods", f"{one!r} and {other!r} are the same training", "Name it once.")
    return variants


def _read(item: Any, shared: Mapping[str, Any]) -> Variant:
    method, *words = item.split() if isinstance(item, str) and item.strip() else [item]
    try:
        check_method(method)
        settings: dict[str, Any] = {}
        for word in words:
            name, _, text = word.partition("=")
            if not text or name in settings:
                cause = "is there twice" if text else "has no value"
                raise SettingsError(name, cause, "Write each setting once, without spaces: beta=0.")
            _check_name(name)
            settings[name] = _value(text)
            check_settings(**{name: settings[name]})
            if method not in USED_BY.get(name, (method,)):
                raise SettingsError(name, f"{method} does not use it", "Leave it out.")
        variant = Variant(method, settings)
        _check(variant, shared)
    except SettingsError as error:
        if not words:
            raise
        raise SettingsError(f"methods: {item!r}", f"{error.subject}: {error.cause}", error.remedy) from None
    return variant


def _decisive(variant: Variant, shared: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of its trainings, alike where they train the same network."""
    used = {**training_defaults(), **shared, **variant.settings}
    if used["linking"] == "shuffled" and not (sees_links(variant.method) and "global" in variant.heads(shared)):
        used["linking"] = "linked"
    if used["task"] == "binary":
        used["class_attention"] = "joint"  # of one logit all are the same
    return used


def _check_name(name: str) -> None:
    if name not in SETTINGS:
        raise SettingsError(name, "there is no such setting", "docs/settings.md lists those of train.json.")
    if name in with_role("shared"):
        cause = "decides slides, labels or feature banks, which all trainings of a comparison share"
        remedy = "Run `comparing` for each value, with an `output_dir` and a `feature_dir` of its own."
        raise SettingsError(name, cause, remedy)
    if name in OWN or not {"fixed", "grid"} & SETTINGS[name].roles:
        cause = "decides nothing of a training, or is set by `comparing` itself"
        raise SettingsError(name, cause, "Give it as an option of `comparing`, or leave it out.")


def _check(variant: Variant, shared: Mapping[str, Any]) -> None:
    """Refuse a variant that the shared feature banks are not enough for, or that trains nothing, or nothing else."""
    settings, used = variant.settings, {**shared, **variant.settings}
    common = {**training_defaults(), **shared}
    if settings and all(name in common and common[name] == value for name, value in settings.items()):
        raise SettingsError("it", "differs in nothing from what all trainings have", "Leave it out.")
    if settings.get("views", 0) > shared.get("views", 0):
        cause = f"is {settings['views']}, and the feature banks have {shared.get('views', 0)}"
        raise SettingsError("views", cause, f"Give --views {settings['views']}; other variants may have views=0.")
    if "linking" in settings:
        Linking(settings["linking"], len(used["magnifications"]))
        if settings["linking"] == "shuffled" and not sees_links(variant.method):
            cause = f"trains the same network as linked: {variant.method} does not see which patches are linked"
            raise SettingsError("linking=shuffled", cause, "Leave it out.")
    if not variant.heads(shared):
        raise SettingsError("alpha and beta", "both are 0, so nothing would train", "Set one above 0.")
    if used.get("val_interval", 1) > used.get("epochs", math.inf):
        cause = f"is {used['val_interval']}, and {used['epochs']} epochs would end without a validation"
        raise SettingsError("val_interval", cause, "Set it to the epochs or less.")
    if "task" in used:
        check_rules(used)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text  # a word


def _text(value: Any) -> str:
    """A value as text: the same for 0 and 0.0."""
    if isinstance(value, int | float) and not isinstance(value, bool) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)
