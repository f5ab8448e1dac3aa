"""``comparing``: several methods, each trained with several seeds on one cohort, and one table of them all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import BundleError, SettingsError
from scripts.core.files import replacing
from scripts.core.ranks import from_first_rank, is_first_rank
from scripts.core.settings import check_settings
from scripts.core.tasks import THRESHOLD, get_task
from scripts.datalists.failures import without
from scripts.datalists.folds import Folds
from scripts.datalists.labels import output_names
from scripts.datalists.patients import patients_known, patients_of
from scripts.datalists.units import SLIDE, bags_of, slides_in
from scripts.evaluation.bootstrap import warn_of_few, warn_of_unknown
from scripts.evaluation.metrics import frequency_baseline
from scripts.experiments.board import write_comparison
from scripts.experiments.comparison_figure import choose_figure_slides, draw_panels, draw_scores
from scripts.experiments.comparison_results import Run, compare, read_run
from scripts.experiments.comparison_tables import comparison_tables, markdown, write_runs, write_summary
from scripts.experiments.fold_datalists import check_banks, fold_settings, write_datalist
from scripts.experiments.fold_results import pooled_run, warn_of_points
from scripts.experiments.power_table import power_table
from scripts.experiments.trainings import Experiment, leaving_out, run_experiments
from scripts.experiments.variants import Variant, read_variants
from scripts.reports.page import figure_url, write_page

__all__ = ["Comparison"]

FIGURES = {
    "comparison": "Scores of every training (points) and their mean (line), a row for each output",
    "attention": "Slides with their annotated regions, and where each method looks",
    "contribution": "Slides with their annotated regions, and what each method concludes there",
}

logger = logging.getLogger(__name__)


class Comparison:
    """Trains and evaluates every method with every seed, with the shipped configs, and compares the results.

    Writes ``comparison.md``, ``comparison.csv``, ``runs.csv``, ``report.html``, ``comparison.png``, ``attention.png``,
    ``contribution.png`` and TensorBoard events into ``output_dir``, and each run into
    ``runs/<method>/seed_<seed>``, of folds into ``fold_<n>`` there, from 1 up; those of a variant into a folder of its
    own, ``runs/mustmil_beta=0/seed_0``. Finished runs are not repeated; interrupted ones resume.

    Args:
        methods: methods and variants of them, see :func:`scripts.experiments.variants.read_variants`.
        seeds: of the trainings; the split and the augmented views do not depend on them.
        settings: the other settings of training and evaluation, as plain values.
        training_data: the entries to train on, for the scores of class frequencies alone.
        testing_data: the entries to test.
        output_dir: gets all output.
        bundle_root: the bundle's folder.
        num_processes: how many runs at the same time.
        figure_slides: see :func:`scripts.experiments.comparison_figure.choose_figure_slides`.
        split: the slides in folds, each of which is a training; ``None`` for the partitions of the datalist.
        feature_dir: where the feature banks are; needed with folds.

    Raises:
        SettingsError: if a method, a seed or a slide of the pictures cannot be used, or is given twice.
    """

    def __init__(
        self,
        methods: Sequence[str],
        seeds: Sequence[int],
        settings: Mapping[str, Any],
        training_data: Sequence[Mapping[str, Any]],
        testing_data: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        bundle_root: str | Path = ".",
        num_processes: int = 1,
        figure_slides: Sequence[str] | None = None,
        split: Folds | None = None,
        feature_dir: str | Path = "",
    ) -> None:
        for key, values, example in (("methods", methods, "['mustmil', 'ssmil']"), ("seeds", seeds, "[0, 1, 2]")):
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise SettingsError(key, f"got {values!r}", f"Give a list, for example {example}.")
        for seed in seeds:
            check_settings(seed=seed)
        if len(set(seeds)) < len(seeds):
            raise SettingsError("seeds", f"got {list(seeds)!r}", "Name each once.")
        self.variants, self.seeds = read_variants(methods, settings), list(seeds)
        self.class_names = output_names(settings["task"], settings["class_names"], settings.get("positive_classes"))
        self.kind = get_task(settings["task"])
        if figure_slides is not None:
            choose_figure_slides(testing_data, self.class_names, figure_slides, self.kind)
        self.settings = dict(settings)
        self.training_data, self.testing_data = training_data, testing_data
        self.output_dir, self.bundle_root = Path(output_dir), Path(bundle_root)
        self.num_processes, self.figure_slides = num_processes, figure_slides
        self.split, self.feature_dir, self.unit = split, Path(feature_dir), settings.get("unit", SLIDE)

    def run(self, left_out: Sequence[str] = ()) -> str:
        """Run what is missing, then compare.

        Args:
            left_out: names of slides without features, which no run uses; see
                :func:`scripts.experiments.trainings.leaving_out`.

        Returns:
            The tables as Markdown, which are printed as well; empty on ranks other than the first.

        Raises:
            BundleError: the error of the first run that failed, once the others are done.
            SettingsError: as :func:`scripts.experiments.trainings.run_experiments`.
            DatalistError: if no slide is left to train on, or to test, or one is in the folds under two names.
        """
        training_data, testing_data = (without(data, left_out) for data in (self.training_data, self.testing_data))
        if self.figure_slides is not None:
            choose_figure_slides(testing_data, self.class_names, self.figure_slides, self.kind)
        folds: Sequence[int | None] = [None]
        if self.split is not None:
            check_banks(self.split, self.feature_dir, left_out)
            folds = range(len(self.split.partitions))
        experiments = {
            (variant.name, seed, fold): self._experiment(variant, seed, fold, left_out)
            for seed in self.seeds
            for variant in self.variants
            for fold in folds
        }
        for experiment in experiments.values():
            _ = experiment.is_done  # The datalist of a fold with other settings is not replaced.
        from_first_rank(self._write_datalists)
        failed = run_experiments(list(experiments.values()), self.bundle_root, self.num_processes, desc="comparing")
        for name, error in failed.items():
            raise BundleError(f"{name}: {error.subject}", error.cause, error.remedy)
        if not is_first_rank():
            return ""
        of_name = {variant.name: variant for variant in self.variants}
        found = {place: self._read(one, of_name[place[0]]) for place, one in experiments.items()}
        fold_of = {bag: fold for (_, _, fold), run in found.items() for bag in run.slides}
        bag_of = {slide["slide"]: bag["slide"] for bag in bags_of(testing_data, self.unit) for slide in slides_in(bag)}

        def tested_by(name: str) -> Callable[[str], Experiment]:
            return lambda slide: experiments[name, self.seeds[0], fold_of[bag_of[slide]]]

        of_folds = [[found[name, seed, fold] for fold in folds] for name in of_name for seed in self.seeds]
        by_variant = [(variant, tested_by(name)) for name, variant in of_name.items()]
        return self._write(of_folds, by_variant, training_data, testing_data, left_out)

    def _read(self, experiment: Experiment, variant: Variant) -> Run:
        seed, fold = experiment.settings["seed"], experiment.settings.get("fold")
        run = read_run(experiment.folder, variant.method, seed, self.class_names, fold)
        return run.of_variant(variant, self.settings)

    def _experiment(self, variant: Variant, seed: int, fold: int | None, left_out: Sequence[str]) -> Experiment:
        name, folder = f"{variant.name}, seed {seed}", self.output_dir / "runs" / variant.folder / f"seed_{seed}"
        settings = {**self.settings, **variant.settings, "method": variant.method, "seed": seed}
        if self.split is not None and fold is not None:
            name, folder = f"{name}, fold {fold + 1}", folder / f"fold_{fold + 1}"
            settings |= fold_settings(self.split, fold, self._datalist(fold))
        return Experiment(name, folder, leaving_out(settings, left_out))

    def _datalist(self, fold: int) -> Path:
        return self.output_dir / "folds" / f"fold_{fold + 1}.json"

    def _write_datalists(self) -> None:
        if self.split is not None:
            for fold in range(len(self.split.partitions)):
                write_datalist(self.split, fold, self._datalist(fold))

    def _write(
        self,
        of_folds: Sequence[Sequence[Run]],
        tested_by: Sequence[tuple[Variant, Callable[[str], Experiment]]],
        training_data: Sequence[Mapping[str, Any]],
        testing_data: Sequence[Mapping[str, Any]],
        left_out: Sequence[str] = (),
    ) -> str:
        """Write all files; returns the tables.

        Args:
            of_folds: for each variant and seed its run, or those of its folds.
            tested_by: see :func:`scripts.experiments.comparison_figure.draw_panels`.
            training_data: the entries to train on.
            testing_data: the entries that were tested.
            left_out: names of slides that no run used.
        """
        task, path = self.settings["task"], self.output_dir / "comparison.md"
        folds = None if self.split is None else len(self.split.partitions)
        runs = [of_one[0] if folds is None else pooled_run(of_one, task, self.class_names) for of_one in of_folds]
        bags = [bags_of(data, self.unit) for data in (training_data, testing_data)]
        patients, known = patients_of(bags[1]), patients_known(testing_data)
        num_patients = len({patients.get(slide, slide) for slide in runs[0].slides})
        rows, maps = compare(runs, self.settings["magnifications"], task, self.class_names, patients=patients)
        train, test = (np.stack([e["label"] for e in data]) for data in bags)
        chance = frequency_baseline(train, test, task)
        cohort = len(testing_data), num_patients, self.seeds, chance, known, folds
        tables = comparison_tables(rows, maps, task, *cohort)
        tables += power_table(rows, task, len(testing_data), num_patients)
        text = markdown(tables)
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
        write_summary(self.output_dir / "comparison.csv", rows, maps)
        write_runs(self.output_dir / "runs.csv", [run for of_one in of_folds for run in of_one], task)
        regions = self.settings["class_names"]
        panels = draw_panels(tested_by, self.bundle_root, testing_data, self.class_names, regions, self.figure_slides)
        figures = {"comparison": draw_scores(rows, task), **panels}
        for name, figure in figures.items():
            with replacing(self.output_dir / f"{name}.png") as part:
                figure.savefig(part)
        # Inside the page, pictures of slides would take megabytes.
        sources = {name: f"{name}.png" if name in panels else figure_url(figure) for name, figure in figures.items()}
        beside = ", ".join(sources[name] for name in panels)
        write_page(
            self.output_dir / "report.html",
            title="Comparison of methods",
            facts=[
                ("Methods", ", ".join(variant.title for variant in self.variants)),
                ("Task", task),
                *([("Beside this page", f"{beside}. Copy them with it to hand it on.")] if panels else []),
            ],
            tables=tables,
            figures=[{"src": source, "alt": FIGURES[name]} for name, source in sources.items()],
        )
        write_comparison(self.output_dir / "tensorboard", runs, text, figures, self.settings)
        print(text)
        if self.split is not None:
            warn_of_points(of_folds[0], self.split, self.settings.get("threshold", THRESHOLD), self.unit, left_out)
        warn_of_few(num_patients, path)
        if not known:
            warn_of_unknown(path)
        logger.info("wrote the comparison into %s", self.output_dir)
        return text
