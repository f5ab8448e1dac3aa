"""The results of a comparison's runs, read from their folders and put side by side."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import SettingsError
from scripts.core.magnification import scale_names
from scripts.datalists.units import SLIDE
from scripts.evaluation.bootstrap import FEWEST_PATIENTS, PairedDifference, paired_difference
from scripts.evaluation.external import Predictions
from scripts.evaluation.head_report import decided_scores
from scripts.evaluation.localisation import Localisation, localisation_key
from scripts.evaluation.localisation_report import FILES, read_localisation
from scripts.evaluation.metrics import score_names
from scripts.evaluation.power import DifferenceSpread, difference_spread
from scripts.evaluation.predictions_file import read_predictions
from scripts.experiments.variants import Variant
from scripts.heatmaps.attention_maps import KINDS
from scripts.networks.methods import attention_maps, result_heads

__all__ = ["Decisions", "MapRow", "Row", "Run", "compare", "localisation_scores", "read_run"]

Floats = NDArray[np.float64]
Output = tuple[str, str]  # the name of a method or of a variant of it, and the head
REFERENCE: Output = ("mustmil", "global")
MAP_SCORES = ("roc_auc", "average_precision")


@dataclass(frozen=True)
class Decisions:
    """What a head decides on the n test slides at the operating point of its weights, or at those of folds."""

    calibrated: Floats  # [n, K], probabilities
    decided: Floats  # [n, K], 0 or 1
    scores: Mapping[str, float]  # by score
    thresholds: Mapping[str, float]  # by class; empty where the task has none, and of folds together


@dataclass(frozen=True)
class Run:
    """One training of one method, and its evaluation; a score that is not defined is NaN."""

    method: str
    seed: int
    slides: tuple[str, ...]  # the n test slides, by name
    labels: Floats  # [n, K], 0 or 1
    probabilities: Mapping[str, Floats]  # by head: [n, K]
    scores: Mapping[str, Mapping[str, float]]  # by head and score
    classes: Mapping[str, Mapping[str, Mapping[str, float]]]  # by head, class and score
    training: Mapping[str, Any]  # the content of training.json
    # By map (`localisation_key`), class and score, `slides` or `positive_share`; empty if no slide has regions.
    localisation: Mapping[str, Mapping[str, Mapping[str, float]]]
    fold: int | None = None  # from 1 up, of folds
    unit: str = SLIDE  # what the n are: with "patient" their names are those of patients
    # By head; empty if the weights have no operating point.
    decisions: Mapping[str, Decisions] = field(default_factory=dict)
    localised: Sequence[Localisation] = ()  # each slide with regions, by map and class
    changed: Mapping[str, Any] = field(default_factory=dict)  # the settings of a variant of the method

    @property
    def variant(self) -> Variant:
        """What was trained."""
        return Variant(self.method, self.changed)

    def of_variant(self, variant: Variant, shared: Mapping[str, Any]) -> Run:
        """The same run, of a variant, without the heads that it does not train with the settings that all share."""
        heads = variant.heads(shared)

        def trained(by_head: Mapping[str, Any]) -> dict[str, Any]:
            return {head: of_head for head, of_head in by_head.items() if head in heads}

        return replace(
            self,
            changed=variant.settings,
            probabilities=trained(self.probabilities),
            scores=trained(self.scores),
            classes=trained(self.classes),
            decisions=trained(self.decisions),
        )

    def phases_of(self, head: str) -> list[Mapping[str, Any]]:
        """The phases of training that a head needs: all of them, but SSMIL trains each scale apart."""
        phases: list[Mapping[str, Any]] = self.training["phases"]
        return [phase for phase in phases if head in phase["heads"]] if self.method == "ssmil" else phases

    def seconds(self, head: str) -> float:
        """The time of a head's training with its validations."""
        return float(sum(phase["seconds"] for phase in self.phases_of(head)))


@dataclass(frozen=True)
class Row:
    """One line of the table: one head of one method, or of a variant of it, over all seeds."""

    method: str  # by the name of the variant
    head: str
    title: str
    scores: Mapping[str, Floats]  # by score: [seeds]
    classes: Mapping[str, Mapping[str, Floats]]  # by class and score: [seeds]
    seconds: Floats  # [seeds]
    phases: int
    parameters: int  # trained weights, in all phases together
    # How much better MuSTMIL's global head is; None for that head itself, and in comparisons without MuSTMIL. With
    # fewer than FEWEST_PATIENTS patients, its interval and p are NaN.
    behind: PairedDifference | None = None
    spread: DifferenceSpread | None = None  # of that difference; None where it cannot be told
    # The same at the operating points; empty and None where not all weights have one.
    decided: Mapping[str, Floats] = field(default_factory=dict)
    decided_behind: PairedDifference | None = None
    # Of a variant the method that it is one of, and how much better the same head of that is; None without that head.
    variant_of: str | None = None
    brings: PairedDifference | None = None
    decided_brings: PairedDifference | None = None


@dataclass(frozen=True)
class MapRow:
    """How well one map of one method, or of a variant of it, finds the regions of the classes, over all seeds."""

    method: str  # by the name of the variant
    map_name: str
    kind: str  # "attention" or "contribution"
    title: str
    scale: str  # the magnification of the patches
    classes: Mapping[str, Mapping[str, Floats]]  # by class (or "all") and score: [seeds]
    slides: Mapping[str, int]  # by class: the slides that count
    positive_share: Mapping[str, float]  # by class: the fraction of patches in its regions, which chance scores


def read_run(folder: Path, method: str, seed: int, class_names: Sequence[str], fold: int | None = None) -> Run:
    """Read the files that ``training`` and ``evaluating`` wrote into a folder.

    Raises:
        SettingsError: if a file is missing or damaged.
    """
    try:
        training = json.loads((folder / "training.json").read_text("utf-8"))
        if (training["method"], training["seed"]) != (method, seed):
            raise ValueError(f"training.json is of {training['method']} with seed {training['seed']}")
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        reports = {key: of for key, of in metrics.items() if isinstance(of, Mapping) and "classes" in of}
        summary, table = (folder / name for name in FILES)
        localisation = json.loads(summary.read_text("utf-8")) if summary.is_file() else {}
        predicted = read_predictions(folder / "predictions.csv", list(reports), class_names)
        for phase in training["phases"]:
            _number(phase["seconds"] + phase["parameters"])
        return Run(
            method,
            seed,
            tuple(predicted.slides),
            predicted.labels,
            {head: predicted.probabilities[:, h] for h, head in enumerate(reports)},
            scores={head: _scores(report) for head, report in reports.items()},
            classes={head: {c: _scores(report["classes"][c]) for c in class_names} for head, report in reports.items()},
            training=training,
            localisation=localisation_scores(localisation),
            fold=fold,
            unit=predicted.unit,
            decisions=_decisions(predicted, reports),
            localised=read_localisation(table) if localisation else (),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SettingsError(
            folder, f"does not hold the results of a run ({error})", "Delete the folder, and run the command again."
        ) from error


def localisation_scores(summary: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """What :func:`scripts.evaluation.localisation.localisation_summary` says, or its file, without the intervals."""
    return {key: {name: _found(of_class) for name, of_class in of_map.items()} for key, of_map in summary.items()}


def compare(
    runs: Sequence[Run],
    magnifications: Sequence[float],
    task: str,
    class_names: Sequence[str],
    num_resamples: int = 2000,
    patients: Mapping[str, str] | None = None,
) -> tuple[list[Row], list[MapRow]]:
    """Put the runs of several methods and variants, each with several seeds, side by side.

    Args:
        runs: of one cohort.
        magnifications: the scales.
        task: one of :data:`scripts.core.tasks.TASKS`.
        class_names: the classes that the heads predict.
        num_resamples: of the paired bootstrap.
        patients: the patient of each slide, by its name; a slide without one is a patient of its own.

    Returns:
        A row for each head in the order of the methods, and one for each map; no maps if no slide has regions.

    Raises:
        SettingsError: if the runs were tested on different slides or labels.
    """
    for run in runs[1:]:
        if run.slides != runs[0].slides or not np.array_equal(run.labels, runs[0].labels):
            raise SettingsError(
                "runs",
                f"{run.variant.name} with seed {run.seed} was tested on other slides than {runs[0].variant.name}",
                "Delete the runs' folders, and compare on one datalist.",
            )
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.variant.name, []).append(run)
    rows = [
        _row(repeats, head, task, class_names)
        for repeats in by_method.values()
        for head in result_heads(repeats[0].method, magnifications)
        if head in repeats[0].scores
    ]
    scales = scale_names(magnifications)
    maps = [
        _map_row(repeats, spec.name, kind, scales[spec.scale_index])
        for kind in KINDS
        for repeats in by_method.values()
        for spec in attention_maps(repeats[0].method, magnifications)
        if spec.head in repeats[0].scores
        if all(localisation_key(spec.name, kind) in run.localisation for run in repeats)
    ]
    own = [(patients or {}).get(slide, slide) for slide in runs[0].slides]
    lead = score_names(task)[1]
    has_point = {(row.method, row.head): bool(row.decided) for row in rows}

    @functools.cache
    def difference(first: Output, second: Output, at_point: bool) -> PairedDifference | None:
        """How much better the first output is, at 0.5 or at the operating points."""
        if first == second or first not in has_point or (at_point and not (has_point[first] and has_point[second])):
            return None
        of = _decided if at_point else _repeats
        one, other = (of(by_method[method], head) for method, head in (first, second))
        found = paired_difference(one, other, runs[0].labels, task, lead, num_resamples, patients=own)
        few = len(set(own)) < FEWEST_PATIENTS
        return replace(found, low=np.nan, high=np.nan, p_value=np.nan) if few else found

    for place, row in enumerate(rows):
        output, plain = (row.method, row.head), (row.variant_of or row.method, row.head)
        rows[place] = replace(
            row,
            behind=difference(REFERENCE, output, False),
            decided_behind=difference(REFERENCE, output, True),
            brings=difference(plain, output, False),
            decided_brings=difference(plain, output, True),
        )
        if rows[place].behind is not None:
            reference, other = (_repeats(by_method[method], head) for method, head in (REFERENCE, output))
            spread = difference_spread(reference, other, runs[0].labels, task, lead, num_resamples, patients=own)
            rows[place] = replace(rows[place], spread=spread)
    return rows, maps


def _row(runs: Sequence[Run], head: str, task: str, class_names: Sequence[str]) -> Row:
    phases = runs[0].phases_of(head)
    points = [run.decisions[head] for run in runs if head in run.decisions]
    names = decided_scores(task) if len(points) == len(runs) else []
    return Row(
        method=runs[0].variant.name,
        head=head,
        title=f"{runs[0].variant.title} {head}",
        scores={name: np.array([run.scores[head][name] for run in runs]) for name in score_names(task)},
        classes={
            name: {score: np.array([run.classes[head][name][score] for run in runs]) for score in ("f1", "roc_auc")}
            for name in class_names
        },
        seconds=np.array([run.seconds(head) for run in runs]),
        phases=len(phases),
        parameters=sum(phase["parameters"] for phase in phases),
        decided={name: np.array([point.scores[name] for point in points]) for name in names},
        variant_of=runs[0].method if runs[0].changed else None,
    )


def _map_row(runs: Sequence[Run], map_name: str, kind: str, scale: str) -> MapRow:
    found = [run.localisation[localisation_key(map_name, kind)] for run in runs]
    return MapRow(
        method=runs[0].variant.name,
        map_name=map_name,
        kind=kind,
        title=f"{runs[0].variant.title} {map_name.replace('_', ' ')}",
        scale=scale,
        classes={
            name: {score: np.array([one[name][score] for one in found]) for score in MAP_SCORES} for name in found[0]
        },
        slides={name: int(of_class["slides"]) for name, of_class in found[0].items()},
        positive_share={name: of_class["positive_share"] for name, of_class in found[0].items()},
    )


def _repeats(runs: Sequence[Run], head: str) -> Floats:
    return np.stack([run.probabilities[head] for run in runs])  # [seeds, n, K]


def _decided(runs: Sequence[Run], head: str) -> Floats:
    return np.stack([run.decisions[head].decided for run in runs])  # [seeds, n, K]


def _decisions(predicted: Predictions, reports: Mapping[str, Any]) -> dict[str, Decisions]:
    """What evaluation says of each head at its operating point; nothing where the weights have none."""
    found = {}
    for h, (head, report) in enumerate(reports.items()):
        if predicted.calibrated is None or predicted.decided is None:
            return {}
        point = report["operating_point"]
        thresholds = {name: of["threshold"] for name, of in point["classes"].items() if "threshold" in of}
        found[head] = Decisions(predicted.calibrated[:, h], predicted.decided[:, h], _scores(point), thresholds)
    return found


def _scores(report: Mapping[str, Any]) -> dict[str, float]:
    found = {name: score for name, score in report.items() if isinstance(score, Mapping) and "value" in score}
    return {name: _number(score["value"]) for name, score in found.items()}


def _found(of_class: Mapping[str, Any]) -> dict[str, float]:
    scores = {name: _number(of_class[name]["value"]) for name in MAP_SCORES}
    return {**scores, **{name: _number(of_class[name]) for name in ("slides", "positive_share")}}


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
