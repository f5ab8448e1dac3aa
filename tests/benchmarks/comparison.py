"""Where the time of a training on the feature bank goes: reading banks, or training. ``make bench-comparison``.

It runs ``train.json`` as ``comparing`` does, on banks that are there, and takes the time that each engine waits for
its next batch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from scripts.networks.methods import METHODS

__all__ = ["main"]


class BatchClock:
    """Adds up the time that an engine waits for batches."""

    def __init__(self, *engines: Engine) -> None:
        self.seconds = 0.0
        for engine in engines:
            engine.add_event_handler(Events.GET_BATCH_STARTED, self._start)
            engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._stop)

    def _start(self) -> None:
        self._started = time.perf_counter()

    def _stop(self) -> None:
        self.seconds += time.perf_counter() - self._started


def measure(method: str, cache_gb: float, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a training with its validations, and of these the seconds of reading."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "method": method, "cache_gb": cache_gb, "epochs": args.epochs, "dataset_dir": str(args.dataset_dir),
            "feature_dir": str(args.feature_dir), "output_dir": folder, "ckpt_dir": f"{folder}/models",
        }  # fmt: skip
        workflow = ConfigWorkflow("configs/train.json", workflow_type="train", run_id="training", **settings)
        workflow.initialize()
        trainer = workflow.parser.get_parsed_content("train#trainer")
        clock = BatchClock(trainer, workflow.parser.get_parsed_content("validate#evaluator"))
        phases = workflow.parser.get_parsed_content("train#phases")
        workflow.run()
        return sum(phases.seconds), clock.seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.comparison", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/compare"))
    parser.add_argument("--feature_dir", type=Path, default=Path("output/compare-demo/features"))
    parser.add_argument("--methods", nargs="+", default=["mustmil", "msmil", "ssmil", "mil_att"], choices=list(METHODS))
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args(argv)
    print("| method | banks in memory | training in s | reading in s | fraction of reading |\n|---|---|---|---|---|")
    for method in args.methods:
        for cache_gb in (0.0, 2.0):
            logging.disable(logging.INFO)
            with contextlib.redirect_stderr(io.StringIO()):
                seconds, reading = measure(method, cache_gb, args)
            kept = "yes" if cache_gb else "no"
            print(f"| {method} | {kept} | {seconds:.1f} | {reading:.2f} | {reading / seconds:.1%} |", flush=True)


if __name__ == "__main__":
    main()
