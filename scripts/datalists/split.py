"""The split of slides by patient: into training, validation and testing where a datalist names none, and into folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.core.errors import DatalistError, SettingsError
from scripts.datalists.partitions import PARTITIONS

__all__ = ["fold_patients", "split_patients"]

# The fractions of the slides for training, validation and testing.
FRACTIONS = np.array([0.7, 0.1, 0.2]) / np.sum([0.7, 0.1, 0.2])


def split_patients(patients: Sequence[str], labels: np.ndarray, seed: int = 0, subject: str = "datalist") -> list[str]:
    """Split slides, all slides of a patient together, with each class spread like the whole.

    Patients are placed one by one, those of the rarest class first, each where that class lacks most
    (iterative stratification, Sechidis et al. 2011, for groups). scikit-learn's ``StratifiedGroupKFold``
    knows one class a slide: label combinations are too many for it, and training may miss a rare one.

    Args:
        patients: the patient of each of ``n`` slides.
        labels: ``[n, K]``, 0 or 1.
        seed: the order in which equal patients are placed. The order of the slides plays no part.
        subject: the datalist, to begin an error with.

    Returns:
        The partition of each slide. No partition is empty.

    Raises:
        DatalistError: if there are fewer patients than partitions.
        SettingsError: if the seed is no whole number of 0 or more.
    """
    names = np.asarray(patients, dtype=str)
    if (number := len(set(patients))) < len(PARTITIONS):
        cause = f"{number} patients are too few for {len(PARTITIONS)} partitions"
        raise DatalistError(subject, cause, "Add slides of more patients, or a column partition.")
    return [PARTITIONS[i] for i in _split(names, labels, FRACTIONS, seed)]


def fold_patients(
    patients: Sequence[str], labels: np.ndarray, folds: int, seed: int = 0, subject: str = "datalist"
) -> list[list[str]]:
    """Split slides several times, so that each is tested once; each time as :func:`split_patients` does.

    Each fold is tested once. The other slides are split anew into training and validation, in the proportion of a
    single split: of cross-validation with five folds, 70% of all slides train and 10% validate.

    Args:
        patients: the patient of each of ``n`` slides.
        labels: ``[n, K]``, 0 or 1.
        folds: how many, 2 or more.
        seed: see :func:`split_patients`, and so ``subject``.

    Returns:
        For each fold the partition of each slide. No partition is empty.

    Raises:
        DatalistError: if there are too few patients.
        SettingsError: if the seed is no whole number of 0 or more.
    """
    names = np.asarray(patients, dtype=str)
    number = len(set(patients))
    cause, remedy = f"{number} patients are too few for {folds} folds", "Add slides of more patients"
    if number < folds:
        raise DatalistError(subject, cause, f"{remedy}, or lower `folds`.")
    tested = _split(names, labels, np.full(folds, 1 / folds), seed)
    split = np.full((folds, len(names)), PARTITIONS[2], dtype=object)
    for fold, partition in enumerate(split):
        others = tested != fold
        if len(set(names[others])) < 2:
            cause += f": where fold {fold + 1} is tested, 1 patient is left for training and validation"
            raise DatalistError(subject, cause, f"{remedy}.")
        inner = _split(names[others], labels[others], FRACTIONS[:2] / FRACTIONS[:2].sum(), seed)
        partition[others] = np.array(PARTITIONS, dtype=object)[inner]
    return [list(partition) for partition in split]


def _split(patients: np.ndarray, labels: np.ndarray, fractions: np.ndarray, seed: int) -> np.ndarray:
    """The number of each slide's part, of as many as there are fractions ``[p]``, and no more than patients."""
    if not isinstance(seed, int | np.integer) or seed < 0:
        # Without one, each partition would be loaded from a split of its own, and patients would cross.
        raise SettingsError("seed", f"got {seed!r}", "Give a whole number of 0 or more.")
    names, group = np.unique(patients, return_inverse=True)
    # A slide without any class belongs to a class of its own, so that such slides are spread as well.
    classes = np.column_stack([labels, labels.max(axis=1) == 0]).astype(float)  # [n, K + 1]
    counts = np.zeros((len(names), classes.shape[1]))  # [patients, K + 1]
    np.add.at(counts, group, classes)
    sizes = np.bincount(group).astype(float)  # [patients]
    order = np.random.default_rng(seed).permutation(len(names))
    # Large patients first: the small ones then fill what is lacking.
    order = order[np.argsort(-sizes[order], kind="stable")]
    placed = _place(counts[order], sizes[order], fractions)
    _fill_empty(placed, counts[order], len(fractions))
    part = np.empty(len(names), dtype=int)
    part[order] = placed
    return part[group]


def _place(counts: np.ndarray, sizes: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    lacking = fractions[:, None] * counts.sum(axis=0)  # [p, K + 1]
    lacking_slides = fractions * sizes.sum()  # [p]
    placed = np.full(len(sizes), -1)
    while (waiting := placed < 0).any():
        patients_of_class = (counts[waiting] > 0).sum(axis=0)  # [K + 1]
        rarest = int(np.where(patients_of_class > 0, patients_of_class, np.inf).argmin())
        patient = int(np.flatnonzero(waiting & (counts[:, rarest] > 0))[0])
        # Rounding keeps a difference of 1e-17 from deciding between equals.
        parts = range(len(fractions))
        keys = [(round(lacking[p, rarest], 9), round(lacking_slides[p], 9), fractions[p]) for p in parts]
        chosen = max(parts, key=lambda p: keys[p])
        placed[patient] = chosen
        lacking[chosen] -= counts[patient]
        lacking_slides[chosen] -= sizes[patient]
    return placed


def _fill_empty(placed: np.ndarray, counts: np.ndarray, parts: int) -> None:
    """Give each empty part one patient, if possible none that alone has a class."""
    for empty in np.flatnonzero(np.bincount(placed, minlength=parts) == 0):
        giver = np.bincount(placed, minlength=parts).argmax()
        patients = np.flatnonzero(placed == giver)
        left = counts[patients].sum(axis=0) - counts[patients]  # [patients, K + 1]
        lost = ((left == 0) & (counts[patients] > 0)).sum(axis=1)
        # The last among equals is the smallest patient.
        placed[patients[len(lost) - 1 - lost[::-1].argmin()]] = empty
