"""The checkpoint of a training, and going on from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from scripts.core.errors import BundleError, SettingsError, unreadable_reason
from scripts.core.ranks import is_first_rank
from scripts.core.settings import LATER, is_same_value
from scripts.datalists.labels import with_positive_classes
from scripts.training.random_state import TrainingState
from scripts.weights.checkpoints import save_checkpoint

__all__ = ["LastCheckpoint", "Resume", "SameSettings", "check_resumable", "pretrained_sha256_of"]

# The path of the backbone's weights in an older checkpoint, which a newer one knows by their checksum.
OUTDATED = ("backbone_weights",)

logger = logging.getLogger(__name__)


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
        self.path, self.save_dict = Path(path), save_dict
        self.made_by = {} if made_by is None else {"made_by": dict(made_by)}

    def attach(self, engine: Engine) -> None:
        """Save after each epoch; attach after the validation, whose results belong in the checkpoint."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the checkpoint."""
        if is_first_rank():
            objects = {**self.save_dict, "trainer": engine, "training_state": TrainingState(engine)}
            save_checkpoint({name: item.state_dict() for name, item in objects.items()} | self.made_by, self.path)


class SameSettings:
    """Keeps the settings of a training in its checkpoint, so that it goes on with these alone.

    What the checkpoint of an older version lacks is not compared, but for a warning.

    Args:
        settings: those that decide what is trained, as plain values; not those that may change on the way. As ``data``
            what it is trained on, see :func:`scripts.core.provenance.cohort_fingerprint`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = json.loads(json.dumps(dict(settings)))

    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return dict(self.settings)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raise a :class:`SettingsError` if those of the checkpoint differ."""
        later = {key: value for key, value in LATER.items() if key in self.settings}
        before = {**later, **with_positive_classes(state_dict)}
        lacks = sorted(key for key, value in self.settings.items() if value is not None and key not in before)
        if lacks:
            logger.warning("the checkpoint does not contain %s: whether it fits is not known", ", ".join(lacks))
        differs = [
            key
            for key in sorted(before.keys() - {*OUTDATED})
            if not is_same_value(key, self.settings.get(key), before[key])
        ]
        if differs == ["data"]:
            raise SettingsError(
                "resume",
                f"the checkpoint is of a training on other slides or labels ({self._other_data(before['data'])})",
                "Give the datalist that it was begun with, or start anew.",
            )
        # Another task or split changes what is trained on as well, and says more.
        differs = [key for key in differs if key != "data"]
        if differs:
            both = ", ".join(f"{key} {before[key]!r}, now {self.settings.get(key)!r}" for key in differs[:3])
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
    """Refuse a checkpoint that a training cannot go on from, before anything is done for its epochs.

    Args:
        path: the checkpoint's file.
        settings: of the training that is to go on.

    Raises:
        SettingsError: if there is no checkpoint, it is damaged, or of a training with other settings.
    """
    content = _read(Path(path))
    if not isinstance(content, Mapping) or not isinstance(content.get("settings"), Mapping):
        raise SettingsError(path, "is not the checkpoint of a training: it contains no settings", "Start anew.")
    settings.load_state_dict(content["settings"])


def pretrained_sha256_of(path: str | Path) -> str | None:
    """The checksum of the weights from which the training of a checkpoint started; ``None`` if it started anew.

    Args:
        path: the checkpoint's file.

    Raises:
        SettingsError: if there is no checkpoint, or it is damaged.
    """
    content = _read(Path(path))
    made_by = content.get("made_by") if isinstance(content, Mapping) else None
    return made_by.get("pretrained_sha256") if isinstance(made_by, Mapping) else None


class Resume:
    """Goes on from a :class:`LastCheckpoint`, if asked to.

    Args:
        path: the checkpoint's file.
        load_dict: objects with ``load_state_dict``; the trainer is added.
        resume: whether to go on from it; otherwise the training starts anew.
    """

    def __init__(self, path: str | Path, load_dict: Mapping[str, Any], resume: bool) -> None:
        self.path, self.load_dict, self.resume = Path(path), load_dict, resume

    def attach(self, engine: Engine) -> None:
        """Go on when the training starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Restore every object.

        Raises:
            SettingsError: as :func:`check_resumable`, or if the checkpoint is ahead of the epochs asked for, or its
                epochs are of another length.
        """
        if not self.resume:
            return
        content, state = _read(self.path), engine.state
        max_epochs, epoch_length = state.max_epochs, state.epoch_length
        try:
            Checkpoint.load_objects({**self.load_dict, "trainer": engine}, content)
            # An older checkpoint has none.
            if "training_state" in content:
                TrainingState(engine).load_state_dict(content["training_state"])
        except BundleError:
            raise
        except RuntimeError as error:  # a misfit of weights, in many lines
            reason = " ".join(" ".join(str(error).splitlines()[:2]).split())
            raise SettingsError(
                self.path, f"does not fit this training ({reason})", "Use the settings of its training, or start anew."
            ) from error
        except Exception as error:  # Content of another form may raise anything.
            raise SettingsError(self.path, f"is not a checkpoint of this training ({error})", "Start anew.") from error
        if max_epochs is not None and state.epoch > max_epochs:
            raise SettingsError(self.path, f"has {state.epoch} epochs, asked for are {max_epochs}", "Raise `epochs`.")
        state.max_epochs = max_epochs
        engine.logger.info("going on after epoch %d", state.epoch)
        if state.epoch == max_epochs:
            engine.logger.warning("nothing is left to train: all %d epochs are done. Raise `epochs`.", max_epochs)
        if state.epoch_length != epoch_length:
            raise SettingsError(
                self.path,
                f"has epochs of {state.epoch_length} batches, now they have {epoch_length}",
                "Resume with the same datalist and `batch_size`, or start anew.",
            )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise SettingsError(path, "there is no checkpoint to resume from", "Run without `resume` first.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Of bytes that are no pickle, unpickling may raise anything.
        cause = f"is damaged ({unreadable_reason(error)})"
        raise SettingsError(path, cause, "Delete it, and start anew.") from error


def _fingerprint(partition: Any) -> str:
    if not isinstance(partition, Mapping):
        return "none"
    return f"{partition.get('slides')} slides with SHA-256 {str(partition.get('sha256'))[:12]}..."
