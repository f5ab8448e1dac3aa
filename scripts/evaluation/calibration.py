"""Whether the probabilities of one head are right: the reliability curve and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from scripts.evaluation.metrics import check_predictions

__all__ = ["NUM_BINS", "Reliability", "draw_calibration", "reliability"]

NUM_BINS = 10


@dataclass(frozen=True)
class Reliability:
    """The reliability curve: bins of equal width over the probabilities, in which predictions meet the labels.

    Args:
        counts: ``[bins]``, the number of decisions in each bin; a probability on an edge is in the lower bin.
        predicted: ``[bins]``, the mean probability in each bin; NaN in an empty one.
        observed: ``[bins]``, the fraction of positives in each bin; NaN in an empty one.
    """

    counts: NDArray[np.int64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]

    @property
    def expected_calibration_error(self) -> float:
        """The mean of ``|observed - predicted|`` over bins, weighted by their counts; within 0 to 1, 0 is best.

        Source: Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI
        2015. It is that of the probability of the positive outcome, not of the confidence in the predicted class
        (Guo et al., ICML 2017).
        """
        filled = self.counts > 0
        gap = np.abs(self.observed[filled] - self.predicted[filled])
        return float(np.average(gap, weights=self.counts[filled]))


def reliability(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> Reliability:
    """The reliability curve of one head; each slide and class is one decision.

    Args:
        probabilities: ``[n, K]`` within 0 to 1.
        labels: ``[n, K]``, 0 or 1.
        num_bins: bins of equal width from 0 to 1.

    Raises:
        ValueError: if the arrays do not fit, or contain other values.
    """
    p, y = (values.ravel() for values in check_predictions(probabilities, labels))
    of_bin = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], p)
    counts = np.bincount(of_bin, minlength=num_bins)
    predicted, observed = np.full((2, num_bins), np.nan)
    for mean, values in ((predicted, p), (observed, y)):
        np.divide(np.bincount(of_bin, values, num_bins), counts, out=mean, where=counts > 0)
    return Reliability(counts, predicted, observed)


def draw_calibration(probabilities: ArrayLike, labels: ArrayLike, title: str = "") -> Figure:
    """The reliability curve over the number of decisions in each bin; arguments and errors as :func:`reliability`."""
    found = reliability(probabilities, labels)
    figure = Figure(figsize=(6.4, 6.4), dpi=100, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    error = found.expected_calibration_error
    filled = found.counts > 0
    upper.plot([0, 1], [0, 1], ":", color="0.5", label="perfectly calibrated")
    label = f"observed; expected calibration error {error:.3f}"
    upper.plot(found.predicted[filled], found.observed[filled], "o-", color="tab:blue", label=label)
    upper.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="fraction of positives")
    upper.set_title(title or "Calibration", parse_math=False)
    upper.grid(alpha=0.25)
    edges = np.linspace(0, 1, len(found.counts) + 1)
    bars = lower.bar(edges[:-1], found.counts, np.diff(edges), align="edge", color="tab:blue", alpha=0.5)
    lower.bar_label(bars, fontsize=8)
    lower.set(xlabel="predicted probability", ylabel="slides and classes")
    lower.margins(y=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
