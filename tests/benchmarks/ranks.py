"""Two ranks of one thread against one rank of two threads, and against one rank on one core.

Extraction without the start of the program, and `inferring` with heatmaps as the command that users run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from scripts.bags.bag import BagBuilder
from scripts.core.ranks import is_first_rank, wait_for_ranks
from scripts.encoders.backbones import has_fast_bfloat16
from scripts.features.encoding import Encoder
from scripts.features.extraction import Extractor
from tests.benchmarks.bench_slides import synthetic_slides
from tests.benchmarks.extraction import BACKBONES, load
from tests.benchmarks.memory import shipped

WORKFLOWS = ("extracting", "inferring")
# Name, ranks, threads a rank, cores that may be used.
RUNS = (("two ranks", 2, 1, 2), ("one rank, two threads", 1, 2, 2), ("one rank, one core", 1, 1, 1))


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ranks", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    parser.add_argument("--num_slides", type=int, default=24)
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, choices=BACKBONES)
    parser.add_argument("--workflows", nargs="+", default=WORKFLOWS, choices=WORKFLOWS)
    parser.add_argument("--measure", nargs=3, metavar=("BACKBONE", "CORES", "FOLDER"), help="internal: in each rank")
    args = parser.parse_args()
    if args.measure:
        backbone, cores, folder = args.measure
        measure(args, backbone, int(cores), Path(folder))
        return
    synthetic_slides(args.dataset_dir, args.num_slides)
    if "extracting" in args.workflows:
        print(f"runtime {args.runtime}; patches/s of extraction")
        compare(args.backbones, lambda backbone, run: rate(args, backbone, *run))
    if "inferring" in args.workflows:
        print(f"\nslides an hour of `inferring` with heatmaps, {args.num_slides} slides, the whole command")
        with tempfile.TemporaryDirectory() as folder:
            slides = few_slides(args.dataset_dir, args.num_slides, Path(folder))
            shipped("inference", Path(folder), dataset_dir=str(slides))
            seconds = partial(inferring_seconds, Path(folder), slides)
            compare(["inferring"], lambda _, run: args.num_slides * 3600 / seconds(*run))


def compare(columns: Sequence[str], measured: Callable[[str, Sequence[int]], float]) -> None:
    """Print a rate for each run and column, and the ratios."""
    print(f"{'':<22}" + "".join(f"{name:>20}" for name in columns))
    # Twice, in turn, because a shared machine drifts.
    rates = {(run[0], name): [] for run in RUNS for name in columns}
    for _ in range(2):
        for name in columns:
            for run, *how in RUNS:
                rates[run, name].append(measured(name, how))
    mean = {key: sum(both) / len(both) for key, both in rates.items()}
    for run, *_ in RUNS:
        print(f"{run:<22}" + "".join(f"{mean[run, name]:>20.1f}" for name in columns))
    for run, *_ in RUNS[1:]:
        ratios = "".join(f"{mean['two ranks', name] / mean[run, name]:>20.2f}" for name in columns)
        print(f"two ranks / {run:<10}\n{'':<22}{ratios}", flush=True)


def few_slides(dataset_dir: Path, num_slides: int, folder: Path) -> Path:
    """A folder with the first slides."""
    slides = folder / "slides"
    slides.mkdir()
    for entry in synthetic_slides(dataset_dir, num_slides):
        (slides / Path(entry["image"]).name).symlink_to(Path(entry["image"]).resolve())
    return slides


def inferring_seconds(folder: Path, slides: Path, ranks: int, threads: int, cores: int) -> float:
    """Seconds of the whole command, from its start to its end."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command += ["-m", "monai.bundle", "run", "inferring", "--config_file", "configs/inference.json"]
        command += ["--dataset_dir", str(slides), "--ckpt_dir", str(folder), "--output_dir", output]
        command += ["--num_workers", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        allowed = sorted(os.sched_getaffinity(0))[:cores]
        start = time.perf_counter()
        subprocess.run(
            command,
            env=environment,
            capture_output=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        return time.perf_counter() - start


def rate(args: argparse.Namespace, backbone: str, ranks: int, threads: int, cores: int) -> float:
    """Patches a second of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command += ["-m", "tests.benchmarks.ranks", f"--dataset_dir={args.dataset_dir}", f"--runtime={args.runtime}"]
        command += [f"--num_slides={args.num_slides}", "--measure", backbone, str(cores), folder]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        return float(output.splitlines()[-1])


def measure(args: argparse.Namespace, name: str, cores: int, folder: Path) -> None:
    """Extract, and print the rate of all ranks together."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    entries = synthetic_slides(args.dataset_dir, args.num_slides)
    threads = int(os.environ["OMP_NUM_THREADS"])
    encoder = Encoder(load(name, has_fast_bfloat16("cpu")), num_workers=threads, runtime=args.runtime)
    # Once a process: ITK's start, and what is compiled.
    list(encoder.encode(BagBuilder()(entries[0])))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the progress bar of the last thing this process does
    wait_for_ranks()
    start = time.perf_counter()
    Extractor(entries, BagBuilder(), encoder, folder).run()
    seconds = time.perf_counter() - start
    if is_first_rank():
        bags = [BagBuilder()(entry) for entry in entries]
        print(sum(len(coords) for bag in bags for coords in bag.grid.coords) / seconds)


if __name__ == "__main__":
    main()
