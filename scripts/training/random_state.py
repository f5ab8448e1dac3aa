"""What a training needs to go on, beside what its config names: random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine

__all__ = ["TrainingState"]


class TrainingState:
    """The state of PyTorch's random numbers.

    Slides and views are drawn by the seed and the epoch's number; this is for a network that draws, as one with
    dropout does.

    Args:
        engine: the trainer; MONAI's has its device in its state.
    """

    def __init__(self, engine: Engine) -> None:
        device = torch.device(getattr(getattr(engine, "state", None), "device", None) or "cpu")
        self.gpu = device if device.type == "cuda" else None

    def state_dict(self) -> dict[str, Any]:
        """The states, as tensors and plain values."""
        state: dict[str, Any] = {"random": torch.get_rng_state()}
        if self.gpu is not None:
            state["random_cuda"] = torch.cuda.get_rng_state(self.gpu)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from these states; one that the checkpoint does not store stays as it is.

        Checkpoints of before version 0.4 may store a gradient scaler's too, which no training has any more.
        """
        torch.set_rng_state(state_dict["random"])
        if "random_cuda" in state_dict and self.gpu is not None:
            torch.cuda.set_rng_state(state_dict["random_cuda"], self.gpu)
