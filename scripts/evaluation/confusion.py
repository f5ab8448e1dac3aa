"""What one head confuses: counts of right and wrong decisions, and classes taken for each other, as figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from scripts.core.tasks import THRESHOLD, get_task
from scripts.evaluation.metrics import check_predictions

__all__ = ["class_confusion", "decision_counts", "draw_confusion"]

MOST_IN_A_ROW = 5


def decision_counts(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """For each class ``[K, 2, 2]`` the numbers of slides: by label (rows: without, with) and decision (columns).

    Args:
        probabilities: ``[n, K]`` within 0 to 1, of which :data:`scripts.core.tasks.THRESHOLD` or more is a positive
            decision; or decisions.
        labels: ``[n, K]``, 0 or 1.

    Raises:
        ValueError: if the arrays do not fit, or contain other values.
    """
    p, y = check_predictions(probabilities, labels)
    found = [multilabel_confusion_matrix(y[:, k], p[:, k] >= THRESHOLD, labels=[1])[0] for k in range(y.shape[1])]
    return np.stack(found)


def class_confusion(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """Of the slides with exactly one class, how many have which (rows) and get which as most probable: ``[K, K]``.

    Args:
        probabilities: ``[n, K]`` within 0 to 1; or decisions for one class each.
        labels: ``[n, K]``, 0 or 1.

    Raises:
        ValueError: if the arrays do not fit, or contain other values.
    """
    p, y = check_predictions(probabilities, labels)
    single = y.sum(axis=1) == 1
    if not single.any():
        return np.zeros((y.shape[1],) * 2, dtype=np.int64)
    return np.asarray(
        confusion_matrix(y[single].argmax(axis=1), p[single].argmax(axis=1), labels=range(y.shape[1])), np.int64
    )


def draw_confusion(
    probabilities: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    title: str = "",
    task: str = "multilabel",
) -> Figure:
    """The counts of each class, and of several classes also which is taken for which; errors as for the counts.

    Args:
        probabilities: ``[n, K]`` within 0 to 1.
        labels: ``[n, K]``, 0 or 1.
        class_names: of the K classes.
        title: of the figure.
        task: one of :data:`scripts.core.tasks.TASKS`, which says what is decided.

    Raises:
        ValueError: if the arrays or names do not fit, or the arrays contain other values.
    """
    p, _ = check_predictions(probabilities, labels, class_names=class_names)
    kind = get_task(task)
    decided = kind.decided(p)
    counts = decision_counts(decided, labels)
    columns = min(len(class_names), MOST_IN_A_ROW)
    num_rows = -(-len(class_names) // columns)
    several = len(class_names) > 1
    side = 0.55 * len(class_names) + 2.4 if several else 0.0
    figure = Figure(figsize=(max(2.3 * columns, 4.2, 1.4 * side), 2.5 * num_rows + 0.6 + side), dpi=100)
    figure.set_layout_engine("constrained")
    figure.suptitle(title or "Confusion", parse_math=False)
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.5 * num_rows, side)) if several else [figure]
    grid = parts[0].subplots(num_rows, columns, squeeze=False).ravel()
    for axes in grid[len(class_names) :]:
        axes.set_visible(False)
    for axes, name, of_class in zip(grid, class_names, counts, strict=False):
        _draw_counts(axes, of_class, ["no", "yes"])
        axes.set_title(name, fontsize=10, parse_math=False)
        axes.set(xlabel="predicted", ylabel="label")
    if several:
        single = class_confusion(decided if kind.is_exclusive else p, labels)
        axes = parts[1].subplots()
        _draw_counts(axes, single, class_names)
        axes.set_title(f"slides with one class ({single.sum()})", fontsize=10)
        axes.set(xlabel="decision" if kind.is_exclusive else "most probable class", ylabel="label")
        axes.tick_params(axis="x", rotation=30)
    return figure


def _draw_counts(axes: Axes, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """Draw counts whose shade is their fraction of the row: a rare class is as visible as a frequent one."""
    fraction = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if fraction[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=11)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, fontsize=9, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=9, parse_math=False)
