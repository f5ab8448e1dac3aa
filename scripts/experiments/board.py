"""What TensorBoard shows of many trainings: a line of the HParams tab for each, the tables and pictures of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from scripts.core.events import add_hparams, remove_events
from scripts.experiments.comparison_results import Run

__all__ = ["write_comparison", "write_cross_validation", "write_hparams"]


def write_hparams(folder: Path, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
    """Write one line of the HParams tab into a folder of its own; see :func:`scripts.core.events.add_hparams`."""
    with SummaryWriter(str(folder)) as writer:
        add_hparams(writer, settings, results)


def write_comparison(
    folder: Path, runs: Sequence[Run], tables: str, figures: Mapping[str, Figure], settings: Mapping[str, Any]
) -> None:
    """Write the events of a comparison, in place of those of an earlier call.

    Args:
        folder: of the events.
        runs: each gets a line with its settings and scores.
        tables: as Markdown.
        figures: the pictures by name.
        settings: what all runs share.
    """
    remove_events(folder)
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("comparison", tables, 0)
        for name, figure in figures.items():
            writer.add_figure(name, figure, 0)
    shared = {key: settings[key] for key in ("task", "epochs", "lr", "backbone") if key in settings}
    for run in runs:
        own = {"method": run.variant.name, "seed": run.seed, **shared, **run.changed}
        write_hparams(folder / run.variant.folder / f"seed_{run.seed}", own, _results(run))


def write_cross_validation(folder: Path, runs: Sequence[Run], tables: str) -> None:
    """Write the events of a cross-validation in place of those of an earlier call: its tables, and a line a fold."""
    remove_events(folder)
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("cross-validation", tables, 0)
    for fold, run in enumerate(runs, start=1):
        own = {"fold": fold, "method": run.method, "seed": run.seed}
        write_hparams(folder / f"fold_{fold}", own, _results(run))


def _results(run: Run) -> dict[str, float]:
    scores = {f"{head}/{name}": value for head, found in run.scores.items() for name, value in found.items()}
    results = {name: value for name, value in scores.items() if not math.isnan(value)}
    return {**results, "training_seconds": sum(phase["seconds"] for phase in run.training["phases"])}
