"""What augmented views cost, and what they bring: ``python -m tests.benchmarks.augmentation``.

MuSTMIL is trained with several numbers of ``views``, by ``comparing`` as the config ships, each time with several
seeds; beside its scores stand the seconds of extraction and training. By default the slides are those of ``make demo``
in folds, so that every slide is tested. ``--datalist`` takes others. Finished steps are not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigWorkflow
from numpy.typing import NDArray

from scripts.core.files import write_json
from scripts.core.markdown import markdown_table
from scripts.core.tasks import get_task
from scripts.datalists.patients import patients_of
from scripts.datalists.units import bags_of
from scripts.evaluation.bootstrap import FEWEST_PATIENTS, paired_difference
from scripts.evaluation.metrics import SCORE_TITLES
from scripts.evaluation.score_texts import mean_sd_text
from scripts.experiments.comparison import Comparison
from scripts.experiments.comparison_results import Run, read_run
from scripts.experiments.fold_results import pooled_run
from scripts.features.bank import bank_path
from scripts.features.extraction import Extractor
from scripts.synthetic.cohort import ensure_cohort
from tests.benchmarks.operating_points import write_without_regions

__all__ = ["Trained", "main", "views_table"]

METHOD = "mustmil"
DEMO_EPOCHS = 40


@dataclass(frozen=True)
class Trained:
    """The trainings with one number of views.

    Args:
        views: of the slides of the rarest classes.
        banks: how many were missing, those of views among them.
        extracting_s: seconds in which these were extracted.
        runs: for each seed, of folds all slides together.
    """

    views: int
    banks: int
    extracting_s: float
    runs: Sequence[Run]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.augmentation", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    parser.add_argument("--datalist", type=Path, help="of other slides; by default the datalist of dataset_dir")
    parser.add_argument("--output_dir", type=Path, default=Path("output/augmentation"))
    parser.add_argument("--views", type=int, nargs="+", default=[0, 2, 4], help="the first is compared with the others")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=DEMO_EPOCHS)
    parser.add_argument("--folds", type=int, default=5, help="0 takes the partitions of the datalist")
    parser.add_argument("--num_processes", type=int, default=2, help="trainings at the same time")
    parser.add_argument("--settings", type=json.loads, default={}, help="others of compare.json, as JSON")
    args = parser.parse_args(argv)

    datalist = args.datalist or ensure_cohort(args.dataset_dir)
    if datalist.suffix == ".json":
        # With annotated regions each evaluation would compare its heatmaps.
        datalist = write_without_regions(datalist, args.output_dir.resolve() / "datalist.json")
    settings = {
        **args.settings, "dataset_dir": str(args.dataset_dir.resolve()), "datalist": str(datalist.resolve()),
        "methods": [METHOD], "seeds": args.seeds, "epochs": args.epochs, "num_processes": args.num_processes,
        **({"folds": args.folds} if args.folds else {}),
    }  # fmt: skip
    logging.disable(logging.INFO)
    made, found = [], []
    for views in args.views:
        comparison, trained = train(views, settings, args.output_dir.resolve() / f"views_{views}")
        made.append(comparison)
        found.append(trained)
    bags = bags_of(made[0].testing_data, made[0].unit)
    tested = f"{len(found[0].runs[0].slides)} test slides of {len(set(patients_of(bags).values()))} patients"
    trainings = f"{len(args.seeds)} trainings{f' of {args.folds} folds' if args.folds else ''}, {args.epochs} epochs"
    print(f"\n{tested}; {trainings}\n\n{views_table(found, made[0].settings['task'], patients_of(bags))}")


def train(views: int, settings: Mapping[str, Any], folder: Path) -> tuple[Comparison, Trained]:
    """Extract, train and evaluate what is missing, with one number of views."""
    own = {**settings, "views": views, "feature_dir": str(folder / "features"), "output_dir": str(folder)}
    workflow = ConfigWorkflow("configs/compare.json", workflow_type="infer", run_id="comparing", **own)
    workflow.initialize()
    comparison: Comparison = workflow.parser.get_parsed_content("comparison")
    extracted = folder / "extraction.json"
    if not extracted.exists():
        extractor: Extractor = workflow.parser.get_parsed_content("extractor")
        views_of = zip(extractor.entries, extractor.views, strict=True)
        paths = [
            bank_path(extractor.feature_dir, entry["slide"], view) for entry, n in views_of for view in range(n + 1)
        ]
        missing = sum(not path.exists() for path in paths)
        start = time.perf_counter()
        extractor.run()
        write_json(extracted, {"seconds": time.perf_counter() - start, "banks": missing})
    workflow.run()
    workflow.finalize()
    told = json.loads(extracted.read_text(encoding="utf-8"))
    return comparison, Trained(views, told["banks"], told["seconds"], read_runs(comparison))


def read_runs(comparison: Comparison) -> list[Run]:
    """The run of each seed, of folds all slides together."""
    runs = []
    for seed in comparison.seeds:
        folder = comparison.output_dir / "runs" / METHOD / f"seed_{seed}"
        if comparison.split is None:
            runs.append(read_run(folder, METHOD, seed, comparison.class_names))
            continue
        folds = range(1, len(comparison.split.partitions) + 1)
        of_folds = [read_run(folder / f"fold_{fold}", METHOD, seed, comparison.class_names, fold) for fold in folds]
        runs.append(pooled_run(of_folds, comparison.settings["task"], comparison.class_names))
    return runs


def views_table(trained: Sequence[Trained], task: str, patients: Mapping[str, str]) -> str:
    """Scores and costs of each number of views: mean ± standard deviation over the trainings.

    Args:
        trained: on the same slides; the others are compared with the first.
        task: one of :data:`scripts.core.tasks.TASKS`.
        patients: of each test slide. With few, differences have no interval.
    """
    score = get_task(task).scores[1]
    title, own = SCORE_TITLES[score], [patients[slide] for slide in trained[0].runs[0].slides]
    head = ["views", "head", f"{title} at 0.5", f"against {trained[0].views} views [95%]", "at the operating point",
            "against", "banks extracted", "in s", "training in s"]  # fmt: skip
    body = []
    for name in trained[0].runs[0].probabilities:
        plain = [np.stack([run.probabilities[name] for run in of.runs]) for of in trained]  # [seeds, n, K]
        decided = [np.stack([run.decisions[name].decided for run in of.runs]) for of in trained]  # [seeds, n, K]
        for i, of in enumerate(trained):
            scores = [np.array([run.scores[name][score] for run in of.runs])]
            scores.append(np.array([run.decisions[name].scores[score] for run in of.runs]))
            against = [
                "" if i == 0 else _difference(kind[i], kind[0], of.runs[0].labels, task, score, own)
                for kind in (plain, decided)
            ]
            seconds = np.array([run.seconds(name) for run in of.runs])
            costs = [str(of.banks), f"{of.extracting_s:.0f}", _spread(seconds, 1)]
            body.append([str(of.views), name, _spread(scores[0]), against[0], _spread(scores[1]), against[1], *costs])
    return markdown_table(head, body)


def _difference(
    first: NDArray[np.float64], second: NDArray[np.float64], labels: Any, task: str, score: str, own: Sequence[str]
) -> str:
    found = paired_difference(first, second, labels, task, score, patients=own)
    interval = f" [{found.low:+.3f}, {found.high:+.3f}]" if len(set(own)) >= FEWEST_PATIENTS else ""
    return f"{found.difference:+.3f}{interval}"


def _spread(values: NDArray[np.float64], places: int = 3) -> str:
    return mean_sd_text(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else np.nan, places)


if __name__ == "__main__":
    main()
