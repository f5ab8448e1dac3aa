"""A repository as it is after a training, small and quickly made, for the tests of packing and verifying."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bundle.checked import Bundle
from bundle.contents import NAME, shared_files
from bundle.verify import FAILED, check
from scripts.core.tasks import get_task
from scripts.datalists.labels import output_names
from scripts.networks.methods import get_network, result_heads, trained_heads
from scripts.networks.state_record import sign
from scripts.weights.paths import weights_path
from tests.conftest import ROOT

SETTINGS: dict[str, Any] = {
    "method": "mustmil",
    "task": "multilabel",
    "class_names": ["cancer", "hgd", "lgd", "hyperplastic", "normal"],
    "magnifications": [5, 10],
    "patch_size": 224,
    "min_tissue": 0.7,
    "read_level": "nearest",
    "backbone": "efficientnet_lite0",
    "backbone_sha256": "0" * 64,
    "num_nodes": 128,
}
"""The settings of a training with the shipped defaults."""

SCANNED = {"training_slides": 31, "validation_slides": 7, "drawn_slides": 0}
DRAWN = {"training_slides": 24, "validation_slides": 8, "drawn_slides": 32}


def make_weights(
    folder: Path, data: Mapping[str, int] = SCANNED, seed: int = 0, num_features: int = 1280, **settings: Any
) -> Path:
    """What a training writes: random weights for each output, with the record of a training.

    Args:
        folder: where to.
        data: the numbers of slides in the record.
        seed: of the weights.
        num_features: of the backbone, 1280 for the default one.
        settings: those in which the training differed from :data:`SETTINGS`.
    """
    given = {**SETTINGS, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    points = make_points(
        result_heads(given["method"], given["magnifications"]),
        output_names(given["task"], given["class_names"], given.get("positive_classes")),
        data["validation_slides"],
    )
    for index, head in enumerate(trained_heads(given["method"], given["magnifications"])):
        torch.manual_seed(seed + index)
        network = get_network(
            given["method"],
            num_classes=get_task(given["task"]).num_logits(len(output_names(given["task"], given["class_names"]))),
            num_scales=len(given["magnifications"]),
            num_features=num_features,
            num_nodes=given["num_nodes"],
            class_attention=given.get("class_attention", "joint"),
        )
        origin = {"best_for": head, "operating_point": points}
        sign(network, {"settings": given, "data": dict(data), "version": "0.0.0"}, origin)
        torch.save(network.state_dict(), weights_path(folder, head))
    return folder


def make_points(heads: Sequence[str], class_names: Sequence[str], slides: int) -> dict[str, Any]:
    """An operating point for each output, as a training finds one."""
    number = {"shift": -0.5, "slope": 0.8, "intercept": 0.0, "threshold": 0.25, "positives": 3}
    classes = {name: {**number, "shift": -0.5 * k} for k, name in enumerate(class_names)}
    return {head: {"calibration": "temperature", "rule": "f1", "slides": slides, "classes": classes} for head in heads}


def make_repository(folder: Path) -> Path:
    """The files of this repository that are packed, and weights with the settings of its configs."""
    for name in shared_files(ROOT)[0]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    # A file that git does not know yet is tested, too, while it is being written.
    for path in (*ROOT.glob("scripts/**/*.py"), *ROOT.glob("configs/*.json")):
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(ROOT))
    make_weights(folder / "models")
    return folder


def copied(repository: Path, folder: Path) -> Path:
    """A copy of a bundle or repository that a test may change, under the bundle's name."""
    return Path(shutil.copytree(repository, folder / NAME))


def write(root: Path, name: str, text: str) -> None:
    """Write a file, with the folders that it needs."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def change_json(root: Path, name: str, change: Callable[[Any], object]) -> None:
    """Read a JSON file, change what it holds, write it back."""
    content = json.loads((root / name).read_text(encoding="utf-8"))
    change(content)
    write(root, name, json.dumps(content, indent=4, ensure_ascii=False) + "\n")


def finding(rule: str, root: Path) -> str:
    """What is said of a broken rule, in one line."""
    found = check(rule, Bundle(root, "folder"))
    assert found.state == FAILED
    assert "\n" not in found.text
    return found.text
