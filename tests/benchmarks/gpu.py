"""What a GPU changes, within ten minutes: ``make bench ARGS=gpu``.

The parts run one after the other, each in a process of its own, which ends when the part's time is up. ``--device cpu``
runs the same on little, to try the command where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from scripts.bags.bag import Bag, BagBuilder
from scripts.bags.blocks import plan_blocks
from scripts.core.devices import describe_torch
from scripts.core.errors import SettingsError
from scripts.encoders.backbones import Backbone, has_fast_bfloat16
from scripts.encoders.runtimes import choose_runtime, get_forward
from scripts.encoders.vision_transformers import create_timm_model, import_timm
from scripts.features.encoding import Encoder
from scripts.synthetic.cohort import make_cohort
from tests.benchmarks import gpu_decoding, gpu_training
from tests.benchmarks.bench_slides import write_tiled
from tests.benchmarks.extraction import extraction_rate, forward_rate, load

__all__ = ["PARTS", "main", "run_within", "threads_needed"]

# Seconds that each part may take. What is left of ten minutes makes the slide.
PARTS = {"forward": 240, "reading": 60, "decoding": 60, "training": 120, "memory": 60}
WHOLE_S = 600
# Time for torchrun to end its ranks, which are in sessions of their own.
GRACE_S = 10.0
VIT = "vit_small_patch16_224"
BACKBONES = ("resnet34", VIT)


@dataclass(frozen=True)
class Amount:
    """How much is measured on a kind of device.

    Args:
        times: the slide is a synthetic one, so often side by side in both directions.
        batch_size: patches that are encoded together.
        forward_s: seconds of each forward pass that is timed.
        runtimes: of the setting ``runtime``.
        threads: numbers of reading threads.
        tiles: tiles that are decoded.
        batches: numbers of patches of which the memory is measured.
        bags: of the training.
        rows: of each bag.
    """

    times: int
    batch_size: int
    forward_s: float
    runtimes: tuple[str, ...]
    threads: tuple[int, ...]
    tiles: int
    batches: tuple[int, ...]
    bags: int
    rows: int


AMOUNTS = {
    "cuda": Amount(8, 256, 3.0, ("torch", "compile"), (1, 2, 4, 8, 16), 4096, (32, 128, 512, 2048), 400, 2000),
    "cpu": Amount(1, 8, 0.5, ("torch",), (1, 2), 64, (2, 8), 12, 200),
}


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=list(AMOUNTS))
    parser.add_argument("--measure", nargs=2, metavar=("PART", "FOLDER"), help="internal: one part")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], Path(args.measure[1]), torch.device(args.device))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"Nothing is measured: {describe_torch()}.")
        return
    start = time.monotonic()
    print(f"{describe_torch()}; {num_cores()} cores", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make_cohort(folder, num_slides=1)
        write_tiled(next(Path(folder).glob("slides/*")), Path(folder) / "slide.tif", AMOUNTS[args.device].times)
        for part, seconds in PARTS.items():
            print(f"\n== {part} ==\n", flush=True)
            command = [sys.executable, "-m", "tests.benchmarks.gpu", f"--device={args.device}"]
            left = max(0.0, WHOLE_S - (time.monotonic() - start))
            print(run_within([*command, "--measure", part, folder], min(seconds, left)), end="", flush=True)


def run_within(command: Sequence[str], seconds: float) -> str:
    """Run a command that prints its own results, and end it, with all that it started, when the seconds are over.

    Returns:
        A line on what became of it where it did not end well, else nothing.
    """
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(seconds)
        return f"It failed with exit code {code}.\n" if code else ""
    except subprocess.TimeoutExpired:
        return f"It was ended after {seconds:.0f} s; what is missing was not measured.\n"
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(part: str, folder: Path, device: torch.device) -> None:
    """Print one part."""
    amount = AMOUNTS[device.type]
    entry = {"image": str(folder / "slide.tif"), "slide": "slide"}
    if part == "forward":
        compare_with_extraction(entry, amount, device, folder / "rates.json")
    elif part == "reading":
        compare_threads(BagBuilder()(entry), amount, folder / "rates.json")
    elif part == "decoding":
        gpu_decoding.compare(folder / "slide.tif", amount.tiles, amount.threads, device)
    elif part == "training":
        gpu_training.compare(folder / "banks", amount.bags, amount.rows, device)
    else:
        compare_batches(amount, device)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def usable_backbones() -> list[str]:
    """Those that can be built here: the vision transformer is timm's."""
    try:
        import_timm()
    except SettingsError as error:
        print(f"{VIT} is left out: {error}\n")
        return [name for name in BACKBONES if name != VIT]
    return list(BACKBONES)


def build(name: str, amp: bool) -> Backbone:
    """A backbone with random weights, which are as fast as trained ones."""
    return vision_transformer(amp) if name == VIT else load(name, amp)


def vision_transformer(amp: bool) -> Backbone:
    """timm's small vision transformer, of 384 features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create_timm_model(VIT, device="cpu")
    return Backbone(VIT, network, 384, [127.5] * 3, [127.5] * 3, "0" * 64, amp, input_px=224)


def arithmetics(device: torch.device) -> list[bool]:
    """Values of ``amp`` that a device computes natively."""
    return sorted({False, has_fast_bfloat16(device)})


def random_patches(number: int, device: torch.device) -> torch.Tensor:
    """Patches ``[n, 3, 224, 224]``, on the device."""
    patches = torch.randint(256, (number, 3, 224, 224), dtype=torch.uint8, device=device)
    return patches.contiguous(memory_format=torch.channels_last)


def compare_with_extraction(entry: dict[str, Any], amount: Amount, device: torch.device, rates: Path) -> None:
    """Patches a second of the forward pass on patches on the device, and of extraction from slide to bank."""
    builder = BagBuilder()
    grid, threads = builder(entry).grid, min(num_cores(), amount.threads[-1])
    print(f"{grid.num_patches} patches, {amount.batch_size} a batch, {threads} reading threads")
    names = usable_backbones()
    print("| backbone | runtime | arithmetic | forward | extracting | ratio |\n|---|---|---|---|---|---|", flush=True)
    batches = [random_patches(amount.batch_size, device) for _ in range(4)]
    forward_of = {}
    # What is compiled comes last: it takes the longest before the first batch.
    for runtime in amount.runtimes:
        if choose_runtime(runtime, device) != runtime:
            continue
        for amp in arithmetics(device):
            for name in names:
                backbone = build(name, amp)
                encoder = Encoder(backbone, device, amount.batch_size, threads, runtime)
                forward = get_forward(runtime, backbone.to(device), amount.batch_size)
                encoder._forward = forward  # what was compiled is not compiled again
                bare = forward_rate(forward, batches, amount.forward_s)
                whole = extraction_rate(entry, builder, encoder)
                arithmetic = "bfloat16" if amp else "float32"
                forward_of[f"{name}, {runtime}, {arithmetic}"] = bare
                rates.write_text(json.dumps(forward_of), encoding="utf-8")
                print(
                    f"| {name} | {runtime} | {arithmetic} | {bare:.1f} | {whole:.1f} | {whole / bare:.2f} |",
                    flush=True,
                )


def compare_threads(bag: Bag, amount: Amount, rates: Path) -> None:
    """Patches a second of reading alone, and the threads that each forward pass needs."""
    print("| threads | patches/s |\n|---|---|", flush=True)
    reading = {}
    for threads in amount.threads:
        reading[threads] = reading_rate(bag, threads)
        print(f"| {threads} | {reading[threads]:.1f} |", flush=True)
    if not rates.is_file():
        print("\nNo forward pass was measured to compare with.")
        return
    print("\n| forward pass | patches/s | reading threads that feed it |\n|---|---|---|")
    for name, forward in json.loads(rates.read_text(encoding="utf-8")).items():
        needed = threads_needed(reading, forward)
        print(f"| {name} | {forward:.1f} | {needed or f'more than {amount.threads[-1]}'} |")


def reading_rate(bag: Bag, threads: int, at_most_s: float = 8.0) -> float:
    """Patches a second of reading alone: decoding, cutting and resampling."""
    blocks, done = plan_blocks(bag.grid), 0
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(bag.read_block, blocks[:threads]))  # each starts a process that reads for it
        start = time.perf_counter()
        for parts in pool.map(bag.read_block, blocks):
            done += sum(len(patches) for _, patches, _ in parts)
            if (seconds := time.perf_counter() - start) > at_most_s:
                break
        pool.shutdown(cancel_futures=True)
    return done / seconds


def threads_needed(reading: Mapping[int, float], forward: float) -> int | None:
    """The smallest number of threads that read as many patches a second as the forward pass takes, if one does."""
    return min((threads for threads, rate in reading.items() if rate >= forward), default=None)


def compare_batches(amount: Amount, device: torch.device) -> None:
    """Peak memory of encoding a batch, and patches a second, by the number of patches."""
    names = usable_backbones()
    kind = "GPU memory" if device.type == "cuda" else "resident memory"
    print(f"| backbone | arithmetic | batch | peak {kind} in MB | patches/s |\n|---|---|---|---|---|", flush=True)
    for amp in arithmetics(device):
        for name in names:
            backbone = build(name, amp)
            forward = get_forward("torch", backbone.to(device), amount.batches[0])
            for batch in amount.batches:
                start_peak(device)
                row = f"| {name} | {'bfloat16' if amp else 'float32'} | {batch} |"
                try:
                    rate = forward_rate(forward, [random_patches(batch, device)], amount.forward_s / 3)
                except torch.OutOfMemoryError:
                    print(f"{row} does not fit | |", flush=True)
                    break
                print(f"{row} {peak_mb(device):.0f} | {rate:.1f} |", flush=True)


def start_peak(device: torch.device) -> None:
    """Forget the peak of what was measured before."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """The most that tensors took on a GPU since :func:`start_peak`; of a CPU what the process takes now."""
    taken = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return taken / 1e6


if __name__ == "__main__":
    main()
