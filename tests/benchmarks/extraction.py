"""``make bench``: how close extraction comes to the bare backbone, and whether its memory grows with the slide.

Rates are comparable within one run only: read the ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from scripts.backbones import Backbone, build_resnet34, get_backbone, has_fast_bfloat16
from scripts.bags import BagBuilder
from scripts.datalist import list_slides
from scripts.demo import ensure_cohort
from scripts.encoding import Encoder
from scripts.errors import SettingsError
from scripts.extraction import Extractor

TILE_PX = 256


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.extraction", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; drawn if absent")
    parser.add_argument("--num_slides", type=int, default=8, help="slides to extract for each rate")
    parser.add_argument("--memory_of", type=Path, help="internal: extract one slide and print the peak memory")
    args = parser.parse_args()
    if args.memory_of:
        print_peak_memory(args.memory_of)
        return
    ensure_cohort(args.dataset_dir)
    entries = list_slides(args.dataset_dir / "slides")[: args.num_slides]
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    compare_rates(entries)
    compare_memory(Path(entries[0]["image"]))


def compare_rates(entries: list[dict[str, Any]]) -> None:
    """Patches a second of the backbone on patches in memory, and of extraction from slide to bank."""
    builder = BagBuilder()
    start = time.perf_counter()
    bag = builder(entries[0])
    print(f"first tissue mask of the process, ITK's start included: {time.perf_counter() - start:.1f} s\n")
    patches = torch.from_numpy(np.concatenate([bag.read_all(s) for s in range(len(bag.grid.scales))]))
    print(f"{'backbone':<20}{'arithmetic':<12}{'forward':>12}{'extracting':>12}{'ratio':>8}   (patches/s)")
    for name in ("resnet34", "efficientnet_lite0"):
        for amp in sorted({False, has_fast_bfloat16()}):
            backbone = load(name, amp)
            before = forward_rate(backbone, patches)
            rate = extraction_rate(entries, builder, Encoder(backbone))
            # Before and after, because a shared machine drifts.
            forward = 2 / (1 / before + 1 / forward_rate(backbone, patches))
            arithmetic = "bfloat16" if amp else "float32"
            print(f"{name:<20}{arithmetic:<12}{forward:>12.1f}{rate:>12.1f}{rate / forward:>8.2f}", flush=True)


def load(name: str, amp: bool) -> Backbone:
    """A backbone; one whose weights cannot be had gets random ones, which are as fast."""
    try:
        return get_backbone(name, amp=amp)
    except SettingsError:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "random.pth"
            torch.save(build_resnet34().state_dict(), path)
            return get_backbone(name, weights=path, amp=amp)


def forward_rate(backbone: Backbone, patches: torch.Tensor, seconds: float = 8.0, batch_size: int = 32) -> float:
    """Patches a second of the forward pass alone."""
    batches = [batch for batch in patches.split(batch_size) if len(batch) == batch_size] or [patches]
    with torch.inference_mode():
        backbone(batches[0])
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            batch = batches[done % len(batches)]
            backbone(batch)
            done += 1
        return done * len(batches[0]) / (time.perf_counter() - start)


def extraction_rate(entries: list[dict[str, Any]], builder: BagBuilder, encoder: Encoder) -> float:
    """Patches a second of extraction: opening, tissue, grid, reading, encoding and writing."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        Extractor(entries, builder, encoder, folder).run()
        seconds = time.perf_counter() - start
        done = 0
        for path in Path(folder).glob("*.h5"):
            with h5py.File(path) as bank:
                done += sum(len(bank[key]["features"]) for key in bank if key != "rows")
    return done / seconds


def compare_memory(slide: Path) -> None:
    """Peak memory of a process that extracts one slide, and one of 16 times its area."""
    with tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for times in (1, 4):
            path = Path(folder) / f"tiled_{times * times}x.tif"
            write_tiled(slide, path, times)
            command = [sys.executable, "-m", "tests.benchmarks.extraction", f"--memory_of={path}"]
            peaks[times], patches, idle = map(float, subprocess.check_output(command, text=True).split())
            print(
                f"{'' if times > 1 else chr(10)}area x {times * times:<3} {int(patches):>6} patches, peak memory "
                f"{peaks[times]:.0f} MB, of which {peaks[times] - idle:.0f} MB above the loaded program",
                flush=True,
            )
        print(f"ratio of the peaks {peaks[4] / peaks[1]:.3f}")


def print_peak_memory(slide: Path) -> None:
    """Extract one slide; print peak memory, patches, and memory before it, in MB."""
    builder, encoder = BagBuilder(), Encoder(get_backbone("efficientnet_lite0", amp=has_fast_bfloat16()))
    idle = peak_mb()
    bag = builder({"image": slide})
    with tempfile.TemporaryDirectory() as folder:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the progress bar of the last thing this process does
        Extractor([{"image": str(slide), "slide": "s"}], builder, encoder, folder).run()
    print(peak_mb(), sum(len(coords) for coords in bag.grid.coords), idle)


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024  # type: ignore[union-attr]


def write_tiled(slide: Path, path: Path, times: int) -> None:
    """Write a slide repeated ``times`` x ``times``, tile by tile, with the slide's own levels."""
    with tifffile.TiffFile(slide) as source, tifffile.TiffWriter(path, bigtiff=True) as target:
        levels = source.series[0].levels
        full = levels[0].shape
        for index, level in enumerate(levels):
            image = level.asarray()
            shape = (image.shape[0] * times, image.shape[1] * times, 3)
            per_cm = 1e4 / (0.5 * round(full[0] / image.shape[0]))
            target.write(
                tiles(image, times),
                shape=shape,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if index else 0,
                metadata=None,
            )


def tiles(image: NDArray[np.uint8], times: int) -> Iterator[NDArray[np.uint8]]:
    """The tiles of a repeated image, row by row."""
    height, width = image.shape[:2]
    for top in range(0, height * times, TILE_PX):
        for left in range(0, width * times, TILE_PX):
            rows = np.arange(top, top + TILE_PX) % height
            columns = np.arange(left, left + TILE_PX) % width
            yield image[rows[:, None], columns[None, :]]


if __name__ == "__main__":
    main()
