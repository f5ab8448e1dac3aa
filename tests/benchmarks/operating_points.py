"""What the operating point changes where classes are rare: ``python -m tests.benchmarks.operating_points``.

It makes a cohort whose classes are rare, trains MuSTMIL with several seeds, decides the operating point of
each training again with each rule (``calibrating``), and evaluates them all on the test slides. Finished steps are not
repeated. The weights of a seed are the same under every rule, so differences are paired by training and patient.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigWorkflow
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_score, recall_score
from tqdm import tqdm

from scripts import BUNDLE_ROOT
from scripts.core.files import write_json
from scripts.core.markdown import markdown_table
from scripts.datalists.classes import balanced_weights
from scripts.datalists.datalist import load_datalist
from scripts.demo.run import run_config
from scripts.evaluation.bootstrap import resampled_scores
from scripts.evaluation.label_texts import label_of_text
from scripts.evaluation.metrics import frequency_baseline
from scripts.evaluation.predictions_file import read_predictions
from scripts.experiments.trainings import Experiment, run_experiments
from scripts.networks.methods import result_heads
from scripts.synthetic.cohort import CLASSES, make_slides
from scripts.weights.calibration import prior_shift
from tests.benchmarks.rare_cohort import plan_rare_cohort

__all__ = [
    "RULES",
    "Decided",
    "Rule",
    "class_table",
    "frequency_table",
    "main",
    "paired_interval",
    "read_decided",
    "score_table",
]

Floats = NDArray[np.float64]

TASK, HEADS = "multilabel", result_heads("mustmil", (5, 10))
NUM_SLIDES = {"training": 200, "validation": 120, "testing": 200}
# Of `make compare-demo` it is 1, of `make demo` 0.
COHORT_SEED = 2
SCORES = ("micro_f1", "macro_f1", "precision", "recall", "predicted", "brier")


@dataclass(frozen=True)
class Rule:
    """How probabilities become decisions.

    Args:
        title: what decides, for the table.
        is_corrected: whether the balanced draws are taken back first.
        settings: of ``calibrating``; ``None`` for a probability of 0.5, as the network gives it.
    """

    title: str
    is_corrected: bool
    settings: Mapping[str, Any] | None

    @property
    def folder(self) -> str:
        """The name of its results' folder, that of the trainings for what needs no ``calibrating``."""
        if self.settings in (None, TRAINED):
            return "trained"
        return f"{self.title}_{'corrected' if self.is_corrected else 'plain'}".replace(" ", "_").replace(",", "")


# At a threshold of 0.5 a temperature changes no decision, so that these are those of the defaults, too.
TRAINED = {"prior_correction": True, "calibration": "none", "threshold": 0.5}
RULES = (
    Rule("0.5", False, None),
    Rule("0.5", True, TRAINED),
    *(
        Rule(title, corrected, {"prior_correction": corrected, "calibration": calibration, "threshold": threshold})
        for title, calibration, threshold in (("f1", "temperature", "f1"), ("platt, 0.5", "platt", 0.5))
        for corrected in (False, True)
    ),
)
# As trained, the default, and the default with thresholds.
IN_CLASS_TABLE = (0, 1, 3)


@dataclass(frozen=True)
class Decided:
    """What a rule decides on the test slides, for each of r trainings."""

    rule: Rule
    patients: Sequence[str]  # of the n slides
    labels: Floats  # [n, K]
    decisions: Floats  # [r, n, H, K], 0 or 1
    brier: Floats  # [r, H], of the probabilities that it decides on

    def scores(self, head: int) -> dict[str, Floats]:
        """The scores of a head over all slides and classes, ``[r]``, by :data:`SCORES`."""
        truth, rows = self.labels.ravel(), self.decisions[:, :, head].reshape(len(self.decisions), -1)
        micro = {"micro_f1": f1_score, "precision": precision_score, "recall": recall_score}
        return {
            **{name: np.array([score(truth, row, zero_division=0.0) for row in rows]) for name, score in micro.items()},
            "macro_f1": np.array([
                f1_score(self.labels, of_one[:, head], average="macro", zero_division=0.0) for of_one in self.decisions
            ]),
            "predicted": rows.mean(axis=1),
            "brier": self.brier[:, head],
        }  # fmt: skip

    def resampled(self, head: int) -> Floats:
        """The micro-F1 of a head on the resamples of patients that all rules share, ``[r, R]``."""
        return np.stack([
            resampled_scores(of_one[:, head], self.labels, TASK, patients=self.patients)["micro_f1"]
            for of_one in self.decisions
        ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.operating_points", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/rare"), help="gets the slides")
    parser.add_argument("--output_dir", type=Path, default=Path("output/operating_points"))
    parser.add_argument("--num_slides", type=int, nargs=3, default=list(NUM_SLIDES.values()), metavar=tuple(NUM_SLIDES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--num_processes", type=int, default=2, help="trainings at the same time")
    args = parser.parse_args(argv)

    clock = Clock()
    if not (args.dataset_dir / "datalist.json").exists():
        plans = plan_rare_cohort(dict(zip(NUM_SLIDES, args.num_slides, strict=True)), COHORT_SEED)
        make_slides(args.dataset_dir, plans, COHORT_SEED)
    datalist = write_without_regions(args.dataset_dir / "datalist.json", args.output_dir / "datalist.json")
    clock.tell("slides")
    settings = {key: str(path.resolve()) for key, path in (("dataset_dir", args.dataset_dir), ("datalist", datalist))}
    settings["feature_dir"] = str((args.output_dir / "features").resolve())
    if run_config("extracting", "extract", {**settings, "output_dir": args.output_dir.resolve()}) != 0:
        raise SystemExit(1)
    clock.tell("features")

    def folder(rule: Rule, seed: int) -> Path:
        return args.output_dir.resolve() / rule.folder / f"seed_{seed}"

    common = {**settings, "method": "mustmil", "epochs": args.epochs}
    trainings = [
        Experiment(f"training {seed}", folder(RULES[1], seed), {**common, **TRAINED, "seed": seed})
        for seed in args.seeds
    ]
    run_all(trainings, args.num_processes)
    clock.tell("trainings")
    evaluations = []
    for rule in RULES[2:]:
        for seed, training in zip(args.seeds, trainings, strict=True):
            assert rule.settings is not None
            of_rule = {**settings, **rule.settings, "seed": seed}
            name = f"{rule.folder}, seed {seed}"
            evaluations.append(Experiment(name, folder(rule, seed), of_rule, ("evaluating",)))
            decide_again(training.folder / "models", evaluations[-1])
    clock.tell("calibrating")
    run_all(evaluations, args.num_processes)
    clock.tell("evaluating")

    entries = load_datalist(datalist, args.dataset_dir, TASK)
    labels = {name: np.stack([entry["label"] for entry in of]) for name, of in entries.items()}
    decided = [read_decided(rule, [folder(rule, seed) for seed in args.seeds]) for rule in RULES]
    chance = frequency_baseline(labels["training"], labels["testing"], TASK)
    print(f"\n{frequency_table(labels)}\n")
    print(f"{score_table(decided)}\n\n{class_table([decided[i] for i in IN_CLASS_TABLE])}\n")
    print(f"{labels['testing'].mean():.3f} of the test slides' labels are positive. Class frequencies alone:", end=" ")
    print(f"micro-F1 {chance['micro_f1']:.3f}, macro-F1 {chance['macro_f1']:.3f}.")
    print(f"{len(args.seeds)} trainings; {len(set(decided[0].patients))} patients of {len(labels['testing'])} slides.")
    print(f"Seconds: {clock}.")


class Clock:
    """Seconds of the steps of a run."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._start = time.perf_counter()

    def tell(self, step: str) -> None:
        """A step is done."""
        self.steps[step] = time.perf_counter() - self._start - sum(self.steps.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{step} {seconds:.0f}" for step, seconds in self.steps.items())
        return f"{sum(self.steps.values()):.0f} ({parts})"


def write_without_regions(datalist: Path, path: Path) -> Path:
    """Write a datalist without annotated regions, with which each evaluation would compare its heatmaps."""
    entries = json.loads(datalist.read_text(encoding="utf-8"))
    bare = {
        part: [{key: value for key, value in entry.items() if key != "regions"} for entry in of]
        for part, of in entries.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, bare)
    return path


def run_all(experiments: Sequence[Experiment], num_processes: int) -> None:
    """Run what is not done."""
    failed = run_experiments(experiments, BUNDLE_ROOT, num_processes)
    for name, error in failed.items():
        raise SystemExit(f"{name}: {error}")


def decide_again(trained: Path, experiment: Experiment) -> None:
    """Put copies of trained weights into an evaluation's folder, with the operating point of its rule."""
    if experiment.is_done:
        return
    models = experiment.folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    for path in trained.glob("model*.pt"):
        shutil.copyfile(path, models / path.name)
    given = {**experiment.settings, "ckpt_dir": str(models), "output_dir": str(experiment.folder)}
    logging.disable(logging.INFO)
    tqdm.write(experiment.name)
    workflow = ConfigWorkflow("configs/calibrate.json", workflow_type="infer", run_id="calibrating", **given)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    logging.disable(logging.NOTSET)


def read_decided(rule: Rule, folders: Sequence[Path]) -> Decided:
    """Read a rule's decisions from what ``evaluating`` wrote for each training.

    Raises:
        ValueError: if the micro-F1 in ``metrics.json`` is not scikit-learn's of the decisions in ``predictions.csv``.
    """
    read = [read_predictions(folder / "predictions.csv", HEADS, CLASSES) for folder in folders]
    if rule.settings is None:
        decisions = np.stack([of_one.probabilities >= 0.5 for of_one in read]).astype(np.float64)
    else:
        decisions = np.stack([_decisions(folder, of_one.slides) for folder, of_one in zip(folders, read, strict=True)])
    reports = [_reports(folder, rule) for folder in folders]
    brier = np.array([[of_head["brier"]["value"] for of_head in of_one] for of_one in reports])
    decided = Decided(rule, read[0].patients, read[0].labels, decisions, brier)
    for h, head in enumerate(HEADS):
        for folder, of_one, found in zip(folders, reports, decided.scores(h)["micro_f1"], strict=True):
            told = of_one[h]["micro_f1"]["value"]
            if abs(told - found) > 1e-9:
                raise ValueError(
                    f"{folder}, {head}: micro-F1 is {told} in metrics.json, and {found} in predictions.csv"
                )
    return decided


def _reports(folder: Path, rule: Rule) -> list[dict[str, Any]]:
    """What ``metrics.json`` says of each head under a rule."""
    of_heads = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return [of_heads[head] if rule.settings is None else of_heads[head]["operating_point"] for head in HEADS]


def _decisions(folder: Path, slides: Sequence[str]) -> Floats:
    """``[n, H, K]``: the column ``decision``."""
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        found = {(row["slide"], row["head"]): label_of_text(row["decision"], CLASSES) for row in csv.DictReader(file)}
    return np.array([[found[slide, head] for head in HEADS] for slide in slides])


def frequency_table(labels: Mapping[str, Floats]) -> str:
    """How frequent each class is in the partitions, by whose labels ``[n, K]``, and among the balanced draws."""
    train = labels["training"]
    weights = balanced_weights(train.astype(np.float32))
    drawn, shift = weights @ train, prior_shift(train, weights)
    body = [
        [
            name,
            *(f"{of[:, k].mean():.3f} ({of[:, k].sum():.0f} of {len(of)})" for of in labels.values()),
            f"{drawn[k]:.3f}",
            f"{shift[k]:+.2f}",
        ]
        for k, name in enumerate(CLASSES)
    ]
    return markdown_table(["class", *labels, "balanced draws", "correction in logits"], body)


def score_table(decided: Sequence[Decided]) -> str:
    """Mean ± standard deviation over the trainings, and differences of micro-F1 with their 95% intervals.

    Args:
        decided: first at 0.5 as trained; each rule with correction right after the same without.
    """
    head = ["head", "decided at", "corrected", "micro-F1", "macro-F1", "precision", "sensitivity", "predicted positive"]
    head += ["Brier", "micro-F1 against 0.5 as trained", "against the same uncorrected"]
    body = []
    for h, name in enumerate(HEADS):
        resampled = [of_rule.resampled(h) for of_rule in decided]
        scores = [of_rule.scores(h) for of_rule in decided]
        for i, of_rule in enumerate(decided):
            against = [0 if i else None, i - 1 if of_rule.rule.is_corrected else None]
            changes = [
                ""
                if j is None
                else _difference(scores[i]["micro_f1"], scores[j]["micro_f1"], resampled[i], resampled[j])
                for j in against
            ]
            spread = [_spread(scores[i][of]) for of in SCORES]
            corrected = "yes" if of_rule.rule.is_corrected else "no"
            body.append([name, of_rule.rule.title, corrected, *spread, *changes])
    return markdown_table(head, body)


def class_table(decided: Sequence[Decided]) -> str:
    """The fraction of slides that rules call positive and their F1, by head and class: means over the trainings."""
    titles = [f"{of.rule.title}{' corrected' if of.rule.is_corrected else ''}" for of in decided]
    columns = [f"{what}, {title}" for title in titles for what in ("predicted", "F1")]
    body = []
    for h, head in enumerate(HEADS):
        for k, name in enumerate(CLASSES):
            cells = []
            for of_rule in decided:
                of_class = of_rule.decisions[:, :, h, k]  # [r, n]
                f1 = np.array([f1_score(of_rule.labels[:, k], row, zero_division=0.0) for row in of_class])
                cells += [_spread(of_class.mean(axis=1)), _spread(f1)]
            body.append([head, name, f"{decided[0].labels[:, k].mean():.3f}", *cells])
    return markdown_table(["head", "class", "true", *columns], body)


def _spread(values: Floats) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _difference(first: Floats, second: Floats, of_first: Floats, of_second: Floats) -> str:
    low, high = paired_interval(of_first - of_second)
    return f"{(first - second).mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def paired_interval(differences: Floats, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the mean difference between two rules of the same trainings.

    Patients are resampled, and across them the trainings, of r of them r - 1, as in
    :func:`scripts.evaluation.bootstrap.paired_difference`; but here both rules have the same training.

    Args:
        differences: ``[r, R]`` of r trainings on R resamples of the patients.
        seed: of the resampling of trainings.
    """
    repeats, num_resamples = differences.shape
    chosen = np.random.default_rng([seed, 1]).integers(repeats, size=(max(1, repeats - 1), num_resamples))
    low, high = np.percentile(np.take_along_axis(differences, chosen, axis=0).mean(axis=0), [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
