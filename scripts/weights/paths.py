"""The names of the files of weights: one file for each head that has weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.networks.methods import result_heads

__all__ = ["serving_weights", "weights_path"]


def weights_path(ckpt_dir: str | Path, head: str) -> Path:
    """The file of the weights that are best for a head: ``model.pt``, ``model_5x.pt``, ..."""
    return Path(ckpt_dir) / ("model.pt" if head == "global" else f"model_{head}.pt")


def serving_weights(ckpt_dir: str | Path, method: str, magnifications: Sequence[float]) -> Path:
    """The one file with the weights of all heads of a method, for prediction.

    It is best for the global head; without one, for the head that was trained last, with the best weights of the others
    beside it. Errors as :func:`scripts.networks.methods.result_heads`.
    """
    heads = result_heads(method, magnifications)
    return weights_path(ckpt_dir, heads[0] if heads[0] == "global" else heads[-1])
