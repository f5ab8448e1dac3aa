"""What the runners of the other tools share: their options, the encoder, and what they report.

It runs in the environments of those tools, so it imports nothing of this project.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision import transforms

__all__ = ["MEAN", "STD", "parse_options", "report", "resnet34", "to_input"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_first_batch_at: list[float] = []


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options that every runner takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkout", type=Path, help="the tool's repository, where it is no package")
    parser.add_argument("--slides", type=Path, required=True, help="a folder of slides")
    parser.add_argument("--output", type=Path, required=True, help="a folder for what the tool writes")
    parser.add_argument("--weights", type=Path, required=True, help="of a ResNet34, with torchvision's names")
    parser.add_argument("--magnifications", type=float, nargs="+", required=True, help="10/m um/px")
    parser.add_argument("--patch_size", type=int, required=True, help="the side of a patch in pixels")
    parser.add_argument("--min_tissue", type=float, required=True, help="least fraction of tissue in a patch")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="to compute with, and at most as many to read with")
    parser.add_argument("--report", type=Path, required=True, help="a file for what was measured")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    return args


def resnet34(weights: Path) -> torch.nn.Module:
    """A ResNet34 that gives features ``[n, 512]`` of patches ``[n, 3, H, W]``, and notes when it first has done so."""
    network = torchvision.models.resnet34(weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.fc = torch.nn.Identity()
    network.register_forward_hook(_note_first_batch)
    return network.eval()


def to_input() -> transforms.Compose:
    """From a patch of PIL or NumPy, ``[H, W, 3]`` uint8, to the network's input ``[3, H, W]``."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def report(path: Path, shapes: Sequence[Sequence[int]]) -> None:
    """Write what the benchmark reads: the number of patches, and when the first batch had features.

    Args:
        path: the report.
        shapes: ``[n, 512]`` of every array of features that the tool wrote.

    Raises:
        SystemExit: if the tool wrote something else, or nothing.
    """
    if not shapes or not _first_batch_at or any(tuple(shape[1:]) != (512,) for shape in shapes):
        raise SystemExit(f"The features that were written have the shapes {sorted(map(tuple, shapes))}.")
    patches = sum(shape[0] for shape in shapes)
    path.write_text(json.dumps({"patches": patches, "first_batch_at": _first_batch_at[0]}), encoding="utf-8")


def _note_first_batch(_network: torch.nn.Module, _inputs: Any, _features: Any) -> None:
    if not _first_batch_at:
        _first_batch_at.append(time.time())
