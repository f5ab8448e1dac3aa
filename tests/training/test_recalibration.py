"""Deciding an operating point again: all files of weights or none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.networks.mustmil import MuSTMIL
from scripts.networks.state_record import sign
from scripts.training.operating_points import OperatingPoints
from scripts.training.recalibration import Recalibration
from scripts.weights.checkpoints import save_checkpoint
from scripts.weights.record import read_origin
from tests.weights.test_record import RECORD

HEADS, CLASSES, FILES = ["global", "5x"], ["cancer", "normal"], ["model.pt", "model_5x.pt"]


class Evaluator:
    """Gives the points the same logits whatever network it has, and fails at the n-th."""

    network: Any = None

    def __init__(self, points: OperatingPoints, fails_at: int | None = None) -> None:
        self.points, self.fails_at, self.runs = points, fails_at, 0

    def run(self) -> None:
        if self.runs == self.fails_at:
            raise OSError("the disk is gone")
        self.runs += 1
        generator = torch.Generator().manual_seed(self.runs)
        self.points.slides = [(torch.randn(2, 2, generator=generator), torch.tensor([i % 2, 1.0])) for i in range(8)]


def recalibration(folder: Path) -> Recalibration:
    folder.mkdir()
    members = []
    for name in FILES:
        member = MuSTMIL(num_classes=2, num_features=8, num_scales=1)
        sign(member, RECORD)
        save_checkpoint(member.state_dict(), folder / name)
        members.append(member)
    network: Any = SimpleNamespace(copies=members)
    cohort: Any = None  # without a correction of the prior
    return Recalibration(folder, network, HEADS, CLASSES, cohort, {"seed": 0}, prior_correction=False)


def test_a_run_that_fails_leaves_every_file_as_it_was_and_one_that_does_not_stores_all(tmp_path: Path) -> None:
    made = recalibration(tmp_path / "models")
    points = OperatingPoints(HEADS, CLASSES, shift=made.shift)
    failing: Any = Evaluator(points, fails_at=1)
    with pytest.raises(OSError, match="the disk is gone"):
        made.run(failing, points)
    assert [read_origin(tmp_path / "models" / name) for name in FILES] == [{}, {}]
    whole: Any = Evaluator(points)
    made.run(whole, points)
    for name in FILES:
        assert list(read_origin(tmp_path / "models" / name)["operating_point"]) == HEADS
