"""Finds the operating point of the weights that a training keeps, from what it trains and validates on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from numpy.typing import NDArray
from torch import Tensor

from scripts.core.shards import dataset_size, gather_shards
from scripts.core.tasks import get_task
from scripts.datalists.classes import balanced_weights
from scripts.datalists.units import SLIDE
from scripts.weights.calibration import prior_shift
from scripts.weights.operating_point import find_points, point_text, points_warning

__all__ = ["OperatingPoints"]

logger = logging.getLogger(__name__)


class OperatingPoints:
    """Keeps a validation's logits, and finds the operating point of the heads from them.

    Attach to the validation's evaluator before :class:`scripts.training.best_weights.BestWeights`, which stores the
    points with the weights that they are of. Test slides have no part in it.

    Args:
        heads: the H heads' names.
        class_names: the K classes' names.
        data: the entries of the bags that are trained on, with ``label``.
        prior_correction: whether the balanced draws are taken back; see
            :func:`scripts.weights.calibration.prior_shift`.
        calibration: see :func:`scripts.weights.operating_point.find_points`.
        threshold: see :func:`scripts.weights.thresholds.choose_threshold`.
        task: one of :data:`scripts.core.tasks.TASKS`.
        unit: what a bag is: ``"slide"`` or ``"patient"``.
        shift: ``[K]``, the correction of the prior, if it is known, in place of ``data`` and ``prior_correction``.
    """

    def __init__(
        self,
        heads: Sequence[str],
        class_names: Sequence[str],
        data: Sequence[Mapping[str, Any]] = (),
        prior_correction: bool = True,
        calibration: str = "temperature",
        threshold: float | str = 0.5,
        task: str = "multilabel",
        unit: str = SLIDE,
        shift: NDArray[np.float64] | None = None,
    ) -> None:
        self.heads, self.class_names = list(heads), list(class_names)
        self.calibration, self.threshold, self.task, self.unit = calibration, threshold, task, unit
        if shift is None:
            labels = np.stack([np.asarray(entry[CommonKeys.LABEL]) for entry in data])
            is_exclusive = get_task(task).is_exclusive
            shift = prior_shift(labels, balanced_weights(labels), is_exclusive) * prior_correction
        self.shift = shift
        self._clear()

    def attach(self, engine: Engine) -> None:
        """Collect every iteration of each validation."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._gather)

    def _clear(self) -> None:
        self.slides: list[tuple[Tensor, Tensor]] = []

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for one in output:
            self.slides.append((one[CommonKeys.PRED].float().cpu(), one[CommonKeys.LABEL].float().cpu()))

    def _gather(self, engine: Engine) -> None:
        self.slides = gather_shards(self.slides, dataset_size(engine))

    def find(self) -> dict[str, dict[str, Any]]:
        """The points of the last validation, by head; see :func:`scripts.weights.operating_point.find_points`."""
        logits, labels = (torch.stack(column).numpy() for column in zip(*self.slides, strict=True))
        rules = self.shift, self.calibration, self.threshold, self.task
        return find_points(logits, labels, self.heads, self.class_names, *rules)

    def log(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Log what was found: nothing of it happens in silence."""
        shifts = ", ".join(f"{name} {shift:+.2f}" for name, shift in zip(self.class_names, self.shift, strict=True))
        logger.info("correction of the prior, in logits: %s", shifts if np.any(self.shift) else "none")
        for head, point in points.items():
            given = head, point["slides"], self.unit, point_text(point)
            logger.info("operating point of head %s on %d validation %ss: %s", *given)
        if (text := points_warning(points, self.unit)) is not None:
            logger.warning("%s", text)
