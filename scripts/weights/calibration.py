"""From logits to probabilities that are right: the shift of the prior, temperature and Platt's line.

Balanced draws show a network rare classes more often than a cohort has them, and its probabilities follow the draws.
The first step takes that back, from what the draws are; the second fits what is left, to the validation slides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, logit

__all__ = ["FEWEST_SLIDES", "fit_platt", "fit_temperature", "prior_shift"]

Floats = NDArray[np.float64]

FEWEST_SLIDES = 10
"""Slides with a class, and without it, that a line or a threshold of its own needs: ten events for each value that is
fitted, after Peduzzi et al., Journal of Clinical Epidemiology 49(12):1373-1379, 1996."""

# Of few slides that are all right, the best temperature would be 0; of noise, infinite.
TEMPERATURES = (0.05, 20.0)


def prior_shift(labels: ArrayLike, weights: ArrayLike, is_exclusive: bool = False) -> Floats:
    """What to add to each class's logit so that it holds for slides as they are, and not as they are drawn.

    With the frequency f of a class among the slides, and g among the draws, it is logit(f) - logit(g): Elkan, "The
    Foundations of Cost-Sensitive Learning", IJCAI 2001, theorem 2; Saerens, Latinne and Decaestecker, Neural
    Computation 14(1):21-41, 2002, equation 2.4. It is exact where a slide's chance to be drawn depends on this class
    alone, as in the binary task; with several classes a slide, it is an approximation. Where each slide has exactly one
    class, whose logits are those of a softmax, it is log(f) - log(g), and exact (Saerens et al., equation 2.4).

    Args:
        labels: ``[n, K]``, 0 or 1, of the slides that are drawn from.
        weights: ``[n]``, the chance of each to be drawn, summing to 1.
        is_exclusive: whether each slide has exactly one class.

    Returns:
        ``[K]``; 0 for a class that every slide has, or none.
    """
    y, chance = np.asarray(labels, np.float64), np.asarray(weights, np.float64)
    own = y.mean(axis=0)
    known = (own > 0) & (own < 1)
    drawn = np.where(known, chance @ y, 0.5)
    if is_exclusive:
        return np.where(known, np.log(np.where(known, own, 0.5)) - np.log(drawn), 0.0)
    return np.where(known, logit(np.where(known, own, 0.5)) - logit(drawn), 0.0)


def fit_temperature(logits: ArrayLike, labels: ArrayLike, is_softmax: bool = False) -> float:
    """The temperature T by which logits are divided so that their probabilities fit the labels best.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; with the targets of :func:`fit_platt`,
    which keep a few slides that are all right from making it 0. Of a softmax over K classes, the target of a slide's
    own class is (N + 1) / (N + K), N being the slides of that class, and of each other one 1 / (N + K): with two
    classes, Platt's.

    Args:
        logits: of any shape; of a softmax ``[n, K]``.
        labels: of the same shape, 0 or 1; of a softmax one 1 for each slide.
        is_softmax: whether the probabilities are a softmax, and not each a sigmoid.

    Returns:
        Within :data:`TEMPERATURES`.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    low, high = np.log(TEMPERATURES)
    if is_softmax:
        of_own = y @ y.sum(axis=0)  # [n]: N of each slide's class
        targets = (y * of_own[:, None] + 1) / (of_own[:, None] + y.shape[1])

        def loss(t: float) -> float:
            return -float(np.mean((targets * log_softmax(z / np.exp(t), axis=1)).sum(axis=1)))
    else:
        z, y = z.ravel(), y.ravel()
        targets = _targets(y)

        def loss(t: float) -> float:
            return _cross_entropy(z / np.exp(t), targets)

    found = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return float(np.exp(found.x))


def fit_platt(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Slope and intercept of the line that takes the logits of one class to those that fit the labels best.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines", Advances in Large Margin Classifiers, 1999,
    with its targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2) in place of 1 and 0. A slope is never negative: calibration
    does not turn the order of slides around.

    Args:
        logits: ``[n]``.
        labels: ``[n]``, 0 or 1.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    targets = _targets(y)

    def loss(line: Floats) -> tuple[float, Floats]:
        u = line[0] * z + line[1]
        wrong = (expit(u) - targets) / len(z)
        return _cross_entropy(u, targets), np.array([wrong @ z, wrong.sum()])

    start = np.array([1.0, 0.0])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)])
    return float(found.x[0]), float(found.x[1])


def _targets(y: Floats) -> Floats:
    positives = y.sum()
    return np.where(y > 0.5, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))


def _cross_entropy(z: Floats, targets: Floats) -> float:
    return float(np.mean(np.logaddexp(0, z) - targets * z))
