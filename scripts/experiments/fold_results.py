"""The results of a cross-validation: the predictions of all folds together, their scores, and the tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import SettingsError
from scripts.core.files import write_csv
from scripts.datalists.partitions import PARTITIONS
from scripts.datalists.units import SLIDE
from scripts.evaluation.bootstrap import patients_text
from scripts.evaluation.head_report import head_report
from scripts.evaluation.metrics import SCORE_TITLES, class_scores, head_scores, score_names
from scripts.evaluation.reports import label_text
from scripts.experiments.comparison_results import Run
from scripts.experiments.comparison_tables import Table

__all__ = ["Pooled", "fold_tables", "pool", "pooled_run", "pooled_scores", "spread"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pooled:
    """The ``n`` slides of all folds, sorted by name, each predicted by the network that has not seen its patient.

    With ``unit`` patient they are patients.
    """

    slides: list[str]
    folds: list[int]  # in which each was tested, from 1 up
    patients: list[str]
    labels: Floats  # [n, K], 0 or 1
    probabilities: Mapping[str, Floats]  # by head: [n, K]
    unit: str = SLIDE

    def write(self, path: Path, class_names: Sequence[str]) -> None:
        """Write ``predictions.csv``: slide or patient, head, fold, one probability a class, and the label."""
        lines = [
            [slide, head, fold, *(f"{p:.9g}" for p in of_head[i]), label_text(self.labels[i], class_names)]
            for i, (slide, fold) in enumerate(zip(self.slides, self.folds, strict=True))
            for head, of_head in self.probabilities.items()
        ]
        write_csv(path, [self.unit, "head", "fold", *class_names, "label"], lines)


def pool(runs: Sequence[Run], patients: Mapping[str, str] = MappingProxyType({})) -> Pooled:
    """Put the predictions of all folds together.

    Args:
        runs: of the folds, in order.
        patients: the patient of each slide, by its name, or of each patient with ``unit`` patient; a slide without one
            is a patient of its own.

    Raises:
        SettingsError: if a slide was tested in two folds.
    """
    slides = [slide for run in runs for slide in run.slides]
    if len(set(slides)) < len(slides):
        twice = next(slide for slide in slides if slides.count(slide) > 1)
        raise SettingsError(
            "folds", f"{runs[0].unit} {twice} was tested in two of them", "Delete their folders to run them anew."
        )
    folds = [fold for fold, run in enumerate(runs, start=1) for _ in run.slides]
    # The bootstrap resamples rows: their order must not depend on the folds'.
    order = np.argsort(slides)
    return Pooled(
        slides=[slides[i] for i in order],
        folds=[folds[i] for i in order],
        patients=[patients.get(slides[i], slides[i]) for i in order],
        labels=np.concatenate([run.labels for run in runs])[order],
        probabilities={
            head: np.concatenate([run.probabilities[head] for run in runs])[order] for head in runs[0].probabilities
        },
        unit=runs[0].unit,
    )


def pooled_run(runs: Sequence[Run], task: str, class_names: Sequence[str]) -> Run:
    """The folds of one method and seed as one run, in which each slide is tested once.

    All slides are scored together. Localisation is the mean over the folds, weighted by the slides of the class in
    each; the time is that of all folds.

    Args:
        runs: of the folds, in order.
        task: one of :data:`scripts.core.tasks.TASKS`.
        class_names: the classes that the heads predict.

    Raises:
        SettingsError: if a slide was tested in two folds.
    """
    pooled, first = pool(runs), runs[0]
    of_phases = zip(*(run.training["phases"] for run in runs), strict=True)
    phases = [{**of_fold[0], "seconds": sum(phase["seconds"] for phase in of_fold)} for of_fold in of_phases]
    keys = [key for key in first.localisation if all(key in run.localisation for run in runs)]
    return replace(
        first,
        slides=tuple(pooled.slides),
        labels=pooled.labels,
        probabilities=pooled.probabilities,
        scores={head: head_scores(p, pooled.labels, task) for head, p in pooled.probabilities.items()},
        classes={head: class_scores(p, pooled.labels, class_names, task) for head, p in pooled.probabilities.items()},
        training={**first.training, "phases": phases},
        localisation={key: _mean_over_folds([run.localisation[key] for run in runs]) for key in keys},
        fold=None,
    )


def _mean_over_folds(maps: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The localisation of one map, by class and score, of each fold."""
    found: dict[str, dict[str, float]] = {}
    for name in maps[0]:
        of_class = [of_fold[name] for of_fold in maps if of_fold[name]["slides"] > 0]
        weights = [one["slides"] for one in of_class]
        found[name] = {
            score: float(np.average([one[score] for one in of_class], weights=weights)) if weights else np.nan
            for score in maps[0][name]
        }
        found[name]["slides"] = float(sum(weights))
    return found


def pooled_scores(pooled: Pooled, task: str, class_names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """For each head what ``metrics.json`` has of it (:class:`scripts.evaluation.reports.EvaluationReport`), with NaN.

    Args:
        pooled: the predictions.
        task: one of :data:`scripts.core.tasks.TASKS`.
        class_names: the classes that the heads predict.
        seed: of the bootstrap over patients.
    """
    given = pooled.labels, class_names, task, seed, pooled.patients
    return {head: head_report(p, *given) for head, p in pooled.probabilities.items()}


def spread(runs: Sequence[Run], head: str, task: str) -> dict[str, dict[str, float]]:
    """The mean and the standard deviation of each score over the folds in which it is defined; NaN without enough."""
    found = {}
    for name in score_names(task):
        values = np.array([run.scores[head][name] for run in runs])
        values = values[~np.isnan(values)]
        mean = float(values.mean()) if values.size else np.nan
        found[name] = {"mean": mean, "sd": float(values.std(ddof=1)) if values.size > 1 else np.nan}
    return found


def fold_tables(content: Mapping[str, Any], task: str) -> list[Table]:
    """The tables of a cross-validation.

    Args:
        content: of ``cross_validation.json``, undefined values as NaN.
        task: one of :data:`scripts.core.tasks.TASKS`.
    """
    names, heads, folds = score_names(task), content["heads"], content["folds"]
    titles = [SCORE_TITLES[name] for name in names]
    cohort = patients_text(content["slides"], content["patients"])
    caption = (
        f"{cohort} in {len(folds)} folds, each slide tested once. All slides scored together, with 95% intervals from "
        "a bootstrap over patients:"
    )
    body = [[head, *(_interval(of["pooled"][name]) for name in names)] for head, of in heads.items()]
    tables = [Table(caption, ["output", *titles], body)]
    body = [[head, *(_mean_sd(of["folds"][name]) for name in names)] for head, of in heads.items()]
    tables.append(Table("Each fold scored alone, mean ± standard deviation over folds:", ["output", *titles], body))
    classes = list(next(iter(heads.values()))["pooled"]["classes"])
    for name in ("f1", "roc_auc") if len(classes) > 1 else ():
        body = [[head, *(_interval(of["pooled"]["classes"][c][name]) for c in classes)] for head, of in heads.items()]
        tables.append(Table(f"{SCORE_TITLES[name]} of each class, all slides together:", ["output", *classes], body))
    lead = next(iter(heads))
    body = []
    for fold in folds:
        tested = "-" if fold["patients"] is None else str(fold["patients"]["testing"])
        scores = (_number(fold["scores"][lead][name]) for name in names)
        body.append([str(fold["fold"]), *map(str, fold["slides"].values()), tested, *scores])
    caption = f"Each fold: its slides, the patients that it tests, and the scores of output {lead}:"
    tables.append(
        Table(caption, ["fold", *(f"{name} slides" for name in PARTITIONS), "patients tested", *titles], body)
    )
    return tables


def _interval(score: Mapping[str, Any]) -> str:
    value, (low, high) = score["value"], score["ci95"]
    return "-" if np.isnan(value) else f"{value:.3f} [{_number(low)}, {_number(high)}]"


def _mean_sd(of_score: Mapping[str, float]) -> str:
    spread = "" if np.isnan(of_score["sd"]) else f" ± {of_score['sd']:.3f}"
    return f"{_number(of_score['mean'])}{spread}"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
