"""The bootstrap over patients: intervals of scores and of means, and the paired comparison of two methods.

Patients are resampled with replacement, as many as there are. A patient brings all of their slides, and a slide all of
its classes (the cluster bootstrap: Field and Welsh, Journal of the Royal Statistical Society B 69(3):369-390, 2007).
The slides of one patient are not independent, so resamples of slides would make intervals too narrow. No resample is
copied out: a score needs only how often the resample contains each slide.

Arguments that several functions share: ``num_resamples``, how many resamples are made; ``seed``, which decides them;
``patients``, the patient of each of the n slides (by default each slide is a patient of its own).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scripts.core.tasks import get_task
from scripts.evaluation.metrics import CLASS_SCORE_NAMES, check_predictions, score_names
from scripts.evaluation.weighted_scores import ratio, weighted_class_scores, weighted_head_scores

__all__ = [
    "FEWEST_PATIENTS",
    "UNKNOWN_PATIENTS",
    "PairedDifference",
    "bootstrap_interval",
    "class_intervals",
    "difference_interval",
    "few_patients",
    "mean_interval",
    "paired_difference",
    "patients_text",
    "resampled_class_scores",
    "resampled_scores",
    "resampled_trainings",
    "warn_of_few",
    "warn_of_unknown",
]

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Patients = Sequence[Hashable]
Seed = int | tuple[int, ...]

# Resamples of fewer patients are nearly all the same, so the interval would be too narrow.
FEWEST_PATIENTS = 10
UNKNOWN_PATIENTS = (
    "no column names the patient, so each slide counts as a patient of its own, and intervals are too narrow where "
    "patients have several slides. Add a column `patient` to the datalist."
)
# Values in each array of a block of resamples: 16 MB.
BLOCK_VALUES = 2_000_000

logger = logging.getLogger(__name__)


def bootstrap_interval(
    probabilities: ArrayLike,
    labels: ArrayLike,
    task: str,
    num_resamples: int = 1000,
    seed: int = 0,
    patients: Patients | None = None,
) -> dict[str, Interval]:
    """The 95% percentile interval of each of :func:`scripts.evaluation.metrics.head_scores`, which has the arguments.

    Resamples in which a ROC-AUC is undefined do not count for it; if none is left, its interval is (NaN, NaN).
    """
    found = resampled_scores(probabilities, labels, task, num_resamples, seed, patients)
    return {name: _interval(values) for name, values in found.items()}


def resampled_scores(
    probabilities: ArrayLike,
    labels: ArrayLike,
    task: str,
    num_resamples: int = 1000,
    seed: Seed = 0,
    patients: Patients | None = None,
) -> dict[str, Floats]:
    """Each of :func:`scripts.evaluation.metrics.head_scores` on each resample, ``[R]``; NaN where it is undefined."""
    names = score_names(task)
    p, y = check_predictions(probabilities, labels, task)
    own = _numbered(patients, len(y))
    blocks = [
        weighted_head_scores(p, y, counts, names, task) for counts in _resamples(own, num_resamples, seed, y.shape[1])
    ]
    return {name: np.concatenate([scores[name] for scores in blocks]) for name in names}


def class_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    num_resamples: int = 1000,
    seed: int = 0,
    patients: Patients | None = None,
    *,
    task: str,
) -> dict[str, dict[str, Interval]]:
    """The same of :func:`scripts.evaluation.metrics.class_scores`, without the number of slides."""
    values = resampled_class_scores(probabilities, labels, class_names, num_resamples, seed, patients, task=task)
    return {
        class_name: {name: _interval(values[name][:, k]) for name in CLASS_SCORE_NAMES}
        for k, class_name in enumerate(class_names)
    }


def resampled_class_scores(
    probabilities: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    num_resamples: int = 1000,
    seed: Seed = 0,
    patients: Patients | None = None,
    *,
    task: str,
) -> dict[str, Floats]:
    """Each of :func:`scripts.evaluation.metrics.class_scores` on each resample, ``[R, K]``."""
    p, y = check_predictions(probabilities, labels, class_names=class_names)
    own, predicted = _numbered(patients, len(y)), get_task(task).decided(p).astype(np.float64)
    blocks = [
        weighted_class_scores(p, y, predicted, counts) for counts in _resamples(own, num_resamples, seed, y.shape[1])
    ]
    return {name: np.concatenate([scores[name] for scores in blocks]) for name in CLASS_SCORE_NAMES}


def difference_interval(first: ArrayLike, second: ArrayLike) -> Interval:
    """The 95% percentile interval of the difference of a score between two independent test sets.

    Args:
        first: ``[R]``, the score on R resamples of the first test set.
        second: ``[R]``, on R of the second, made with another ``seed``.

    Returns:
        Of first minus second; resamples in which either is NaN do not count.
    """
    return _interval(np.asarray(first, np.float64) - np.asarray(second, np.float64))


def mean_interval(
    values: ArrayLike, num_resamples: int = 1000, seed: int = 0, patients: Patients | None = None
) -> Interval:
    """The 95% percentile interval of the mean of all values that are not NaN; (NaN, NaN) without any.

    Args:
        values: ``[n]`` or ``[n, m]``, m values of each of n slides. A slide without any value is not resampled.
        num_resamples: see the module.
        seed: see the module.
        patients: see the module.
    """
    table = np.asarray(values, np.float64)
    table = table.reshape(len(table), math.prod(table.shape[1:]))
    known = ~np.isnan(table)
    has_any = known.any(axis=1)
    own = _numbered(_numbered(patients, len(table))[has_any].tolist(), int(has_any.sum()))
    table, known = table[has_any], known[has_any]
    sums, numbers = np.where(known, table, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64)  # [n]
    means = [ratio(counts @ sums, counts @ numbers) for counts in _resamples(own, num_resamples, seed)]
    return _interval(np.concatenate(means))


def few_patients(num_patients: int) -> str | None:
    """What to know of intervals that rest on fewer than :data:`FEWEST_PATIENTS` patients; ``None`` with enough."""
    if not 0 < num_patients < FEWEST_PATIENTS:
        return None
    patients = "1 patient" if num_patients == 1 else f"{num_patients} patients"
    cause = f"its intervals rest on {patients}, fewer than {FEWEST_PATIENTS}, and are not to be trusted"
    return f"{cause}. Test on more patients."


def warn_of_few(num_patients: int, subject: object) -> None:
    """Warn of :func:`few_patients` behind the intervals of ``subject``."""
    if (text := few_patients(num_patients)) is not None:
        logger.warning("%s: %s", subject, text)


def warn_of_unknown(subject: object) -> None:
    """Warn that the datalist names no patients for the intervals of ``subject``."""
    logger.warning("%s: %s", subject, UNKNOWN_PATIENTS)


def patients_text(num_slides: int, num_patients: int | None, what: str = "slides") -> str:
    """The numbers of slides and patients in words; ``None`` where patients are not known."""
    if num_patients is None:
        return f"{num_slides} {what}, patients not known (each slide counts as one)"
    return f"{num_slides} {what} of {num_patients} patients"


@dataclass(frozen=True)
class PairedDifference:
    """How much better one method is than another on the same slides.

    Args:
        difference: mean score of the first method's trainings, minus that of the second's.
        low: lower end of the 95% interval of the difference.
        high: its upper end.
        p_value: two-sided, of there being no difference; never below 1 / the number of resamples.
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    task: str,
    score: str,
    num_resamples: int = 2000,
    seed: int = 0,
    patients: Patients | None = None,
) -> PairedDifference:
    """Compare two methods, each trained several times, on the same test slides.

    Patients with their slides are resampled, the same for both methods, and for each method its trainings: the
    interval covers which patients were tested and which seeds were trained. Both are resampled across each other, after
    Owen's pigeonhole bootstrap (Annals of Applied Statistics 1(2):386-411, 2007), which errs on the wide side. Of r
    trainings r - 1 are resampled, as the variance of a mean of r values would else come out too small by (r - 1) / r;
    with one training the interval covers the patients alone. Each resample counts twice, the second time with the two
    methods' resamples exchanged, so that exchanging the methods changes the signs and nothing else.

    Args:
        first: ``[r1, n, K]`` probabilities of the first method's r1 trainings, within 0 to 1.
        second: ``[r2, n, K]`` of the second's.
        labels: ``[n, K]``, 0 or 1.
        task: one of :data:`scripts.core.tasks.TASKS`.
        score: one of :func:`scripts.evaluation.metrics.score_names`.
        num_resamples: see the module.
        seed: see the module.
        patients: see the module.

    Returns:
        The difference, its 95% percentile interval and the two-sided p-value, twice the fraction of resamples on the
        rarer side of 0. All are NaN for a ROC-AUC of labels that are all the same; such resamples do not count.

    Raises:
        ValueError: if the arrays do not fit, or contain other values.
    """
    plain, scores = resampled_trainings((first, second), labels, task, score, num_resamples, seed, patients)
    # Another stream than that of the patients, which all intervals share.
    uniform = np.random.default_rng([seed, 1]).random((2, num_resamples, max(map(len, plain))))
    differences = np.concatenate([
        _resampled_mean(scores[0], uniform[a]) - _resampled_mean(scores[1], uniform[b]) for a, b in ((0, 1), (1, 0))
    ])  # fmt: skip
    low, high = _interval(differences)
    return PairedDifference(float(plain[0].mean() - plain[1].mean()), low, high, _p_value(differences))


def resampled_trainings(
    methods: Sequence[ArrayLike],
    labels: ArrayLike,
    task: str,
    score: str,
    num_resamples: int = 2000,
    seed: int = 0,
    patients: Patients | None = None,
) -> tuple[list[Floats], list[Floats]]:
    """A score of each training of some methods: on all slides, and on resamples that all of them share.

    Args:
        methods: for each one ``[r, n, K]``, the probabilities of its r trainings, within 0 to 1.
        labels: ``[n, K]``, 0 or 1.
        task: one of :data:`scripts.core.tasks.TASKS`.
        score: one of :func:`scripts.evaluation.metrics.score_names`.
        num_resamples: see the module.
        seed: see the module.
        patients: see the module.

    Returns:
        For each method the scores on all slides ``[r]``, and those on each resample ``[R, r]``; NaN where undefined.

    Raises:
        ValueError: if the arrays do not fit, or contain other values.
    """
    checked = [[check_predictions(p, labels, task)[0] for p in np.asarray(method)] for method in methods]
    y = np.asarray(labels, np.float64)
    own, one_each = _numbered(patients, len(y)), np.ones((1, len(y)))
    plain = [_training_scores(method, y, one_each, score, task)[0] for method in checked]
    blocks = [
        [_training_scores(method, y, counts, score, task) for method in checked]
        for counts in _resamples(own, num_resamples, seed, y.shape[1])
    ]
    return plain, [np.concatenate([block[i] for block in blocks]) for i in range(len(checked))]


def _training_scores(method: Sequence[Floats], y: Floats, counts: Floats, score: str, task: str) -> Floats:
    """[R, r]: the score of each training ``[n, K]`` on each resample."""
    return np.stack([weighted_head_scores(p, y, counts, (score,), task)[score] for p in method], axis=1)


def _resampled_mean(scores: Floats, uniform: Floats) -> Floats:
    """[R]: the mean of r - 1 of the scores [R, r] that uniform numbers [R, >= r] within 0 to 1 choose."""
    repeats = scores.shape[1]
    chosen = (uniform[:, : max(1, repeats - 1)] * repeats).astype(np.intp)
    return np.take_along_axis(scores, chosen, axis=1).mean(axis=1)


def _p_value(differences: Floats) -> float:
    differences = differences[~np.isnan(differences)]
    if not differences.size:
        return np.nan
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    # The observed data count as one more resample, so that no p-value is 0.
    return float(min(1.0, 2 * (1 + rarer) / (1 + differences.size)))


def _interval(values: Floats) -> Interval:
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if values.size else (np.nan, np.nan)
    return float(low), float(high)


def _numbered(patients: Patients | None, num_slides: int) -> NDArray[np.intp]:
    """[n]: the number of each slide's patient, from 0 up in the order of their first slides."""
    if patients is None:
        return np.arange(num_slides)
    number = {patient: i for i, patient in enumerate(dict.fromkeys(patients))}
    return np.array([number[patient] for patient in patients], dtype=np.intp)


def _resamples(patients: NDArray[np.intp], num_resamples: int, seed: Seed, width: int = 1) -> Iterator[Floats]:
    """How often each resample contains each slide, in blocks [r, n] of which each value becomes ``width`` values."""
    num_patients = int(patients.max(initial=-1)) + 1
    chosen = np.random.default_rng(seed).integers(max(num_patients, 1), size=(num_resamples, num_patients))
    size = max(1, BLOCK_VALUES // max(len(patients) * width, 1))
    for block in (chosen[start : start + size] for start in range(0, num_resamples, size)):
        cells = block + num_patients * np.arange(len(block))[:, None]
        counts = np.bincount(cells.ravel(), minlength=len(block) * num_patients)
        yield np.take(counts.reshape(len(block), num_patients), patients, axis=1).astype(np.float64)
