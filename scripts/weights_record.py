"""What travels with trained weights: their checksum, what they were trained with and on, and what made their file.

It rides in the metadata that PyTorch keeps beside the tensors of a state dict, so that a file of weights stays a plain
state dict, as the Model Zoo and MONAI Label load it. The *record* is what all files of a training have in common; the
*origin* is the file's own (:mod:`scripts.weights_origin`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.datalist_labels import with_positive_classes
from scripts.errors import SettingsError
from scripts.files import refuse_special
from scripts.sums import check_sum
from scripts.weights_origin import misplaced, origin_in, plain_metadata, training_of

__all__ = [
    "DEMONSTRATION",
    "UNREADABLE",
    "check_weights",
    "is_demonstration",
    "keep_record",
    "other_settings",
    "read_origin",
    "read_record",
    "read_training",
    "read_weights",
    "record_fault",
    "record_problem",
    "sign",
    "unreadable_reason",
    "weights_sha256",
]

# With other values of these the network still runs, and its scores mean nothing.
DECISIVE = (
    "method",
    "task",
    "class_names",
    "positive_classes",
    "magnifications",
    "patch_size",
    "backbone",
    "backbone_sha256",
    "num_nodes",
)

# What each of them is in a record.
KINDS: dict[str, Callable[[Any], bool]] = {
    "class_names": lambda value: _is_names(value),
    # Nothing up to version 0.3.0; null in the multilabel task, and where labels said no more than 0 and 1.
    "positive_classes": lambda value: value is None or _is_names(value),
    "magnifications": lambda value: isinstance(value, list) and all(_is_number(scale) for scale in value),
    "patch_size": lambda value: _is_count(value),
    "num_nodes": lambda value: _is_count(value),
}
COUNTS = ("training_slides", "validation_slides", "drawn_slides")
# More trainings in a row than anybody starts; a record is read as deep as that.
MOST_TRAININGS = 100

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

NOT_LOADED = "no weights were loaded into the network"
NOT_FINITE = "some of them are not finite numbers"

logger = logging.getLogger(__name__)


def keep_record(network: nn.Module, left_out: str | None = None) -> None:
    """Let every state dict of a network carry its record and checksum, and let the network know what it loaded.

    It gives the network three attributes: ``record`` and ``origin``, dictionaries of plain values that its state dicts
    carry, replaced by those of the weights that are loaded; and ``weights_problem``, why its weights must not be used,
    ``None`` if they may. Nothing is raised when weights are loaded, since others load with ``strict=False``: see
    :func:`check_weights`.

    Args:
        network: changed in place.
        left_out: the name of a child whose weights are in no state dict.
    """
    network.record = {}  # type: ignore[assignment]
    network.origin = {}  # type: ignore[assignment]
    network.weights_problem = NOT_LOADED  # type: ignore[assignment]
    network.left_out = f"{left_out}." if left_out else None  # type: ignore[assignment]
    network.register_state_dict_post_hook(_write)
    network.register_load_state_dict_pre_hook(_compare)
    network.register_load_state_dict_post_hook(_judge)


def sign(network: nn.Module, record: Mapping[str, Any], origin: Mapping[str, Any] | None = None) -> None:
    """Set what the state dicts of a network tell of its training.

    Args:
        network: one that keeps a record. If that is of another training, whose weights were loaded before, it is
            kept as ``pretrained``.
        record: as :func:`read_record` gives it, in plain values.
        origin: as :func:`read_origin` gives it, in plain values.
    """
    network.origin = json.loads(json.dumps(dict(origin or {})))
    signed = json.loads(json.dumps(dict(record)))
    before: Any = network.record
    if before and {**before, "pretrained": None} != {**signed, "pretrained": None}:
        signed["pretrained"] = before
    elif before:
        signed = before
    network.record = signed


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of a state dict's tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    record, problem = _signed(plain_metadata(state), state)
    return record_problem(record, settings) if record and not problem else None


def read_weights(path: str | Path) -> Mapping[str, Tensor]:
    """The state dict of a file, or the one named ``model`` in it, on the CPU.

    No code that a file may hold is run: whatever is not plain tensors and values is refused.

    Raises:
        SettingsError: if the file is missing, holds no such thing, or is not the one that was packed into its bundle
            (:func:`scripts.sums.check_sum`).
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


def read_origin(path: str | Path) -> dict[str, Any]:
    """What made a file of weights.

    Returns:
        ``best_for``, the output that its weights are best for; ``file``, the name that training gave it; and
        ``made_by``, as :func:`scripts.provenance.made_by` gives it. Empty for older files.

    Raises:
        SettingsError: as :func:`read_record`.
    """
    return _read_signed(path)[1]


def read_training(path: str | Path) -> dict[str, Any]:
    """:func:`scripts.weights_origin.training_of` of a file of weights.

    Raises:
        SettingsError: as :func:`read_record`.
    """
    return training_of(*_read_signed(path))


def _read_signed(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the origin of a file of weights, which is whole and has its own name."""
    state = read_weights(path)
    record, problem = _signed(plain_metadata(state), state)
    if not problem and not record:
        problem = "has no record of its training"
    if not problem and not _finite(state.values()):
        problem = NOT_FINITE
    if problem:
        raise SettingsError(path, problem, "Give a file that training wrote.")
    origin = origin_in(plain_metadata(state)) or {}
    if (fault := misplaced(path, origin)) is not None:
        raise SettingsError(path, *fault)
    return record, origin


def record_fault(record: object) -> str | None:
    """Why something is no record of a training; ``None`` if it is one."""
    for _ in range(MOST_TRAININGS):
        if not isinstance(record, Mapping):
            return "it is no object"
        settings, data = record.get("settings"), record.get("data")
        if not isinstance(settings, Mapping) or not isinstance(data, Mapping):
            return "it lacks settings or data"
        for key in DECISIVE:
            if not KINDS.get(key, lambda value: isinstance(value, str))(settings.get(key)):
                return f"its {key} is {settings.get(key)!r}"
        for key in COUNTS:
            if not _is_count(data.get(key)):
                return f"its {key} is {data.get(key)!r}"
        if "pretrained" not in record:
            return None
        record = record["pretrained"]
    return "it names too many trainings"


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


def _own(network: nn.Module, state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    left_out = network.left_out
    keys: Iterable[str] = (key for key in state if key.startswith(prefix))
    own = {key.removeprefix(prefix): state[key] for key in keys}
    return {key: value for key, value in own.items() if not (left_out and key.startswith(str(left_out)))}


def _write(network: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    # MONAI's `copy_model_state` changes the values of a state dict in place: what nobody signed, has no checksum.
    if network.record:
        metadata["record"] = json.dumps(network.record)
        if network.origin:
            metadata["origin"] = json.dumps(network.origin)
        metadata["sha256"] = _checksum(metadata, _own(network, state, prefix))


def _compare(
    network: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: dict[str, Any],
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    _errors: list[str],
) -> None:
    record, problem = _signed(metadata, _own(network, state, prefix))
    network.record = record  # type: ignore[assignment]
    network.origin = origin_in(metadata) or {}  # type: ignore[assignment]
    network.weights_problem = problem  # type: ignore[assignment]


def _judge(network: nn.Module, incompatible: Any) -> None:
    wrong = [*incompatible.missing_keys, *incompatible.unexpected_keys]
    if wrong:
        some = ", ".join(sorted(wrong)[:3]) + (", ..." if len(wrong) > 3 else "")
        lacks, others = len(incompatible.missing_keys), len(incompatible.unexpected_keys)
        problem = f"the file lacks {lacks} of the network's weights and has {others} others ({some})"
        network.weights_problem = problem  # type: ignore[assignment]
    elif network.weights_problem is None and not _finite(network.parameters()):
        network.weights_problem = NOT_FINITE


def _signed(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[dict[str, Any], str | None]:
    """The record in a state dict's metadata, empty if there is none; and what is wrong with it or with the weights."""
    if "record" not in metadata:
        return {}, None
    try:
        record: Any = json.loads(metadata["record"])
    except (TypeError, ValueError, RecursionError):
        record = None
    fault = record_fault(record)
    if fault is not None:
        return {}, f"their record of the training is damaged: {fault}"
    if origin_in(metadata) is None:
        return record, "what they tell of their making is damaged"
    if not _is_signed(metadata, state):
        return record, "they are not those that training wrote: their checksum differs"
    return record, None


def _is_signed(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    sha256 = metadata.get("sha256")
    # The first weights of version 0.3.0 have no origin, and a checksum of their tensors alone.
    return sha256 == _checksum(metadata, state) or ("origin" not in metadata and sha256 == weights_sha256(state))


def _checksum(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    # An origin came later: without one the sum is what it was before.
    signed = "\n".join(str(metadata[key]) for key in ("record", "origin") if key in metadata)
    return hashlib.sha256(f"{signed}\n{weights_sha256(state)}".encode()).hexdigest()


def _finite(values: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
