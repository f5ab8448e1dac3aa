"""The figures of one head: its curves, its confusion and its calibration, for TensorBoard and the report alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from scripts.core.tasks import get_task
from scripts.evaluation.calibration import draw_calibration
from scripts.evaluation.confusion import draw_confusion
from scripts.evaluation.curves import draw_precision_recall, draw_roc

__all__ = ["HeadFigure", "head_figures"]


class HeadFigure(NamedTuple):
    """A figure, its name, and what it shows in words."""

    name: str
    text: str
    figure: Figure


def head_figures(
    head: str, probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str], task: str = "multilabel"
) -> list[HeadFigure]:
    """The figures of a head. Their parts are in place: drawn again, in another format, they are not laid out anew.

    Args:
        head: its name.
        probabilities: ``[n, K]`` within 0 to 1.
        labels: ``[n, K]``, 0 or 1.
        class_names: of the K classes.
        task: one of :data:`scripts.core.tasks.TASKS`, which says what is decided.

    Raises:
        ValueError: if the arrays or names do not fit, or the arrays contain other values.
    """
    p, y, kind = probabilities, labels, get_task(task)
    rule = kind.decision if kind.is_exclusive else "a probability of 0.5"
    figures = [
        HeadFigure("roc", f"ROC curves of the head {head}", draw_roc(p, y, class_names, f"{head}: ROC")),
        HeadFigure(
            "precision_recall",
            f"Precision-recall curves of the head {head}",
            draw_precision_recall(p, y, class_names, f"{head}: precision and recall"),
        ),
        HeadFigure(
            "confusion",
            f"Confusion of the head {head}, at {rule}",
            draw_confusion(p, y, class_names, f"{head}: confusion", task),
        ),
        HeadFigure("calibration", f"Calibration of the head {head}", draw_calibration(p, y, f"{head}: calibration")),
    ]
    for _, _, figure in figures:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figures
