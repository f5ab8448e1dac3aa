"""Groups of patients: what is tested apart from what it was trained on, and what counts as one observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import DatalistError
from scripts.datalists.split import fold_patients
from tests.benchmarks.tissue.fields import Field

__all__ = ["LEAST_GROUPS", "fields_of_groups", "group_patients"]

# One each to test, to validate and to train.
LEAST_GROUPS = 3
# Patients of equal size are placed in another order each time.
TRIES = 50


def group_patients(fields: Sequence[Field], class_names: Sequence[str], seed: int = 0) -> dict[str, int]:
    """Divide patients into as many groups as can be with fields of every class in every group.

    There are at most as many as the rarest class has patients. Of :data:`TRIES` stratified divisions
    (:func:`scripts.datalists.split.fold_patients`) that is taken whose rarest class of a group has the most fields, and
    of these the one in which the classes are spread most evenly.

    Args:
        fields: all of them.
        class_names: their classes.
        seed: of the divisions.

    Returns:
        The group of each patient, counted from 0.

    Raises:
        DatalistError: if no division into :data:`LEAST_GROUPS` groups has every class in every group.
    """
    patients = [field.patient for field in fields]
    labels = np.array([[field.class_name == name for name in class_names] for field in fields], np.float64)  # [n, K]
    of_class = {name: {field.patient for field in fields if field.class_name == name} for name in class_names}
    rarest = min(class_names, key=lambda name: len(of_class[name]))
    for number in range(len(of_class[rarest]), LEAST_GROUPS - 1, -1):
        divisions = [_divide(patients, labels, number, seed + attempt) for attempt in range(TRIES)]
        best = max(divisions, key=lambda groups: _evenness(groups, labels, number))
        if _counts(best, labels, number).all():
            return dict(zip(patients, best.tolist(), strict=True))
    cause = (
        f"no division of the patients into {LEAST_GROUPS} groups has every class in each: {rarest} has fields of "
        f"{len(of_class[rarest])}"
    )
    raise DatalistError("patients", cause, "Add fields of more patients, or leave out this class.")


def fields_of_groups(
    fields: Sequence[Field], class_names: Sequence[str], groups: Mapping[str, int]
) -> list[dict[str, list[int]]]:
    """For each group, by class, the numbers of its fields."""
    found: list[dict[str, list[int]]] = [{name: [] for name in class_names} for _ in set(groups.values())]
    for number, field in enumerate(fields):
        found[groups[field.patient]][field.class_name].append(number)
    return found


def _divide(patients: Sequence[str], labels: NDArray[np.float64], number: int, seed: int) -> NDArray[np.int64]:
    """The group of each field: that of the fold which tests it."""
    folds = np.array(fold_patients(patients, labels, number, seed)) == "testing"  # [groups, n]
    return folds.argmax(axis=0)


def _counts(groups: NDArray[np.int64], labels: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """``[groups, K]``: the fields of each class in each group."""
    return np.stack([labels[groups == group].sum(axis=0) for group in range(number)])


def _evenness(groups: NDArray[np.int64], labels: NDArray[np.float64], number: int) -> tuple[float, float]:
    counts = _counts(groups, labels, number)
    return float(counts.min()), -float(np.square(counts / counts.sum(axis=0) - 1 / number).sum())
