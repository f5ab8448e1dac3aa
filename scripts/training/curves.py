"""The curves of a training that TensorBoard shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.utils import CommonKeys

from scripts.networks.losses import head_losses

__all__ = ["training_scalars"]


def training_scalars(
    heads: Sequence[str], optimizer: torch.optim.Optimizer
) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]:
    """What TensorBoard shows of each iteration: the loss, that of each head, and the learning rate.

    Args:
        heads: the heads' names.
        optimizer: whose learning rate is shown.

    Returns:
        an ``output_transform`` for MONAI's TensorBoardStatsHandler.
    """

    def transform(output: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        predictions = torch.stack([item[CommonKeys.PRED] for item in output])  # [B, H, K]
        labels = torch.stack([item[CommonKeys.LABEL] for item in output])  # [B, K]
        losses = zip(heads, head_losses(predictions, labels).tolist(), strict=True)
        return {
            "train/loss": float(output[0][CommonKeys.LOSS]),
            # A head that the phase does not train has no logits, and no loss.
            **{f"train/loss_{head}": value for head, value in losses if not math.isnan(value)},
            "train/learning_rate": float(optimizer.param_groups[0]["lr"]),
        }

    return transform
