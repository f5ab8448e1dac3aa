"""Whether time a patch and memory stay as they are when a slide is 16 times as large: extraction, then inference."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from monai.bundle import ConfigParser

from scripts.bags.bag import BagBuilder
from scripts.core.files import replacing
from scripts.encoders.backbones import get_backbone, has_fast_bfloat16
from scripts.features.encoding import Encoder
from scripts.features.extraction import Extractor
from scripts.networks.state_record import sign
from scripts.weights.paths import weights_path
from scripts.workflow import scoring_settings
from tests.benchmarks.bench_slides import synthetic_slides, write_tiled

AREAS = (1, 16)


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    parser.add_argument("--measure", nargs=2, metavar=("STAGE", "SLIDE"), help="internal: one stage on one slide")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], Path(args.measure[1]))
        return
    slide = Path(synthetic_slides(args.dataset_dir, 1)[0]["image"])
    with tempfile.TemporaryDirectory() as folder:
        slides = {area: write_tiled(slide, Path(folder) / f"x{area}.tif", int(area**0.5)) for area in AREAS}
        for stage in ("extracting", "inferring"):
            compare(stage, slides)


def compare(stage: str, slides: dict[int, Path]) -> None:
    """Run a stage on each slide, each in a process of its own."""
    print(f"\n{stage}\n{'area':<6}{'patches':>9}{'peak MB':>9}{'above the loaded program':>26}{'ms a patch':>12}")
    peaks, times = [], []
    for area, slide in slides.items():
        command = [sys.executable, "-m", "tests.benchmarks.memory", "--measure", stage, str(slide)]
        output = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).splitlines()[-1]
        peak, idle, patches, seconds = map(float, output.split())
        peaks.append(peak)
        times.append(seconds / patches)
        print(f"{area:<6}{int(patches):>9}{peak:>9.0f}{peak - idle:>26.0f}{1000 * times[-1]:>12.2f}", flush=True)
    print(f"ratio {'':>9}{peaks[1] / peaks[0]:>9.3f}{'':>26}{times[1] / times[0]:>12.3f}")


def measure(stage: str, slide: Path) -> None:
    """Print peak memory, memory before it in MB, patches, and seconds without what is done once a process."""
    bag = BagBuilder()({"image": slide})
    patches = sum(len(coords) for coords in bag.grid.coords)
    with tempfile.TemporaryDirectory() as folder:
        if stage == "extracting":
            encoder = Encoder(get_backbone("efficientnet_lite0", amp=has_fast_bfloat16("cpu")))
            next(iter(encoder.encode(bag)))
            idle, start = peak_mb(), time.perf_counter()
            Extractor([{"image": str(slide), "slide": "s"}], BagBuilder(), encoder, folder).run()
        else:
            parser = inference(slide, Path(folder))
            parser.get_parsed_content("preprocessing")({"image": str(slide)})
            idle, start = peak_mb(), time.perf_counter()
            parser.get_parsed_content("inferring")
        print(f"\n{peak_mb()} {idle} {patches} {time.perf_counter() - start}")


def inference(slide: Path, folder: Path) -> ConfigParser:
    """The shipped inference of a slide, heatmaps included."""
    (folder / "slides").mkdir()
    os.symlink(slide, folder / "slides" / slide.name)
    return shipped("inference", folder, dataset_dir=str(folder / "slides"))


def shipped(config: str, folder: Path, **settings: str) -> ConfigParser:
    """A shipped config that writes into ``folder``, with random weights there."""
    parser = ConfigParser()
    parser.read_config(f"configs/{config}.json")
    parser.update({"output_dir": str(folder / "out"), "ckpt_dir": str(folder), **settings})
    parser.parse()
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    data = {"training_slides": 1, "validation_slides": 1, "drawn_slides": 2}
    own, encoder = (parser.get_parsed_content(name) for name in ("settings", "encoder"))
    sign(network, {"version": "0", "settings": scoring_settings(own, encoder), "data": data})
    for head in parser.get_parsed_content("heads"):
        with replacing(weights_path(folder, head)) as part:
            torch.save(network.state_dict(), part)
    return parser


def peak_mb() -> float:
    """Peak resident memory so far of this process and of those that read slides for it, summed, in MB."""
    # Not getrusage: its peak is inherited from the process that started this one.
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    statuses = [Path(f"/proc/{process.pid}/status").read_text(encoding="ascii") for process in processes]
    return sum(int(kb) for status in statuses for kb in re.findall(r"VmHWM:\s+(\d+) kB", status)) / 1024


if __name__ == "__main__":
    main()
