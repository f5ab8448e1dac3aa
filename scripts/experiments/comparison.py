"""``comparing``: several methods, each trained with several seeds on one cohort, and one table of them all."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import BundleError, SettingsError
from scripts.core.files import replacing
from scripts.core.ranks import is_first_rank
from scripts.core.settings import check_settings
from scripts.datalists.failures import without
from scripts.datalists.labels import output_names
from scripts.datalists.patients import patients_known, patients_of
from scripts.evaluation.bootstrap import warn_of_few, warn_of_unknown
from scripts.evaluation.metrics import frequency_baseline
from scripts.experiments.board import write_comparison
from scripts.experiments.comparison_figure import choose_figure_slides, draw_panels, draw_scores
from scripts.experiments.comparison_results import Run, compare, read_run
from scripts.experiments.comparison_tables import comparison_tables, markdown, write_runs, write_summary
from scripts.experiments.trainings import Experiment, leaving_out, run_experiments
from scripts.networks.methods import check_method, method_title
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
    ``runs/<method>/seed_<seed>``. Finished runs are not repeated; interrupted ones resume.

    Args:
        methods: see :data:`scripts.networks.methods.METHODS`.
        seeds: of the trainings; the split and the augmented views do not depend on them.
        settings: the other settings of training and evaluation, as plain values.
        training_data: the entries of the training partition, for the scores of class frequencies alone.
        testing_data: the entries of the testing partition.
        output_dir: gets all output.
        bundle_root: the bundle's folder.
        num_processes: how many runs at the same time.
        figure_slides: see :func:`scripts.experiments.comparison_figure.choose_figure_slides`.

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
    ) -> None:
        for key, values, example in (("methods", methods, "['mustmil', 'ssmil']"), ("seeds", seeds, "[0, 1, 2]")):
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise SettingsError(key, f"got {values!r}", f"Give a list, for example {example}.")
        for method in methods:
            check_method(method)
        for seed in seeds:
            check_settings(seed=seed)
        for key, values in (("methods", methods), ("seeds", seeds)):
            if len(set(values)) < len(values):
                raise SettingsError(key, f"got {list(values)!r}", "Name each once.")
        self.class_names = output_names(settings["task"], settings["class_names"], settings.get("positive_classes"))
        if figure_slides is not None:
            choose_figure_slides(testing_data, self.class_names, figure_slides)
        self.methods, self.seeds = list(methods), list(seeds)
        self.settings = dict(settings)
        self.training_data, self.testing_data = training_data, testing_data
        self.output_dir, self.bundle_root = Path(output_dir), Path(bundle_root)
        self.num_processes, self.figure_slides = num_processes, figure_slides

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
            DatalistError: if no slide is left to train on, or to test.
        """
        settings = leaving_out(self.settings, left_out)
        training_data, testing_data = (without(data, left_out) for data in (self.training_data, self.testing_data))
        if self.figure_slides is not None:
            choose_figure_slides(testing_data, self.class_names, self.figure_slides)
        experiments = {
            (method, seed): Experiment(
                f"{method}, seed {seed}",
                self.output_dir / "runs" / method / f"seed_{seed}",
                {**settings, "method": method, "seed": seed},
            )
            for seed in self.seeds
            for method in self.methods
        }
        failed = run_experiments(list(experiments.values()), self.bundle_root, self.num_processes, desc="comparing")
        for name, error in failed.items():
            raise BundleError(f"{name}: {error.subject}", error.cause, error.remedy)
        if not is_first_rank():
            return ""
        runs = [
            read_run(experiments[method, seed].folder, method, seed, self.class_names)
            for method in self.methods
            for seed in self.seeds
        ]
        firsts = [experiments[method, self.seeds[0]] for method in self.methods]
        return self._write(runs, firsts, training_data, testing_data)

    def _write(
        self,
        runs: Sequence[Run],
        shown: Sequence[Experiment],
        training_data: Sequence[Mapping[str, Any]],
        testing_data: Sequence[Mapping[str, Any]],
    ) -> str:
        """Write all files, with the maps of the shown runs; returns the tables."""
        task, path = self.settings["task"], self.output_dir / "comparison.md"
        patients, known = patients_of(testing_data), patients_known(testing_data)
        num_patients = len({patients.get(slide, slide) for slide in runs[0].slides})
        rows, maps = compare(runs, self.settings["magnifications"], task, self.class_names, patients=patients)
        train, test = (np.stack([e["label"] for e in data]) for data in (training_data, testing_data))
        chance = frequency_baseline(train, test, task)
        tables = comparison_tables(rows, maps, task, len(runs[0].slides), num_patients, self.seeds, chance, known)
        text = markdown(tables)
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
        write_summary(self.output_dir / "comparison.csv", rows, maps)
        write_runs(self.output_dir / "runs.csv", runs, task)
        regions = self.settings["class_names"]
        panels = draw_panels(shown, self.bundle_root, testing_data, self.class_names, regions, self.figure_slides)
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
                ("Methods", ", ".join(map(method_title, self.methods))),
                ("Task", task),
                *([("Beside this page", f"{beside}. Copy them with it to hand it on.")] if panels else []),
            ],
            tables=tables,
            figures=[{"src": source, "alt": FIGURES[name]} for name, source in sources.items()],
        )
        write_comparison(self.output_dir / "tensorboard", runs, text, figures, self.settings)
        print(text)
        warn_of_few(num_patients, path)
        if not known:
            warn_of_unknown(path)
        logger.info("wrote the comparison into %s", self.output_dir)
        return text
