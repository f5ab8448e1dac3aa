"""How close extraction comes to the bare backbone, and how far it is ahead of the published way.

Rates are comparable within one run only: read the ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from scripts.bags.bag import BagBuilder
from scripts.core.settings import RUNTIMES
from scripts.encoders.backbones import Backbone, get_backbone, has_fast_bfloat16
from scripts.encoders.registry import ENCODERS
from scripts.encoders.runtimes import choose_runtime, get_forward
from scripts.features.encoding import Encoder
from scripts.features.extraction import Extractor
from scripts.features.int8 import Int8
from tests.benchmarks import reference
from tests.benchmarks.bench_slides import synthetic_slides, write_40x, write_tiled

BACKBONES = ("resnet34", "efficientnet_lite0")
BATCH_SIZE = 32
# Large encoders take seconds a patch: of these only the forward pass of a few patches is measured.
PARTS = ("forward", "reference", "cosine")
FEW_BATCHES, FEW_PATCHES = 2, 8


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.extraction", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="names, as of the setting `backbone`")
    parser.add_argument("--backbone_weights", help="of one backbone; without, numbers at random if there are none")
    parser.add_argument("--parts", nargs="+", default=["forward", "reference"], choices=PARTS)
    args = parser.parse_args()
    entry = synthetic_slides(args.dataset_dir, 1)[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    BagBuilder()(entry)  # ITK's start, once a process, is not to be measured
    with tempfile.TemporaryDirectory() as folder:
        scans = write_scans(Path(entry["image"]), Path(folder))
        for name in args.backbones:
            if "forward" in args.parts:
                compare_with_forward(name, scans["20x"], device)
            if "cosine" in args.parts:
                compare_runtimes(name, args.backbone_weights, scans["20x"], device)
        if "reference" in args.parts:
            compare_with_reference(scans, Path(folder))


def write_scans(slide: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """A slide of four times the synthetic one's area, scanned at 20x and at 40x, as entries."""
    scans = {
        "20x": write_tiled(slide, folder / "20x.tif", 2),
        "40x": write_tiled(write_40x(slide, folder / "enlarged.tif"), folder / "40x.tif", 2, mpp=0.25),
    }
    return {scanned_at: {"image": str(path), "slide": scanned_at} for scanned_at, path in scans.items()}


def settings(device: torch.device) -> list[tuple[str, bool]]:
    """The runtimes and arithmetics of this machine."""
    known = [
        runtime for runtime in RUNTIMES if runtime != "openvino" or (find_spec("openvino") and device.type == "cpu")
    ]
    usable = [runtime for runtime in known if choose_runtime(runtime, device) == runtime]
    return [(runtime, amp) for runtime in usable for amp in sorted({False, has_fast_bfloat16(device)})]


def compare_with_forward(name: str, entry: dict[str, Any], device: torch.device) -> None:
    """Patches a second of the backbone on patches in memory, and of extraction from slide to bank."""
    builder = BagBuilder()
    patches = torch.from_numpy(np.concatenate(builder(entry).read_all()))
    patches = patches[: len(patches) // BATCH_SIZE * BATCH_SIZE].contiguous(memory_format=torch.channels_last)
    batches = [batch.to(device) for batch in patches.split(BATCH_SIZE)]
    start = time.perf_counter()
    read = sum(len(scale) for scale in builder(entry).read_all())
    alone = read / (time.perf_counter() - start)
    print(f"\n{name}; opening, tissue, grid and reading alone, one thread: {alone:.0f} patches/s")
    print(f"{'runtime':<12}{'arithmetic':<12}{'forward':>10}{'extracting':>12}{'ratio':>8}   cosine to float32")
    exact = features(get_forward("torch", load(name, False).to(device), BATCH_SIZE), batches)
    for runtime, amp in settings(device):
        backbone = load(name, amp)
        encoder = Encoder(backbone, device, BATCH_SIZE, runtime=runtime)
        forward = get_forward(runtime, backbone, BATCH_SIZE)
        encoder._forward = forward  # what was compiled is not compiled again
        cosines = cosine_similarity(exact, features(forward, batches))
        # In turn, because a shared machine drifts.
        rates = [(forward_rate(forward, batches), extraction_rate(entry, builder, encoder)) for _ in range(2)]
        bare, whole = (float(np.mean(of_kind)) for of_kind in zip(*rates, strict=True))
        arithmetic = "bfloat16" if amp else "float32"
        print(
            f"{runtime:<12}{arithmetic:<12}{bare:>10.1f}{whole:>12.1f}{whole / bare:>8.2f}"
            f"{cosines.mean():>12.5f}{cosines.min():>9.5f}",
            flush=True,
        )


def compare_runtimes(name: str, weights: str | None, entry: dict[str, Any], device: torch.device) -> None:
    """Patches a second of the forward pass by each runtime, and the cosine of its features to those in float32."""
    patches = torch.from_numpy(np.concatenate(BagBuilder()(entry).read_all()))[: FEW_BATCHES * FEW_PATCHES]
    batches = [batch.to(device) for batch in patches.contiguous(memory_format=torch.channels_last).split(FEW_PATCHES)]
    print(f"\n{name}, {len(patches)} patches\n{'runtime':<12}{'arithmetic':<12}{'patches/s':>10}   cosine to float32")
    exact = features(get_forward("torch", load(name, False, weights).to(device), FEW_PATCHES), batches)
    for runtime, amp in settings(device):
        forward = get_forward(runtime, load(name, amp, weights).to(device), FEW_PATCHES)
        cosines = cosine_similarity(exact, features(forward, batches))
        start = time.perf_counter()
        features(forward, batches)
        rate = len(patches) / (time.perf_counter() - start)
        arithmetic = "bfloat16" if amp else "float32"
        print(f"{runtime:<12}{arithmetic:<12}{rate:>10.2f}{cosines.mean():>12.5f}{cosines.min():>9.5f}", flush=True)


def compare_with_reference(scans: dict[str, dict[str, Any]], folder: Path) -> None:
    """Seconds a slide of the published way with ResNet34, and of ours, on a slide scanned at 20x and at 40x."""
    print("\nresnet34, seconds a slide")
    head = f"{'scanned at':<12}{'rows':>6}{'patches':>9}{'reference':>11}{'runtime':>12}{'arithmetic':>12}"
    print(f"{head}{'ours':>8}{'ratio':>8}")
    plain = load("resnet34", False)
    plain.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    encoders = [
        Encoder(load("resnet34", amp), batch_size=BATCH_SIZE, runtime=runtime)
        for runtime, amp in settings(torch.device("cpu"))
        if amp is has_fast_bfloat16("cpu")
    ]
    if find_spec("openvino") and find_spec("nncf"):
        # Its network is made once a cohort, and not measured here.
        int8 = Int8(folder)
        encoders.append(Encoder(load("resnet34", False), batch_size=BATCH_SIZE, runtime="openvino", int8=int8))
        int8.prepare(encoders[-1].backbone, list(scans.values()), BagBuilder())
    for encoder in encoders:
        next(encoder.encode(BagBuilder()(scans["20x"])))  # compiled once a process
    for scanned_at, entry in scans.items():
        grid = BagBuilder()(entry).grid
        published = seconds(published_way, entry, plain)
        for encoder in encoders:
            ours = seconds(extraction_rate, entry, BagBuilder(), encoder)
            arithmetic = "INT8" if encoder.int8 else "bfloat16" if encoder.backbone.amp else "float32"
            print(
                f"{scanned_at:<12}{grid.num_rows:>6}{sum(map(len, grid.coords)):>9}{published:>11.2f}"
                f"{encoder.runtime:>12}{arithmetic:>12}{ours:>8.2f}{published / ours:>8.1f}",
                flush=True,
            )


def published_way(entry: dict[str, Any], backbone: Backbone) -> None:
    """One slide, from its file to features."""
    with tempfile.TemporaryDirectory() as folder:
        reference.extract(BagBuilder()(entry), backbone, Path(folder), BATCH_SIZE)


def load(name: str, amp: bool, weights: str | None = None) -> Backbone:
    """A backbone; one whose weights are not here gets random ones, which are as fast."""
    if weights is not None or name not in ENCODERS or ENCODERS[name].default_weights() is not None:
        return get_backbone(name, weights, amp)
    entry = ENCODERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = entry.build()
        if any(parameter.is_meta for parameter in network.parameters()):
            network.to_empty(device="cpu")
            for key, parameter in network.named_parameters():
                parameter.data.normal_(1.0 if ".norm" in key else 0.0, 0.02)
    mean, std = ([255 * value for value in values] for values in (entry.mean, entry.std))
    sizes = {"input_px": entry.input_px, "resize": entry.resize, "pooling": entry.pooling}
    return Backbone(name, network, entry.num_features, mean, std, "0" * 64, amp, **sizes)  # type: ignore[arg-type]


def features(forward: Callable[[torch.Tensor], torch.Tensor], batches: list[torch.Tensor]) -> torch.Tensor:
    """The features of all batches."""
    with torch.inference_mode():
        return torch.cat([forward(batch).float().cpu() for batch in batches])


def forward_rate(
    forward: Callable[[torch.Tensor], torch.Tensor], batches: list[torch.Tensor], at_least_s: float = 5.0
) -> float:
    """Patches a second of the forward pass alone."""
    with torch.inference_mode():
        forward(batches[0]).cpu()
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < at_least_s:
            last = forward(batches[done % len(batches)])
            done += 1
        last.cpu()  # a GPU may be behind
        return done * len(batches[0]) / (time.perf_counter() - start)


def extraction_rate(entry: dict[str, Any], builder: BagBuilder, encoder: Encoder) -> float:
    """Patches a second of extraction: opening, tissue, grid, reading, encoding and writing."""
    sys.stderr, shown = open(os.devnull, "w"), sys.stderr  # noqa: SIM115 - the progress bar
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        Extractor([entry], builder, encoder, folder).run()
        duration = time.perf_counter() - start
        sys.stderr.close()
        sys.stderr = shown
        done = 0
        for path in Path(folder).glob("*.h5"):
            with h5py.File(path) as bank:
                done += sum(len(bank[key]["features"]) for key in bank if key != "rows")
    return done / duration


def seconds(call: Callable[..., Any], *args: Any) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
