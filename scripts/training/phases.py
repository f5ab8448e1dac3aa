"""The phases of a training: which heads are trained when, how long each took, and what came of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts.core.errors import SettingsError
from scripts.core.files import write_json
from scripts.core.ranks import is_first_rank, wait_for_ranks
from scripts.networks.bag_network import BagNetwork
from scripts.training.best_weights import BestWeights
from scripts.training.warnings_of_training import warn_of_doubts, warn_of_untrained, warn_of_unused
from scripts.weights.checkpoints import load_weights
from scripts.weights.paths import weights_path

__all__ = ["PhaseHandler", "PhaseScores", "TrainingPhases"]


class TrainingPhases:
    """Leads a network through the phases of its training, each as many epochs long.

    When a phase ends, the best weights of its heads are taken, so that what follows builds on them and the last file
    that is kept has the best of all. Attach to the trainer after the validation and before the checkpoint: an epoch's
    time covers both training and validation.

    When the training is complete it writes ``training.json``: for each phase its heads, epochs, seconds and number of
    trained weights, and for each head its lowest validation loss and the epoch of it, counted from the start of its
    phase.

    Args:
        network: the network that is trained.
        heads: the names of its heads.
        epochs: of each phase.
        best_weights: keeps the best weights of each head.
        path: of ``training.json``.
        settings: what else is written into it, for example the method and the seed.
        val_interval: epochs from one validation to the next.
        made_by: what makes it, see :func:`scripts.core.provenance.made_by`; written into it, too.

    Raises:
        SettingsError: if a phase would end without a validation, which is what keeps weights.
    """

    def __init__(
        self,
        network: BagNetwork,
        heads: Sequence[str],
        epochs: int,
        best_weights: BestWeights,
        path: str | Path,
        settings: Mapping[str, Any] | None = None,
        val_interval: int = 1,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        if val_interval > epochs:
            cause = f"is {val_interval}: no weights are kept, as {epochs} epochs would end without a validation"
            raise SettingsError("val_interval", cause, f"Set it to {epochs} or less, or raise `epochs`.")
        if is_first_rank():
            warn_of_untrained(settings or {})
            warn_of_unused(settings or {})
        self.network, self.heads, self.epochs = network, list(heads), epochs
        self.best_weights, self.path, self.settings = best_weights, Path(path), dict(settings or {})
        self.made_by = {} if made_by is None else {"made_by": dict(made_by)}
        self.seconds = [0.0] * len(network.phases)
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        """Start a phase when its first epoch starts, or the training is resumed within it."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _start_epoch(self, engine: Engine) -> None:
        self._started = time.perf_counter()
        phase, epoch = self._phase_and_epoch(engine.state.epoch)
        # A resumed training goes on within a phase, with the weights of its checkpoint.
        if epoch == 0 and phase > 0:
            # The first rank writes the weights that all take.
            wait_for_ranks()
            for head in self._names(phase - 1):
                self._take_best(head)
        if phase != self.network.phase:
            self.network.start_phase(phase)
            if len(self.seconds) > 1:
                names = ", ".join(self._names(phase))
                engine.logger.info("phase %d of %d: training the head %s", phase + 1, len(self.seconds), names)

    def _end_epoch(self, engine: Engine) -> None:
        self.seconds[self._phase_and_epoch(engine.state.epoch)[0]] += time.perf_counter() - self._started

    def _end(self, engine: Engine) -> None:
        phases = []
        for phase, seconds in enumerate(self.seconds):
            self.network.start_phase(phase)
            trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
            is_last = phase == len(self.seconds) - 1
            epochs = engine.state.epoch - phase * self.epochs if is_last else self.epochs
            phases.append({"heads": self._names(phase), "epochs": epochs, "seconds": seconds, "parameters": trained})
        self.network.start_phase(None)
        if not is_first_rank():
            return
        kept = self.best_weights
        best = {
            head: {
                "validation_loss": loss,
                "epoch": self._phase_and_epoch(kept.epochs[head])[1] + 1,
                "weights": weights_path(kept.ckpt_dir, head).name,
            }
            for head, loss in kept.losses.items()
        }
        write_json(self.path, {**self.settings, "phases": phases, "best": best, **self.made_by})
        engine.logger.info("the best weights of each head are in %s", kept.ckpt_dir)
        if kept.operating_points is not None:
            kept.operating_points.log(kept.points)
            warn_of_doubts(kept.points, self.settings)

    def _phase_and_epoch(self, epoch: int) -> tuple[int, int]:
        """The phase of an epoch, which counts from 1, and the epochs before it in that phase."""
        # Epochs that do not divide among the phases go to the last.
        phase = min((epoch - 1) // self.epochs, len(self.seconds) - 1)
        return phase, epoch - 1 - phase * self.epochs

    def _names(self, phase: int) -> list[str]:
        return [self.heads[head] for head in self.network.phases[phase]]

    def _take_best(self, head: str) -> None:
        if not math.isfinite(self.best_weights.losses[head]):
            raise SettingsError(head, "its validation loss was never a number", "Lower `lr`, and start anew.")
        load_weights(self.network, weights_path(self.best_weights.ckpt_dir, head))

    def state_dict(self) -> dict[str, Any]:
        """The time of each phase so far, for a training that is resumed."""
        return {"seconds": list(self.seconds), "epochs": self.epochs}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the times of an earlier run; a :class:`SettingsError` if its phases had another length."""
        if len(self.seconds) > 1 and state_dict["epochs"] != self.epochs:
            raise SettingsError(
                "resume",
                f"the checkpoint has phases of {state_dict['epochs']} epochs, this training phases of {self.epochs}",
                "Set `epochs` as it was, or start anew.",
            )
        self.seconds = list(state_dict["seconds"])


class PhaseHandler:
    """Attaches the phases of a training to its trainer.

    MONAI Label adds to a list of handlers in which each is a component of its own, and none a reference.

    Args:
        phases: what to attach.
    """

    def __init__(self, phases: TrainingPhases) -> None:
        self.attach = phases.attach


class PhaseScores:
    """Removes the scores of heads that the phase does not train from a validation's metrics: they have none.

    Attach to the validation's evaluator before everything that reads its metrics.

    Args:
        network: the network that is trained.
        heads: the names of its heads; a metric's name starts with that of its head.
    """

    def __init__(self, network: BagNetwork, heads: Sequence[str]) -> None:
        self.network, self.heads = network, list(heads)

    def attach(self, engine: Engine) -> None:
        """Do it when a validation is complete."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Remove them."""
        trained = self.network.phases[max(self.network.phase, 0)]
        others = tuple(f"{head}_" for index, head in enumerate(self.heads) if index not in trained)
        for name in [name for name in engine.state.metrics if name.startswith(others)]:
            del engine.state.metrics[name]
