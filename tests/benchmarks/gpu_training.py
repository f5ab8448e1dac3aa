"""Training on feature banks by one process, by one rank, and by as many ranks as there are GPUs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from scripts.core.ranks import is_first_rank, join, leave, own_device
from tests.benchmarks.training import ensure_banks, training

__all__ = ["compare", "main"]

EPOCHS = 3
CONFIGS = ("configs/train.json", "configs/multi_gpu_train.json")


def main() -> None:
    """Train, and print what one rank saw as the last line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_training", description=__doc__)
    parser.add_argument("--feature_dir", type=Path, required=True)
    parser.add_argument("--bags", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    entries = ensure_banks(args.feature_dir, args.bags, args.rows)
    device = own_device() if args.device == "cuda" else torch.device("cpu")
    ranks = int("RANK" in os.environ)
    if ranks:
        join(device)
    with training(entries, args.feature_dir, 1, "file", device, CONFIGS[: 1 + ranks], EPOCHS) as config:
        trainer = config.get_parsed_content("train#trainer")
        clock = EpochClock(trainer, device)
        trainer.run()
        if is_first_rank():
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
            backend = dist.get_backend() if ranks else None
            print(json.dumps({"seconds": min(clock.seconds[1:]), "peak": peak, "backend": backend}), flush=True)
    leave()


class EpochClock:
    """The seconds of each epoch, until a GPU has done what it was given."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self.seconds: list[float] = []
        self._device = device
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _start(self) -> None:
        self._started = time.perf_counter()

    def _end(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds.append(time.perf_counter() - self._started)


def compare(feature_dir: Path, bags: int, rows: int, device: torch.device) -> None:
    """Bags a second, with one bag a batch and a rank."""
    ensure_banks(feature_dir, bags, rows)
    gpus = torch.cuda.device_count()
    print(f"{bags} bags of {rows} rows from files, the quickest of the epochs after the first; {gpus} GPUs\n")
    print(
        "| processes | backend | bags/s | to one process | peak GPU memory in MB |\n|---|---|---|---|---|", flush=True
    )
    alone = None
    for ranks in (0, *sorted({1, max(gpus, 1)})):
        seen = train(feature_dir, bags, rows, device, ranks)
        name = f"{ranks} under torchrun" if ranks else "1"
        if isinstance(seen, str):
            print(f"| {name} | {seen} | | | |", flush=True)
            continue
        rate = bags / seen["seconds"]
        alone = alone or rate
        peak = "" if seen["peak"] is None else f"{seen['peak'] / 1e6:.0f}"
        print(f"| {name} | {seen['backend'] or ''} | {rate:.1f} | {rate / alone:.2f} | {peak} |", flush=True)


def train(feature_dir: Path, bags: int, rows: int, device: torch.device, ranks: int) -> dict[str, float] | str:
    """What a training saw, or how it failed; with 0 ranks without torchrun."""
    starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    command = [sys.executable, *starter, "-m", "tests.benchmarks.gpu_training", f"--feature_dir={feature_dir}"]
    command += [f"--bags={bags}", f"--rows={rows}", f"--device={device.type}"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return f"failed: {run.stderr.strip().splitlines()[-1:] or run.returncode}"
    seen: dict[str, float] = json.loads(run.stdout.strip().splitlines()[-1])
    return seen


if __name__ == "__main__":
    main()
