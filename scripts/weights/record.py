"""Reading files of weights: their tensors, the record of their training, and what made them.

:mod:`scripts.networks.state_record` says how these ride in a state dict.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError, unreadable_reason
from scripts.core.files import refuse_special
from scripts.core.settings import LATER, SETTINGS, is_same_value, values_with_role, with_role
from scripts.datalists.labels import with_positive_classes
from scripts.networks.state_record import DECISIVE, NOT_FINITE, is_finite, signed_record
from scripts.weights.operating_point import RECALIBRATED

__all__ = [
    "DEMONSTRATION",
    "ONE_TRAINING",
    "check_weights",
    "decision_settings",
    "is_demonstration",
    "read_origin",
    "read_record",
    "read_signed",
    "read_training",
    "read_weights",
    "record_problem",
    "recorded_settings",
    "trained_settings",
    "training_of",
]

DEMONSTRATION = (
    "Demonstration weights: synthetic slides were among those they were trained on, so they are unfit for tissue."
)
"""What a user reads wherever such weights are used or handed on."""

DECISIONS = ("prior_correction", "calibration", "threshold")
"""The settings that decide an operating point."""

OF_NETWORK = ("num_features", "members", "int8_sha256")
"""What a record stores of the network and of its encoder's INT8 network that is no setting of a training."""

WRITTEN_BY_TRAINING = "Give a file that training wrote."
ONE_TRAINING = "Give a `ckpt_dir` into which one training wrote, and no other; or train again."
"""What to do about a folder with weights of several trainings."""

logger = logging.getLogger(__name__)


def check_weights(network: nn.Module, settings: Mapping[str, Any] | None = None) -> None:
    """Refuse a network whose weights were not loaded whole, are damaged, or were trained with other settings.

    Args:
        network: one that keeps a record; others (TorchScript, which is loaded whole or not at all) pass.
        settings: what it is used with, plain values by setting; None compares nothing.

    Raises:
        SettingsError: if it may not be used.
    """
    keepers = [module for module in network.modules() if hasattr(module, "weights_problem")]
    for keeper in keepers:
        if keeper.weights_problem is not None:
            remedy = "Load the whole of a file that training wrote, into the network of it."
            raise SettingsError("weights", str(keeper.weights_problem), remedy)
    # A network that was exported to TorchScript has no record.
    record: Any = getattr(keepers[0], "record", None) if keepers else None
    if settings is None or record is None:
        return
    if not record:
        logger.warning("the weights have no record of their training: whether these settings fit is not known")
    elif (problem := record_problem(record, settings)) is not None:
        raise SettingsError("weights", problem, "Use the settings of their training, or train again with these.")


def recorded_settings(settings: Mapping[str, Any], checksums: Mapping[str, str]) -> dict[str, Any]:
    """The settings that a record stores: what decides the meaning of scores, and what a user is warned of.

    Args:
        settings: plain values by setting.
        checksums: of the encoder (:attr:`scripts.features.encoding.Encoder.checksums`).
    """
    own = {**values_with_role(settings, "decides"), **values_with_role(settings, "recorded")}
    return {**own, **checksums}


def record_problem(record: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The settings of a training that differ from those of a use so that scores mean nothing; ``None`` without any.

    A difference in other settings that both have is logged as a warning.

    Args:
        record: as :func:`read_record` gives it.
        settings: plain values by setting.
    """
    # Weights of an earlier version were trained with what it did.
    trained, used = {**LATER, **with_positive_classes(record["settings"])}, dict(settings)
    decisive = []
    for key in sorted(used.keys() & trained.keys()):
        if is_same_value(key, trained[key], used[key]):
            continue
        difference = f"{key} {trained[key]!r}, now {used[key]!r}"
        if key not in DECISIVE:
            logger.warning("the weights were trained with %s", difference)
        # A setting that the training did not have cannot contradict.
        elif trained[key] is not None:
            decisive.append(difference)
    return f"they were trained with other settings ({', '.join(decisive)})" if decisive else None


def read_weights(path: str | Path) -> Mapping[str, Tensor]:
    """The state dict of a file, or the one named ``model`` in it, on the CPU.

    No code in the file is run: whatever is not plain tensors and values is refused.

    Raises:
        SettingsError: if the file is missing, or is no such file.
    """
    refuse_special(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, NotADirectoryError):  # the latter where a file is given for its folder
        raise SettingsError(
            Path(path).absolute(),
            "there is no such file",
            "Name the folder of the weights that training wrote: --ckpt_dir PATH; or run training first.",
        ) from None
    except Exception as error:  # Of bytes that are no pickle, unpickling may raise anything.
        cause = f"is not a PyTorch checkpoint of plain tensors ({unreadable_reason(error)})"
        raise SettingsError(path, cause, WRITTEN_BY_TRAINING) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        for key, value in content.items()
    ):
        raise SettingsError(path, "contains neither a state dict nor one named 'model'", WRITTEN_BY_TRAINING)
    return content


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of a file of weights.

    Returns:
        ``settings`` of the training; ``data``, the numbers ``training_slides``, ``validation_slides`` and, of these,
        ``drawn_slides``, the synthetic ones; ``version``, the bundle's; and, where the training went on from other
        weights, ``pretrained``, the record of those; with their ``weights_sha256`` and what became of their ``classes``
        (:class:`scripts.weights.pretrained.Pretrained`), where the setting of that name names them. Of an ensemble
        ``members`` has the :func:`training_of` of each, and ``data`` the greatest of their numbers.

    Raises:
        SettingsError: if the file cannot be read, has no record or a damaged one, or its weights are not those that the
            record was written for.
    """
    return read_signed(path)[1]


def trained_settings(ckpt_dir: str | Path) -> dict[str, Any]:
    """The settings of the training whose weights are in a folder, of those that decide what scores mean, by name.

    With ``num_features``, the length of its backbone's feature vectors; of an ensemble, ``members``, how many; and with
    INT8, ``int8_sha256``.

    Nothing where there are no weights, or none that can be read: loading them says why. Nothing, and a warning, where
    they have no record.

    Raises:
        SettingsError: if the folder has weights of several trainings.
    """
    paths = sorted(Path(ckpt_dir).glob("model*.pt"), key=lambda path: (len(path.name), path.name))
    if not paths:
        return {}
    signed = []
    for path in paths:
        try:
            record, origin, problem = signed_record(read_weights(path))
        except SettingsError:
            return {}
        if problem:
            return {}
        if record:
            signed.append((path, record, training_of(record, origin)))
            if signed[-1][2] != signed[0][2]:
                raise SettingsError(path, f"is not of the same training as {signed[0][0].name}", ONE_TRAINING)
    if not signed:
        logger.warning("%s has no record of its training: the config's own settings are used", paths[0])
        return {}
    own = with_positive_classes(signed[0][1]["settings"])
    return {name: value for name, value in own.items() if name in SETTINGS or name in OF_NETWORK}


def decision_settings(ckpt_dir: str | Path) -> dict[str, Any]:
    """The rules by which the operating point of the weights in a folder was decided, by setting.

    Nothing where there are no weights, none that can be read, or none that say it: loading them says why.
    """
    for path in sorted(Path(ckpt_dir).glob("model*.pt")):
        try:
            origin = read_origin(path)
        except SettingsError:
            continue
        made_by = {**origin, **origin.get(RECALIBRATED, {})}.get("made_by", {})
        return {name: value for name, value in made_by.get("configuration", {}).items() if name in DECISIONS}
    return {}


def read_origin(path: str | Path) -> dict[str, Any]:
    """What made a file of weights; errors as :func:`read_record`.

    Returns:
        ``best_for``, the head that its weights are best for; and ``made_by``, as
        :func:`scripts.core.provenance.made_by` gives it; the ``operating_point`` by head, and, where it was decided
        again, ``recalibrated`` (:class:`scripts.training.recalibration.Recalibration`). Empty for older files.
    """
    return read_signed(path)[2]


def read_training(path: str | Path) -> dict[str, Any]:
    """:func:`training_of` of a file of weights; errors as :func:`read_record`."""
    return training_of(*read_signed(path)[1:])


def is_demonstration(record: Mapping[str, Any] | None) -> bool:
    """Whether synthetic slides were among those that weights, or weights that they went on from, were trained on."""
    while record:
        of_members = [member["record"] for member in record.get("members", ())]
        if record["data"]["drawn_slides"] > 0 or any(map(is_demonstration, of_members)):
            return True
        record = record.get("pretrained")
    return False


def training_of(record: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """What all files of a training have in common, resumed or not.

    Args:
        record: as :func:`read_record` gives it.
        origin: as :func:`read_origin` gives it; what it lacks is ``None``.
    """
    made_by = origin.get("made_by", {})
    may_change = {*with_role("provenance")} - {*with_role("fixed")}
    settings = {key: value for key, value in made_by.get("configuration", {}).items() if key not in may_change}
    return {"record": record, "seed": made_by.get("seed"), "data": made_by.get("data"), "settings": settings}


def read_signed(path: str | Path) -> tuple[Mapping[str, Tensor], dict[str, Any], dict[str, Any]]:
    """The state dict, the record and the origin of a file of weights; errors as :func:`read_record`."""
    state = read_weights(path)
    record, origin, problem = signed_record(state)
    if not problem and not record:
        problem = "has no record of its training"
    if not problem and not is_finite(state.values()):
        problem = NOT_FINITE
    if problem:
        raise SettingsError(path, problem, WRITTEN_BY_TRAINING)
    return state, record, origin
