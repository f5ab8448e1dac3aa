"""What the runs of a comparison by groups score in each group, and what can be said of the difference between two."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scripts.evaluation.localisation import localisation_key
from scripts.evaluation.metrics import frequency_baseline, score_names
from scripts.experiments.comparison_results import Run, read_run
from scripts.experiments.variants import Variant, read_variants
from scripts.heatmaps.attention_maps import KINDS
from scripts.networks.methods import attention_maps

__all__ = [
    "AT_POINT",
    "MAGNIFICATIONS",
    "SHARED",
    "Interval",
    "Output",
    "interval_over_groups",
    "read_outputs",
    "widening",
]

Floats = NDArray[np.float64]

MAGNIFICATIONS = (5, 10)
"""Those for which the slides are made."""
SHARED = {"magnifications": MAGNIFICATIONS}
"""The settings that all trainings share, as far as they decide which heads there are."""
AT_POINT = "at_point"
"""The name of a task's F1 at the operating point."""


class Interval(NamedTuple):
    """A mean over groups with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Output:
    """One head of one method on the slides of each group, by trainings that have seen none of that group.

    Args:
        title: of the variant and the head, or of what stands in their place.
        scores: by name the value of each of g groups ``[g]``, the mean over seeds, NaN where it is not defined: the
            task's F1 at 0.5 and, as :data:`AT_POINT`, at the operating point; ``roc_auc``, the mean over the classes
            that some slides have and others have not; and that of the head's maps against the regions, by kind.
        seconds: of a training with its validations, the mean over seeds and folds; of SSMIL that of the head.
        best_epochs: of each training the epoch that had the lowest validation loss of the head, from 1 up.
        best_losses: these validation losses.
        attentions: of each training the ROC-AUC of the head's attention against the regions; NaN without.
        variant: the variant's name; empty for what is none.
        method: the method that it varies, the same name if it is the method itself.
        head: the head's name.
    """

    title: str
    scores: Mapping[str, Floats]
    seconds: float = np.nan
    best_epochs: tuple[int, ...] = ()
    best_losses: tuple[float, ...] = ()
    attentions: tuple[float, ...] = ()
    variant: str = ""
    method: str = ""
    head: str = ""

    @property
    def is_reference(self) -> bool:
        """Whether it is the head that others are compared with, the global one of MuSTMIL."""
        return (self.variant, self.head) == ("mustmil", "global")


def interval_over_groups(values: Floats) -> Interval:
    """The mean of the groups' values ``[g]``, with Student's 95% interval of g - 1 degrees of freedom.

    It is wider by :func:`widening`, because the trainings of two groups share slides. NaN bounds for one group; of
    values that are all the same, that value.
    """
    mean, number = float(values.mean()), len(values)
    if number < 2:
        return Interval(mean, np.nan, np.nan)
    half = float(stats.t.ppf(0.975, number - 1) * stats.sem(values)) * widening(number)
    return Interval(mean, mean - half, mean + half)


def widening(num_groups: int) -> float:
    """How much wider intervals over k groups are if k - 2 of them train, and two are validated on and tested.

    The variance over k tests is taken times 1 / k + n_test / n_train instead of 1 / k: Nadeau and Bengio, Machine
    Learning 52:239-281, 2003.
    """
    return math.sqrt(1 + num_groups / max(num_groups - 2, 1))


def read_outputs(
    folder: Path, task: str, methods: Collection[str], seeds: Collection[int], shared: Mapping[str, Any] = SHARED
) -> list[Output]:
    """Read the runs of a comparison with folds, each of which tested one group.

    Args:
        folder: the comparison's ``output_dir``.
        task: the comparison's task.
        methods: what was compared, as ``comparing`` takes it.
        seeds: of the trainings.
        shared: what all trainings share, as far as variants may differ in it.

    Returns:
        The outputs in the order of the methods, then those of class frequencies alone.

    Raises:
        SettingsError: if a run is incomplete.
        ValueError: if the runs of a method have not tested the same folds with every seed.
    """
    outputs, labels = [], dict[int, Floats]()
    for variant in read_variants(list(methods), shared):
        runs: dict[tuple[int, int], Run] = {}
        for done in sorted((folder / "runs" / variant.folder).glob("seed_*/fold_*/done.json")):
            seed, fold = (int(part.rpartition("_")[2]) for part in done.parts[-3:-1])
            if seed in seeds:
                run = read_run(done.parent, variant.method, seed, _class_names(done.parent), fold)
                runs[seed, fold], labels[fold] = run, run.labels
        outputs += _outputs_of(variant, runs, task)
    return [*outputs, _frequencies([labels[fold] for fold in sorted(labels)], task)]


def _outputs_of(variant: Variant, runs: Mapping[tuple[int, int], Run], task: str) -> list[Output]:
    seeds, folds = (sorted({place[i] for place in runs}) for i in range(2))
    if not runs or set(runs) != {(seed, fold) for seed in seeds for fold in folds}:
        raise ValueError(f"{variant.name}: not every seed has every fold")
    outputs = []
    for head in variant.heads(SHARED):
        each = {place: _scores(run, head, task) for place, run in runs.items()}
        scores = {
            key: np.array([[each[seed, fold][key] for fold in folds] for seed in seeds]).mean(axis=0)
            for key in next(iter(each.values()))
        }
        seconds = float(np.mean([run.seconds(head) for run in runs.values()]))
        best = [run.training["best"][head] for run in runs.values()]
        epochs, losses = (tuple(one[key] for one in best) for key in ("epoch", "validation_loss"))
        attentions = tuple(found["attention"] for found in each.values())
        names = variant.name, variant.method, head
        outputs.append(Output(f"{variant.title} {head}", scores, seconds, epochs, losses, attentions, *names))
    return outputs


def _scores(run: Run, head: str, task: str) -> dict[str, float]:
    lead = score_names(task)[1]
    scores = {
        lead: run.scores[head][lead],
        AT_POINT: run.decisions[head].scores[lead] if head in run.decisions else np.nan,
        "roc_auc": _mean_of_known(of_class["roc_auc"] for of_class in run.classes[head].values()),
    }
    # Of several maps that of the finest patches, on which other methods have their global one.
    maps = [spec.name for spec in attention_maps(run.method, MAGNIFICATIONS) if spec.head == head]
    for kind in KINDS:
        of_map = run.localisation.get(localisation_key(maps[-1], kind), {}) if maps else {}
        scores[kind] = of_map.get("all", {}).get("roc_auc", np.nan)
    return scores


def _class_names(folder: Path) -> list[str]:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return next(list(of["classes"]) for of in metrics.values() if isinstance(of, dict) and "classes" in of)


def _frequencies(labels: list[Floats], task: str) -> Output:
    """What the class frequencies of the other groups score in each, by the labels ``[n, K]`` of each."""
    lead = score_names(task)[1]
    others = [np.concatenate([*labels[:i], *labels[i + 1 :]]) for i in range(len(labels))]
    scores = [frequency_baseline(other, own, task)[lead] for other, own in zip(others, labels, strict=True)]
    return Output("class frequencies alone", {lead: np.array(scores)})


def _mean_of_known(values: Iterable[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan
