"""``searching``: a grid of hyperparameters over cached features; the lowest validation loss wins."""

from __future__ import annotations

import csv
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
from scripts.core.files import replacing
from scripts.core.ranks import is_first_rank
from scripts.core.settings import check_settings, with_role
from scripts.experiments.hparams import write_hparams
from scripts.experiments.trainings import Experiment, leaving_out, run_experiments
from scripts.networks.methods import result_heads

__all__ = ["GRID_KNOBS", "GridSearch", "Trial"]

GRID_KNOBS = with_role("grid")
"""The knobs that the paper searches over."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One point of the grid, and what came of it.

    Args:
        name: of its folder.
        knobs: its values.
        validation_loss: the lowest of its epochs, of the method's first output; infinite if the trial failed.
        epoch: in which that was.
        seconds: the training took.
    """

    name: str
    knobs: Mapping[str, Any]
    validation_loss: float
    epoch: int
    seconds: float


class GridSearch:
    """Trains at every point of a grid, and tells which has the lowest validation loss.

    Writes ``search.csv`` (all trials, best first), ``best.json`` (the knobs of the best) and TensorBoard's HParams
    tab into ``output_dir``, and each trial into ``trials/<name>``. The name comes from the trial's knobs, so a trial
    that is done is not run again, even in another grid.

    Args:
        grid: for each of :data:`GRID_KNOBS` the values to try; one that is left out keeps the training's default.
        settings: the other knobs of the training, as plain values.
        output_dir: gets all output.
        bundle_root: the bundle's folder.
        num_processes: how many trials run at the same time; under ``torchrun`` each rank takes a share.

    Raises:
        SettingsError: if the grid has another knob, or a value that cannot be used.
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
            raise SettingsError("grid", f"got {grid!r}", 'Give values for knobs, for example {"lr": [0.001, 0.0001]}.')
        for key, values in grid.items():
            if key not in GRID_KNOBS:
                raise SettingsError("grid", f"{key!r} is no knob of the search", f"Known are {', '.join(GRID_KNOBS)}.")
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
            left_out: names of slides that no trial uses, beside those of the setting ``leave_out``: they have no
                features. It counts as a setting, so trials that had these slides are refused.

        Returns:
            The best trial. Trials that failed, as a learning rate too high lets them, come last, without a loss.

        Raises:
            BundleError: what the first trial said, if all failed.
            SettingsError: as :func:`scripts.experiments.trainings.run_experiments`.
        """
        settings = leaving_out(self.settings, left_out)
        points = list(ParameterGrid(self.grid))
        experiments = [
            Experiment(name, self.output_dir / "trials" / name, {**settings, **knobs}, steps=("training",))
            for knobs in points
            for name in [_name(knobs)]
        ]
        failed = run_experiments(experiments, self.bundle_root, self.num_processes, desc="searching")
        if len(failed) == len(experiments):
            raise next(iter(failed.values()))
        head = result_heads(self.settings["method"], self.settings["magnifications"])[0]
        trials = [self._read(experiment, knobs, head) for experiment, knobs in zip(experiments, points, strict=True)]
        trials.sort(key=lambda trial: (trial.validation_loss, trial.name))
        if is_first_rank():
            self._write(trials, head)
        return trials[0]

    def _read(self, experiment: Experiment, knobs: Mapping[str, Any], head: str) -> Trial:
        if not (experiment.folder / "done.json").is_file():
            return Trial(experiment.name, knobs, math.inf, 0, math.nan)
        try:
            told = json.loads((experiment.folder / "training.json").read_text(encoding="utf-8"))
            best, phases = told["best"][head], told["phases"]
            seconds = sum(phase["seconds"] for phase in phases)
            return Trial(experiment.name, knobs, float(best["validation_loss"]), int(best["epoch"]), seconds)
        except (OSError, ValueError, KeyError) as error:
            remedy = "Delete the folder, and run the command again."
            raise SettingsError(experiment.folder, f"does not hold the result of a trial ({error})", remedy) from error

    def _write(self, trials: Sequence[Trial], head: str) -> None:
        with (
            replacing(self.output_dir / "search.csv") as part,
            open(part, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow([*self.grid, f"{head}_validation_loss", "best_epoch", "training_seconds", "trial"])
            for trial in trials:
                values = [trial.knobs[key] for key in self.grid]
                known = math.isfinite(trial.validation_loss)
                result = [trial.validation_loss, trial.epoch, f"{trial.seconds:.3f}"] if known else ["failed", "", ""]
                writer.writerow([*values, *result, trial.name])
        with replacing(self.output_dir / "best.json") as part:
            part.write_text(json.dumps(dict(trials[0].knobs), indent=2) + "\n", encoding="utf-8")
        board = self.output_dir / "tensorboard"
        for old in board.rglob("events.out.tfevents.*"):
            old.unlink()
        for trial in (trial for trial in trials if math.isfinite(trial.validation_loss)):
            results = {f"{head}/validation_loss": trial.validation_loss, "training_seconds": trial.seconds}
            write_hparams(board / trial.name, trial.knobs, results)
        best = trials[0]
        options = " ".join(f"--{key} {value}" for key, value in best.knobs.items())
        failed = sum(not math.isfinite(trial.validation_loss) for trial in trials)
        print(
            f"{len(trials)} trials, {failed} of them failed; the lowest validation loss of the output {head} is "
            f"{best.validation_loss:.4f}."
        )
        print(f"To train with its knobs:  {options}")
        logger.info("wrote %s", self.output_dir / "search.csv")


def _name(knobs: Mapping[str, Any]) -> str:
    text = json.dumps(dict(sorted(knobs.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
