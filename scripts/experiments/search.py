"""``searching``: a grid of hyperparameters over stored features; the lowest validation loss wins."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.model_selection import ParameterGrid

from scripts.core.errors import SettingsError
from scripts.core.events import remove_events
from scripts.core.files import write_csv, write_json
from scripts.core.ranks import is_first_rank
from scripts.core.settings import check_settings, with_role
from scripts.experiments.board import write_hparams
from scripts.experiments.trainings import Experiment, leaving_out, run_experiments
from scripts.networks.methods import learning_heads

__all__ = ["GRID_SETTINGS", "GridSearch", "Trial"]

GRID_SETTINGS = with_role("grid")
"""The settings that the paper searches over."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One point of the grid, and its result."""

    name: str  # of its folder
    settings: Mapping[str, Any]  # its point of the grid
    validation_loss: float  # the lowest of its epochs, of the method's first head; infinite if the trial failed
    epoch: int  # in which that was
    seconds: float  # of the training


class GridSearch:
    """Trains at every point of a grid; the lowest validation loss wins.

    Writes ``search.csv`` (all trials, best first), ``best.json`` (the settings of the best) and TensorBoard's HParams
    tab into ``output_dir``, and each trial into ``trials/<name>``. The name depends on the point alone, so a finished
    trial is not repeated, even in another grid.

    Args:
        grid: for each of :data:`GRID_SETTINGS` the values to try; what is missing keeps the training's default.
        settings: the other settings of the training, as plain values.
        output_dir: gets all output.
        bundle_root: the bundle's folder.
        num_processes: how many trials run at the same time; under ``torchrun`` each rank runs a shard.

    Raises:
        SettingsError: if the grid has another key, or a value that cannot be used.
    """

    def __init__(
        self,
        grid: Mapping[str, Sequence[Any]],
        settings: Mapping[str, Any],
        output_dir: str | Path,
        bundle_root: str | Path = ".",
        num_processes: int = 1,
    ) -> None:
        if not isinstance(grid, Mapping) or not grid:
            raise SettingsError(
                "grid", f"got {grid!r}", 'Give values for settings, for example {"lr": [0.001, 0.0001]}.'
            )
        for key, values in grid.items():
            if key not in GRID_SETTINGS:
                raise SettingsError(
                    "grid", f"{key!r} is no setting of the search", f"Known are {', '.join(GRID_SETTINGS)}."
                )
            if not isinstance(values, list | tuple) or not values:
                raise SettingsError(f"grid {key}", f"got {values!r}", "Give a list of values.")
            if len({json.dumps(value) for value in values}) < len(values):
                raise SettingsError(f"grid {key}", f"got {values!r}", "Name each value once.")
            for value in values:
                check_settings(**{key: value})
        self.grid = {key: list(values) for key, values in grid.items()}
        self.settings = dict(settings)
        self.output_dir, self.bundle_root, self.num_processes = Path(output_dir), Path(bundle_root), num_processes

    def run(self, left_out: Sequence[str] = ()) -> Trial:
        """Run the trials that are not done, and report all.

        Args:
            left_out: names of slides without features, which no trial uses; see
                :func:`scripts.experiments.trainings.leaving_out`.

        Returns:
            The best trial.

        Raises:
            BundleError: the error of the first trial, if all failed.
            SettingsError: as :func:`scripts.experiments.trainings.run_experiments`.
        """
        settings = leaving_out(self.settings, left_out)
        experiments, points = [], list(ParameterGrid(self.grid))
        for point in points:
            name = hashlib.sha256(json.dumps(dict(sorted(point.items()))).encode()).hexdigest()[:12]
            folder = self.output_dir / "trials" / name
            experiments.append(Experiment(name, folder, {**settings, **point}, steps=("training",)))
        failed = run_experiments(experiments, self.bundle_root, self.num_processes, desc="searching")
        if len(failed) == len(experiments):
            raise next(iter(failed.values()))
        # A head whose loss weighs nothing learns nothing, and cannot rank.
        most = [max(self.grid.get(name, [self.settings.get(name, 1.0)])) for name in ("alpha", "beta")]
        heads = learning_heads(self.settings["method"], self.settings["magnifications"], *most)
        if not heads:
            raise SettingsError("alpha and beta", "both are 0, so nothing would train", "Set one above 0.")
        head = heads[0]
        trials = [_read_trial(*of_point, head) for of_point in zip(experiments, points, strict=True)]
        trials.sort(key=lambda trial: (trial.validation_loss, trial.name))
        if is_first_rank():
            self._write(trials, head)
        return trials[0]

    def _write(self, trials: Sequence[Trial], head: str) -> None:
        best, board = trials[0], self.output_dir / "tensorboard"
        finished = [trial for trial in trials if math.isfinite(trial.validation_loss)]
        lines = []
        for trial in trials:
            result = [trial.validation_loss, trial.epoch, f"{trial.seconds:.3f}"]
            result = result if trial in finished else ["failed", "", ""]
            lines.append([*(trial.settings[key] for key in self.grid), *result, trial.name])
        columns = [*self.grid, f"{head}_validation_loss", "best_epoch", "training_seconds", "trial"]
        write_csv(self.output_dir / "search.csv", columns, lines)
        write_json(self.output_dir / "best.json", dict(best.settings))
        remove_events(board)
        for trial in finished:
            results = {f"{head}/validation_loss": trial.validation_loss, "training_seconds": trial.seconds}
            write_hparams(board / trial.name, trial.settings, results)
        print(
            f"{len(trials)} trials, {len(trials) - len(finished)} of them failed; the lowest validation loss of the "
            f"output {head} is {best.validation_loss:.4f}."
        )
        print("To train with its settings: ", *(f"--{key} {value}" for key, value in best.settings.items()))
        logger.info("wrote %s", self.output_dir / "search.csv")


def _read_trial(experiment: Experiment, point: Mapping[str, Any], head: str) -> Trial:
    if not (experiment.folder / "done.json").is_file():
        return Trial(experiment.name, point, math.inf, 0, math.nan)
    try:
        training = json.loads((experiment.folder / "training.json").read_text(encoding="utf-8"))
        best, seconds = training["best"][head], sum(phase["seconds"] for phase in training["phases"])
        return Trial(experiment.name, point, float(best["validation_loss"]), int(best["epoch"]), seconds)
    except (OSError, ValueError, KeyError) as error:
        remedy = "Delete the folder, and run the command again."
        raise SettingsError(experiment.folder, f"does not hold the result of a trial ({error})", remedy) from error
