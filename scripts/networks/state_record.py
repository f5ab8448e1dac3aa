"""The record that a network's state dicts carry: what its weights were trained with and on, and their checksum.

It is metadata that PyTorch keeps beside the tensors of a state dict, so that a file of weights stays a plain state
dict, as the Model Zoo and MONAI Label load it. All files of a training have the same *record*. Each has an *origin* of
its own: the head that its weights are best for, and what made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.settings import with_role

__all__ = ["COUNTS", "DECISIVE", "NOT_FINITE", "is_finite", "keep_record", "sign", "signed_record", "weights_sha256"]

DECISIVE = (*with_role("decides"), "backbone_sha256", "int8_sha256")
"""With other values of these the network still runs, and its scores mean nothing."""

# Checks of their values in a record.
KINDS: dict[str, Callable[[Any], bool]] = {
    "class_names": lambda value: _is_names(value),
    # Nothing up to version 0.3.0; null in the multilabel task, and where labels said no more than 0 and 1.
    "positive_classes": lambda value: value is None or _is_names(value),
    "magnifications": lambda value: isinstance(value, list) and all(_is_number(scale) for scale in value),
    "patch_size": lambda value: _is_count(value),
    "num_nodes": lambda value: _is_count(value),
    # Nothing of these up to version 0.4.0, and without INT8 nothing of the last.
    "linking": lambda value: value is None or isinstance(value, str),
    "class_attention": lambda value: value is None or isinstance(value, str),
    "backbone_input": lambda value: value is None or isinstance(value, Mapping),
    "unit": lambda value: value in (None, "slide", "patient"),
    "precision": lambda value: value in (None, "amp", "int8"),
    "int8_sha256": lambda value: value is None or isinstance(value, str),
}
COUNTS = ("training_slides", "validation_slides", "drawn_slides")
"""The numbers of slides in a record."""

NOT_LOADED = "no weights were loaded into the network"
NOT_FINITE = "some of them are not finite numbers"


def keep_record(network: nn.Module, left_out: str | None = None) -> None:
    """Make every state dict of a network carry its record and checksum, and note what the network loads.

    It gives the network three attributes: ``record`` and ``origin``, replaced by those of the weights that are loaded;
    and ``weights_problem``, why its weights must not be used, or ``None``. Loading raises nothing, since others load
    with ``strict=False``: see :func:`scripts.weights.record.check_weights`.

    Args:
        network: changed in place.
        left_out: the name of a child whose weights are in no state dict.
    """
    network.record, network.origin, network.weights_problem = {}, {}, NOT_LOADED  # type: ignore[assignment]
    network.left_out = (f"{left_out}.",) if left_out else ()  # type: ignore[assignment]
    network.register_state_dict_post_hook(_write)
    network.register_load_state_dict_pre_hook(_compare)
    network.register_load_state_dict_post_hook(_judge)


def sign(network: nn.Module, record: Mapping[str, Any], origin: Mapping[str, Any] | None = None) -> None:
    """Set what the state dicts of a network store of its training.

    Args:
        network: one that keeps a record. If that is of another training, whose weights were loaded before, it becomes
            the new record's ``pretrained``.
        record: as :func:`scripts.weights.record.read_record` gives it.
        origin: as :func:`scripts.weights.record.read_origin` gives it.
    """
    signed, network.origin = json.loads(json.dumps([dict(record), dict(origin or {})]))
    before: Any = network.record
    if before:
        is_same = {**before, "pretrained": None} == {**signed, "pretrained": None}
        signed = before if is_same else {**signed, "pretrained": before}
    network.record = signed


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of a state dict's tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def signed_record(
    state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """The record and the origin of a state dict, empty where it has none, and what is wrong with them or the weights.

    Args:
        state: a state dict.
        metadata: of its module; by default what PyTorch keeps beside the tensors.
    """
    if metadata is None:
        kept = getattr(state, "_metadata", None)
        metadata = kept.get("") if isinstance(kept, Mapping) else None
    if not isinstance(metadata, Mapping) or "record" not in metadata:
        return {}, {}, None
    try:
        record, origin = json.loads(metadata["record"]), json.loads(metadata.get("origin", "{}"))
        fault = _record_fault(record) or _origin_fault(origin)
    except (TypeError, ValueError, RecursionError):
        fault = "it is not JSON"
    if fault is not None:
        return {}, {}, f"their record of the training is damaged: {fault}"
    is_whole = _is_signed(metadata, state)
    return record, origin, None if is_whole else "they are not those that training wrote: their checksum differs"


def is_finite(values: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)


def _record_fault(record: Any) -> str | None:
    """What is wrong with a record, or with one that its training went on from."""
    while isinstance(record, Mapping):
        settings, data = record.get("settings"), record.get("data")
        if not isinstance(settings, Mapping) or not isinstance(data, Mapping):
            return "it lacks settings or data"
        for key in DECISIVE:
            if not KINDS.get(key, lambda value: isinstance(value, str))(settings.get(key)):
                return f"its {key} is {settings.get(key)!r}"
        for key in COUNTS:
            if not _is_count(data.get(key)):
                return f"its {key} is {data.get(key)!r}"
        members = record.get("members", [])
        if not isinstance(members, list) or settings.get("members", 0) != len(members):
            return f"its members are {settings.get('members')!r}"
        for member in members:
            if fault := _member_fault(member):
                return f"of a member, {fault}"
        if "pretrained" not in record:
            return None
        record = record["pretrained"]
    return "it is not an object"


def _member_fault(member: Any) -> str | None:
    """What is wrong with what an ensemble's record says of a member, which is no ensemble itself."""
    if not isinstance(member, Mapping) or not isinstance(member.get("data", {}), Mapping | None):
        return "it is not an object"
    record = member.get("record")
    return "it is an ensemble" if isinstance(record, Mapping) and "members" in record else _record_fault(record)


def _origin_fault(origin: Any) -> str | None:
    made_by = origin.get("made_by", {}) if isinstance(origin, Mapping) else None
    objects = [made_by.get(key, {}) for key in ("configuration", "data")] if isinstance(made_by, Mapping) else [None]
    return None if all(isinstance(value, Mapping) for value in objects) else "what made them is not an object"


def _own(network: nn.Module, state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    left_out: Any = network.left_out
    return {key: value for key, value in own.items() if not key.startswith(left_out)}


def _write(network: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    # MONAI's `copy_model_state` changes values of a state dict in place: one that nobody signed gets no checksum.
    if network.record:
        metadata["record"] = json.dumps(network.record)
        if network.origin:
            metadata["origin"] = json.dumps(network.origin)
        metadata["sha256"] = _checksum(metadata, _own(network, state, prefix))


def _compare(network: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any) -> None:
    network.record, network.origin, network.weights_problem = signed_record(  # type: ignore[assignment]
        _own(network, state, prefix), metadata
    )


def _judge(network: nn.Module, incompatible: Any) -> None:
    wrong = sorted([*incompatible.missing_keys, *incompatible.unexpected_keys])
    if wrong:
        some = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
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
    # Files of the first versions have no origin, and a checksum without it.
    signed = "\n".join(str(metadata[key]) for key in ("record", "origin") if key in metadata)
    return hashlib.sha256(f"{signed}\n{weights_sha256(state)}".encode()).hexdigest()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
