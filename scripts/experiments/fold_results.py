"""The results of a cross-validation: the predictions of all folds together, their scores, and the tables of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import SettingsError
from scripts.core.files import write_csv
from scripts.core.tasks import get_task
from scripts.datalists.folds import Folds
from scripts.datalists.partitions import PARTITIONS
from scripts.datalists.units import SLIDE, bags_of
from scripts.evaluation.bootstrap import patients_text
from scripts.evaluation.head_report import decided_scores, head_report, operating_point_report
from scripts.evaluation.label_texts import label_text
from scripts.evaluation.localisation import localisation_summary
from scripts.evaluation.metrics import SCORE_TITLES, class_scores, head_scores, score_names
from scripts.evaluation.score_texts import digits, interval_text, mean_sd_text
from scripts.experiments.comparison_results import Decisions, Run, localisation_scores
from scripts.experiments.comparison_tables import Table, mean_and_sd, point_caption
from scripts.weights.operating_point import points_warning

__all__ = ["Pooled", "fold_tables", "pool", "pooled_run", "pooled_scores", "scores_over_folds", "warn_of_points"]

Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)


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
    # By head, at the operating point of each slide's fold; empty if the weights of a fold have none.
    decisions: Mapping[str, Decisions] = field(default_factory=dict)

    def write(self, path: Path, class_names: Sequence[str], task: str) -> None:
        """Write ``predictions.csv``: slide or patient, head, fold, one probability a class, the decision, the label.

        Where the weights of all folds have an operating point, each class has a calibrated probability as well, and the
        decision is that on these.
        """
        lines: list[list[object]] = []
        decide = get_task(task).decided
        for i, (slide, fold) in enumerate(zip(self.slides, self.folds, strict=True)):
            for head, of_head in self.probabilities.items():
                point = self.decisions.get(head)
                values = [*of_head[i], *([] if point is None else point.calibrated[i])]
                decided = decide(of_head[i]) if point is None else point.decided[i]
                texts = (label_text(classes, class_names) for classes in (decided, self.labels[i]))
                lines.append([slide, head, fold, *(f"{p:.9g}" for p in values), *texts])
        calibrated = [f"{name}_calibrated" for name in class_names if self.decisions]
        write_csv(path, [self.unit, "head", "fold", *class_names, *calibrated, "decision", "label"], lines)


def pool(runs: Sequence[Run], task: str, patients: Mapping[str, str] = MappingProxyType({})) -> Pooled:
    """Put the predictions of all folds together.

    Args:
        runs: of the folds, in order.
        task: one of :data:`scripts.core.tasks.TASKS`.
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
    labels = np.concatenate([run.labels for run in runs])[order]

    def together(of_runs: Iterable[Floats]) -> Floats:
        return np.concatenate(list(of_runs))[order]

    decisions = {}
    lacking = [str(fold) for fold, run in enumerate(runs, start=1) if not run.decisions]
    if lacking:
        rule = get_task(task).decision if get_task(task).is_exclusive else "decisions are at 0.5"
        logger.warning("the weights of fold %s have no operating point: %s", ", ".join(lacking), rule)
    for head in () if lacking else runs[0].decisions:
        points = [run.decisions[head] for run in runs]
        decided = together(point.decided for point in points)
        scores = {
            name: score for name, score in head_scores(decided, labels, task).items() if name in decided_scores(task)
        }
        decisions[head] = Decisions(together(point.calibrated for point in points), decided, scores, {})
    return Pooled(
        slides=[slides[i] for i in order],
        folds=[folds[i] for i in order],
        patients=[patients.get(slides[i], slides[i]) for i in order],
        labels=labels,
        probabilities={head: together(run.probabilities[head] for run in runs) for head in runs[0].probabilities},
        unit=runs[0].unit,
        decisions=decisions,
    )


def pooled_run(runs: Sequence[Run], task: str, class_names: Sequence[str]) -> Run:
    """The folds of one method and seed as one run, in which each slide is tested once.

    All slides are scored together, and so is where maps look; the time is that of all folds.

    Args:
        runs: of the folds, in order.
        task: one of :data:`scripts.core.tasks.TASKS`.
        class_names: the classes that the heads predict.

    Raises:
        SettingsError: if a slide was tested in two folds.
    """
    pooled, first = pool(runs, task), runs[0]
    of_phases = zip(*(run.training["phases"] for run in runs), strict=True)
    phases = [{**of_fold[0], "seconds": sum(phase["seconds"] for phase in of_fold)} for of_fold in of_phases]
    return replace(
        first,
        slides=tuple(pooled.slides),
        labels=pooled.labels,
        probabilities=pooled.probabilities,
        scores={head: head_scores(p, pooled.labels, task) for head, p in pooled.probabilities.items()},
        classes={head: class_scores(p, pooled.labels, class_names, task) for head, p in pooled.probabilities.items()},
        training={**first.training, "phases": phases},
        localisation=_localisation(runs),
        fold=None,
        decisions=pooled.decisions,
    )


def _localisation(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, float]]]:
    """How well the maps of all folds find the regions, each slide's by the network that has not seen it."""
    found = [one for run in runs for one in run.localised]
    if not found:
        return {}
    classes = next(of_class for run in runs for of_class in run.localisation.values())
    names = [name for name in classes if name != "all"]
    return localisation_scores(localisation_summary(found, list(dict.fromkeys(one.map_name for one in found)), names))


def pooled_scores(pooled: Pooled, task: str, class_names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """For each head what ``metrics.json`` has of it (:class:`scripts.evaluation.reports.EvaluationReport`), with NaN.

    Its ``operating_point`` is that of each slide's fold, so its classes have no ``threshold``.

    Args:
        pooled: the predictions.
        task: one of :data:`scripts.core.tasks.TASKS`.
        class_names: the classes that the heads predict.
        seed: of the bootstrap over patients.
    """
    given = pooled.labels, class_names, task, seed, pooled.patients
    report = {head: head_report(p, *given) for head, p in pooled.probabilities.items()}
    for head, point in pooled.decisions.items():
        report[head]["operating_point"] = operating_point_report(point.calibrated, point.decided, *given)
    return report


def scores_over_folds(runs: Sequence[Run], head: str, task: str) -> dict[str, Any]:
    """The mean and the standard deviation of each score over the folds in which it is defined; NaN without enough.

    Where the weights of all folds have an operating point, ``operating_point`` has the same of the scores at it.
    """
    found: dict[str, Any] = {name: _mean_and_sd([run.scores[head][name] for run in runs]) for name in score_names(task)}
    if all(run.decisions for run in runs):
        points = [run.decisions[head].scores for run in runs]
        found["operating_point"] = {name: _mean_and_sd([of[name] for of in points]) for name in decided_scores(task)}
    return found


def _mean_and_sd(scores: Sequence[float]) -> dict[str, float]:
    return dict(zip(("mean", "sd"), mean_and_sd(scores), strict=True))


def warn_of_points(
    runs: Sequence[Run], split: Folds, rule: float | str, unit: str = SLIDE, left_out: Sequence[str] = ()
) -> None:
    """Warn of thresholds that too few validation slides of a fold decided; see their own logs for the numbers of each.

    Args:
        runs: of the folds, in order.
        split: the folds.
        rule: of the thresholds.
        unit: what a bag is.
        left_out: names of slides that no fold used.
    """
    points = {}
    for fold, run in enumerate(runs):
        labels = [bag["label"] for bag in bags_of(split.part(fold, "validation"), unit, left_out)]
        for head, point in run.decisions.items():
            # Exclusive classes have none.
            counts = zip(point.thresholds.items(), np.sum(labels, axis=0), strict=True) if point.thresholds else ()
            classes = {name: {"threshold": value, "positives": int(number)} for (name, value), number in counts}
            points[f"fold {fold + 1}, {head}"] = {"rule": rule, "slides": len(labels), "classes": classes}
    if (text := points_warning(points, unit)) is not None:
        logger.warning("operating points of folds: %s", text)


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
    body = [[head, *(interval_text(of["pooled"][name]) for name in names)] for head, of in heads.items()]
    tables = [Table(caption, ["output", *titles], body)]
    body = [[head, *(mean_sd_text(**of["folds"][name]) for name in names)] for head, of in heads.items()]
    alone = "Each fold scored alone, mean ± standard deviation over folds"
    tables.append(Table(f"{alone}:", ["output", *titles], body))
    if all("operating_point" in of["pooled"] for of in heads.values()):
        decided = decided_scores(task)
        columns, caption = ["output", *(SCORE_TITLES[name] for name in decided)], point_caption(task, "fold")
        points = {head: (of["pooled"]["operating_point"], of["folds"]["operating_point"]) for head, of in heads.items()}
        body = [[head, *(interval_text(pooled[name]) for name in decided)] for head, (pooled, _) in points.items()]
        tables.insert(1, Table(f"{caption}. All slides scored together:", columns, body))
        body = [[head, *(mean_sd_text(**of_folds[name]) for name in decided)] for head, (_, of_folds) in points.items()]
        tables.append(Table(f"{alone}, at its operating point:", columns, body))
    classes = list(next(iter(heads.values()))["pooled"]["classes"])
    for name in ("f1", "roc_auc") if len(classes) > 1 else ():
        body = [
            [head, *(interval_text(of["pooled"]["classes"][c][name]) for c in classes)] for head, of in heads.items()
        ]
        tables.append(Table(f"{SCORE_TITLES[name]} of each class, all slides together:", ["output", *classes], body))
    lead = next(iter(heads))
    body = []
    for fold in folds:
        tested = "-" if fold["patients"] is None else str(fold["patients"]["testing"])
        scores = (digits(fold["scores"][lead][name]) for name in names)
        body.append([str(fold["fold"]), *map(str, fold["slides"].values()), tested, *scores])
    caption = f"Each fold: its slides, the patients that it tests, and the scores of output {lead}:"
    tables.append(
        Table(caption, ["fold", *(f"{name} slides" for name in PARTITIONS), "patients tested", *titles], body)
    )
    thresholds = [fold["operating_point"].get(lead, {}).get("thresholds", {}) for fold in folds]
    if all(thresholds) and any(of_fold != thresholds[0] for of_fold in thresholds):
        body = [
            [str(fold["fold"]), *(digits(of_fold[name]) for name in classes)]
            for fold, of_fold in zip(folds, thresholds, strict=True)
        ]
        tables.append(Table(f"Each fold: the thresholds of output {lead}:", ["fold", *classes], body))
    return tables
