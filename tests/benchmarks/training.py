"""One epoch of training on feature banks, beside its bare matrix products: ``python -m tests.benchmarks.training``.

It writes a cohort of banks with random features, of the paper's size unless told otherwise, and trains an epoch on it
with the components of ``train.json``. Rates are comparable within one run only: read the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from scripts.bags.grid import LinkedGrid, link_grids
from scripts.core.magnification import Scale
from scripts.core.overrides import place_advanced
from scripts.encoders.baselines import build_resnet34
from scripts.features.bank import bank_path
from scripts.features.bank_settings import is_banked
from scripts.features.bank_writing import NewBank, NewScale, writing_bank
from tests.benchmarks.comparison import BatchClock

__all__ = ["main"]

NUM_FEATURES, NUM_NODES, NUM_CLASSES = 512, 128, 5
MAGNIFICATIONS = (5.0, 10.0)
PATCH_SIZE_PX, BASE_MPP, SIDE_LEVEL0 = 224, 0.25, 100_000
# They read the slides, of which there are none, and a second cohort.
LEFT_OUT = ("scripts.training.linked_patch_images.LinkedPatchImages", "monai.handlers.ValidationHandler")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training", description=__doc__)
    parser.add_argument("--feature_dir", type=Path, default=Path("output/bench"), help="banks; made if absent")
    parser.add_argument(
        "--num_slides", type=int, default=1826, help="slides of the cohort, as many as an epoch samples"
    )
    parser.add_argument("--num_rows", type=int, default=2000, help="rows of each slide's bag")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument(
        "--banks", nargs="+", default=["memory", "first", "file"], choices=["memory", "first", "file", "disk"],
        help="kept in memory (cache_gb); read from files that the system has cached, as in the first epoch or as in "
        "later ones; or, as in a first epoch, from files that it has not cached",
    )  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="also print which operations the time goes to")
    args = parser.parse_args(argv)
    entries = ensure_banks(args.feature_dir, args.num_slides, args.num_rows)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{args.num_slides} slides of {args.num_rows} rows, {NUM_FEATURES} features at each of 2 scales\n")
    print("| batch_size | banks | epoch in s | slides/s | waiting for data | matrix products in s | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for batch_size in args.batch_sizes:
        for banks in args.banks:
            # Half before and half after, because a shared machine drifts.
            bare = products_seconds(args.num_slides / 2, args.num_rows, batch_size)
            seconds, waiting = epoch_seconds(entries, args.feature_dir, batch_size, banks)
            bare += products_seconds(args.num_slides / 2, args.num_rows, batch_size)
            print(
                f"| {batch_size} | {banks} | {seconds:.1f} | {args.num_slides / seconds:.1f} | {waiting / seconds:.1%} "
                f"| {bare:.1f} | {seconds / bare:.2f} |",
                flush=True,
            )
    if args.profile:
        for batch_size in args.batch_sizes:
            print(f"\nbatch_size {batch_size}, banks {args.banks[0]}:")
            print_profile(entries[:200], args.feature_dir, batch_size, args.banks[0])


def ensure_banks(feature_dir: Path, num_slides: int, num_rows: int) -> list[dict[str, Any]]:
    """The datalist's entries of a cohort whose banks are there, or are written now.

    A bag is a round piece of tissue, so that a patch of 5x is shared by up to four rows.
    """
    generator = np.random.default_rng(0)
    labels = (generator.random((num_slides, NUM_CLASSES)) < (0.3, 0.2, 0.4, 0.2, 0.3)).astype(np.float32)
    entries = [
        {"image": f"{i:04d}.tif", "slide": f"{i:04d}", "label": label.tolist()} for i, label in enumerate(labels)
    ]
    for seed, entry in enumerate(tqdm(entries, desc="banks", unit="slide", leave=False)):
        path = bank_path(feature_dir, entry["slide"])
        settings = {"magnifications": list(MAGNIFICATIONS), "benchmark_seed": seed, "benchmark_rows": num_rows}
        if not is_banked(path, settings):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_random_bank(path, entry["image"], seed, num_rows, settings)
    return entries


def write_random_bank(path: Path, name: str, seed: int, num_rows: int, settings: dict[str, Any]) -> None:
    """A bank of random features, as many as ResNet34's, of a slide that there is not."""
    grid = random_grid(seed, num_rows)
    new = NewBank(
        settings=settings,
        made_by={},
        slide=name,
        reader="openslide",
        mpp=BASE_MPP,
        mpp_source="benchmark",
        size_level0=(SIDE_LEVEL0, SIDE_LEVEL0),
        rows=grid.rows,
        orphans=grid.orphans,
        scales=[NewScale(s.name, c, s.patch_level0, {}) for s, c in zip(grid.scales, grid.coords, strict=True)],
        num_features=NUM_FEATURES,
        feature_dtype=np.dtype(np.float32),
    )
    generator = np.random.default_rng([seed, 1])
    with writing_bank(path, new) as (datasets, check):
        for features in datasets:
            features[:] = generator.standard_normal(features.shape, dtype=np.float32)
            check()


def random_grid(seed: int, num_rows: int) -> LinkedGrid:
    """The grid of a round piece of tissue of so many rows."""
    generator = np.random.default_rng([seed, 0])
    centre = generator.uniform(0.4, 0.6, 2) * SIDE_LEVEL0

    def tissue_fraction(corners: NDArray[np.float64], side: float) -> NDArray[np.float64]:
        distance = np.hypot(*(corners + side / 2 - centre).T)
        return (np.argsort(np.argsort(distance, kind="stable")) < num_rows).astype(np.float64)

    scales = [Scale(m, PATCH_SIZE_PX, BASE_MPP) for m in MAGNIFICATIONS]
    return link_grids(scales, (SIDE_LEVEL0, SIDE_LEVEL0), tissue_fraction)


@contextlib.contextmanager
def training(
    entries: list[dict[str, Any]],
    feature_dir: Path,
    batch_size: int,
    banks: str,
    device: torch.device | str = "cpu",
    configs: Sequence[str] = ("configs/train.json",),
    epochs: int = 1,
) -> Iterator[ConfigParser]:
    """``train.json``, and what is laid over it, on these banks, without extraction and validation."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        parser = ConfigParser()
        parser.read_config(configs)
        handlers = [h for h in parser.get("train#handlers") if h["_target_"] not in LEFT_OUT]
        # Their hash is in the record of what is trained; nothing is encoded.
        torch.save(build_resnet34().state_dict(), f"{folder}/resnet34.pth")
        # Its checksum is in the record, too.
        datalist = Path(folder, "datalist.json")
        datalist.write_text(json.dumps({"training": entries}), encoding="utf-8")
        parser.update({
            "dataset_dir": folder, "datalist": str(datalist), "train#dataset#data": entries,
            "validate#dataset#data": entries[:1], "train#left_out": [], "train#handlers": handlers,
            "feature_dir": str(feature_dir), "output_dir": folder, "ckpt_dir": f"{folder}/models", "epochs": epochs,
            "magnifications": list(MAGNIFICATIONS), "backbone": "resnet34",
            "backbone_weights": f"{folder}/resnet34.pth", "num_nodes": NUM_NODES,
            "batch_size": batch_size, "cache_gb": 64.0 if banks == "memory" else 0.0, "device": device,
        })  # fmt: skip
        place_advanced(parser)
        logging.disable(logging.INFO)
        torch.manual_seed(0)
        dataset = parser.get_parsed_content("train#dataset")
        for index, entry in enumerate(entries):
            path = bank_path(feature_dir, entry["slide"])
            if banks == "disk":
                forget(path)
            elif banks == "first":
                path.read_bytes()
            else:
                dataset[index]
        yield parser


def forget(path: Path) -> None:
    """Have the system drop a file from its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epoch_seconds(entries: list[dict[str, Any]], feature_dir: Path, batch_size: int, banks: str) -> tuple[float, float]:
    """Seconds of one epoch, and of these the seconds of waiting for data."""
    with training(entries, feature_dir, batch_size, banks) as parser:
        trainer: SupervisedTrainer = parser.get_parsed_content("train#trainer")
        clock = BatchClock(trainer)
        trainer.run()
        return parser.get_parsed_content("train#phases").seconds[0], clock.seconds


def print_profile(entries: list[dict[str, Any]], feature_dir: Path, batch_size: int, banks: str) -> None:
    """The operations that take most of an epoch, without those that they call, on all threads of torch."""
    with training(entries, feature_dir, batch_size, banks) as parser:
        trainer = parser.get_parsed_content("train#trainer")
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            trainer.run()
    averages = sorted(profiler.key_averages(), key=lambda average: -average.self_cpu_time_total)
    print("| operation | ms a slide | calls a step |\n|---|---|---|")
    steps = math.ceil(len(entries) / batch_size)
    for average in averages[:16]:
        milliseconds = average.self_cpu_time_total / 1e3 / len(entries)
        print(f"| {average.key} | {milliseconds:.2f} | {average.count / steps:.1f} |")


def products_seconds(num_slides: float, num_rows: int, batch_size: int) -> float:
    """Seconds of the matrix products of so many slides, forward and backward, on numbers that lie in memory."""
    batches = math.ceil(num_slides / batch_size)
    # Of several, so that the features come from memory and not from the processor's cache.
    turns = [matrix_products(batch_size, num_rows) for _ in range(max(2, 16 // batch_size))]
    for multiply in turns[0]:
        multiply()
    start = time.perf_counter()
    for batch in range(batches):
        for multiply in turns[batch % len(turns)]:
            multiply()
    return (time.perf_counter() - start) * num_slides / (batches * batch_size)


def matrix_products(batch_size: int, num_rows: int) -> list[Callable[[], Tensor]]:
    """The matrix products of one step of MuSTMIL: those of its forward pass, and those of the gradients.

    Features need no gradient, everything else does.
    """
    rows, half, scales = batch_size * num_rows, NUM_NODES // 2, len(MAGNIFICATIONS)
    products = []
    for _ in range(scales):  # IL
        products += linear(torch.randn(rows, NUM_FEATURES), NUM_NODES, needs_gradient=False)
    for width in (scales * NUM_NODES, *[NUM_NODES] * scales):
        h, a = torch.randn(batch_size, num_rows, width), torch.rand(batch_size, num_rows, NUM_CLASSES)
        products += linear(h.flatten(0, 1), half)  # V
        products += linear(torch.randn(rows, half), NUM_CLASSES)  # w
        products += pooling(a, h)
        products += linear(torch.randn(batch_size, NUM_CLASSES * width), NUM_CLASSES)  # Cl
    return products


def linear(x: Tensor, width: int, needs_gradient: bool = True) -> list[Callable[[], Tensor]]:
    """The products of a linear layer on ``x`` ``[n, F]``: its output, and the gradients of its weight and of x."""
    weight, gradient = torch.randn(width, x.shape[1]), torch.randn(len(x), width)
    products = [lambda: x @ weight.t(), lambda: gradient.t() @ x]
    return [*products, lambda: gradient @ weight] if needs_gradient else products


def pooling(a: Tensor, h: Tensor) -> list[Callable[[], Tensor]]:
    """The products of ``z = a^T h``, ``[B, N, K]`` and ``[B, N, width]``: z, and the gradients of a and of h."""
    gradient = torch.randn(len(a), a.shape[2], h.shape[2])
    return [lambda: a.transpose(1, 2) @ h, lambda: h @ gradient.transpose(1, 2), lambda: a @ gradient]


if __name__ == "__main__":
    main()
