"""Labels as they are written in datalists, as the vectors that the network learns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from scripts.core.errors import DatalistError, SettingsError
from scripts.core.tasks import TASKS, get_task
from scripts.datalists.keys import COLUMN_NAMES, KEYS, composed, spelling
from scripts.datalists.values import number_in

__all__ = [
    "CLASS_NAMES",
    "POSITIVE_CLASSES",
    "check_class_names",
    "label_remedy",
    "label_vector",
    "output_names",
    "resolve_positive_classes",
    "uses_indices",
    "with_positive_classes",
]

CLASS_NAMES = ("cancer", "hgd", "lgd", "hyperplastic", "normal")
"""The paper's classes in the order of its reference code: cancer, high-grade and low-grade dysplasia, ..."""

POSITIVE_CLASSES = ("cancer", "hgd")
"""The classes that the paper's binary task sets against the rest, as high risk."""

# Names of the binary task's output: with the paper's positive classes, and where the classes are not known.
HIGH_RISK, POSITIVE = "high_risk", "positive"
WAYS = "Give names of these, 0 or 1 for each of these, or, for the binary task, one 0 or 1."
ONE_WAY = "Give the name of one of these, its number, or 1 for it and 0 for the others."
# Columns of datalists and predictions.csv, and what localisation.json calls the mean over the classes. What names a
# patient elsewhere is not among them: `case` is a class where the other one is `control`.
TAKEN_NAMES = (
    *KEYS, *COLUMN_NAMES["partition"], *COLUMN_NAMES["slide"], "head", "fold", "decision", "patient_number", "all",
)  # fmt: skip


def check_class_names(class_names: Sequence[str]) -> None:
    """Refuse class names that outputs could not have, or labels could not tell apart.

    Raises:
        SettingsError: if there is one.
    """
    remedy = "Give a list of names, each once, for example ['cancer', 'normal']."
    if isinstance(class_names, str) or not isinstance(class_names, Sequence) or not class_names:
        raise SettingsError("class_names", f"got {class_names!r}", remedy)
    first: dict[str, str] = {}
    for name in class_names:
        if not isinstance(name, str) or not name.strip():
            raise SettingsError("class_names", f"{name!r} is no name", remedy)
        if number_in(name) is not None:
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
        # Labels and columns name classes in any case.
        if (other := first.setdefault(spelling(name), name)) != name or class_names.count(name) > 1:
            cause = f"{name!r} is named twice" if other == name else f"{other!r} and {name!r} are one name in labels"
            raise SettingsError("class_names", cause, remedy)


def resolve_positive_classes(
    task: str, class_names: Sequence[str], positive_classes: Sequence[str] | None
) -> list[str] | None:
    """The classes that count as 1 in the binary task, in the order of ``class_names``.

    Args:
        task: one of :data:`scripts.core.tasks.TASKS`.
        class_names: the classes in order.
        positive_classes: some of them. ``None`` is the paper's where these are among the classes
            (:data:`POSITIVE_CLASSES`), or the only class.

    Returns:
        ``None`` for the other tasks, and where they are not known: labels have to be 0 or 1 then.

    Raises:
        SettingsError: if one of the three is wrong, there are positive classes in another task, or fewer than two
            classes of which each slide has one.
    """
    is_exclusive = get_task(task).is_exclusive
    check_class_names(class_names)
    known = ", ".join(class_names)
    if is_exclusive and len(class_names) < 2:
        cause = f"got {list(class_names)!r}, and in the {task} task a slide has one of several classes"
        raise SettingsError("class_names", cause, "Name two or more, or set `task` to binary.")
    # On the command line nobody can give null, which is what unsets a default of a packed bundle.
    if positive_classes is None or (task != "binary" and positive_classes == []):
        return _default_positive_classes(task, class_names)
    if isinstance(positive_classes, str) or not isinstance(positive_classes, Sequence) or not positive_classes:
        remedy = f"""Give a list of some of: {known}; on the command line --positive_classes "['{class_names[-1]}']"."""
        raise SettingsError("positive_classes", f"got {positive_classes!r}", remedy)
    names = {composed(name): name for name in class_names}
    unknown = [name for name in positive_classes if not isinstance(name, str) or composed(name) not in names]
    if unknown:
        raise SettingsError("positive_classes", f"{unknown[0]!r} is no class", f"Choose some of: {known}.")
    chosen = {names[composed(name)] for name in positive_classes}
    if len(chosen) < len(positive_classes):
        raise SettingsError("positive_classes", f"got {list(positive_classes)!r}", "Name each class once.")
    if task != "binary":
        cause = f"got {list(positive_classes)!r}, and the {task} task sets no classes against others"
        raise SettingsError("positive_classes", cause, "Leave it out, or give []; it is for `task` binary.")
    return [name for name in class_names if name in chosen]


def with_positive_classes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings with ``positive_classes``, which up to version 0.3.0 were not stored and were the default."""
    if not {"task", "class_names"} <= settings.keys():
        return dict(settings)
    return {"positive_classes": _default_positive_classes(settings["task"], settings["class_names"]), **settings}


def output_names(
    task: str, class_names: Sequence[str] = CLASS_NAMES, positive_classes: Sequence[str] | None = None
) -> list[str]:
    """The classes of which the network gives probabilities; the task says what its logits stand for
    (:meth:`scripts.core.tasks.Task.logit_names`).

    Takes and raises what :func:`resolve_positive_classes` does.

    Returns:
        The classes; in the binary task one name: ``high_risk`` for the paper's positive classes, otherwise their own
        names, joined by ``_or_``, and ``positive`` where they are not known.
    """
    positive = resolve_positive_classes(task, class_names, positive_classes)
    if task != "binary":
        return list(class_names)
    if positive is None:
        return [POSITIVE]
    return [HIGH_RISK if set(positive) == set(POSITIVE_CLASSES) else "_or_".join(positive)]


def _default_positive_classes(task: str, class_names: Sequence[str]) -> list[str] | None:
    if task != "binary":
        return None
    if set(POSITIVE_CLASSES) <= set(class_names):
        return [name for name in class_names if name in POSITIVE_CLASSES]
    return list(class_names) if len(class_names) == 1 else None


def label_remedy(class_names: Sequence[str], task: str = "") -> str:
    """The ways to write a label, for an error; those of all tasks where the task is not known."""
    if task in TASKS and TASKS[task].is_exclusive:
        return f"Give one of: {', '.join(class_names)}; or its number, from 0 to {len(class_names) - 1}, as `label`."
    each = f"0 or 1 for each of: {', '.join(class_names)} (in a CSV file a column each)"
    return f"Give {each}; or names of these as `label`; or, for the binary task, one 0 or 1 as `label`."


def uses_indices(labels: Iterable[object]) -> bool:
    """Whether bare numbers among a datalist's labels are class indices.

    They are if one of them can be nothing else: ``3``, ``"4.0"`` (pandas writes it in a column with gaps) or
    ``"0;2"``. A datalist with nothing but bare 0 and 1 was made for the binary task; to read its 0 as the first class
    would invert every label without a sign.
    """
    for label in labels:
        words = _words(label) if isinstance(label, str | int | float) else []
        indices = [index for word in words if (index := _index(word)) is not None]
        # With a number twice, as in 1;0;0;1;0, they are values.
        if len(set(indices)) == len(words) and (len(indices) > 1 or indices > [1]):
            return True
    return False


def label_vector(
    label: object,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    positive_classes: Sequence[str] | None = None,
    indices: bool = False,
    subject: str = "label",
) -> np.ndarray:
    """The label of a slide as a vector.

    Args:
        label: one 0 or 1 for each class (a list, a JSON list as text, or a mapping from class to value),
            class names (a list, or text joined with ``;`` or ``|``), for the binary task one 0 or 1, for the
            multilabel task class indices (joined in the same way, each once), or for the multiclass and ordinal tasks
            one class index. A number may be text, or a float.
        task: as for :func:`resolve_positive_classes`, and so ``class_names`` and ``positive_classes``.
        indices: whether a bare number is a class index; see :func:`uses_indices`.
        subject: the slide, to begin an error with.

    Returns:
        float32, 0 or 1, shape ``[len(class_names)]`` or, for the binary task, ``[1]``.

    Raises:
        DatalistError: if the label cannot be understood, or is not one class where a slide has exactly one.
        SettingsError: as :func:`resolve_positive_classes`; or if the positive classes are needed and not known.
    """
    positive = resolve_positive_classes(task, class_names, positive_classes)
    if isinstance(label, np.generic):
        label = label.item()
    shown = repr(dict(label) if isinstance(label, Mapping) else label)
    values = _values(label, task, class_names, indices, subject)
    numbers = [number_in(value) for value in values]
    for value, number in zip(values, numbers, strict=True):
        if number not in (0, 1):
            raise DatalistError(subject, f"label {shown} has {value!r}, not 0 or 1", label_remedy(class_names, task))
    vector = np.array(numbers, dtype=np.float32)
    if task == "binary" and len(vector) == 1:
        return vector
    if len(vector) != len(class_names):
        count = f"{len(vector)} value{'' if len(vector) == 1 else 's'}"
        cause = f"label {shown} has {count}, but there are {len(class_names)} classes"
        raise DatalistError(subject, cause, label_remedy(class_names, task))
    if get_task(task).is_exclusive and vector.sum() != 1:
        own = [name for name, value in zip(class_names, vector, strict=True) if value]
        count = f"{len(own)} classes ({', '.join(own)})" if own else "no class"
        cause = f"label {shown} has {count}, and in the {task} task a slide has exactly one"
        raise DatalistError(subject, cause, f"{label_remedy(class_names, task)} Several classes are for multilabel.")
    if task != "binary":
        return vector
    if positive is None:
        cause = f"not given, and whether the label {shown} ({subject}) counts as 1 in the binary task is not known"
        raise SettingsError("positive_classes", cause, f"Give a list of some of: {', '.join(class_names)}.")
    return vector[[class_names.index(name) for name in positive]].max(keepdims=True)


def _values(label: object, task: str, class_names: Sequence[str], indices: bool, subject: str) -> Sequence[object]:
    """One value for each class, or one value in all."""
    remedy, is_exclusive = label_remedy(class_names, task), get_task(task).is_exclusive
    if label is None or (isinstance(label, str) and not _words(label)):
        raise DatalistError(subject, "no label", remedy)
    if isinstance(label, Mapping):
        values = {composed(str(name)): value for name, value in label.items()}
        names = [composed(name) for name in class_names]
        missing = [name for name in names if name not in values]
        unknown = [str(name) for name in label if composed(str(name)) not in names]
        if missing or unknown:
            cause = f"label has {'no ' + missing[0] if missing else f'the unknown class {unknown[0]!r}'}"
            raise DatalistError(subject, cause, remedy)
        return [values[name] for name in names]
    if isinstance(label, str) and label.startswith("["):
        try:
            label = json.loads(label)
        except (ValueError, RecursionError) as error:
            raise DatalistError(subject, f"label {str(label)[:40]!r} is no JSON list ({error})", remedy) from error
    if isinstance(label, str | int | float):
        words = _words(label)
        numbers = [number_in(word) for word in words]
        if None in numbers:
            return _at_names(words, class_names, subject, ONE_WAY if is_exclusive else WAYS)
        if is_exclusive and len(words) == 1:
            return _at_indices(words, label, class_names, subject, ONE_WAY)
        if len(set(numbers)) < len(words):
            return words
        if len(words) == len(class_names) == 2:
            cause = f"label {label!r} could be two class indices or a value for each class"
            raise DatalistError(subject, cause, f"Write the names of the classes: {';'.join(class_names)}.")
        if task != "binary" and (indices or len(words) > 1):
            return _at_indices(words, label, class_names, subject)
        # In the binary task several numbers are refused further on: the user may mean indices.
        return words
    if isinstance(label, Sequence | np.ndarray):
        if len(label) and all(isinstance(value, str) and number_in(value) is None for value in label):
            return _at_names(label, class_names, subject, ONE_WAY if is_exclusive else WAYS)
        # A line of a CSV file without a header has a list of its values.
        if is_exclusive and len(label) == 1 and number_in(label[0]) is not None:
            return _at_indices(_words(label[0]), label[0], class_names, subject, ONE_WAY)
        return list(label)
    raise DatalistError(subject, f"label {label!r} cannot be understood", remedy)


def _words(label: str | int | float) -> list[str]:
    text = str(int(label)) if isinstance(label, bool) else str(label)
    return [word.strip() for word in text.replace("|", ";").split(";") if word.strip()]


def _at_names(names: Iterable[object], class_names: Sequence[str], subject: str, ways: str) -> list[int]:
    found = {spelling(str(name)) for name in names}
    known = [spelling(name) for name in class_names]
    if unknown := sorted(found.difference(known)):
        remedy = f"The classes are: {', '.join(class_names)} (`class_names`). {ways}"
        raise DatalistError(subject, f"unknown class {unknown[0]!r}", remedy)
    return [int(name in found) for name in known]


def _at_indices(
    words: Sequence[str], label: object, class_names: Sequence[str], subject: str, ways: str = WAYS
) -> list[int]:
    indices = [_index(word) for word in words]
    for index, word in zip(indices, words, strict=True):
        if index is None or index >= len(class_names):
            known = ", ".join(f"{i} {name}" for i, name in enumerate(class_names))
            cause = f"label {label!r} has {word}, which is no class index"
            raise DatalistError(subject, cause, f"The classes are: {known}. {ways}")
    return [int(i in indices) for i in range(len(class_names))]


def _index(word: str) -> int | None:
    """The whole number that a text is, written as one or as a float; ``None`` if it is none."""
    number = number_in(word)
    return int(number) if number is not None and number.is_integer() and number >= 0 else None
