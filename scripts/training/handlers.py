"""Ignite handlers of the training: kept weights, resuming, and what TensorBoard shows."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader, from_engine
from monai.utils import CommonKeys
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.bag import BagBuilder
from scripts.bags.linked_patches import linked_patches
from scripts.core.errors import SettingsError
from scripts.core.files import replacing
from scripts.core.ranks import is_first_rank
from scripts.core.sums import drop_sum
from scripts.datalists.labels import with_positive_classes
from scripts.networks.losses import head_losses
from scripts.networks.state_record import sign
from scripts.training.random_state import TrainingState
from scripts.weights.origin import training_of
from scripts.weights.paths import weights_path
from scripts.weights.record import UNREADABLE, read_training, unreadable_reason

__all__ = [
    "BestWeights",
    "LastCheckpoint",
    "LinkedPatchImages",
    "Resume",
    "SameSettings",
    "StopOnDivergence",
    "check_resumable",
    "training_scalars",
]

# What reading a checkpoint raises, but for what is caught apart from these: a misfit, and a value that does not fit.
DAMAGED = tuple(kind for kind in UNREADABLE if kind not in (RuntimeError, ValueError))

# An older checkpoint tells the path of the backbone's weights, which a newer one knows by their hash.
OUTDATED = ("backbone_weights",)

logger = logging.getLogger(__name__)


class BestWeights:
    """Keeps, for each output, the weights with the lowest validation loss of that output.

    The paper's scale rows come from the weights that are best for the scale, its global row from those that
    are best for the global output. Attach to the validation's evaluator, after its metrics. Of several ranks the first
    writes the files.

    Args:
        ckpt_dir: where the files of :func:`weights_path` are written.
        network: whose weights are kept, as a state dict.
        heads: the outputs' names, see :func:`scripts.networks.methods.trained_heads`; the evaluator's metric of an
            output is ``<head>_loss``.
        record: what the weights are trained with and on, see :func:`scripts.weights.record.read_record`; that of
            weights from which the training went on is added as ``pretrained``.
        made_by: what makes them, see :func:`scripts.core.provenance.made_by`.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: torch.nn.Module,
        heads: Sequence[str],
        record: Mapping[str, Any] | None = None,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        self.ckpt_dir, self.network = Path(ckpt_dir), network
        self.record, self.made_by = record, {} if made_by is None else {"made_by": made_by}
        self.losses = {head: float("inf") for head in heads}
        self.epochs = dict.fromkeys(self.losses, 0)
        self._evaluator: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Compare and save whenever a validation is complete."""
        self._evaluator = engine
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the weights for the outputs whose loss is the lowest so far, of those that were validated."""
        for head, lowest in self.losses.items():
            loss = float(engine.state.metrics.get(f"{head}_loss", float("inf")))
            if loss < lowest:
                self.losses[head], self.epochs[head] = loss, engine.state.epoch
                path = weights_path(self.ckpt_dir, head)
                if self.record is not None:
                    sign(self.network, self.record, {"best_for": head, "file": path.name, **self.made_by})
                if is_first_rank():
                    save_checkpoint(self.network.state_dict(), path)
        # What goes on from here is best for no output yet.
        if self.record is not None:
            sign(self.network, self.record, self.made_by)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The lowest losses so far and their epochs, for a training that is resumed."""
        return {"losses": dict(self.losses), "epochs": dict(self.epochs)}

    def load_state_dict(self, state_dict: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from the lowest losses of an earlier run, whose weights the network already has.

        Raises:
            SettingsError: if they are of other outputs, or the file of weights that was kept for one is gone, damaged,
                or of another training.
        """
        losses = state_dict["losses"]
        if losses.keys() != self.losses.keys():
            raise SettingsError(
                "resume",
                f"the checkpoint has the outputs {', '.join(losses)}, this training {', '.join(self.losses)}",
                "Set the `method` and `magnifications` that it was made with, or start anew.",
            )
        for head, epoch in state_dict["epochs"].items():
            path = weights_path(self.ckpt_dir, head)
            # The first rank alone needs to see the files.
            if not epoch or not is_first_rank():
                continue
            if not path.is_file():
                raise SettingsError(
                    path,
                    f"is gone: the checkpoint tells that the best weights for {head} so far, of epoch {epoch}, were "
                    "kept in it",
                    "Put it back beside the checkpoint, or start anew.",
                )
            network: Any = self.network
            told = self.record is not None and network.record  # Older ones tell nothing.
            if told and read_training(path) != training_of(network.record, network.origin):
                raise SettingsError(
                    path,
                    "is of another training than the checkpoint to go on from, which tells that its best weights for "
                    f"{head} were kept there",
                    "Put the right one back beside the checkpoint, or start anew.",
                )
        self.losses.update(losses)
        self.epochs.update(state_dict["epochs"])
        # Else MONAI's evaluator takes the first validation to come for the best.
        head = next(iter(self.losses))
        if self._evaluator is not None and self.epochs[head]:
            state: Any = self._evaluator.state
            state.best_metric, state.best_metric_epoch = self.losses[head], self.epochs[head]


class LastCheckpoint:
    """Writes everything that a training needs to go on, after each epoch; of several ranks the first does.

    Args:
        path: the checkpoint's file, replaced in one step.
        save_dict: objects with ``state_dict``, as for MONAI's CheckpointSaver; the trainer is added.
        made_by: what makes it, see :func:`scripts.core.provenance.made_by`; added as it is.
    """

    def __init__(
        self, path: str | Path, save_dict: Mapping[str, Any], made_by: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.save_dict, self.made_by = Path(path), save_dict, made_by

    def attach(self, engine: Engine) -> None:
        """Save after each epoch; attach after the validation, whose results belong in the checkpoint."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the checkpoint."""
        if not is_first_rank():
            return
        objects = {**self.save_dict, "trainer": engine, "training_state": TrainingState(engine)}
        content = {name: item.state_dict() for name, item in objects.items()}
        if self.made_by is not None:
            content["made_by"] = dict(self.made_by)
        save_checkpoint(content, self.path)


class SameSettings:
    """Keeps the settings of a training in its checkpoint, so that it goes on with these alone.

    What the checkpoint of an older version does not tell is not compared, but for a warning.

    Args:
        settings: knobs that decide what is trained, as plain values; not those that may change on the way. As ``data``
            what it is trained on, see :func:`scripts.core.provenance.cohort_fingerprint`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = json.loads(json.dumps(dict(settings)))

    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return dict(self.settings)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Compare them with those of the checkpoint.

        Raises:
            SettingsError: if they differ.
        """
        state_dict = with_positive_classes(state_dict)
        untold = sorted(key for key, value in self.settings.items() if value is not None and key not in state_dict)
        if untold:
            logger.warning("the checkpoint does not tell %s: whether it fits is not known", ", ".join(untold))
        told = {key: value for key, value in state_dict.items() if key not in OUTDATED}
        differs = [key for key in sorted(told) if self.settings.get(key) != told[key]]
        # Another task or split changes what is trained on as well, and says more.
        if differs != ["data"]:
            differs = [key for key in differs if key != "data"]
        if differs == ["data"]:
            raise SettingsError(
                "resume",
                f"the checkpoint is of a training on other slides or labels ({self._other_data(told['data'])})",
                "Give the datalist that it was begun with, or start anew.",
            )
        if differs:
            both = ", ".join(f"{key} {state_dict.get(key)!r}, now {self.settings.get(key)!r}" for key in differs[:3])
            raise SettingsError(
                "resume", f"the checkpoint is of a training with other settings ({both})", "Set them so, or start anew."
            )

    def _other_data(self, before: Mapping[str, Any]) -> str:
        return "; ".join(
            f"{name} on {_fingerprint(before.get(name))}, now {_fingerprint(now)}"
            for name, now in self.settings["data"].items()
            if now != before.get(name)
        )


def check_resumable(path: str | Path, settings: SameSettings) -> None:
    """Look whether a training can go on from a checkpoint, before anything is done for its epochs.

    Args:
        path: the checkpoint's file.
        settings: of the training that is to go on.

    Raises:
        SettingsError: if there is no checkpoint, it is damaged, or of a training with other settings.
    """
    path = Path(path)
    _look_for(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        cause = f"is damaged ({unreadable_reason(error)})"
        raise SettingsError(path, cause, "Delete it, and start anew.") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("settings"), Mapping):
        raise SettingsError(path, "is no checkpoint of a training: it tells no settings", "Start anew.")
    settings.load_state_dict(content["settings"])


class Resume(CheckpointLoader):
    """Goes on from a :class:`LastCheckpoint`, if asked to.

    Args:
        path: the checkpoint's file.
        load_dict: objects with ``load_state_dict``; the trainer is added.
        resume: whether to go on from it; otherwise the training starts anew.
    """

    def __init__(self, path: str | Path, load_dict: Mapping[str, Any], resume: bool) -> None:
        # MONAI types a dictionary and hands it to torch.load, which takes a device as well.
        super().__init__(str(path), dict(load_dict), map_location="cpu")  # type: ignore[arg-type]
        self.resume = resume

    def __call__(self, engine: Engine) -> None:
        """Restore every object.

        Raises:
            SettingsError: as :func:`check_resumable`, or if the checkpoint is ahead of the epochs asked for, or its
                epochs are of another length.
        """
        if not self.resume:
            return
        path = Path(self.load_path)
        _look_for(path)
        self.load_dict["trainer"] = engine
        max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
        try:
            super().__call__(engine)
            # An older checkpoint does not tell it.
            state = torch.load(path, map_location="cpu", weights_only=True).get("training_state")
            if state is not None:
                TrainingState(engine).load_state_dict(state)
        except DAMAGED as error:
            cause = f"is damaged ({unreadable_reason(error)})"
            raise SettingsError(path, cause, "Delete it, and start anew.") from error
        except RuntimeError as error:  # a misfit of weights, in many lines
            reason = " ".join(" ".join(str(error).splitlines()[:2]).split())
            raise SettingsError(
                path, f"does not fit this training ({reason})", "Use the settings that it was made with, or start anew."
            ) from error
        except ValueError as error:
            if max_epochs is not None and engine.state.epoch > max_epochs:
                raise SettingsError(
                    path, f"has {engine.state.epoch} epochs, asked for are {max_epochs}", "Raise `epochs`."
                ) from error
            raise SettingsError(path, f"is no checkpoint of this training ({error})", "Start anew.") from error
        engine.logger.info("going on after epoch %d", engine.state.epoch)
        if engine.state.epoch_length != epoch_length:
            raise SettingsError(
                path,
                f"has epochs of {engine.state.epoch_length} batches, now they have {epoch_length}",
                "Resume with the same datalist and `batch_size`, or start anew.",
            )


def _look_for(path: Path) -> None:
    if not path.is_file():
        raise SettingsError(path, "there is no checkpoint to resume from", "Run without `resume` first.")


def _fingerprint(partition: Any) -> str:
    if not isinstance(partition, Mapping):
        return "none"
    return f"{partition.get('slides')} slides with SHA-256 {str(partition.get('sha256'))[:12]}..."


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """``torch.save``, in one step and from the CPU, so that a machine without a GPU can load the file as it is.

    What takes the place of packed weights is no longer listed as one of these.
    """
    drop_sum(path)
    with replacing(path) as part:
        torch.save(_on_cpu(content), part)


def _on_cpu(content: Any) -> Any:
    """The same with every tensor on the CPU; the metadata of a state dict stays with it."""
    if isinstance(content, torch.Tensor):
        return content.cpu()
    if isinstance(content, dict):
        moved = copy.copy(content)  # unlike `dict.copy`, with its attributes
        moved.update((key, _on_cpu(value)) for key, value in content.items())
        return moved
    return type(content)(map(_on_cpu, content)) if isinstance(content, list | tuple) else content


def training_scalars(
    heads: Sequence[str], optimizer: torch.optim.Optimizer
) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]:
    """What TensorBoard shows of each iteration: the loss, that of each output, and the learning rate.

    Args:
        heads: the outputs' names.
        optimizer: whose learning rate is shown.

    Returns:
        an ``output_transform`` for MONAI's TensorBoardStatsHandler.
    """

    def transform(output: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        predictions = torch.stack([item[CommonKeys.PRED] for item in output])
        labels = torch.stack([item[CommonKeys.LABEL] for item in output])
        losses = zip(heads, head_losses(predictions, labels).tolist(), strict=True)
        return {
            "train/loss": float(output[0][CommonKeys.LOSS]),
            # An output that the phase does not train has no logits, and no loss.
            **{f"train/loss_{head}": value for head, value in losses if not math.isnan(value)},
            "train/learning_rate": float(optimizer.param_groups[0]["lr"]),
        }

    return transform


class StopOnDivergence:
    """Ends a training whose loss is no longer a number, before its weights are taken for a result."""

    def attach(self, engine: Engine) -> None:
        """Look at the loss of each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Look at the loss.

        Raises:
            SettingsError: if it is not finite.
        """
        loss = float(from_engine([CommonKeys.LOSS], first=True)(engine.state.output))
        if not math.isfinite(loss):
            slides = ", ".join(str(item["slide"]) for item in engine.state.batch)  # type: ignore[union-attr]
            raise SettingsError(
                "lr",
                f"the loss is {loss} in epoch {engine.state.epoch}, at {slides}",
                "Lower `lr`; if the loss is never a number, the features of that slide are none.",
            )


class LinkedPatchImages:
    """Shows, when a training starts, a few linked patches as images: what a row of a bag is.

    Args:
        summary_writer: the TensorBoard writer.
        data: entries of the datalist; the first slides are shown.
        bag_builder: makes a slide's bag.
        num_slides: how many slides.
        num_rows: how many rows of each, spread evenly over the bag.
    """

    def __init__(
        self,
        summary_writer: SummaryWriter,
        data: Sequence[Mapping[str, Any]],
        bag_builder: BagBuilder,
        num_slides: int = 3,
        num_rows: int = 4,
    ) -> None:
        self.summary_writer, self.bag_builder = summary_writer, bag_builder
        self.data, self.num_rows = data[:num_slides], num_rows

    def attach(self, engine: Engine) -> None:
        """Write the images once, when the training starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the images."""
        for entry in self.data:
            image = linked_patches(self.bag_builder(entry), self.num_rows)
            self.summary_writer.add_image(f"linked patches/{entry['slide']}", image, 0, dataformats="HWC")
        self.summary_writer.flush()
