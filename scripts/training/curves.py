"""The curves of a training that TensorBoard shows: groups ``loss/``, ``metrics/`` and ``rate/``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.utils import CommonKeys
from torch.utils.tensorboard import SummaryWriter

from scripts.networks.losses import head_losses

__all__ = ["loss_and_metric_layout", "training_scalars", "write_validation"]


def training_scalars(
    heads: Sequence[str], optimizer: torch.optim.Optimizer, task: str = "multilabel"
) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]:
    """What TensorBoard shows of each iteration: the loss, that of each head, and the learning rate.

    Args:
        heads: the heads' names.
        optimizer: whose learning rate is shown.
        task: one of :data:`scripts.core.tasks.TASKS`.

    Returns:
        an ``output_transform`` for MONAI's TensorBoardStatsHandler.
    """

    def transform(output: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        predictions = torch.stack([item[CommonKeys.PRED] for item in output])  # [B, H, L], or more than H
        labels = torch.stack([item[CommonKeys.LABEL] for item in output])  # [B, K]
        # What follows the heads is for the loss alone.
        of_heads = head_losses(predictions[:, : len(heads)], labels, task)  # [H]
        losses = zip(heads, of_heads.tolist(), strict=True)
        return {
            "loss/training": float(output[0][CommonKeys.LOSS]),
            # A head that the phase does not train has no logits, and no loss.
            **{_loss_tag(head, "training"): value for head, value in losses if not math.isnan(value)},
            "rate/learning_rate": float(optimizer.param_groups[0]["lr"]),
        }

    return transform


def write_validation(heads: Sequence[str], epoch_length: int) -> Callable[[Engine, SummaryWriter], None]:
    """What TensorBoard shows of each validation: the loss and the scores of each head.

    They are shown at the iteration of the training, not at its epoch, so that they share its axis.

    Args:
        heads: the heads' names; a metric's name starts with that of its head.
        epoch_length: iterations of the training in an epoch.

    Returns:
        an ``epoch_event_writer`` for MONAI's TensorBoardStatsHandler.
    """

    def write(engine: Engine, writer: SummaryWriter) -> None:
        for head in heads:
            of_head = {
                name.removeprefix(f"{head}_"): value
                for name, value in engine.state.metrics.items()
                if name.startswith(f"{head}_")
            }
            for name, value in of_head.items():
                tag = _loss_tag(head, "validation") if name == "loss" else _metric_tag(head, name)
                writer.add_scalar(tag, value, engine.state.epoch * epoch_length)
        writer.flush()

    return write


def loss_and_metric_layout(heads: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """The charts of the Custom Scalars tab: each head's training and validation loss on one, each score of all heads.

    Args:
        heads: the heads' names.
        names: of the scores.

    Returns:
        a layout for ``SummaryWriter.add_custom_scalars``.
    """

    def chart(tags: Sequence[str]) -> list[Any]:
        return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]  # the tab reads them as regular expressions

    return {
        "loss": {
            f"loss of {head}": chart([_loss_tag(head, of) for of in ("training", "validation")]) for head in heads
        },
        "metrics": {name: chart([_metric_tag(head, name) for head in heads]) for name in names},
    }


def _loss_tag(head: str, of: str) -> str:
    return f"loss/{head}/{of}"


def _metric_tag(head: str, name: str) -> str:
    return f"metrics/{head}/{name}"
