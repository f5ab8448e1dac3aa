"""Trained weights: loading and saving them, and the network that has the best ones of every head."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.core.files import replacing
from scripts.core.sums import check_sum
from scripts.networks.bag_network import BagNetwork
from scripts.networks.state_record import signed_record, weights_sha256
from scripts.weights.operating_point import point_sha256
from scripts.weights.record import (
    DEMONSTRATION,
    ONE_TRAINING,
    check_weights,
    is_demonstration,
    read_weights,
    record_problem,
    training_of,
)

__all__ = ["HeadwiseNetwork", "load_state", "load_weights", "save_checkpoint"]

logger = logging.getLogger(__name__)


def load_weights(network: nn.Module, path: str | Path, settings: Mapping[str, Any] | None = None) -> None:
    """As :func:`load_state`, and warn of weights that are a demonstration."""
    load_state(network, path, settings)
    if is_demonstration(network.record):  # type: ignore[arg-type]
        logger.warning("%s: %s", path, DEMONSTRATION)


def load_state(network: nn.Module, path: str | Path, settings: Mapping[str, Any] | None = None) -> None:
    """Load a checkpoint into a network, strictly: every weight of both sides, whole, and of a training that fits.

    Args:
        network: what to load into, in place; its weights stay on their device. A misfit changes nothing.
        path: a file with a state dict, or with ``{"model": state dict}``, tensors only.
        settings: what the network is used with, plain values by setting; None compares nothing.

    Raises:
        SettingsError: if the file is missing, is no such checkpoint, a damaged one or another than was packed; if it
            does not fit the network; or if it was trained with settings with which its scores mean nothing
            (:func:`scripts.weights.record.check_weights`).
    """
    check_sum(path)
    found, wanted = read_weights(path), network.state_dict()
    misfits = [
        f"{key} is {_shape(found, key)} in the file and {_shape(wanted, key)} in the network"
        for key in sorted(wanted.keys() | found.keys())
        if _shape(found, key) != _shape(wanted, key)
    ]
    if misfits:
        # Shapes differ because settings do: those are what a user knows.
        record, _, damage = signed_record(found)
        if settings is not None and record and not damage and (problem := record_problem(record, settings)) is not None:
            raise SettingsError(path, problem, "Use the settings of their training, or train again with these.")
        more = f", and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise SettingsError(
            path,
            f"does not fit the network: {', '.join(misfits[:3])}{more}",
            "Use the settings of its training (method, magnifications, task, backbone, num_nodes), or train again.",
        )
    network.load_state_dict(found, strict=True)
    try:
        check_weights(network, settings)
    except SettingsError as error:
        raise SettingsError(path, error.cause, error.remedy) from error


def save_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """``torch.save``, in one step and from the CPU, so that a machine without a GPU can load the file as it is."""
    with replacing(path) as part:
        torch.save(_on_cpu(content), part)


class HeadwiseNetwork(nn.Module):
    """The best weights of every head at once, as the paper keeps them.

    Each head reaches its lowest validation loss in an epoch of its own. This module contains a copy of the network for
    each head, and takes the logits of head h and the maps that explain them from copy h only. A frozen backbone is
    shared by the copies, and each patch passes it once.

    Args:
        network: a network as it was trained; it is copied and not changed.
        weights: one checkpoint for each head, in order.
        settings: as for :func:`load_weights`.

    Raises:
        SettingsError: if the number of checkpoints is not that of the heads, one of them does not load, or they are
            of several trainings.
    """

    def __init__(
        self, network: BagNetwork, weights: Sequence[str | Path], settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        heads = 1 + max(network.map_heads, default=0)  # a network without maps has one head
        if isinstance(weights, (str, Path)) or len(weights) != heads:
            raise SettingsError(
                "weights", f"got {weights!r}", f"Give {heads} checkpoints: one for each head, in order."
            )
        self.shares_backbone, self.num_members = network.freeze_backbone, network.num_members
        self.maps = [[m for m, of in enumerate(network.map_heads) if of == head] for head in range(heads)]
        self.copies = nn.ModuleList()
        trainings = []
        for path in weights:
            member: Any = copy.deepcopy(network, {id(network.net): network.net} if self.shares_backbone else {})
            load_weights(member, path, settings)
            self.copies.append(member)
            trainings.append(training_of(member.record, member.origin))
            if trainings[-1] != trainings[0]:
                raise SettingsError(
                    path,
                    f"is not of the same training as {Path(weights[0]).name}",
                    ONE_TRAINING,
                )

    @torch.jit.unused
    def weights_sha256(self, heads: Sequence[str]) -> dict[str, str]:
        """The SHA-256 of the weights of each head, by the heads' names, which are given in order."""
        return {head: weights_sha256(member.state_dict()) for head, member in zip(heads, self.copies, strict=True)}

    @torch.jit.unused
    def points_sha256(self, heads: Sequence[str]) -> dict[str, str | None]:
        """The SHA-256 of the operating point of each head, as :meth:`weights_sha256`; ``None`` where there is none."""
        copies: Any = self.copies
        return {head: point_sha256(member.origin, head) for head, member in zip(heads, copies, strict=True)}

    def forward(self, x: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """The logits ``[B, H, K]``; arguments and errors as :meth:`BagNetwork.forward`."""
        logits: list[Tensor] = []
        for head, member in enumerate(self.copies):
            if self.shares_backbone and head == 0:
                x = member(x, no_head=True)  # [B, N, S, F]
            logits.append(member(x, log_weight)[:, head])  # [B, K]
        return torch.stack(logits, dim=1)  # [B, H, K]

    @torch.jit.unused
    def with_spread(self, x: Tensor, log_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of an ensemble: see :meth:`scripts.networks.ensemble.Ensemble.with_spread`."""
        found: list[Any] = [member.with_spread(x, log_weight) for member in self.copies]  # type: ignore[operator]
        logits, spread = (torch.stack([of[part][:, h] for h, of in enumerate(found)], dim=1) for part in range(2))
        return logits, spread  # [B, H, L], [B, H, K]

    @torch.jit.export
    def explain(self, x: Tensor, log_weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[B, H, K]``, attention and contribution ``[B, N, M, K]``; see :meth:`BagNetwork.explain`."""
        logits: list[Tensor] = []
        attention: list[Tensor] = []
        contribution: list[Tensor] = []
        for head, member in enumerate(self.copies):
            if self.shares_backbone and head == 0:
                x = member(x, no_head=True)  # [B, N, S, F]
            # [B, H, K], [B, N, M, K], [B, N, M, K]
            y, a, c = member.explain(x, log_weight)  # type: ignore[operator]
            logits.append(y[:, head])  # [B, K]
            of_head = torch.tensor(self.maps[head], dtype=torch.long, device=a.device)  # [m]
            attention.append(a.index_select(2, of_head))  # [B, N, m, K]
            contribution.append(c.index_select(2, of_head))  # [B, N, m, K]
        return torch.stack(logits, dim=1), torch.cat(attention, dim=2), torch.cat(contribution, dim=2)


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    if key not in state:
        return "absent"
    # Other types would be rounded, or lose their imaginary part, without a word.
    kind = "" if state[key].is_floating_point() else f" {state[key].dtype}".replace("torch.", "")
    return ("x".join(map(str, state[key].shape)) or "a scalar") + kind


def _on_cpu(content: Any) -> Any:
    if isinstance(content, torch.Tensor):
        return content.cpu()
    if isinstance(content, dict):
        moved = copy.copy(content)  # unlike `dict.copy`, with its attributes: the metadata of a state dict
        moved.update((key, _on_cpu(value)) for key, value in content.items())
        return moved
    return type(content)(map(_on_cpu, content)) if isinstance(content, list | tuple) else content
