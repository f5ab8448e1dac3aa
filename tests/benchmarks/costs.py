"""How long a cohort takes, and how much disk: measured on one slide and 100 banks, worked out for cohorts.

What is not measured here is an argument: the size of a file, the speed of the storage, and the rate of an encoder on
another machine, which ``checking`` prints there.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.bags.bag import BagBuilder
from scripts.core.files import file_sha256
from scripts.encoders.backbones import has_fast_bfloat16
from scripts.features.bank import bank_path
from scripts.features.encoding import Encoder
from scripts.features.extraction import Extractor
from tests.benchmarks.bench_slides import synthetic_slides, write_tiled
from tests.benchmarks.extraction import BACKBONES, load
from tests.benchmarks.memory import shipped
from tests.benchmarks.timers import timed
from tests.benchmarks.training import ensure_banks, epoch_seconds

PAPER_SLIDES = 1826
COHORTS = (100, PAPER_SLIDES, 10_000, 100_000)
LARGE_COHORTS = (10_000, 100_000)
EPOCHS = 5
TIMES = 5
TRAINED_SLIDES, TRAINED_ROWS = 100, 2000
CORES = (2, 8, 32)
RATES = (1_000, 5_000, 20_000)
DAY = 24.0


@dataclass(frozen=True)
class SlideCosts:
    """What one slide costs, on the machine where it was measured.

    Args:
        patches: of all magnifications.
        hash_mb_s: MB of a file that one thread goes through for its checksum, a second.
        prepare_s: seconds of one thread to open it, find its tissue and lay the grid.
        read_rate: patches that one thread reads, a second.
        extract_s: seconds from its file to its bank, with all cores, by backbone.
        bank_mb: size of its bank, by backbone.
        train_s: seconds that a training takes for it, an epoch, from its bank.
        infer_s: seconds of `inferring` with heatmaps and report, from its bank.
    """

    patches: int
    hash_mb_s: float
    prepare_s: float
    read_rate: float
    extract_s: dict[str, float]
    bank_mb: dict[str, float]
    train_s: float
    infer_s: float


@dataclass(frozen=True)
class Machine:
    """A machine of a cluster.

    Args:
        cores: that read and prepare slides while the encoder runs elsewhere.
        encode_rate: patches a second of its encoder, a GPU.
        storage_mb_s: MB a second that it gets from the storage.
    """

    cores: int
    encode_rate: float
    storage_mb_s: float

    def slides_per_hour(self, costs: SlideCosts, slide_mb: float) -> dict[str, float]:
        """What each stage of extraction would reach if it were the only limit.

        Preparing and reading share the cores; storage and encoder work beside them.
        """
        core_s = slide_mb / costs.hash_mb_s + costs.prepare_s + costs.patches / costs.read_rate
        return {
            "storage": 3600 * self.storage_mb_s / slide_mb,
            "cores": 3600 * self.cores / core_s,
            "encoder": 3600 * self.encode_rate / costs.patches,
        }


def main() -> None:
    """Print the measurements, and what follows from them."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.costs", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    parser.add_argument("--runtime", default="openvino", help="of the encoder on this machine")
    parser.add_argument("--slide_mb", type=float, default=1000.0, help="size of a slide's file")
    parser.add_argument("--storage_mb_s", type=float, default=500.0, help="what a machine gets from the storage")
    parser.add_argument("--encode_rates", type=float, nargs="+", default=RATES, help="patches/s of encoders elsewhere")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        slide = write_tiled(Path(synthetic_slides(args.dataset_dir, 1)[0]["image"]), Path(folder) / "slide.tif", TIMES)
        costs = measure(slide, Path(folder), args.runtime)
    print("\n".join(measured_lines(costs, args.runtime)), end="\n\n")
    print("\n".join(cohort_table(costs)), end="\n\n")
    machines = [Machine(cores, rate, args.storage_mb_s) for rate in args.encode_rates for cores in CORES]
    print("\n".join(cluster_table(costs, machines, args.slide_mb)))


def measure(slide: Path, folder: Path, runtime: str) -> SlideCosts:
    """Measure one slide."""
    entry = {"image": str(slide), "slide": "slide"}
    BagBuilder()(entry)  # what a process does once
    hash_s = timed(lambda: file_sha256(slide))[1]
    bag, prepare_s = timed(lambda: BagBuilder()(entry))
    parts, read_s = timed(bag.read_all)
    patches = sum(map(len, parts))
    del parts
    extract_s, bank_mb = {}, {}
    for backbone in BACKBONES:
        encoder = Encoder(load(backbone, has_fast_bfloat16("cpu")), runtime=runtime)
        next(encoder.encode(bag))  # what it prepares once
        banks = folder / backbone
        extract_s[backbone] = timed(Extractor([entry], BagBuilder(), encoder, banks).run)[1]
        bank_mb[backbone] = bank_path(banks, "slide").stat().st_size / 1e6
    trained = ensure_banks(folder / "trained", TRAINED_SLIDES, TRAINED_ROWS)
    train_s = epoch_seconds(trained, folder / "trained", 1, "file")[0] / TRAINED_SLIDES
    return SlideCosts(
        patches=patches,
        hash_mb_s=slide.stat().st_size / 1e6 / hash_s,
        prepare_s=prepare_s,
        read_rate=patches / read_s,
        extract_s=extract_s,
        bank_mb=bank_mb,
        train_s=train_s,
        infer_s=infer_seconds(slide, folder / "inferring"),
    )


def infer_seconds(slide: Path, folder: Path) -> float:
    """Seconds of `inferring` by the shipped config, of a slide whose bank is there."""
    slides, banks = folder / "slides", folder / "features"
    slides.mkdir(parents=True)
    (slides / slide.name).symlink_to(slide)
    settings = {"dataset_dir": str(slides), "feature_dir": str(banks)}
    for turn in ("encodes", "from its bank"):
        parser = shipped("inference", folder / turn, **settings)
        parser.get_parsed_content("preprocessing")
        taken = timed(lambda parser=parser: parser.get_parsed_content("inferring"))[1]
    return taken


def measured_lines(costs: SlideCosts, runtime: str) -> list[str]:
    """What was measured, as a table."""
    rows = [("patches of the slide, 5x and 10x", f"{costs.patches:,}")]
    rows += [("checksum, one thread", f"{costs.hash_mb_s:,.0f} MB/s")]
    rows += [("opening, tissue, grid, one thread", f"{costs.prepare_s:.2f} s")]
    rows += [("reading, one thread", f"{costs.read_rate:,.0f} patches/s")]
    for backbone, seconds in costs.extract_s.items():
        rate, size = costs.patches / seconds, costs.bank_mb[backbone]
        rows += [(f"extracting, {backbone}, {runtime}", f"{rate:,.1f} patches/s, {seconds:.1f} s, {size:.2f} MB")]
    rows += [(f"training, {TRAINED_ROWS:,} rows, an epoch", f"{costs.train_s:.4f} s")]
    rows += [("inferring with heatmaps, from the bank", f"{costs.infer_s:.2f} s")]
    return table(("measured on one slide", ""), rows)


def cohort_table(costs: SlideCosts, cohorts: Sequence[int] = COHORTS) -> list[str]:
    """How long cohorts take on this machine."""
    head = ("slides", "encoder", "extracting", f"training, {EPOCHS} epochs", "inferring", "banks")
    return table(
        head,
        (
            (
                f"{slides:,}",
                backbone,
                duration(slides * seconds),
                duration(slides * EPOCHS * costs.train_s),
                duration(slides * costs.infer_s),
                size(slides * costs.bank_mb[backbone]),
            )
            for slides in cohorts
            for backbone, seconds in costs.extract_s.items()
        ),
    )


def cluster_table(costs: SlideCosts, machines: Iterable[Machine], slide_mb: float) -> list[str]:
    """How long large cohorts take on other machines, one rank each, and what limits them."""
    head = ("encoder, patches/s", "cores", "slides/h: storage", "cores", "encoder", "first bottleneck")
    hours = tuple(f"{slides:,} slides" for slides in LARGE_COHORTS)
    ranks = tuple(f"ranks for {slides:,} in a day" for slides in LARGE_COHORTS)
    rows = []
    for machine in machines:
        limits = machine.slides_per_hour(costs, slide_mb)
        bottleneck, least = min(limits.items(), key=lambda limit: limit[1])
        rows.append(
            (
                f"{machine.encode_rate:,.0f}",
                str(machine.cores),
                *(f"{limit:,.0f}" for limit in limits.values()),
                bottleneck,
                *(duration(3600 * slides / least) for slides in LARGE_COHORTS),
                *(str(math.ceil(slides / least / DAY)) for slides in LARGE_COHORTS),
            )
        )
    return table((*head, *hours, *ranks), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, length in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def size(megabytes: float) -> str:
    """Megabytes in the unit that suits them."""
    for unit, length in (("TB", 1e6), ("GB", 1e3)):
        if megabytes >= length:
            return f"{megabytes / length:,.1f} {unit}"
    return f"{megabytes:.0f} MB"


if __name__ == "__main__":
    main()
