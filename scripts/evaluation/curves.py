"""ROC and precision-recall curves of one head, as figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from scripts.evaluation.metrics import check_predictions
from scripts.heatmaps.images import class_colour

__all__ = ["MICRO", "draw_precision_recall", "draw_roc"]

Floats = NDArray[np.float64]

MICRO = "micro"
"""The curve of all slides and classes together, each slide and class as one decision."""


def draw_roc(probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str], title: str = "") -> Figure:
    """The ROC curve of each class, and of all together (:data:`MICRO`), with areas in the legend and chance dotted.

    A class that no slide or every slide has gets no curve; the legend says so.

    Args:
        probabilities: ``[n, K]`` within 0 to 1.
        labels: ``[n, K]``, 0 or 1.
        class_names: of the K classes.
        title: of the figure.

    Raises:
        ValueError: if the arrays or names do not fit, or the arrays contain other values.
    """

    def draw(axes: Axes, name: str, p: Floats, y: Floats, style: dict[str, Any]) -> None:
        false_positives, true_positives, _ = roc_curve(y, p, drop_intermediate=False)
        label = f"{name}, AUC {auc(false_positives, true_positives):.3f}"
        axes.plot(false_positives, true_positives, label=label, **style)

    figure, axes = _draw(draw, probabilities, labels, class_names, needs_negatives=True)
    axes.plot([0, 1], [0, 1], ":", color="0.5", label="chance, AUC 0.500")
    axes.set(xlabel="false positive rate (1 - specificity)", ylabel="true positive rate (sensitivity)")
    return _finished(figure, axes, title or "ROC")


def draw_precision_recall(
    probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str], title: str = ""
) -> Figure:
    """The precision-recall curves, with average precisions in the legend; arguments and errors as :func:`draw_roc`.

    Chance, dotted, is the fraction of slides that have the class. Only a class that no slide has gets no curve.
    """

    def draw(axes: Axes, name: str, p: Floats, y: Floats, style: dict[str, Any]) -> None:
        precision, recall, _ = precision_recall_curve(y, p)
        label = f"{name}, AP {average_precision_score(y, p):.3f} (chance {y.mean():.3f})"
        # Between two thresholds there is no precision to interpolate: the average precision is that of the steps.
        axes.plot(recall, precision, drawstyle="steps-post", label=label, **style)
        axes.axhline(y.mean(), linestyle=":", linewidth=1, color=style["color"])

    figure, axes = _draw(draw, probabilities, labels, class_names, needs_negatives=False)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (positive predictive value)")
    return _finished(figure, axes, title or "Precision and recall")


def _draw(
    draw: Callable[[Axes, str, Floats, Floats, dict[str, Any]], None],
    probabilities: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    needs_negatives: bool,
) -> tuple[Figure, Axes]:
    p, y = check_predictions(probabilities, labels, class_names=class_names)
    figure = Figure(figsize=(6.4, 6.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, of_class, truth, style in _curves(p, y, class_names):
        if not truth.any() or (truth.all() and needs_negatives):
            reason = "every slide has it" if truth.any() else "no slide has it"
            axes.plot([], [], label=f"{name}: undefined, {reason}", **style)
        else:
            draw(axes, name, of_class, truth, style)
    return figure, axes


def _curves(p: Floats, y: Floats, class_names: Sequence[str]) -> Iterator[tuple[str, Floats, Floats, dict[str, Any]]]:
    for k, name in enumerate(class_names):
        yield name, p[:, k], y[:, k], {"color": np.divide(class_colour(k), 255), "linewidth": 1.8}
    if len(class_names) > 1:
        yield MICRO, p.ravel(), y.ravel(), {"color": "black", "linewidth": 2.2, "linestyle": "--"}


def _finished(figure: Figure, axes: Axes, title: str) -> Figure:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure
