"""The whole command, and what it refuses before it makes anything."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from scripts.core.errors import BundleError
from scripts.synthetic.tissue import CLASSES as SYNTHETIC
from scripts.synthetic.tissue import MASK_STEP_PX, background, draw_tissue, sample_stain
from tests.benchmarks.tissue.__main__ import main
from tests.comparisons import table_cells


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "clam"], "method: got 'clam'"),
        (["--methods", "mustmil", "mustmil"], "methods: 'mustmil' and 'mustmil' are the same training"),
        (
            ["--methods", "mustmil class_attention=shared"],
            "methods: none of ['mustmil class_attention=shared'] differs",
        ),
        (["--seeds", "0", "0"], "seeds: got [0, 0]"),
        (["--parts", "binary", "binary"], "parts: got ['binary', 'binary']"),
        (["--parts", "augmented", "--methods", "clam"], "methods: got ['clam'], and the part augmented compares"),
        (["--seeds", "-1"], "seed: got -1"),
        (["--epochs", "0"], "epochs: got 0"),
        (["--num_processes", "0"], "num_processes: got 0"),
    ],
)
def test_what_a_part_would_refuse_is_refused_before_anything_is_made(tmp_path, given, message):
    with pytest.raises(BundleError) as raised:
        main([str(tmp_path / "fields"), f"--output_dir={tmp_path / 'out'}", *given])
    assert str(raised.value).startswith(message)
    assert not (tmp_path / "out").exists()


def draw_fields(folder: Path) -> None:
    """Twelve synthetic fields of GlaS's size and resolution, two classes of three patients."""
    rng = np.random.default_rng(0)
    for class_name in ("cancer", "normal"):
        for number in range(6):
            stain = sample_stain(rng)
            rows, columns = 44, 64  # of 8 um
            glass = background(columns * MASK_STEP_PX, rows * MASK_STEP_PX, stain, rng)
            labels = np.full((rows, columns), SYNTHETIC.index(class_name) + 1, np.uint8)
            draw_tissue(glass, np.ones((rows, columns), np.float32), labels, stain, rng)
            field = cv2.resize(glass, None, fx=0.5 / 0.62, fy=0.5 / 0.62, interpolation=cv2.INTER_AREA)[:522, :775]
            place = folder / class_name / f"P{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(field).save(place / f"{number}.png")


@pytest.mark.slow
def test_the_command_ends_with_one_page_and_does_nothing_twice(tmp_path, capfd, preloaded, monkeypatch):
    monkeypatch.setattr(sys, "executable", preloaded.python)  # the trainings are processes of their own
    draw_fields(tmp_path / "fields")
    options = [str(tmp_path / "fields"), f"--output_dir={tmp_path / 'out'}", "--mpp=0.62", "--positive_classes=cancer"]
    options += ["--num_slides=4", "--num_cells", "2", "4", "--methods", "mustmil", "--seeds", "0", "--epochs=1"]
    assert main([*options, "--parts", "multilabel", "same_scales"]) == 0
    page = (tmp_path / "out" / "tissue.md").read_text()
    told = capfd.readouterr()
    assert page in told.out
    assert "12 slides, made of 12 fields of 3 patients in 3 groups." in page
    assert re.findall(r"(?m)^## (.+)$", page)[:2] == ["All classes", "Control: both scales the same"]
    # Scores and maps of the first part, scores of the control.
    assert len(re.findall(r"(?m)^\| MuSTMIL global +\|", page)) == 3
    assert [row[1] for row in table_cells(page[page.rindex("| part ") :])[2:]] == ["3"] * 2
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/runs/*/*/*/done.json")}
    assert len(done) == 6
    assert main([*options, "--parts", "multilabel"]) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    page = (tmp_path / "out" / "tissue.md").read_text()
    assert "## All classes" in page
    assert "## Control" not in page
    assert "Trainings with their" not in page
