"""Drawn slides are known as such, and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from scripts.synthetic.cohort import draw_cohort
from scripts.synthetic.marker import count_slides, is_drawn


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw_cohort(folder, num_slides=1, seed=0)
    return next(iter(sorted((folder / "slides").glob("*.tif*"))))


def test_a_drawn_slide_says_so_and_no_other_does(drawn: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((8, 8, 3), np.uint8), software="Aperio")
    (tmp_path / "slide.mrxs").write_bytes(b"no TIFF")
    assert is_drawn(drawn)
    assert not is_drawn(tmp_path / "scan.tif")
    assert not is_drawn(tmp_path / "slide.mrxs")
    assert not is_drawn(tmp_path / "missing.svs")


def test_slides_of_both_partitions_are_counted(drawn: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((8, 8, 3), np.uint8))
    ours, theirs = {"image": str(drawn)}, {"image": str(tmp_path / "scan.tif")}
    assert count_slides([ours, theirs, theirs], [ours]) == {
        "training_slides": 3,
        "validation_slides": 1,
        "drawn_slides": 2,
    }
