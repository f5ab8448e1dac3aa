"""From logits to calibrated probabilities and the thresholds of decisions."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.core.tasks import get_task
from scripts.inference.inferers import TrainedInferer
from scripts.weights.doubts import doubt_of_head
from scripts.weights.operating_point import OPERATING_POINT, members_of, operating_point_of

__all__ = ["Decided"]

logger = logging.getLogger(__name__)


class Decided(MapTransform):
    """Adds to the logits ``[H, L]`` of a slide what the operating point of their weights makes of them.

    ``calibrated`` float64 ``[H, K]``, the calibrated probabilities, ``decision`` bool ``[H, K]``, what they decide,
    and, where the task has some, ``threshold`` float64 ``[H, K]``, from which on they are positive. None of these where
    the weights have no operating point: those of version 0.3, of a training without validation, or TorchScript. Of an
    ensemble also ``spread`` float64 ``[H, K]``, which its inferer appended to the logits
    (:meth:`scripts.networks.ensemble.Ensemble.with_spread`). Weights without an operating point are warned of
    once, as is each head whose scores may mean nothing (:mod:`scripts.weights.doubts`).

    Of a request of MONAI Label they are also in ``latencies``, as plain values by head and class under
    ``operating_point``: of all that a bundle's transforms leave, its stock app sends a client scores and these alone.

    Args:
        keys: the key of the logits.
        network: whose logits they are, or the inferer that ran it; it may load its weights later.
        heads: the H heads' names.
        class_names: the K classes' names.
        task: one of :data:`scripts.core.tasks.TASKS`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        network: torch.nn.Module | TrainedInferer,
        heads: Sequence[str],
        class_names: Sequence[str],
        task: str = "multilabel",
    ) -> None:
        super().__init__(keys)
        self.task = get_task(task)
        self.network, self.heads, self.class_names = network, list(heads), list(class_names)
        self._warned_of: list[Any] | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add them."""
        decided, added = dict(data), dict[str, torch.Tensor]()
        point = operating_point_of(self.network, self.heads, self.class_names, self.task.name)
        self._warn(point is not None)
        num_logits = self.task.num_logits(len(self.class_names))
        for key in self.key_iterator(decided):
            of_heads = torch.as_tensor(decided[key])
            if of_heads.shape[1] > num_logits:
                decided[key], spread = of_heads[:, :num_logits], of_heads[:, num_logits:]
                added["spread"] = spread.double().cpu()
            if point is not None:
                calibrated = point.calibrated(torch.as_tensor(decided[key]).float().cpu().numpy())
                arrays = {"calibrated": calibrated, "threshold": point.threshold, "decision": point.decided(calibrated)}
                added |= {name: torch.tensor(array) for name, array in arrays.items() if array is not None}
        if point is not None and "image_path" in decided:  # as in every request of MONAI Label
            decided["latencies"] = {**(decided.get("latencies") or {}), OPERATING_POINT: self._plain(added)}
        decided.update(added)
        return decided

    def _warn(self, has_point: bool) -> None:
        """Warn once of what a user should know of the weights; a server may load others."""
        members = members_of(self.network, self.heads)
        origins = [getattr(member, "origin", {}) for member in members]
        if origins == self._warned_of:
            return
        self._warned_of = origins
        if not has_point:
            rule = self.task.decision if self.task.is_exclusive else "decisions are at 0.5"
            logger.warning("the weights have no operating point: probabilities are not calibrated, %s", rule)
        for head, origin in zip(self.heads, origins, strict=True):
            if (doubt := doubt_of_head(origin, head)) is not None:
                logger.warning("what is predicted by the head %s may mean nothing: %s", head, doubt)

    def _plain(self, added: Mapping[str, torch.Tensor]) -> dict[str, dict[str, dict[str, Any]]]:
        """What is added, by head and class."""
        return {
            head: {
                name: {key: tensor[h, k].item() for key, tensor in added.items()}
                for k, name in enumerate(self.class_names)
            }
            for h, head in enumerate(self.heads)
        }
