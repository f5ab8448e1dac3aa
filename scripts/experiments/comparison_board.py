"""A comparison in TensorBoard: one line a run in the HParams tab, the table as text, the pictures as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from scripts.experiments.comparison_results import Run
from scripts.experiments.hparams import write_hparams

__all__ = ["write_board"]


def write_board(
    folder: Path, runs: Sequence[Run], table: str, figures: Mapping[str, Figure], settings: Mapping[str, Any]
) -> None:
    """Write a comparison's TensorBoard events, in place of those of an earlier call.

    Args:
        folder: of the events.
        runs: all runs; their knobs and scores go to the HParams tab.
        table: the tables as Markdown.
        figures: the pictures by name.
        settings: the knobs that all runs share.
    """
    for old in folder.rglob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("comparison", table, 0)
        for name, figure in figures.items():
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            image = np.asarray(canvas.buffer_rgba())[..., :3]
            writer.add_image(name, image, 0, dataformats="HWC")
    shared = {key: settings[key] for key in ("task", "epochs", "lr", "backbone") if key in settings}
    for run in runs:
        scores = {
            f"{head}/{name}": score["value"]
            for head, report in run.metrics.items()
            for name, score in report.items()
            if name != "classes" and score["value"] is not None
        }
        seconds = sum(phase["seconds"] for phase in run.training["phases"])
        write_hparams(
            folder / run.method / f"seed_{run.seed}",
            {"method": run.method, "seed": run.seed, **shared},
            {**scores, "training_seconds": seconds},
        )
