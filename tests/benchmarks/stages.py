"""Where the time of a slide goes, from its file to a prediction with heatmaps: each stage alone."""

from __future__ import annotations

import argparse
import cProfile
import logging
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scripts.bags.bag import BagBuilder
from scripts.core.settings import RUNTIMES
from scripts.encoders.backbones import has_fast_bfloat16
from scripts.features.bank import read_bank
from scripts.features.bank_writing import write_bank
from scripts.features.encoding import Encoder
from tests.benchmarks.bench_slides import synthetic_slides, write_tiled
from tests.benchmarks.extraction import BACKBONES, load
from tests.benchmarks.memory import inference, shipped

TIMES = 3
FORWARD = {
    "torch": ("encoders/backbones.py", "forward"),
    "compile": ("encoders/runtimes.py", "forward"),
    "openvino": ("encoders/runtimes.py", "__call__"),
}


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stages", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    parser.add_argument("--backbone", default="efficientnet_lite0", choices=BACKBONES)
    parser.add_argument("--runtime", default="torch", choices=RUNTIMES)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(synthetic_slides(args.dataset_dir, 1)[0]["image"])
        extraction(write_tiled(slide, Path(folder) / "slide.tif", TIMES), args.backbone, args.runtime)
        whole_slide_inference(Path(folder) / "slide.tif", Path(folder))
        evaluation(args.dataset_dir, Path(folder) / "evaluation")


def extraction(slide: Path, backbone: str, runtime: str) -> None:
    """Extraction with nothing beside it: what each stage takes when it has the machine for itself."""
    encoder = Encoder(load(backbone, has_fast_bfloat16("cpu")), num_workers=0, runtime=runtime)
    BagBuilder()({"image": str(slide)})
    bag, tissue_s = timed(lambda: BagBuilder()({"image": str(slide)}))
    patches = sum(map(len, bag.grid.coords))
    next(encoder.encode(bag))
    profiler = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        profiler.runcall(write_bank, Path(folder) / "s.h5", bag, encoder, {"magnifications": [5.0, 10.0]})
        whole = time.perf_counter() - start
        _, read_s = timed(lambda: read_bank(Path(folder) / "s.h5", (5.0, 10.0)))
    spent = {
        "opening, tissue, grid": tissue_s,
        "decoding": cumulative(profiler, "slides/slide.py", "read_pixels"),
        "resampling": cumulative(profiler, "slides/slide.py", "resample"),
        "backbone": cumulative(profiler, *FORWARD[runtime]),
        "writing": cumulative(profiler, "dataset.py", "__setitem__"),
    }
    spent["the rest"] = whole - sum(spent.values()) + tissue_s
    print(f"extracting, {backbone}, {runtime}, {patches} patches\n{'stage':<24}{'ms a patch':>12}{'share':>8}")
    for stage, seconds in spent.items():
        print(f"{stage:<24}{1000 * seconds / patches:>12.3f}{seconds / (whole + tissue_s):>8.1%}")
    print(f"{'reading the bank':<24}{1000 * read_s / patches:>12.3f}")


def whole_slide_inference(slide: Path, folder: Path) -> None:
    """Inference by the shipped config."""
    parser = inference(slide, folder)
    evaluator = parser.get_parsed_content("evaluator")
    parser.get_parsed_content("preprocessing")({"image": str(slide)})
    profiler = cProfile.Profile()
    start = time.perf_counter()
    profiler.runcall(parser.get_parsed_content, "inferring")
    whole = time.perf_counter() - start
    spent = {
        "reading and encoding": cumulative(profiler, "features/encoding.py", "encode_rows"),
        "network": cumulative(profiler, "scripts/inference/inferers.py", "__call__"),
        "heatmaps": cumulative(profiler, "heatmaps/writer.py", "__call__"),
    }
    print(f"\ninferring, 1 slide, {evaluator.state.iteration} iteration")
    show(spent, whole)


def evaluation(dataset_dir: Path, folder: Path) -> None:
    """Evaluation by the shipped config, of slides whose banks are there, with regions to compare heatmaps with."""
    parser = shipped("evaluate", folder, dataset_dir=str(dataset_dir), partition="training")
    parser.get_parsed_content("extractor").run()
    evaluator = parser.get_parsed_content("evaluator")
    profiler = cProfile.Profile()
    start = time.perf_counter()
    profiler.runcall(evaluator.run)
    whole = time.perf_counter() - start
    spent = {
        "waiting for banks": cumulative(profiler, "training/loaders.py", "__iter__"),
        "network": cumulative(profiler, "inferer.py", "__call__"),
        "scores, intervals": cumulative(profiler, "evaluation/reports.py", "_end"),
        "heatmaps and regions": cumulative(profiler, "evaluation/localisation_report.py", "_compare"),
        "their intervals": cumulative(profiler, "evaluation/localisation_report.py", "_end"),
    }
    print(f"\nevaluating, {evaluator.state.iteration} slides")
    show(spent, whole)


def show(spent: dict[str, float], whole: float) -> None:
    """Print the stages' seconds, and what is left of all."""
    print(f"{'stage':<24}{'s':>12}{'share':>8}")
    for stage, seconds in {**spent, "the rest": whole - sum(spent.values())}.items():
        print(f"{stage:<24}{seconds:>12.3f}{seconds / whole:>8.1%}")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def cumulative(profiler: cProfile.Profile, file: str, function: str) -> float:
    """Seconds within a function and what it calls."""
    found = [
        seconds
        for (path, _, name), (_, _, _, seconds, _) in pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
        if path.endswith(f"/{file}") and name == function
    ]
    if not found:
        raise SystemExit(f"{file} has no {function} that was called")
    return max(found)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
