"""What INT8 gains and costs: ``python -m tests.benchmarks.int8``.

For each encoder patches a second in float32, bfloat16 and INT8, all by OpenVINO in one run, and the cosine of the
features to float32; the same cosine by the number of patches that the ranges come from; and how scores of the
demonstration change, over trainings with several seeds. Finished extractions and trainings are not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from scripts.bags.bag import BagBuilder
from scripts.core.markdown import markdown_table
from scripts.datalists.datalist import load_datalist
from scripts.demo.run import run_config
from scripts.encoders.backbones import Backbone, has_fast_bfloat16
from scripts.encoders.int8_networks import Int8Network, write_int8
from scripts.encoders.quantising import quantise
from scripts.encoders.runtimes import get_forward
from scripts.experiments.trainings import Experiment
from scripts.features.encoding import Encoder
from scripts.features.int8 import NUM_PATCHES, Int8, sample_patches
from scripts.networks.methods import result_heads
from scripts.synthetic.cohort import ensure_cohort
from tests.benchmarks.bench_slides import write_tiled
from tests.benchmarks.extraction import BACKBONES, BATCH_SIZE, extraction_rate, features, forward_rate, load
from tests.benchmarks.operating_points import run_all, write_without_regions

__all__ = ["change_table", "main"]

TASK, HEADS = "multilabel", result_heads("mustmil", (5, 10))
SCORES = {"micro-F1": "micro_f1", "ROC-AUC": "roc_auc"}
ARITHMETICS: dict[str, dict[str, Any]] = {
    "float32": {"amp": False, "precision": "amp"},
    "bfloat16": {"amp": True, "precision": "amp"},
    "INT8": {"amp": False, "precision": "int8"},
}
COUNTS = (8, 32, NUM_PATCHES, 512)
PARTS = ("speed", "counts", "scores")

Floats = NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.int8", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/demo"), help="slides; made if absent")
    parser.add_argument("--output_dir", type=Path, default=Path("output/int8"))
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="names, as of the setting `backbone`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--num_processes", type=int, default=2, help="trainings at the same time")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    args = parser.parse_args(argv)

    datalist = ensure_cohort(args.dataset_dir)
    slides = load_datalist(datalist, args.dataset_dir, TASK)
    tested = np.concatenate([np.concatenate(BagBuilder()(entry).read_all()) for entry in slides["testing"]])
    patches = torch.from_numpy(tested).contiguous(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        if "speed" in args.parts:
            print(f"{len(patches)} patches of the test slides; OpenVINO, {torch.get_num_threads()} threads\n")
            large = write_tiled(Path(slides["testing"][0]["image"]), Path(folder) / "large.tif", 2)
            body = [row for name in args.backbones for row in speeds(name, slides["training"], patches, large)]
            head = ["backbone", "arithmetic", "forward", "extracting", "against float32", "cosine, mean", "least"]
            print(f"{markdown_table(head, body)}\n", flush=True)
        if "counts" in args.parts:
            body = [by_count(count, slides["training"], patches) for count in COUNTS]
            head = ["patches that ranges come from", "of slides", "cosine, mean", "least", "quantising, s"]
            print(f"efficientnet_lite0\n\n{markdown_table(head, body)}\n", flush=True)
    if "scores" in args.parts:
        found = {name: scores(name, args, datalist) for name in ARITHMETICS}
        print(f"{len(args.seeds)} trainings, {len(slides['testing'])} test slides\n\n{change_table(found)}")


def speeds(name: str, training: Sequence[Mapping[str, Any]], patches: Tensor, slide: Path) -> list[list[str]]:
    """The rows of an encoder: patches a second, and the cosine to float32."""
    builder, entry = BagBuilder(), {"image": str(slide), "slide": slide.stem}
    full = patches.split(BATCH_SIZE)[:-1]
    rows: list[list[str]] = []
    exact, in_float32 = torch.empty(0), 1.0
    for arithmetic, settings in ARITHMETICS.items():
        if settings["amp"] and not has_fast_bfloat16("cpu"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = Int8(folder) if arithmetic == "INT8" else None
            encoder = Encoder(load(name, settings["amp"]), batch_size=BATCH_SIZE, runtime="openvino", int8=made)
            if made is not None:
                made.prepare(encoder.backbone, training, builder)
            forward = encoder.prepare(patches.shape[-1])
            own = features(forward, list(patches.split(BATCH_SIZE)))
            exact = exact if len(exact) else own
            # In turn, because a shared machine drifts.
            rates = [(forward_rate(forward, list(full)), extraction_rate(entry, builder, encoder)) for _ in range(2)]
        bare, whole = (float(np.mean(of_kind)) for of_kind in zip(*rates, strict=True))
        in_float32 = in_float32 if rows else whole
        faster = f"{whole / in_float32:.2f}"
        rows.append([name, arithmetic, f"{bare:.1f}", f"{whole:.1f}", faster, *cosines(exact, own)])
    return rows


def by_count(count: int, training: Sequence[Mapping[str, Any]], patches: Tensor) -> list[str]:
    """The cosine to float32 of a network whose ranges come from so many patches."""
    backbone = load("efficientnet_lite0", False)
    sampled, slides = sample_patches(training, BagBuilder(), 0, count)
    start = time.perf_counter()
    xml, weights = quantise(backbone, sampled)
    seconds = time.perf_counter() - start
    about = {"encoder": backbone.settings(), "patch": list(sampled.shape[2:])}
    with tempfile.TemporaryDirectory() as folder:
        network = write_int8(Path(folder), about, xml, weights)
    exact, own = (_features(backbone, of, patches) for of in (None, network))
    return [str(len(sampled)), str(slides), *cosines(exact, own), f"{seconds:.0f}"]


def _features(backbone: Backbone, network: Int8Network | None, patches: Tensor) -> Tensor:
    forward = get_forward("openvino", backbone, BATCH_SIZE, network)
    return features(forward, list(patches.split(BATCH_SIZE)))


def cosines(exact: Tensor, own: Tensor) -> list[str]:
    """The mean and the least cosine of features ``[n, F]`` to the exact ones."""
    found = cosine_similarity(exact, own)
    return [f"{found.mean():.5f}", f"{found.min():.5f}"]


def scores(arithmetic: str, args: argparse.Namespace, datalist: Path) -> Floats:
    """The scores ``[seeds, heads, scores]`` on the test slides, of trainings on features of an arithmetic."""
    folder = args.output_dir.resolve() / arithmetic
    # With annotated regions each evaluation would compare its heatmaps.
    bare = write_without_regions(datalist, args.output_dir.resolve() / "datalist.json")
    settings: dict[str, Any] = {
        "dataset_dir": str(args.dataset_dir.resolve()),
        "datalist": str(bare),
        "feature_dir": str(folder / "features"),
        "runtime": "openvino",
        **ARITHMETICS[arithmetic],
    }
    if run_config("extracting", "extract", {**settings, "output_dir": folder}) != 0:
        raise SystemExit(1)
    own = {**settings, "method": "mustmil", "epochs": args.epochs}
    trainings = [
        Experiment(f"{arithmetic}, seed {seed}", folder / f"seed_{seed}", {**own, "seed": seed, "split_seed": 0})
        for seed in args.seeds
    ]
    run_all(trainings, args.num_processes)
    metrics = [json.loads((one.folder / "metrics.json").read_text(encoding="utf-8")) for one in trainings]
    return np.array([[[of[head][key]["value"] for key in SCORES.values()] for head in HEADS] for of in metrics])


def change_table(found: Mapping[str, Floats]) -> str:
    """Scores, and their change from the first arithmetic to each other: mean ± standard deviation over the seeds.

    Args:
        found: the scores ``[seeds, heads, scores]`` of each arithmetic, of the same seeds.
    """
    first, *others = found
    body = [
        [head, score, *(_spread(of[:, h, s]) for of in found.values())]
        + [_spread(found[other][:, h, s] - found[first][:, h, s], "+") for other in others]
        for h, head in enumerate(HEADS)
        for s, score in enumerate(SCORES)
    ]
    return markdown_table(["head", "score", *found, *(f"{other} - {first}" for other in others)], body)


def _spread(values: Floats, sign: str = "") -> str:
    return f"{values.mean():{sign}.3f} ± {values.std(ddof=1):.3f}"


if __name__ == "__main__":
    main()
