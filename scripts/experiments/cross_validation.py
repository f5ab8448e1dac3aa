"""``cross_validating``: a training for each fold of the patients, and the scores of all slides, each tested once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scripts.core.errors import BundleError
from scripts.core.files import replacing, write_json
from scripts.core.provenance import cohort_fingerprint
from scripts.core.ranks import from_first_rank, is_first_rank
from scripts.core.settings import check_settings
from scripts.core.tasks import THRESHOLD
from scripts.datalists.failures import without
from scripts.datalists.folds import Folds
from scripts.datalists.labels import output_names
from scripts.datalists.partitions import PARTITIONS
from scripts.datalists.patients import patients_known, patients_of
from scripts.datalists.units import SLIDE, bags_of
from scripts.evaluation.bootstrap import warn_of_few, warn_of_unknown
from scripts.evaluation.localisation import region_values
from scripts.evaluation.localisation_report import FILES, write_localisation
from scripts.evaluation.reports import without_nan
from scripts.evaluation.summary import localisation_tables
from scripts.experiments.board import write_cross_validation
from scripts.experiments.comparison_results import Run, read_run
from scripts.experiments.comparison_tables import markdown
from scripts.experiments.fold_datalists import check_banks, fold_settings, views_of_folds, write_datalist
from scripts.experiments.fold_results import fold_tables, pool, pooled_scores, scores_over_folds, warn_of_points
from scripts.experiments.trainings import Experiment, leaving_out, run_experiments
from scripts.networks.methods import attention_maps

__all__ = ["CrossValidation"]

DATALIST = "datalist.json"

logger = logging.getLogger(__name__)


class CrossValidation:
    """Trains and evaluates once for each fold, with the shipped configs, and scores the slides of all folds together.

    Writes ``predictions.csv``, ``cross_validation.json``, ``cross_validation.md``, where slides have regions
    ``localisation.json`` and ``localisation.csv``, and TensorBoard events into ``output_dir``, and of each fold its
    datalist and its training into ``fold_<n>``, from 1 up. Finished folds are not repeated; interrupted ones resume.

    Args:
        split: the slides in folds.
        settings: of training and evaluation, as plain values.
        output_dir: gets all output.
        feature_dir: where the feature banks are.
        bundle_root: the bundle's folder.
        num_processes: how many trainings run at the same time.
        made_by: stored in ``cross_validation.json`` with the slides, see :func:`scripts.core.provenance.made_by`.

    Raises:
        SettingsError: if ``num_processes`` is below 1.
    """

    def __init__(
        self,
        split: Folds,
        settings: Mapping[str, Any],
        output_dir: str | Path,
        feature_dir: str | Path,
        bundle_root: str | Path = ".",
        num_processes: int = 1,
        made_by: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        check_settings(num_processes=num_processes)
        self.split, self.settings, self.made_by = split, dict(settings), made_by
        self.output_dir, self.feature_dir, self.bundle_root = Path(output_dir), Path(feature_dir), Path(bundle_root)
        self.num_processes, self.unit = num_processes, settings.get("unit", SLIDE)
        self.class_names = output_names(settings["task"], settings["class_names"], settings.get("positive_classes"))

    @property
    def views_to_extract(self) -> list[int]:
        """For each of the split's entries the most augmented views that the training of a fold needs of it."""
        return views_of_folds(self.split, self.settings["views"], self.unit)

    def run(self, left_out: Sequence[str] = ()) -> str:
        """Run what is missing, once the slides are extracted; then score all folds together.

        Args:
            left_out: names of slides without features, which no fold uses; see
                :func:`scripts.experiments.trainings.leaving_out`.

        Returns:
            The tables as Markdown, which are printed as well; empty on ranks other than the first.

        Raises:
            BundleError: the error of the first fold that failed, once the others are done.
            DatalistError: if a slide is there under two names, or a partition of a fold has no slide left.
            SettingsError: as :func:`scripts.experiments.trainings.run_experiments`.
        """
        check_banks(self.split, self.feature_dir, left_out)
        experiments = self.experiments(left_out)
        for experiment in experiments:
            _ = experiment.is_done  # The datalist of a fold with other settings is not replaced.
        from_first_rank(lambda: self._write_datalists(experiments))
        failed = run_experiments(experiments, self.bundle_root, self.num_processes, desc="cross-validating")
        for name, error in failed.items():
            raise BundleError(f"{name}: {error.subject}", error.cause, error.remedy)
        if not is_first_rank():
            return ""
        method, seed = self.settings["method"], self.settings["seed"]
        return self._write([read_run(one.folder, method, seed, self.class_names) for one in experiments], left_out)

    def experiments(self, left_out: Sequence[str] = ()) -> list[Experiment]:
        """The training and evaluation of each fold, see :meth:`run`."""
        made = []
        for fold in range(len(self.split.partitions)):
            folder = self.output_dir / f"fold_{fold + 1}"
            own = fold_settings(self.split, fold, folder / DATALIST)
            made.append(Experiment(f"fold {fold + 1}", folder, leaving_out({**self.settings, **own}, left_out)))
        return made

    def _write_datalists(self, experiments: Sequence[Experiment]) -> None:
        for fold, experiment in enumerate(experiments):
            write_datalist(self.split, fold, experiment.folder / DATALIST)

    def _write(self, runs: Sequence[Run], left_out: Sequence[str]) -> str:
        """Write all files; returns the tables."""
        task, path = self.settings["task"], self.output_dir / "cross_validation.json"
        rule = self.settings.get("threshold", THRESHOLD)
        entries = without(self.split.entries, left_out)
        patients, known = patients_of(entries), patients_known(entries)
        pooled = pool(runs, task, patients_of(bags_of(entries, self.unit)))
        num_patients = len(set(pooled.patients))
        folds = []
        for fold, run in enumerate(runs):
            slides = {name: [e["slide"] for e in without(self.split.part(fold, name), left_out)] for name in PARTITIONS}
            sizes = {"slides": {name: len(of_part) for name, of_part in slides.items()}, "patients": None}
            if known:
                sizes["patients"] = {name: len({patients[s] for s in of_part}) for name, of_part in slides.items()}
            points = {head: {"scores": of.scores, "thresholds": of.thresholds} for head, of in run.decisions.items()}
            folds.append({"fold": fold + 1, **sizes, "scores": run.scores, "operating_point": points})
        heads = pooled_scores(pooled, task, self.class_names, self.settings["seed"])
        content = {
            "heads": {head: {"pooled": heads[head], "folds": scores_over_folds(runs, head, task)} for head in heads},
            "folds": folds,
            "slides": len(entries),
            "patients": num_patients if known else None,
            "made_by": {**self.made_by, "data": cohort_fingerprint(tested=entries)},
        }
        text = markdown(fold_tables(content, task)) + self._localisation(runs, patients if known else None)
        pooled.write(self.output_dir / "predictions.csv", self.class_names, task)
        with replacing(path.with_suffix(".md")) as part:
            part.write_text(text, encoding="utf-8")
        write_cross_validation(self.output_dir / "tensorboard", runs, text)
        write_json(path, without_nan(content))
        print(text)
        warn_of_points(runs, self.split, rule, self.unit, left_out)
        warn_of_few(num_patients, path)
        if not known:
            warn_of_unknown(path)
        logger.info("wrote the cross-validation into %s", self.output_dir)
        return text

    def _localisation(self, runs: Sequence[Run], patients: Mapping[str, str] | None) -> str:
        """Write where the maps of all folds look; returns the table, or nothing where no slide has regions."""
        found = [one for run in runs for one in run.localised]
        if not found:
            for name in FILES:  # those of an earlier call
                (self.output_dir / name).unlink(missing_ok=True)
            return ""
        settings = self.settings
        names = region_values(settings["task"], settings["class_names"], settings.get("positive_classes"))
        maps = attention_maps(settings["method"], settings["magnifications"])
        summary = write_localisation(self.output_dir, found, maps, list(names), settings["seed"], patients)
        tested = "Heatmaps, those of each slide by the network that has not seen its patient."
        return f"\n{tested}\n{localisation_tables(summary)}"
