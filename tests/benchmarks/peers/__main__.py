"""Ours beside other tools that extract features: patches a second, time to the first, memory, from file to features.

Each contender runs in a process of its own, as many times as ``--rounds`` says, in turn. Before that each runs once on
one slide, which is not measured: so all find their files in memory, and what they keep between runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from scripts.encoders.registry import ENCODERS
from tests.benchmarks.bench_slides import synthetic_slides
from tests.benchmarks.peers.contenders import INT8, OTHERS, Contender, Other, Work, make_int8, ours
from tests.benchmarks.peers.measuring import FailedError, measure
from tests.benchmarks.peers.tables import Run, aim_line, result_table

AIMED_AT = "TRIDENT"


class Cohort(NamedTuple):
    """Slides and magnifications, and how many times as fast as ``AIMED_AT`` ours should be, by arithmetic."""

    name: str
    slides: Sequence[Path]
    magnifications: Sequence[float]
    aims: Mapping[str, float]


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--peers", type=Path, required=True, help="the folder of the other tools: docs/peers.md")
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    parser.add_argument("--weights", type=Path, help="a state dict of ResNet34; without, random ones, as fast")
    parser.add_argument("--num_slides", type=int, default=16, help="of the first cohort")
    parser.add_argument("--num_small", type=int, default=4, help="of the second cohort, the smallest files")
    parser.add_argument("--threads", type=int, default=2, help="and cores")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    # What each starts keeps to them.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    slides = [Path(entry["image"]).resolve() for entry in synthetic_slides(args.dataset_dir, sys.maxsize)]
    small = sorted(slides, key=lambda slide: slide.stat().st_size)[: args.num_small]
    cohorts = (
        Cohort("slides", slides[: args.num_slides], (5, 10), aims={"bfloat16": 3, INT8: 5}),
        Cohort("small slides", small, (10,), aims={"bfloat16": 2}),
    )
    others = present(args.peers.resolve())
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights.resolve() if args.weights else random_weights(Path(folder) / "resnet34.pth")
        int8 = int8_network(Path(folder) / "int8", weights, slides[: args.num_slides])
        contenders: list[Contender] = [*others, *ours(int8)]
        first = Cohort("slide, not measured", small[:1], (10,), aims={})
        _, contenders = run_in_turn(contenders, first, weights, args.threads, 1, Path(folder))
        for cohort in cohorts:
            runs, contenders = run_in_turn(contenders, cohort, weights, args.threads, args.rounds, Path(folder))
            at = " and ".join(f"{magnification:g}x" for magnification in cohort.magnifications)
            print(f"\n{len(cohort.slides)} {cohort.name} at {at}, {args.threads} threads, {args.rounds} runs each\n")
            print(result_table(runs))
            for arithmetic, aim in cohort.aims.items():
                print(f"\n{aim_line(runs, AIMED_AT, arithmetic, aim)}", flush=True)


def present(folder: Path) -> list[Other]:
    """The other tools that are in a folder; those that are not are named."""
    others = [Other(name, key, folder, has_checkout) for name, key, has_checkout in OTHERS]
    found = []
    for other in others:
        if missing := other.missing():
            print(f"{other.name} is absent: there is no {missing}; docs/peers.md says how to set it up.", flush=True)
        else:
            commit = f", commit {other.commit()}" if other.has_checkout else ""
            print(f"{other.name}: {other.python.parent.parent}{commit}", flush=True)
            found.append(other)
    return found


def run_in_turn(
    contenders: Sequence[Contender], cohort: Cohort, weights: Path, threads: int, rounds: int, folder: Path
) -> tuple[dict[Contender, list[Run]], list[Contender]]:
    """Each contender once, then each again, because a shared machine drifts.

    Returns:
        the runs of each contender that went through all rounds, and these contenders; others are named with the
        end of what they printed.
    """
    runs: dict[Contender, list[Run]] = {contender: [] for contender in contenders}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        slides = Path(name) / "slides"
        slides.mkdir()
        for slide in cohort.slides:
            (slides / slide.name).symlink_to(slide)
        work = Work(slides, cohort.magnifications, weights, threads)
        for number in range(1, rounds + 1):
            for contender in list(runs):
                about = f"{len(cohort.slides)} {cohort.name}, run {number}: {contender.name}, {contender.arithmetic}"
                try:
                    run = run_once(contender, work, Path(name))
                except FailedError as error:
                    print(f"{about}, failed: {error}", flush=True)
                    del runs[contender]
                else:
                    print(f"{about}, {run.patches} patches in {run.seconds:.1f} s", flush=True)
                    runs[contender].append(run)
    return runs, list(runs)


def run_once(contender: Contender, work: Work, folder: Path) -> Run:
    """One run, whose files are deleted.

    Raises:
        FailedError: if it does not end well.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        output = Path(name) / "output"
        output.mkdir()
        environment = {"OMP_NUM_THREADS": str(work.threads)}
        measured = measure(contender.command(work, output), Path(name) / "log", environment)
        return Run.of(measured, contender.features(output))


def int8_network(folder: Path, weights: Path, slides: Sequence[Path]) -> Path | None:
    """Make the INT8 network that ``precision`` int8 makes once a cohort; ``None``, which is told, where nothing can."""
    if missing := [package for package in ("openvino", "nncf") if find_spec(package) is None]:
        print(f"INT8 is left out: {' and '.join(missing)} is missing.", flush=True)
        return None
    start = time.perf_counter()
    make_int8(folder, weights, slides)
    print(f"The INT8 network took {time.perf_counter() - start:.1f} s, once, which no run below includes.", flush=True)
    return folder


def random_weights(path: Path) -> Path:
    """Write a state dict of ResNet34 with all of torchvision's names, those of its last layer included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = ENCODERS["resnet34"].build().state_dict()
        last = torch.nn.Linear(512, 1000).state_dict()
    torch.save({**state, **{f"fc.{name}": values for name, values in last.items()}}, path)
    return path


if __name__ == "__main__":
    main()
