"""``make demo``: make slides, extract, train, evaluate, and print the metrics."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scripts import BUNDLE_ROOT
from scripts.core.errors import show_one_line
from scripts.datalists.datalist import load_datalist
from scripts.evaluation.metrics import frequency_baseline
from scripts.synthetic.cohort import ensure_cohort

__all__ = ["main", "metrics_table", "run_config"]

# The paper's five epochs are 1,826 slides each; the demonstration's are about twenty-five.
EPOCHS = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; every step is a command that a user could type."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo.run", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="gets the slides")
    parser.add_argument("--output_dir", type=Path, default=Path("output/demo"))
    parser.add_argument("--num_slides", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args(argv)

    start = time.perf_counter()
    datalist = ensure_cohort(args.dataset_dir, args.num_slides)
    settings = {"dataset_dir": args.dataset_dir, "output_dir": args.output_dir}
    weights = {"ckpt_dir": args.output_dir / "models"}
    for run_id, config, more in (
        ("extracting", "extract", {}),
        ("training", "train", {**weights, "epochs": args.epochs}),
        ("evaluating", "evaluate", weights),
    ):
        code = run_config(run_id, config, {**settings, **more})
        if code != 0:
            return code

    entries = load_datalist(datalist, args.dataset_dir, "multilabel")
    train, test = (np.stack([e["label"] for e in entries[part]]) for part in ("training", "testing"))
    metrics = json.loads((args.output_dir / "metrics.json").read_text(encoding="utf-8"))
    slides, patients = (metrics.pop(beside) for beside in ("slides", "patients"))
    metrics.pop("made_by")
    counts = ", ".join(f"{len(part)} {name}" for name, part in entries.items())
    print(f"\nSynthetic slides: {counts}. They show that the software works; they say nothing about tissue.\n")
    print(metrics_table(metrics, frequency_baseline(train, test, "multilabel")))
    print(f"\n95% intervals by a bootstrap over the {patients} patients of the {slides} test slides.")
    print(f"\nReport:             {args.output_dir / 'report.html'}")
    print(f"Curves and images:  tensorboard --logdir {args.output_dir / 'tensorboard'}")
    print(f"The demonstration took {time.perf_counter() - start:.0f} s.")
    return 0


def run_config(run_id: str, config: str, settings: Mapping[str, object]) -> int:
    """Print a command of the bundle and run it; returns its exit code."""
    options = [f"--{key}={value}" for key, value in settings.items()]
    command = ["-m", "monai.bundle", "run", run_id, f"--config_file=configs/{config}.json", *options]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    return subprocess.run([sys.executable, *command], cwd=BUNDLE_ROOT, check=False).returncode


def metrics_table(metrics: dict, baseline: dict[str, float]) -> str:
    """The scores of each head in ``metrics.json``, with their 95% intervals, above those of class frequencies."""
    names = list(baseline)
    rows = [["output", *names]]
    for head, scores in metrics.items():
        cells = [(scores[n]["value"], *scores[n]["ci95"]) for n in names]
        rows.append([head, *("-" if v is None else f"{v:.3f} [{low:.3f}, {high:.3f}]" for v, low, high in cells)])
    rows.append(["class frequencies", *(f"{baseline[name]:.3f}" for name in names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


if __name__ == "__main__":
    show_one_line()
    sys.exit(main())
