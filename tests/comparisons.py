"""Folders as ``training`` and ``evaluating`` leave them, with made-up results, for tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scripts.evaluation.head_report import decided_scores
from scripts.evaluation.label_texts import label_text
from scripts.evaluation.localisation import Localisation
from scripts.evaluation.localisation_report import write_localisation
from scripts.evaluation.metrics import class_scores, head_scores
from scripts.experiments.comparison_results import Run, read_run
from scripts.heatmaps.attention_maps import KINDS
from scripts.networks.methods import attention_maps, result_heads, trained_heads

CLASSES = ["cancer", "hgd", "normal"]
MAGNIFICATIONS = (5, 10)
PHASES = {"mustmil": [["global", "5x", "10x"]], "msmil": [["5x"], ["10x"], ["global"]], "ssmil": [["5x"], ["10x"]]}


def write_run(
    folder: Path, method: str, seed: int, num_slides: int = 12, cohort: int = 0, regions: bool = True
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Write a run's files; returns the probabilities of each output, and the labels."""
    labels = np.random.default_rng([cohort, 99]).integers(0, 2, (num_slides, len(CLASSES))).astype(float)
    rng = np.random.default_rng([seed, list(PHASES).index(method)])
    heads = result_heads(method, MAGNIFICATIONS)
    probabilities = {head: (0.3 * labels + 0.7 * rng.random(labels.shape)).round(6) for head in heads}
    folder.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {}
    points = np.random.default_rng([seed, 7])
    calibrated = {head: (0.1 + 0.8 * p).round(6) for head, p in probabilities.items()}
    thresholds = {head: points.uniform(0.3, 0.7, len(CLASSES)) for head in heads}
    decided = {head: (calibrated[head] >= thresholds[head]).astype(float) for head in heads}
    for head, p in probabilities.items():
        metrics[head] = {name: _value(v) for name, v in head_scores(p, labels, "multilabel").items()}
        metrics[head]["classes"] = {
            name: {k: _value(v) for k, v in scores.items()}
            for name, scores in class_scores(p, labels, CLASSES, "multilabel").items()
        }
        at_point = head_scores(decided[head], labels, "multilabel")
        metrics[head]["operating_point"] = {
            **{name: _value(at_point[name]) for name in decided_scores("multilabel")},
            "classes": {name: {"threshold": t} for name, t in zip(CLASSES, thresholds[head], strict=True)},
        }
    lines = [",".join(["slide", "head", *CLASSES, *(f"{name}_calibrated" for name in CLASSES), "decision", "label"])]
    for i in reversed(range(num_slides)):  # as a datalist may have them
        for head, p in probabilities.items():
            numbers = ",".join(f"{v:.9g}" for v in (*p[i], *calibrated[head][i]))
            texts = (label_text(classes, CLASSES) for classes in (decided[head][i], labels[i]))
            lines.append(",".join([f"s{i:02d}", head, numbers, *texts]))
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    phases = [{"heads": h, "epochs": 2, "seconds": 2.0 + seed, "parameters": 10} for h in PHASES[method]]
    best = {
        head: {"validation_loss": 0.5, "epoch": 1, "weights": "w.pt"} for head in trained_heads(method, MAGNIFICATIONS)
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "training.json").write_text(json.dumps({"method": method, "seed": seed, "phases": phases, "best": best}))
    if regions:
        maps = attention_maps(method, MAGNIFICATIONS)
        found = [
            Localisation(f"s{i:02d}", spec.name, c, 9, 0.25, float(rng.random()), float(rng.random()), kind)
            for i in range(2) for spec in maps for kind in KINDS for c in CLASSES
        ]  # fmt: skip
        write_localisation(folder, found, maps, CLASSES, 0, None)
    return probabilities, labels


def write_cohort(
    folder: Path, seeds: tuple[int, ...] = (0, 1), regions: bool = True, num_slides: int = 12
) -> list[Run]:
    """Write and read a run of each method with each seed."""
    runs = []
    for method in PHASES:
        for seed in seeds:
            write_run(folder / method / str(seed), method, seed, num_slides, regions=regions)
            runs.append(read_run(folder / method / str(seed), method, seed, CLASSES))
    return runs


def _value(value: float) -> dict[str, Any]:
    return {"value": None if np.isnan(value) else value, "ci95": [None, None]}


def table_cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table, line by line."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def interval_of_four_groups(values: np.ndarray) -> tuple[float, float]:
    """Nadeau and Bengio's 95% interval, of four groups of 20 slides of which two train a network that one tests."""
    deviation = np.sqrt((1 / 4 + 20 / 40) * values.var(ddof=1))
    return values.mean() - stats.t.ppf(0.975, 3) * deviation, values.mean() + stats.t.ppf(0.975, 3) * deviation
