"""What the runs of a comparison gave, read from their folders and put side by side."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import SettingsError
from scripts.core.magnification import scale_names
from scripts.evaluation.bootstrap import FEWEST_PATIENTS, PairedDifference, paired_difference
from scripts.evaluation.localisation import localisation_key
from scripts.evaluation.metrics import check_predictions, score_names
from scripts.evaluation.reports import label_of_text
from scripts.heatmaps.attention_maps import KINDS
from scripts.networks.methods import attention_maps, method_title, result_heads

__all__ = ["MapRow", "Row", "Run", "compare", "read_run"]

REFERENCE = ("mustmil", "global")
CLASS_SCORES = ("f1", "roc_auc")
MAP_SCORES = ("roc_auc", "average_precision")


@dataclass(frozen=True)
class Run:
    """One training of one method, and its evaluation.

    Args:
        method: the method's name.
        seed: the training's seed.
        slides: the test slides' names, n of them.
        labels: ``[n, K]``, 0 or 1.
        probabilities: for each output ``[n, K]``.
        metrics: the content of ``metrics.json``, of each output; not what is beside the outputs.
        training: the content of ``training.json``.
        localisation: the content of ``localisation.json``; empty where no slide has regions.
    """

    method: str
    seed: int
    slides: tuple[str, ...]
    labels: NDArray[np.float64]
    probabilities: Mapping[str, NDArray[np.float64]]
    metrics: Mapping[str, Any]
    training: Mapping[str, Any]
    localisation: Mapping[str, Any]

    def phases_of(self, head: str) -> list[Mapping[str, Any]]:
        """The phases of the training that an output needs: all up to its own, but for scales trained apart."""
        phases: list[Mapping[str, Any]] = self.training["phases"]
        return [phase for phase in phases if head in phase["heads"]] if self.method == "ssmil" else phases


@dataclass(frozen=True)
class Row:
    """One line of the table: one output of one method, over all seeds.

    Args:
        method: the method's name.
        head: the output's name.
        title: what the table calls it.
        scores: for each score ``[seeds]``, NaN where it is not defined.
        classes: for each class and score ``[seeds]``.
        seconds: ``[seeds]``, the time of training with its validations.
        phases: the number of training phases.
        parameters: the number of weights that were trained, in all phases together.
        behind: how much MuSTMIL's global output is better than this; ``None`` for itself or without it. Of fewer
            patients than :data:`scripts.evaluation.bootstrap.FEWEST_PATIENTS` its interval and p are NaN.
    """

    method: str
    head: str
    title: str
    scores: Mapping[str, NDArray[np.float64]]
    classes: Mapping[str, Mapping[str, NDArray[np.float64]]]
    seconds: NDArray[np.float64]
    phases: int
    parameters: int
    behind: PairedDifference | None = None


@dataclass(frozen=True)
class MapRow:
    """How well one kind of map of one method finds the regions of the classes, over all seeds.

    Args:
        method: the method's name.
        map_name: the attention map's name.
        kind: ``"attention"`` or ``"contribution"``.
        title: what the table calls it.
        scale: the magnification whose patches it lies on.
        classes: for each class, and ``"all"``, and each of ``roc_auc`` and ``average_precision``: ``[seeds]``.
        slides: for each class the number of slides that count.
        positive_share: for each class the mean share of patches in its regions: the average precision of chance.
    """

    method: str
    map_name: str
    kind: str
    title: str
    scale: str
    classes: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(repr=False)
    slides: Mapping[str, int] = field(repr=False)
    positive_share: Mapping[str, float] = field(repr=False)


def read_run(folder: Path, method: str, seed: int, class_names: Sequence[str]) -> Run:
    """Read what ``training`` and ``evaluating`` left in a folder.

    Raises:
        SettingsError: if a file is missing or damaged.
    """
    try:
        metrics, training = (
            json.loads((folder / name).read_text("utf-8")) for name in ("metrics.json", "training.json")
        )
        for beside in ("slides", "patients", "made_by"):
            metrics.pop(beside, None)
        path = folder / "localisation.json"
        localisation = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
            # The draws of the bootstrap are of rows: the datalist's order has no part in them.
            lines = sorted(csv.DictReader(file), key=lambda line: line["slide"])
        slides = tuple(dict.fromkeys(line["slide"] for line in lines))
        if not slides or len(lines) != len(slides) * len(metrics):
            raise ValueError(f"predictions.csv has {len(lines)} lines for {len(slides)} slides")
        probabilities = {
            head: np.array([[float(line[name]) for name in class_names] for line in lines if line["head"] == head])
            for head in metrics
        }
        first = [line["label"] for line in lines if line["head"] == next(iter(metrics))]
        labels = np.array([label_of_text(label, class_names) for label in first])
        run = Run(method, seed, slides, labels, probabilities, metrics, training, localisation)
        _check(run, class_names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            folder, f"does not hold the results of a run ({error})", "Delete the folder, and run the command again."
        ) from error
    return run


def compare(
    runs: Sequence[Run],
    magnifications: Sequence[float],
    task: str,
    class_names: Sequence[str],
    num_resamples: int = 2000,
    seed: int = 0,
    patients: Mapping[str, str] | None = None,
) -> tuple[list[Row], list[MapRow]]:
    """Put the runs of several methods, each with several seeds, side by side.

    Args:
        runs: of one cohort.
        magnifications: the scales.
        task: ``"multilabel"`` or ``"binary"``.
        class_names: the outputs' classes.
        num_resamples: of the paired bootstrap.
        seed: of the paired bootstrap.
        patients: the patient of each slide, by its name; a slide without one is a patient of its own.

    Returns:
        The table's lines in the order of the methods, and those of the attention maps, none without regions.

    Raises:
        SettingsError: if the runs were tested on slides or labels that differ.
    """
    for run in runs[1:]:
        if run.slides != runs[0].slides or not np.array_equal(run.labels, runs[0].labels):
            raise SettingsError(
                "runs",
                f"{run.method} with seed {run.seed} was tested on other slides than {runs[0].method}",
                "Delete the runs' folders, and compare on one datalist.",
            )
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    scales = scale_names(magnifications)
    rows = [
        _row(repeats, head, task, class_names)
        for method, repeats in by_method.items()
        for head in result_heads(method, magnifications)
    ]
    maps = [
        _map_row(repeats, spec.name, kind, scales[spec.scale_index])
        for kind in KINDS
        for method, repeats in by_method.items()
        for spec in attention_maps(method, magnifications)
        if all(localisation_key(spec.name, kind) in run.localisation for run in repeats)
    ]
    if REFERENCE[0] in by_method:
        reference = _repeats(by_method[REFERENCE[0]], REFERENCE[1])
        own = [(patients or {}).get(slide, slide) for slide in runs[0].slides]
        rows = [_with_difference(row, reference, by_method, task, num_resamples, seed, own) for row in rows]
    return rows, maps


def _check(run: Run, class_names: Sequence[str]) -> None:
    """Touch everything that the tables take from a run's files; what is missing or of another kind raises."""
    if (run.training["method"], run.training["seed"]) != (run.method, run.seed):
        raise ValueError(f"training.json is of {run.training['method']} with seed {run.training['seed']}")
    for head, report in run.metrics.items():
        check_predictions(run.probabilities[head], run.labels, class_names=class_names)
        for scores in (report, *(report["classes"][name] for name in class_names)):
            for name in scores.keys() - {"classes", "slides"}:
                _number(scores[name]["value"])
        for phase in run.phases_of(head):
            _number(phase["seconds"] + phase["parameters"])
    for of_map in run.localisation.values():
        for scores in of_map.values():
            for name in MAP_SCORES:
                _number(scores[name]["value"])
            _number(scores["slides"] + _number(scores["positive_share"]))


def _row(runs: Sequence[Run], head: str, task: str, class_names: Sequence[str]) -> Row:
    reports = [run.metrics[head] for run in runs]
    phases = runs[0].phases_of(head)
    return Row(
        method=runs[0].method,
        head=head,
        title=f"{method_title(runs[0].method)} {head}",
        scores={name: _values(reports, name) for name in score_names(task)},
        classes={
            name: {
                score: _values([report["classes"][name] for report in reports], score) for score in ("f1", "roc_auc")
            }
            for name in class_names
        },
        seconds=np.array([sum(phase["seconds"] for phase in run.phases_of(head)) for run in runs]),
        phases=len(phases),
        parameters=sum(phase["parameters"] for phase in phases),
    )


def _map_row(runs: Sequence[Run], map_name: str, kind: str, scale: str) -> MapRow:
    reports = [run.localisation[localisation_key(map_name, kind)] for run in runs]
    names = list(reports[0])
    return MapRow(
        method=runs[0].method,
        map_name=map_name,
        kind=kind,
        title=f"{method_title(runs[0].method)} {map_name.replace('_', ' ')}",
        scale=scale,
        classes={name: {score: _values([r[name] for r in reports], score) for score in MAP_SCORES} for name in names},
        slides={name: int(reports[0][name]["slides"]) for name in names},
        positive_share={name: _number(reports[0][name]["positive_share"]) for name in names},
    )


def _with_difference(
    row: Row,
    reference: NDArray[np.float64],
    by_method: Mapping[str, Sequence[Run]],
    task: str,
    num_resamples: int,
    seed: int,
    patients: Sequence[str],
) -> Row:
    if (row.method, row.head) == REFERENCE:
        return row
    runs = by_method[row.method]
    behind = paired_difference(
        reference, _repeats(runs, row.head), runs[0].labels, task, score_names(task)[1], num_resamples, seed, patients
    )
    if len(set(patients)) < FEWEST_PATIENTS:
        behind = replace(behind, low=np.nan, high=np.nan, p_value=np.nan)
    return replace(row, behind=behind)


def _repeats(runs: Sequence[Run], head: str) -> NDArray[np.float64]:
    return np.stack([run.probabilities[head] for run in runs])  # [seeds, n, K]


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _values(reports: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([_number(report[name]["value"]) for report in reports])


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
