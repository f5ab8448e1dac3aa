"""Thousands of small slides through extraction, training and inference in one process: what grows?"""

from __future__ import annotations

import csv
import os
import statistics
import threading
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import monai.bundle
import psutil
import tifffile

from tests.conftest import ROOT
from tests.pyramids import noise, with_tissue
from tests.reliability.counters import Counts

SLIDES = 2000
SIZE = (640, 512)
CLASSES = ("cancer", "hgd", "lgd", "hyperplastic", "normal")
SAMPLE_SECONDS = 0.5
# More than what comes and goes: a reader that was closed and opened again, a cache of the C library.
MAY_GROW = {"memory": 1.10, "open files": 1.10, "threads": 1.10}


class Sample(NamedTuple):
    """What a process and its children hold: memory in MB, open files, threads."""

    memory: float
    files: int
    threads: int


def run(counts: Counts, folder: Path, tries: int | None = None, seed: int = 0) -> None:
    """Make slides, run the shipped configs on them, and print what the process used early and late in each.

    Args:
        counts: gets a row for each workflow and thing that is held.
        folder: for the slides and all output.
        tries: how many slides.
        seed: of the slides.
    """
    number = tries or SLIDES
    draw(folder / "slides", folder / "datalist.csv", number, seed)
    os.chdir(ROOT)
    data = {"dataset_dir": str(folder / "slides"), "datalist": str(folder / "datalist.csv"), "patch_size": 64}
    out = {"output_dir": str(folder / "out")}
    # Banks that are kept in memory are not what is looked for.
    trained = {**out, "ckpt_dir": str(folder / "models"), "cache_gb": 0.0}
    workflows = {
        "extracting": ("extract", {**data, **out}),
        "training": ("train", {**data, **trained, "epochs": 2}),
        "inferring": ("inference", {**data, **out, "ckpt_dir": str(folder / "models"), "heatmaps": False}),
    }
    print(f"{number} slides\n{'workflow':<12}{'':<12}{'early':>10}{'late':>10}{'ratio':>8}", flush=True)
    for name, (config, settings) in workflows.items():
        with Watch() as watch:
            monai.bundle.run(run_id=name, config_file=f"configs/{config}.json", **settings)
        for what, early, late in watch.compared():
            print(f"{name:<12}{what:<12}{early:>10.0f}{late:>10.0f}{late / early:>8.3f}", flush=True)
            outcome = f"{early:.0f} to {late:.0f}"
            outcome = outcome if late <= MAY_GROW[what] * early else f"GROWS: {early:.0f} -> {late:.0f}"
            counts.add(f"{number} slides in one go, {name}: {what}", outcome)


def draw(folder: Path, datalist: Path, number: int, seed: int) -> None:
    """Small slides that all differ, and their datalist."""
    folder.mkdir(parents=True)
    texture = cv2.GaussianBlur(noise(2 * SIZE[1], 2 * SIZE[0], seed), (0, 0), 9)
    with open(datalist, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *CLASSES, "partition"])
        for slide in range(number):
            left, top = slide % SIZE[0], slide // SIZE[0] % SIZE[1]
            image = with_tissue(SIZE[1], SIZE[0], [(16, 16, SIZE[0] - 16, SIZE[1] - 16)])
            part = texture[top + 16 : top + SIZE[1] - 16, left + 16 : left + SIZE[0] - 16]
            image[16:-16, 16:-16] = image[16:-16, 16:-16] // 2 + part // 2
            with tifffile.TiffWriter(folder / f"s{slide}.tif") as tiff:
                for level in (0, 1):
                    size = (SIZE[0] // 4**level, SIZE[1] // 4**level)
                    tiff.write(
                        cv2.resize(image, size, interpolation=cv2.INTER_AREA),
                        photometric="rgb", tile=(128, 128), compression="jpeg", subfiletype=level, metadata=None,
                        resolution=(2e4 / 4**level,) * 2, resolutionunit="CENTIMETER",
                    )  # fmt: skip
            label = [int(slide % len(CLASSES) == k) for k in range(len(CLASSES))]
            partition = ("validation", "testing", *["training"] * 8)[slide % 10]
            writer.writerow([f"s{slide}.tif", *label, partition])


class Watch:
    """Samples what this process and its children hold, in a thread, until the block ends."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def compared(self) -> list[tuple[str, float, float]]:
        """(what, early, late): the medians of the second and the last fifth of the time."""
        fifth = max(1, len(self.samples) // 5)
        early, late = self.samples[fifth : 2 * fifth] or self.samples, self.samples[-fifth:]
        columns = zip(MAY_GROW, zip(*early, strict=True), zip(*late, strict=True), strict=True)
        return [(what, statistics.median(a), statistics.median(b)) for what, a, b in columns]

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.is_set():
            self.samples.append(_held([process, *process.children(recursive=True)]))
            time.sleep(SAMPLE_SECONDS)


def _held(processes: list[psutil.Process]) -> Sample:
    memory, files, threads = 0.0, 0, 0
    for process in processes:
        try:
            memory += process.memory_info().rss / 1e6
            files += process.num_fds()
            threads += process.num_threads()
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return Sample(memory, files, threads)
