"""What travels with trained weights: their checksum, what they were trained with and on, and what made their file.

It rides in the metadata that PyTorch keeps beside the tensors of a state dict, so that a file of weights stays a plain
state dict, as the Model Zoo and MONAI Label load it. The *record* is what all files of a training have in common; the
*origin* is the file's own (:mod:`scripts.weights.origin`).
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.core.files import refuse_special
from scripts.core.settings import SETTINGS
from scripts.core.sums import check_sum
from scripts.datalists.labels import with_positive_classes
from scripts.networks.state_record import DECISIVE, NOT_FINITE, is_finite, origin_in, plain_metadata, signed_record
from scripts.weights.origin import misplaced, training_of

__all__ = [
    "DEMONSTRATION",
    "UNREADABLE",
    "check_weights",
    "is_demonstration",
    "other_settings",
    "read_origin",
    "read_record",
    "read_training",
    "read_weights",
    "record_problem",
    "trained_settings",
    "unreadable_reason",
]


# What unpickling raises on bytes that are no pickle (the documentation of pickle.UnpicklingError), and torch besides.
UNREADABLE = (
    OSError,
    RuntimeError,
    TypeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    ValueError,
)

DEMONSTRATION = (
    "Demonstration weights: drawn slides were among those they were trained on, so they are unfit for tissue."
)
"""What every place tells in which a user meets such weights."""


logger = logging.getLogger(__name__)


def check_weights(network: nn.Module, settings: Mapping[str, Any] | None = None) -> None:
    """Refuse a network without the whole weights of one training, with damaged ones, or of other settings.

    Args:
        network: one that keeps a record; others (TorchScript, which is loaded whole or not at all) pass.
        settings: what it is used with; those of its training that decide what its scores mean must be the same.

    Raises:
        SettingsError: if it may not be used.
    """
    keepers = [part for part in network.modules() if hasattr(part, "weights_problem")]
    for keeper in keepers:
        if keeper.weights_problem is not None:
            remedy = "Load the whole of a file that training wrote, into the network of it."
            raise SettingsError("weights", str(keeper.weights_problem), remedy)
    # A network that was exported to TorchScript tells no record.
    record: Any = getattr(keepers[0], "record", None) if keepers else None
    if settings is None or record is None:
        return
    if not record:
        logger.warning("the weights have no record of their training: whether these settings fit is not known")
        return
    problem = record_problem(record, settings)
    if problem is not None:
        raise SettingsError("weights", problem, "Use the settings of their training, or train again with these.")


def record_problem(record: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """How the settings of a training differ from those of a use, in a way that makes the scores meaningless.

    A difference in other settings that both have is logged as a warning.

    Args:
        record: as :func:`read_record` gives it.
        settings: plain values by knob.

    Returns:
        The differences in words, or ``None`` if there is none.
    """
    trained = with_positive_classes(record["settings"])
    used = json.loads(json.dumps(dict(settings)))
    differs = {
        key: f"{key} {trained[key]!r}, now {used[key]!r}"
        for key in used.keys() & trained.keys()
        if _differs(trained[key], used[key])
    }
    # What the training did not know, it did not do otherwise.
    decisive = {key: differs[key] for key in DECISIVE if key in differs and trained[key] is not None}
    for key in sorted(differs.keys() - decisive.keys()):
        logger.warning("the weights were trained with %s", differs[key])
    return f"they were trained with other settings ({', '.join(decisive.values())})" if decisive else None


def other_settings(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str | None:
    """:func:`record_problem` of a state dict's record; ``None`` if it has none that can be read."""
    record, problem = signed_record(plain_metadata(state), state)
    return record_problem(record, settings) if record and not problem else None


def read_weights(path: str | Path) -> Mapping[str, Tensor]:
    """The state dict of a file, or the one named ``model`` in it, on the CPU.

    No code that a file may hold is run: whatever is not plain tensors and values is refused.

    Raises:
        SettingsError: if the file is missing, holds no such thing, or is not the one that was packed into its bundle
            (:func:`scripts.core.sums.check_sum`).
    """
    refuse_special(path)
    check_sum(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SettingsError(
            Path(path).absolute(),
            "there is no such file",
            "Name the folder of the weights that training wrote: --ckpt_dir PATH; or run training first.",
        ) from None
    except UNREADABLE as error:
        cause = f"is not a PyTorch checkpoint of plain tensors ({unreadable_reason(error)})"
        raise SettingsError(path, cause, "Give a file that training wrote.") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        for key, value in content.items()
    ):
        raise SettingsError(
            path, "holds neither a state dict nor one named 'model'", "Give a file that training wrote."
        )
    return content


def unreadable_reason(error: BaseException) -> str:
    """Why PyTorch could not load a file, in short, and without its advice to run what a file holds all the same."""
    if isinstance(error, pickle.UnpicklingError):
        if (called := re.search(r"GLOBAL (\S+)", str(error))) is not None:
            return f"to load it would run {called[1]}"
        if (found := re.search(r"WeightsUnpickler error: (.*)", str(error))) is not None:
            return found[1]
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of a file of weights.

    Returns:
        ``settings``, the knobs of the training; ``data``, the numbers ``training_slides``, ``validation_slides``
        and, of these, ``drawn_slides``; ``version``, the bundle's; and, of weights that went on from others,
        ``pretrained``, the record of those.

    Raises:
        SettingsError: if the file cannot be read, has none or a damaged one, or its weights are not those that the
            record was written for.
    """
    return _read_signed(path)[0]


def trained_settings(ckpt_dir: str | Path) -> dict[str, Any]:
    """The settings of the training whose weights are in a folder, of those that decide what scores mean.

    Args:
        ckpt_dir: the folder.

    Returns:
        Values by name; nothing where there are no weights, or none that can be read: loading them says why. Nothing,
        and a warning, where they have no record.
    """
    paths = sorted(Path(ckpt_dir).glob("model*.pt"), key=lambda path: (len(path.name), path.name))
    if not paths:
        return {}
    try:
        state = read_weights(paths[0])
    except SettingsError:
        return {}
    record, problem = signed_record(plain_metadata(state), state)
    if problem:
        return {}
    if not record:
        logger.warning("%s has no record of its training: the config's own settings are used", paths[0])
        return {}
    settings = with_positive_classes(record["settings"])
    return {name: value for name, value in settings.items() if name in SETTINGS}


def read_origin(path: str | Path) -> dict[str, Any]:
    """What made a file of weights.

    Returns:
        ``best_for``, the output that its weights are best for; ``file``, the name that training gave it; and
        ``made_by``, as :func:`scripts.core.provenance.made_by` gives it. Empty for older files.

    Raises:
        SettingsError: as :func:`read_record`.
    """
    return _read_signed(path)[1]


def read_training(path: str | Path) -> dict[str, Any]:
    """:func:`scripts.weights.origin.training_of` of a file of weights.

    Raises:
        SettingsError: as :func:`read_record`.
    """
    return training_of(*_read_signed(path))


def _read_signed(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the origin of a file of weights, which is whole and has its own name."""
    state = read_weights(path)
    record, problem = signed_record(plain_metadata(state), state)
    if not problem and not record:
        problem = "has no record of its training"
    if not problem and not is_finite(state.values()):
        problem = NOT_FINITE
    if problem:
        raise SettingsError(path, problem, "Give a file that training wrote.")
    origin = origin_in(plain_metadata(state)) or {}
    if (fault := misplaced(path, origin)) is not None:
        raise SettingsError(path, *fault)
    return record, origin


def is_demonstration(record: Mapping[str, Any]) -> bool:
    """Whether drawn slides were among those that the weights, or weights that they went on from, were trained on."""
    pretrained = record.get("pretrained")
    drawn = record.get("data", {}).get("drawn_slides", 0) > 0
    return drawn or (pretrained is not None and is_demonstration(pretrained))


def _differs(one: Any, other: Any) -> bool:
    # The order of magnifications has no meaning, that of classes has.
    if isinstance(one, list) and isinstance(other, list) and all(isinstance(v, int | float) for v in one + other):
        return sorted(one) != sorted(other)
    return bool(one != other)
