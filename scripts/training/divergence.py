"""Ending a training that diverges."""

from __future__ import annotations

import math

from ignite.engine import Engine, Events
from monai.handlers import from_engine
from monai.utils import CommonKeys

from scripts.core.errors import SettingsError

__all__ = ["StopOnDivergence"]


class StopOnDivergence:
    """Ends a training whose loss is not finite, before its weights are taken for a result."""

    def attach(self, engine: Engine) -> None:
        """Look at the loss of each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Raise a :class:`SettingsError` if the loss is not finite."""
        loss = float(from_engine([CommonKeys.LOSS], first=True)(engine.state.output))
        if not math.isfinite(loss):
            slides = ", ".join(str(item["slide"]) for item in engine.state.batch)  # type: ignore[union-attr]
            raise SettingsError(
                "lr",
                f"the loss is {loss} in epoch {engine.state.epoch}, at {slides}",
                "Lower `lr`; if the loss is never a number, the features of that slide are none.",
            )
