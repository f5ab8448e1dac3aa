"""The table of how many patients a comparison needs says what the spread of this one gives."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.evaluation.power import difference_spread
from scripts.experiments.comparison_results import Row, Run, compare
from scripts.experiments.power_table import HALF_WIDTHS, power_table
from tests.comparisons import CLASSES, MAGNIFICATIONS, write_cohort

TASK = "multilabel"


def rows_of(runs: list[Run], patients: dict[str, str] | None = None) -> list[Row]:
    return compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=100, patients=patients)[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return write_cohort(tmp_path_factory.mktemp("runs"), seeds=(0, 1, 2), num_slides=24)


def test_each_output_has_what_its_spread_gives(runs: list[Run]) -> None:
    own = {slide: f"P{i // 2}" for i, slide in enumerate(runs[0].slides)}  # of twelve patients two slides each
    (table,) = power_table(rows_of(runs, own), TASK, 24, 12)
    assert [row[0] for row in table.rows] == ["MuSTMIL 5x", "MuSTMIL 10x", "MSMIL global", "SSMIL 5x", "SSMIL 10x"]
    both = [
        np.stack([run.probabilities[head] for run in runs if run.method == method])
        for method, head in (("mustmil", "global"), ("ssmil", "5x"))
    ]
    found = difference_spread(*both, runs[0].labels, TASK, "micro_f1", 100, patients=list(own.values()))
    assert found is not None
    needed = [found.needed(width) for width in HALF_WIDTHS]
    assert list(table.rows[3][1:]) == [
        f"{found.patients_sd:.3f}",
        f"{found.trainings_sd:.3f}",
        f"± {found.half_width(12, 3):.3f}",
        *(f"{patients:,} ({trainings})" for patients, trainings in needed),
    ]
    assert list(table.head[-3:]) == ["± 0.05", "± 0.02", "± 0.01"]
    assert "in micro-F1 reaches so far to either side." in table.caption
    assert "the 12 patients here, who have 2.00 slides each" in table.caption


def test_with_few_patients_or_one_training_it_says_so_and_has_no_number(runs: list[Run]) -> None:
    few = power_table(rows_of(runs, {slide: f"P{i // 3}" for i, slide in enumerate(runs[0].slides)}), TASK, 24, 8)
    once = power_table(rows_of([run for run in runs if run.seed == 0]), TASK, 24, 24)
    for (table,), why in (
        (few, "the patients are fewer than 10."),
        (once, "one training does not show how they vary, or the score is not defined."),
    ):
        assert table.caption.endswith(f"It is not told, because {why}")
        assert {cell for row in table.rows for cell in row[1:]} == {"-"}


def test_without_mustmil_there_is_no_table(runs: list[Run]) -> None:
    assert power_table(rows_of([run for run in runs if run.method != "mustmil"]), TASK, 24, 24) == []
