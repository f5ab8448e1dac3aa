"""TensorBoard's HParams tab: what was set, and what came out, one line for each training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

__all__ = ["write_hparams"]


def write_hparams(folder: Path, knobs: Mapping[str, Any], results: Mapping[str, float]) -> None:
    """Write one line of TensorBoard's HParams tab.

    Args:
        folder: of the events of this line alone.
        knobs: what was set; what TensorBoard has no column type for is written as text.
        results: what came out.
    """
    plain = {key: v if isinstance(v, int | float | str) else str(v) for key, v in knobs.items()}
    with SummaryWriter(str(folder)) as writer:
        # SummaryWriter.add_hparams would put each line into a folder that is named by the time.
        for part in hparams(plain, dict(results)):
            writer._get_file_writer().add_summary(part)
        for name, value in results.items():
            writer.add_scalar(name, value, 0)
