"""Drawn slides are known as such, and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from scripts.synthetic.cohort import make_cohort
from scripts.synthetic.marker import count_slides, is_synthetic


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    make_cohort(folder, num_slides=1, seed=0)
    return next(iter(sorted((folder / "slides").glob("*.tif*"))))


def test_a_drawn_slide_says_so_and_no_other_does(drawn: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((8, 8, 3), np.uint8), software="Aperio")
    (tmp_path / "slide.mrxs").write_bytes(b"no TIFF")
    assert is_synthetic(drawn)
    assert not is_synthetic(tmp_path / "scan.tif")
    assert not is_synthetic(tmp_path / "slide.mrxs")
    assert not is_synthetic(tmp_path / "missing.svs")


def test_slides_of_both_partitions_are_counted(drawn: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((8, 8, 3), np.uint8))
    ours, theirs = {"image": str(drawn)}, {"image": str(tmp_path / "scan.tif")}
    assert count_slides([ours, theirs, theirs], [ours]) == {
        "training_slides": 3,
        "validation_slides": 1,
        "drawn_slides": 2,
    }
