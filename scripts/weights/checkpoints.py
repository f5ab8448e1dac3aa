"""Trained weights: loading them strictly, and the network that holds the best ones of every output."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.networks.bag_network import BagNetwork
from scripts.networks.state_record import origin_in, plain_metadata, weights_sha256
from scripts.weights.origin import misplaced, training_of
from scripts.weights.record import DEMONSTRATION, check_weights, is_demonstration, other_settings, read_weights

__all__ = ["HeadwiseNetwork", "load_weights"]

ONE_TRAINING = "Give a `ckpt_dir` into which one training wrote, and no other; or train again."

logger = logging.getLogger(__name__)


def load_weights(network: nn.Module, path: str | Path, settings: Mapping[str, Any] | None = None) -> None:
    """Load a checkpoint into a network, strictly: every weight of both sides, whole, and of a training that fits.

    Args:
        network: what to load into, in place; its weights stay on their device. A misfit changes nothing.
        path: a file with a state dict, or with ``{"model": state dict}``, tensors only.
        settings: what the network is used with, as plain values by knob.

    Raises:
        SettingsError: if the file is missing, is no such checkpoint or a damaged one, does not fit the network, has
            the name of another output's weights, or was trained with settings with which its scores mean nothing
            (:func:`scripts.weights.record.check_weights`).
    """
    found = read_weights(path)
    if (fault := misplaced(path, origin_in(plain_metadata(found)) or {})) is not None:
        raise SettingsError(path, *fault)
    wanted = network.state_dict()
    misfits = [
        f"{key} is {_shape(found, key)} in the file and {_shape(wanted, key)} in the network"
        for key in sorted(wanted.keys() | found.keys())
        if _shape(found, key) != _shape(wanted, key)
    ]
    if misfits:
        # Shapes differ because settings do: those are what a user knows.
        if settings is not None and (problem := other_settings(found, settings)) is not None:
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
    if is_demonstration(network.record):  # type: ignore[arg-type]
        logger.warning("%s: %s", path, DEMONSTRATION)


class HeadwiseNetwork(nn.Module):
    """The best weights of every output at once, as the paper keeps them.

    Each output reaches its lowest validation loss in an epoch of its own. This module holds one copy of the
    network for each output, and takes output h and the maps that explain it from copy h only. A frozen
    backbone is shared by the copies, and each patch passes it once.

    Args:
        network: a network as it was trained; it is copied and not changed.
        weights: one checkpoint for each output, in order.
        settings: as for :func:`load_weights`.

    Raises:
        SettingsError: if the number of checkpoints is not that of the outputs, one of them does not load, or they are
            of several trainings.
    """

    def __init__(
        self, network: BagNetwork, weights: Sequence[str | Path], settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        heads = 1 + max(network.map_heads)
        if isinstance(weights, (str, Path)) or len(weights) != heads:
            raise SettingsError(
                "weights", f"got {weights!r}", f"Give {heads} checkpoints: one for each output, in order."
            )
        self.shares_backbone = network.freeze_backbone
        self.maps = [[m for m, of in enumerate(network.map_heads) if of == head] for head in range(len(weights))]
        self.copies = nn.ModuleList()
        for path in weights:
            kept = {id(network.net): network.net} if self.shares_backbone else {}
            member = copy.deepcopy(network, kept)
            load_weights(member, path, settings)
            self.copies.append(member)
        members: list[Any] = list(self.copies)
        trainings = [training_of(member.record, member.origin) for member in members]
        for path, training in zip(weights, trainings, strict=True):
            if training != trainings[0]:
                raise SettingsError(path, f"is not of the same training as {Path(weights[0]).name}", ONE_TRAINING)

    @torch.jit.unused
    def weights_sha256(self, heads: Sequence[str]) -> dict[str, str]:
        """For each output, by its name, the SHA-256 of the weights that it comes from.

        Args:
            heads: the outputs' names, in order.
        """
        return {head: weights_sha256(member.state_dict()) for head, member in zip(heads, self.copies, strict=True)}

    def forward(self, x: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """The logits ``[B, H, K]``; arguments and errors as :meth:`BagNetwork.forward`."""
        return self.attend(x, log_weight)[0]  # [B, H, K]

    @torch.jit.export
    def attend(self, x: Tensor, log_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits ``[B, H, K]`` and attention ``[B, N, M, K]``; see :meth:`BagNetwork.attend`."""
        logits: list[Tensor] = []
        attention: list[Tensor] = []
        for head, member in enumerate(self.copies):
            if self.shares_backbone and head == 0:
                x = member(x, no_head=True)  # [B, N, S, F]
            # [B, H, K], [B, N, M, K]
            y, a = member.attend(x, log_weight)  # type: ignore[operator]
            logits.append(y[:, head])  # [B, K]
            for m in self.maps[head]:
                attention.append(a[:, :, m])  # [B, N, K]
        return torch.stack(logits, dim=1), torch.stack(attention, dim=2)  # [B, H, K], [B, N, M, K]

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
            for m in self.maps[head]:
                attention.append(a[:, :, m])  # [B, N, K]
                contribution.append(c[:, :, m])  # [B, N, K]
        return torch.stack(logits, dim=1), torch.stack(attention, dim=2), torch.stack(contribution, dim=2)


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    if key not in state:
        return "absent"
    # Other types would be rounded, or lose their imaginary part, without a word.
    kind = "" if state[key].is_floating_point() else f" {state[key].dtype}".replace("torch.", "")
    return ("x".join(map(str, state[key].shape)) or "a scalar") + kind
