"""Labels as they are written in datalists, as the vectors that the network learns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from scripts.errors import DatalistError, SettingsError

__all__ = ["CLASS_NAMES", "HIGH_RISK", "check_class_names", "check_task", "label_vector", "uses_indices"]

CLASS_NAMES = ("cancer", "hgd", "lgd", "hyperplastic", "normal")
"""The paper's classes in the order of its reference code: cancer, high-grade and low-grade dysplasia, ..."""

HIGH_RISK = ("cancer", "hgd")
"""The classes that the paper's binary task sets against the rest."""

TASKS = ("multilabel", "binary")
# Columns of predictions.csv, and what localisation.json calls the mean over the classes.
TAKEN_NAMES = ("slide", "head", "label", "all")


def check_task(task: str) -> None:
    """Refuse what is no task.

    Raises:
        SettingsError: if it is neither ``"multilabel"`` nor ``"binary"``.
    """
    if task not in TASKS:
        raise SettingsError("task", f"got {task!r}", f"Choose one of: {', '.join(TASKS)}.")


def check_class_names(class_names: Sequence[str]) -> None:
    """Refuse class names that outputs could not hold.

    Raises:
        SettingsError: if there is none, one is no text, empty, a number, has a separator of labels (``;`` or ``|``)
            or a ``#``, is a name that the outputs use otherwise, or equals another but for case and outer spaces.
    """
    remedy = "Give a list of names, each once, for example ['cancer', 'normal']."
    if isinstance(class_names, str) or not isinstance(class_names, Sequence) or not class_names:
        raise SettingsError("class_names", f"got {class_names!r}", remedy)
    for name in class_names:
        if not isinstance(name, str) or not name.strip():
            raise SettingsError("class_names", f"{name!r} is no name", remedy)
        if _is_number(name):
            cause = f"{name!r} is a number, and in labels a number is a value or a class index"
            raise SettingsError("class_names", cause, f"Name it with letters, for example 'grade {name.strip()}'.")
        if ";" in name or "|" in name:
            raise SettingsError("class_names", f"{name!r} has a separator of labels", "Name it without ; and |.")
        if "#" in name:
            # In the configs of a packed bundle, which other programs read.
            raise SettingsError("class_names", f"{name!r} has a #, which MONAI reads as ::", "Name it without #.")
        if name.strip().casefold() in TAKEN_NAMES:
            taken = ", ".join(TAKEN_NAMES)
            raise SettingsError("class_names", f"{name!r} is taken", f"Choose other names than {taken}.")
    first: dict[str, str] = {}
    for name in class_names:
        # Labels and columns name classes in any case.
        if (word := name.strip().casefold()) in first:
            other = first[word]
            cause = f"{name!r} is named twice" if other == name else f"{other!r} and {name!r} are one name in labels"
            raise SettingsError("class_names", cause, remedy)
        first[word] = name


def uses_indices(labels: Iterable[object]) -> bool:
    """Whether bare numbers among a datalist's labels are class indices.

    They are if one of them can be nothing else: ``3`` or ``"0;2"``. A datalist with nothing but bare 0 and 1
    was made for the binary task; to read its 0 as the first class would turn every label round in silence.
    """
    for label in labels:
        words = _words(label) if isinstance(label, str | int | float) else []
        # With a number twice, as in 1;0;0;1;0, they are values.
        numbers = bool(words) and all(word.isdecimal() for word in words) and len(set(words)) == len(words)
        if numbers and (len(words) > 1 or float(words[0]) > 1):  # float reads any number of digits
            return True
    return False


def label_vector(
    label: object,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    high_risk: Sequence[str] = HIGH_RISK,
    indices: bool = False,
    subject: str = "label",
) -> np.ndarray:
    """The label of a slide as a vector.

    Args:
        label: one 0 or 1 for each class (a list, a JSON list as text, or a mapping from class to value),
            class names (a list, or text joined with ``;`` or ``|``), for the binary task one 0 or 1, or for
            the multilabel task class indices (joined in the same way, each once).
        task: ``"multilabel"`` or ``"binary"``.
        class_names: the classes in order.
        high_risk: the classes that count as 1 in the binary task.
        indices: whether a bare number is a class index; see :func:`uses_indices`.
        subject: the slide, to begin an error with.

    Returns:
        float32, 0 or 1, shape ``[len(class_names)]`` or, for the binary task, ``[1]``.

    Raises:
        DatalistError: if the label cannot be understood.
        SettingsError: if ``task`` or ``class_names`` are wrong, or a class of ``high_risk`` is needed and is no class.
    """
    check_task(task)
    check_class_names(class_names)
    values = _values(label, task, class_names, indices, subject)
    vector = np.array([_zero_or_one(value, label, subject, class_names) for value in values], dtype=np.float32)
    if task == "binary" and len(vector) == 1:
        return vector
    if len(vector) != len(class_names):
        plural = "value" if len(vector) == 1 else "values"
        raise DatalistError(
            subject,
            f"label {label!r} has {len(vector)} {plural}, but there are {len(class_names)} classes",
            f"Give 0 or 1 for each of: {', '.join(class_names)}.",
        )
    if task == "multilabel":
        return vector
    unknown = [name for name in high_risk if name not in class_names]
    if unknown or not high_risk:
        cause = f"{unknown[0]!r} is no class" if unknown else "no class"
        raise SettingsError("high_risk", cause, f"Choose some of: {', '.join(class_names)}.")
    return vector[[class_names.index(name) for name in high_risk]].max(keepdims=True)


def _values(label: object, task: str, class_names: Sequence[str], indices: bool, subject: str) -> Sequence[object]:
    """One value for each class, or one value in all."""
    if label is None or (isinstance(label, str) and not _words(label)):
        raise DatalistError(subject, "no label", f"Give 0 or 1 for each of: {', '.join(class_names)}.")
    if isinstance(label, Mapping):
        missing = [name for name in class_names if name not in label]
        unknown = [str(name) for name in label if name not in class_names]
        if missing or unknown:
            cause = f"label has {'no ' + missing[0] if missing else f'the unknown class {unknown[0]!r}'}"
            raise DatalistError(subject, cause, f"Give 0 or 1 for each of: {', '.join(class_names)}.")
        return [label[name] for name in class_names]
    if isinstance(label, str) and label.startswith("["):
        try:
            label = json.loads(label)
        except json.JSONDecodeError as error:
            remedy = f"Write [1, 0, ...], with 0 or 1 for each of: {', '.join(class_names)}."
            raise DatalistError(subject, f"label {label!r} is no JSON list ({error.msg})", remedy) from error
        except (ValueError, RecursionError) as error:  # a number of more digits, or lists deeper, than Python reads
            raise DatalistError(
                subject, f"label {str(label)[:40]!r}... cannot be read ({error})", "Write [1, 0, ...]."
            ) from error
    if isinstance(label, str | int | float):
        words = _words(label)
        if not all(_is_number(word) for word in words):
            return _at_names(words, class_names, subject)
        if len(set(words)) < len(words):
            return words
        if len(words) == len(class_names) == 2:
            cause = f"label {label!r} could be two class indices or a value for each class"
            raise DatalistError(subject, cause, f"Write the names of the classes: {';'.join(class_names)}.")
        if task == "multilabel" and (indices or len(words) > 1):
            return _at_indices(words, label, class_names, subject)
        # In the binary task several numbers are refused further on: the user may mean indices.
        return words
    if isinstance(label, Sequence | np.ndarray):
        if len(label) and all(isinstance(value, str) and not _is_number(value) for value in label):
            return _at_names(label, class_names, subject)
        return list(label)
    raise DatalistError(subject, f"label {label!r} cannot be understood", "Give a list of 0 and 1.")


def _words(label: str | int | float) -> list[str]:
    text = str(int(label)) if isinstance(label, bool) else str(label)
    return [word.strip() for word in text.replace("|", ";").split(";") if word.strip()]


def _at_names(names: Iterable[object], class_names: Sequence[str], subject: str) -> list[int]:
    found = {str(name).strip().casefold() for name in names}
    unknown = sorted(found - {name.casefold() for name in class_names})
    if unknown:
        raise DatalistError(subject, f"unknown class {unknown[0]!r}", f"The classes are: {', '.join(class_names)}.")
    return [int(name.casefold() in found) for name in class_names]


def _at_indices(words: Sequence[str], label: object, class_names: Sequence[str], subject: str) -> list[int]:
    if not all(word.isdecimal() and float(word) < len(class_names) for word in words):
        known = ", ".join(f"{i} {name}" for i, name in enumerate(class_names))
        raise DatalistError(subject, f"label {label!r} is no class index", f"The classes are: {known}.")
    return [int(i in {float(word) for word in words}) for i in range(len(class_names))]


def _zero_or_one(value: object, label: object, subject: str, class_names: Sequence[str]) -> float:
    if isinstance(value, str | int | float | np.number) and _is_number(value) and float(value) in (0, 1):
        return float(value)
    found = dict(label) if isinstance(label, Mapping) else label
    raise DatalistError(
        subject,
        f"label {found!r} holds {value!r}, not 0 or 1",
        f"Give 0 or 1 for each of: {', '.join(class_names)}; or for the binary task one 0 or 1.",
    )


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
    return True
