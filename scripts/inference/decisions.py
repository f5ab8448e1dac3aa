"""From logits to calibrated probabilities and the thresholds of decisions."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.core.tasks import get_task
from scripts.weights.operating_point import operating_point_of

__all__ = ["Decided"]

logger = logging.getLogger(__name__)


class Decided(MapTransform):
    """Adds to the logits ``[H, L]`` of a slide what the operating point of their weights makes of them.

    ``calibrated`` float64 ``[H, K]``, the calibrated probabilities, and, where the task has some, ``threshold`` float64
    ``[H, K]``, from which on they are positive decisions. Nothing, and a warning once, where the weights have no
    operating point: those of version 0.3, of a training without validation, or TorchScript.

    Args:
        keys: the key of the logits.
        network: whose logits they are; it may load its weights later.
        heads: the H heads' names.
        class_names: the K classes' names.
        task: one of :data:`scripts.core.tasks.TASKS`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: torch.nn.Module,
        heads: Sequence[str],
        class_names: Sequence[str],
        task: str = "multilabel",
    ) -> None:
        super().__init__(keys)
        self.task = get_task(task)
        self.network, self.heads, self.class_names = network, list(heads), list(class_names)
        self._told = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add both."""
        decided = dict(data)
        point = operating_point_of(self.network, self.heads, self.class_names, self.task.name)
        if point is None:
            if not self._told:
                rule = self.task.decision if self.task.is_exclusive else "decisions are at 0.5"
                logger.warning("the weights have no operating point: probabilities are not calibrated, %s", rule)
            self._told = True
            return decided
        for key in self.key_iterator(decided):
            logits = torch.as_tensor(decided[key]).float().cpu().numpy()
            decided["calibrated"] = torch.from_numpy(point.calibrated(logits))
            if point.threshold is not None:
                decided["threshold"] = torch.from_numpy(point.threshold.copy())
        return decided
