"""From the predictions of slides to those of their patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scripts.datalists.units import united_label

__all__ = ["POOLED", "POOLINGS", "patient_predictions"]

Floats = NDArray[np.float64]

POOLINGS: dict[str, Callable[[Floats], Floats]] = {
    "mean": lambda p: np.asarray(p.mean(axis=0)),
    "maximum": lambda p: np.asarray(p.max(axis=0)),
}
"""How the probabilities of a patient's slides become the patient's, by name."""
POOLED = (
    "the mean, or the maximum, of the probabilities of each patient's slides; not at the operating point, which slides "
    "decided, and which holds for neither (training with `unit: patient` finds one of patients)"
)
"""What a table of such scores is headed by.

A threshold that finds 95% of slides does not find 95% of patients by these: the mean of several slides scatters less
than one slide does, and their maximum rises with their number.
"""


def patient_predictions(
    probabilities: ArrayLike, labels: ArrayLike, patients: Sequence[str]
) -> tuple[list[str], Floats, dict[str, Floats]]:
    """The probabilities of patients from those of their slides.

    The mean asks what the slides say together; the maximum, whether any of them has the class, and rises with their
    number.

    Args:
        probabilities: ``[n, K]`` of slides.
        labels: ``[n, K]``, 0 or 1.
        patients: of the n slides.

    Returns:
        The P patients, sorted; their labels ``[P, K]`` (:func:`scripts.datalists.units.united_label`); and by the names
        of :data:`POOLINGS` their probabilities ``[P, K]``.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient, []).append(row)
    names = sorted(rows)
    united = np.stack([united_label(list(y[rows[name]])) for name in names])
    pooled = {
        pooling: np.stack([pooled_of(p[rows[name]]) for name in names]) for pooling, pooled_of in POOLINGS.items()
    }
    return names, united.astype(np.float64), pooled
