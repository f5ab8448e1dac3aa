"""The record that a network's state dicts carry: what its weights were trained with and on, and their checksum.

It rides in the metadata that PyTorch keeps beside the tensors of a state dict, so that a file of weights stays a plain
state dict, as the Model Zoo and MONAI Label load it. The *record* is what all files of a training have in common; the
*origin* is the file's own: which head its weights are best for, and what made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "DECISIVE",
    "NOT_FINITE",
    "is_finite",
    "keep_record",
    "origin_in",
    "plain_metadata",
    "record_fault",
    "sign",
    "signed_record",
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

NOT_LOADED = "no weights were loaded into the network"
NOT_FINITE = "some of them are not finite numbers"


def plain_metadata(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What PyTorch keeps of a module beside the tensors of its state dict; empty if there is nothing."""
    metadata = getattr(state, "_metadata", None)
    own = metadata.get("") if isinstance(metadata, Mapping) else None
    return own if isinstance(own, Mapping) else {}


def keep_record(network: nn.Module, left_out: str | None = None) -> None:
    """Let every state dict of a network carry its record and checksum, and let the network know what it loaded.

    It gives the network three attributes: ``record`` and ``origin``, dictionaries of plain values that its state dicts
    carry, replaced by those of the weights that are loaded; and ``weights_problem``, why its weights must not be used,
    ``None`` if they may. Nothing is raised when weights are loaded, since others load with ``strict=False``: see
    :func:`scripts.weights.record.check_weights`.

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
        record: as :func:`scripts.weights.record.read_record` gives it, in plain values.
        origin: as :func:`scripts.weights.record.read_origin` gives it, in plain values.
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


def signed_record(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[dict[str, Any], str | None]:
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


def origin_in(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The origin in the metadata of a state dict.

    Returns:
        as :func:`scripts.weights.record.read_origin` gives it; empty if there is none, ``None`` if it is damaged.
    """
    if "origin" not in metadata:
        return {}
    try:
        origin: Any = json.loads(metadata["origin"])
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(origin, dict) or not all(isinstance(origin.get(key, ""), str) for key in ("best_for", "file")):
        return None
    made_by = origin.get("made_by", {})
    parts = (
        [made_by, *(made_by.get(key, {}) for key in ("configuration", "data"))] if isinstance(made_by, dict) else [None]
    )
    if not all(isinstance(part, dict) for part in parts):
        return None
    return origin


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


def is_finite(values: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)


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
    record, problem = signed_record(metadata, _own(network, state, prefix))
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
    elif network.weights_problem is None and not is_finite(network.parameters()):
        network.weights_problem = NOT_FINITE


def _is_signed(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    sha256 = metadata.get("sha256")
    # The first weights of version 0.3.0 have no origin, and a checksum of their tensors alone.
    return sha256 == _checksum(metadata, state) or ("origin" not in metadata and sha256 == weights_sha256(state))


def _checksum(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    # An origin came later: without one the sum is what it was before.
    signed = "\n".join(str(metadata[key]) for key in ("record", "origin") if key in metadata)
    return hashlib.sha256(f"{signed}\n{weights_sha256(state)}".encode()).hexdigest()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
