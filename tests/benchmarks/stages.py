"""Where the time of a slide goes, from its file to a prediction with heatmaps: each stage alone."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from scripts.bags import bag as bags
from scripts.bags.bag import Bag, BagBuilder
from scripts.core.background import OneBehind
from scripts.core.settings import RUNTIMES
from scripts.encoders.backbones import has_fast_bfloat16
from scripts.evaluation.board import EvaluationBoard
from scripts.evaluation.localisation_report import LocalisationReport
from scripts.evaluation.reports import EvaluationReport
from scripts.features import bank_writing
from scripts.features.bank import read_bank
from scripts.features.encoding import Encoder
from scripts.heatmaps import writer as heatmaps
from scripts.inference.inferers import SpreadInferer
from scripts.reports import writer as reports
from scripts.slides.slide import Slide
from scripts.training.datasets import BankBagDataset
from scripts.training.loaders import PrefetchLoader
from tests.benchmarks.bench_slides import synthetic_slides, write_tiled
from tests.benchmarks.extraction import BACKBONES, load
from tests.benchmarks.memory import inference, shipped
from tests.benchmarks.timers import Function, Spent, timed, timing

TIMES = 3
BESIDE = "* in threads of its own, beside the others: shares may add up to more than 100%"
CPU = "CPU s: of the threads that call a stage, not of those that compute or read for them"

REPORT: dict[str, list[Function]] = {
    "the report's pictures": [(reports.ReportWriter, "_show_item")],
    "waiting for drawing": [(OneBehind, "wait")],
    "the report's page": [(reports.ReportWriter, "_content"), (reports, "write_page")],
}
INFERRING: dict[str, list[Function]] = {
    "opening, tissue, grid": [(BagBuilder, "verified")],
    "reading and encoding": [(Encoder, "encode_rows")],
    "of it reading": [(Bag, "read_block")],
    "network": [(SpreadInferer, "__call__")],
    "heatmaps": [(heatmaps.HeatmapWriter, "_write_item")],
    "their PNGs": [(heatmaps, "write_png")],
    **REPORT,
}
EVALUATING: dict[str, list[Function]] = {
    "reading banks": [(BankBagDataset, "_read")],
    "waiting for banks": [(PrefetchLoader, "__iter__")],
    "network": [(SpreadInferer, "__call__")],
    "scores, intervals": [(EvaluationReport, "_write")],
    "figures for TensorBoard": [(EvaluationBoard, "write")],
    "heatmaps and regions": [(LocalisationReport, "_compare_slide")],
    "their intervals": [(LocalisationReport, "_write")],
    **REPORT,
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
    stages: dict[str, list[Function]] = {
        "decoding": [(Slide, "read_pixels")],
        "resampling": [(bags, "resample")],
        "backbone": [(encoder, "_forward")],
        "writing": [(bank_writing, "write_banks")],
        "the rest": [(Encoder, "encode")],
    }
    with tempfile.TemporaryDirectory() as folder:
        path, settings = Path(folder) / "s.h5", {"magnifications": [5.0, 10.0]}
        with timing(stages) as spent:
            _, whole = timed(lambda: bank_writing.write_bank(path, bag, encoder, settings))
        _, read_s = timed(lambda: read_bank(path, (5.0, 10.0)))
    seconds_of = {"opening, tissue, grid": tissue_s, **{stage: one.seconds for stage, one in spent.items()}}
    print(f"extracting, {backbone}, {runtime}, {patches} patches\n{'stage':<24}{'ms a patch':>12}{'share':>8}")
    for stage, seconds in seconds_of.items():
        print(f"{stage:<24}{1000 * seconds / patches:>12.3f}{seconds / (whole + tissue_s):>8.1%}")
    print(f"{'reading the bank':<24}{1000 * read_s / patches:>12.3f}")


def whole_slide_inference(slide: Path, folder: Path) -> None:
    """Inference by the shipped config, of a slide twice: one is drawn while the other is encoded."""
    parser = inference(slide, folder)
    (folder / "slides" / "again.tif").hardlink_to(slide)  # of links to one file one is listed
    evaluator = parser.get_parsed_content("evaluator")
    parser.get_parsed_content("preprocessing")({"image": str(slide)})
    with timing(INFERRING) as spent:
        _, whole = timed(lambda: parser.get_parsed_content("inferring"))
    print(f"\ninferring, {evaluator.state.iteration} slides")
    show(spent, whole)


def evaluation(dataset_dir: Path, folder: Path) -> None:
    """Evaluation by the shipped config, of slides whose banks are there, with regions to compare heatmaps with."""
    parser = shipped("evaluate", folder, dataset_dir=str(dataset_dir), partition="training")
    parser.get_parsed_content("extractor").run()
    evaluator, mapped = (parser.get_parsed_content(name) for name in ("evaluator", "mapped"))
    with timing(EVALUATING) as spent:
        _, whole = timed(lambda: mapped.run(evaluator))
    print(f"\nevaluating, {evaluator.state.iteration} slides")
    show(spent, whole)


def show(spent: Mapping[str, Spent], whole: float) -> None:
    """Print the stages' seconds, and what of all is in none."""
    print(f"{'stage':<26}{'s':>10}{'share':>8}{'CPU s':>10}")
    for stage, one in spent.items():
        name = f"{stage} *" if one.beside_s else stage
        print(f"{name:<26}{one.seconds:>10.3f}{one.seconds / whole:>8.1%}{one.cpu_s:>10.3f}")
    rest = whole - sum(one.seconds - one.beside_s for one in spent.values())
    print(f"{'the rest':<26}{rest:>10.3f}{rest / whole:>8.1%}\n{CPU}")
    if any(one.beside_s for one in spent.values()):
        print(BESIDE)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
