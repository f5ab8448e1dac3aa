"""What a training needs to go on, beside what its config names: random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine

__all__ = ["TrainingState"]


class TrainingState:
    """The state of PyTorch's random numbers.

    Slides and views are sampled by the seed and the epoch's number; this is for a network that samples, as one with
    dropout does.

    Args:
        engine: MONAI's trainer, which has its device in its state.
    """

    def __init__(self, engine: Engine) -> None:
        device = torch.device(engine.state.device)  # type: ignore[attr-defined]
        self.gpu = device if device.type == "cuda" else None

    def state_dict(self) -> dict[str, Any]:
        """The states, as tensors."""
        gpu = {} if self.gpu is None else {"random_cuda": torch.cuda.get_rng_state(self.gpu)}
        return {"random": torch.get_rng_state(), **gpu}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from these states; one that the checkpoint lacks stays as it is.

        Checkpoints of before version 0.4 may store a gradient scaler's too, which no training has any more.
        """
        torch.set_rng_state(state_dict["random"])
        if "random_cuda" in state_dict and self.gpu is not None:
            torch.cuda.set_rng_state(state_dict["random_cuda"], self.gpu)
