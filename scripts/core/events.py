"""TensorBoard's event files: what trainings, evaluations and comparisons write there in one way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

__all__ = ["add_hparams", "remove_events"]


def remove_events(folder: str | Path) -> None:
    """Remove the events of an earlier call from a folder and those below it."""
    for old in Path(folder).rglob("events.out.tfevents.*"):
        old.unlink()


def add_hparams(writer: SummaryWriter, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
    """Write the one line that a writer's folder has in the HParams tab, and its results as scalars.

    Args:
        writer: of the run's folder.
        settings: by name; those for which TensorBoard has no column type are written as text.
        results: finite numbers by the names of their scalars.
    """
    plain = {key: v if isinstance(v, int | float | str) else str(v) for key, v in settings.items()}
    # SummaryWriter.add_hparams would put each line into a folder named by the time.
    for summary in hparams(plain, dict(results)):
        writer._get_file_writer().add_summary(summary)
    for name, value in results.items():
        writer.add_scalar(name, value, 0)
