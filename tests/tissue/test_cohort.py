"""The cohort of the benchmark: its labels, and those of the control."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.core.errors import BundleError
from tests.benchmarks.tissue.cohort import make_cohort, permuted
from tests.benchmarks.tissue.fields import Fields
from tests.drawn_fields import write_fields


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort of six small slides, and how it was made."""
    folder = tmp_path_factory.mktemp("made")
    fields = write_fields(folder / "fields", {f"P{i}": ["benign", "tumour"] for i in range(3)})
    given = Fields(tuple(fields), ("benign", "tumour"), ("tumour",)), {"P0": 0, "P1": 1, "P2": 2}, 2, (2, 3), 0
    return make_cohort(folder / "slides", *given), given


def test_the_label_of_a_slide_is_the_classes_of_its_cells(made):
    cohort, (fields, groups, *_) = made
    rows = read_rows(cohort.folder / "datalist.csv")
    assert len(rows) == 6
    for row, mosaic in zip(rows, cohort.mosaics, strict=True):
        shown = [fields.fields[cell.field] for cell in mosaic.cells]
        assert row["label"].split(";") == sorted({field.class_name for field in shown})
        assert {f"group_{groups[field.patient] + 1}" for field in shown} == {row["patient"]}
        mask = np.asarray(Image.open(cohort.folder / row["regions"]))
        assert {("benign", "tumour")[value - 1] for value in np.unique(mask[mask > 0])} == set(row["label"].split(";"))


def test_permuted_labels_are_the_same_ones_of_a_group_on_other_slides(made):
    cohort, _ = made
    plain, others = (read_rows(cohort.folder / name) for name in ("datalist.csv", "permuted.csv"))
    assert [(row["image"], row["patient"]) for row in plain] == [(row["image"], row["patient"]) for row in others]
    assert read_rows(cohort.folder / "without_regions.csv") == [
        {key: value for key, value in row.items() if key != "regions"} for row in plain
    ]
    assert set(others[0]) == {"image", "label", "patient"}
    for group in {row["patient"] for row in plain}:
        labels = [Counter(row["label"] for row in rows if row["patient"] == group) for rows in (plain, others)]
        assert labels[0] == labels[1]


def test_a_permutation_tells_nothing_of_the_label_and_the_seed_decides_it():
    labels, groups = ["a", "b"] * 500, ["x"] * 600 + ["y"] * 400
    found = permuted(labels, groups, seed=1)
    assert found == permuted(labels, groups, seed=1) != permuted(labels, groups, seed=2)
    assert Counter(found[:600]) == Counter(labels[:600])
    # Of 1,000 labels by chance half are the same, with a standard deviation of 16.
    assert np.mean([one == other for one, other in zip(labels, found, strict=True)]) == pytest.approx(0.5, abs=0.08)


def test_slides_that_were_made_otherwise_are_not_used(made):
    cohort, (fields, groups, *given) = made
    slide = cohort.folder / "slides" / "tissue_000.tiff"
    before = slide.stat().st_mtime_ns
    make_cohort(cohort.folder, fields, groups, *given)
    assert slide.stat().st_mtime_ns == before
    with pytest.raises(BundleError, match="has slides that were made with other seed. Choose another `output_dir`"):
        make_cohort(cohort.folder, fields, groups, given[0], given[1], seed=1)
