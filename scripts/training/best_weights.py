"""The best weights of each head, kept while a network is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.core.errors import SettingsError
from scripts.core.ranks import is_first_rank
from scripts.networks.state_record import sign
from scripts.training.operating_points import OperatingPoints
from scripts.weights.checkpoints import save_checkpoint
from scripts.weights.operating_point import OPERATING_POINT
from scripts.weights.paths import weights_path
from scripts.weights.record import read_training, training_of

__all__ = ["BestWeights"]


class BestWeights:
    """Keeps, for each head, the weights with the lowest validation loss of that head.

    The paper's scale rows come from the weights that are best for the scale, its global row from those that are best
    for the global head. Attach to the validation's evaluator, after its metrics. The first rank writes the files.

    Args:
        ckpt_dir: where the files of :func:`weights_path` are written.
        network: whose state dict is kept.
        heads: the heads' names; the evaluator's metric of a head is ``<head>_loss``.
        record: what the weights are trained with and on, see :func:`scripts.weights.record.read_record`; that of
            weights from which the training went on is added as ``pretrained``.
        made_by: what makes them, see :func:`scripts.core.provenance.made_by`.
        operating_points: finds the operating point that is stored with them; it comes before this among the handlers.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: torch.nn.Module,
        heads: Sequence[str],
        record: Mapping[str, Any] | None = None,
        made_by: Mapping[str, Any] | None = None,
        operating_points: OperatingPoints | None = None,
    ) -> None:
        self.ckpt_dir, self.network = Path(ckpt_dir), network
        self.operating_points, self.points = operating_points, dict[str, Any]()
        self.record, self.origin = record, {} if made_by is None else {"made_by": made_by}
        self.losses = dict.fromkeys(heads, float("inf"))
        self.epochs = dict.fromkeys(heads, 0)
        self._evaluator: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Compare and save whenever a validation is complete.

        Raises:
            SettingsError: if the folder has weights of another training, which this one would not replace.
        """
        own = {weights_path(self.ckpt_dir, head) for head in self.losses}
        if is_first_rank() and (others := sorted({*self.ckpt_dir.glob("model*.pt")} - own)):
            cause = "is of another training, which this one would not replace"
            raise SettingsError(others[0], cause, "Give another `ckpt_dir`, or delete the file.")
        self._evaluator = engine
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the weights for the heads whose loss is the lowest so far, of those that were validated."""
        found: dict[str, Any] = {}
        for head, lowest in self.losses.items():
            loss = float(engine.state.metrics.get(f"{head}_loss", float("inf")))
            if loss < lowest:
                if self.operating_points is not None and not found:
                    found = self.operating_points.find()
                self.losses[head], self.epochs[head] = loss, engine.state.epoch
                # Of heads that this phase does not train, the network has their best weights, and these their points.
                points = {**self.points, **found}
                self._sign({"best_for": head, **({OPERATING_POINT: points} if points else {}), **self.origin})
                if is_first_rank():
                    save_checkpoint(self.network.state_dict(), weights_path(self.ckpt_dir, head))
        self.points |= {head: point for head, point in found.items() if self.epochs[head] == engine.state.epoch}
        # The weights of the next epochs are best for no head yet.
        self._sign(self.origin)

    def _sign(self, origin: Mapping[str, Any]) -> None:
        if self.record is not None:
            sign(self.network, self.record, origin)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The lowest losses so far, their epochs and operating points, for a training that is resumed."""
        return {"losses": dict(self.losses), "epochs": dict(self.epochs), "points": dict(self.points)}

    def load_state_dict(self, state_dict: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from the lowest losses of an earlier run, whose weights the network already has.

        Raises:
            SettingsError: if the file of weights that was kept for a head is gone, damaged, or of another training.
        """
        network: Any = self.network
        for head, epoch in state_dict["epochs"].items():
            path = weights_path(self.ckpt_dir, head)
            # Only the first rank needs to see the files.
            if not epoch or not is_first_rank():
                continue
            if not path.is_file():
                raise SettingsError(
                    path,
                    f"is gone: by the checkpoint, it contains the best weights for {head} so far, of epoch {epoch}",
                    "Put it back beside the checkpoint, or start anew.",
                )
            # Older files have no record.
            has_record = self.record is not None and network.record
            if has_record and read_training(path) != training_of(network.record, network.origin):
                raise SettingsError(
                    path,
                    f"is of another training than the checkpoint to go on from, which kept its best for {head} there",
                    "Put the right one back beside the checkpoint, or start anew.",
                )
        self.losses.update(state_dict["losses"])
        self.epochs.update(state_dict["epochs"])
        # Nothing up to version 0.4.0.
        self.points.update(state_dict.get("points", {}))
        # Else MONAI's evaluator takes the first validation to come for the best.
        head = next(iter(self.losses))
        if self._evaluator is not None and self.epochs[head]:
            state: Any = self._evaluator.state
            state.best_metric, state.best_metric_epoch = self.losses[head], self.epochs[head]
