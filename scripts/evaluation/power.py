"""How many patients and trainings a comparison of two methods needs, from the spread of one that was made.

A difference between the mean scores of two methods, each trained r times and tested on n patients, varies with the
patients that were tested, with the seeds that were trained, and with both together: a training is luckier with some
patients than with others.

.. math:: Var = P / n + S / r + B / (n r)

The shares are those of :func:`difference_spread`. An interval is wider: the bootstrap that makes it
(:func:`scripts.evaluation.bootstrap.paired_difference`) counts the last term three times (Owen, Annals of Applied
Statistics 1(2):386-411, 2007), which is on the safe side, and so does :meth:`DifferenceSpread.half_width`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scripts.evaluation.bootstrap import FEWEST_PATIENTS, Patients, resampled_trainings

__all__ = ["DifferenceSpread", "difference_spread"]

# Half of the 95% interval of a normal distribution, in standard deviations.
HALF_95 = 1.959964
# How often the bootstrap counts what varies with patients and trainings together.
COUNTED = 3


@dataclass(frozen=True)
class DifferenceSpread:
    """The variance of a difference between two methods, in its parts.

    Args:
        num_patients: on which the methods were tested.
        num_trainings: of each method; of two numbers the smaller one.
        patients: P, the variance that one patient brings, in squares of the score.
        trainings: S, that one training of each method brings.
        both: B, that one patient and one training of each method bring together.
    """

    num_patients: int
    num_trainings: int
    patients: float
    trainings: float
    both: float

    @property
    def patients_sd(self) -> float:
        """Standard deviation of the difference between the means of the trainings, over which patients were tested."""
        return math.sqrt((self.patients + self.both / self.num_trainings) / self.num_patients)

    @property
    def trainings_sd(self) -> float:
        """Standard deviation of the difference between one training of each method, over which they are."""
        return math.sqrt(self.trainings + self.both / self.num_patients)

    def half_width(self, patients: int, trainings: int) -> float:
        """Half the width of the difference's 95% interval, in units of the score.

        Args:
            patients: n, as many as are tested.
            trainings: r, of each method.
        """
        variance = self.patients / patients + self.trainings / trainings + COUNTED * self.both / (patients * trainings)
        return HALF_95 * math.sqrt(variance)

    def needed(self, half_width: float) -> tuple[int, int]:
        """The fewest patients with which an interval is no wider, and the trainings of each method that go with them.

        With fewer than :data:`scripts.evaluation.bootstrap.FEWEST_PATIENTS` there is no interval.

        Trainings are as many as there were; or, where these alone would take more than half of the variance, as many
        as take half of it.

        Args:
            half_width: half the width of the 95% interval, in units of the score, above 0.
        """
        variance = (half_width / HALF_95) ** 2
        trainings = max(self.num_trainings, math.ceil(2 * self.trainings / variance))
        left = variance - self.trainings / trainings
        return max(FEWEST_PATIENTS, math.ceil((self.patients + COUNTED * self.both / trainings) / left)), trainings


def difference_spread(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    task: str,
    score: str,
    num_resamples: int = 2000,
    seed: int = 0,
    patients: Patients | None = None,
) -> DifferenceSpread | None:
    """The variance of the difference between two methods that were trained several times each, in its parts.

    The bootstrap over n patients gives the variance of the mean score, about (P + B / r) / n, and that of each training
    about the mean of all, of which B / n is made. What trainings differ by on the patients that there are is S + B / n.
    A part that comes out below 0 is 0.

    Args:
        first: ``[r1, n, K]`` probabilities of the first method's r1 trainings, within 0 to 1.
        second: ``[r2, n, K]`` of the second's.
        labels: ``[n, K]``, 0 or 1.
        task: one of :data:`scripts.core.tasks.TASKS`.
        score: one of :func:`scripts.evaluation.metrics.score_names`.
        num_resamples: see :mod:`scripts.evaluation.bootstrap`.
        seed: see :mod:`scripts.evaluation.bootstrap`.
        patients: see :mod:`scripts.evaluation.bootstrap`.

    Returns:
        The parts; ``None`` where patients are fewer than :data:`scripts.evaluation.bootstrap.FEWEST_PATIENTS`, a method
        was trained once, which shows nothing of how trainings vary, or the score is not defined.

    Raises:
        ValueError: if the arrays do not fit, or contain other values.
    """
    plain, resampled = resampled_trainings((first, second), labels, task, score, num_resamples, seed, patients)
    n, repeats = len(np.asarray(labels)) if patients is None else len(set(patients)), [len(scores) for scores in plain]
    known = ~np.isnan(np.concatenate(resampled, axis=1)).any(axis=1)
    if n < FEWEST_PATIENTS or min(repeats) < 2 or known.sum() < 2:
        return None
    resampled = [scores[known] for scores in resampled]
    both = [n * _about_mean(scores) for scores in resampled]
    of_means = float(np.var(resampled[0].mean(axis=1) - resampled[1].mean(axis=1), ddof=1))
    of_trainings = [float(np.var(scores, ddof=1)) - b / n for scores, b in zip(plain, both, strict=True)]
    of_patients = n * of_means - sum(b / r for b, r in zip(both, repeats, strict=True))
    return DifferenceSpread(
        num_patients=n,
        num_trainings=min(repeats),
        patients=max(0.0, of_patients),
        trainings=sum(max(0.0, variance) for variance in of_trainings),
        both=sum(both),
    )


def _about_mean(scores: NDArray[np.float64]) -> float:
    """The variance of a training's score over resamples ``[R, r]``, about the mean of the r trainings."""
    repeats = scores.shape[1]
    about = scores - scores.mean(axis=1, keepdims=True)  # [R, r]
    return float(np.var(about, axis=0, ddof=1).mean()) * repeats / (repeats - 1)
