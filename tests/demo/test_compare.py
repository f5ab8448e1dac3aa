"""``make compare-demo``: the few slides, and the control's banks, in which no scale knows more than another."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from scripts.demo.compare import write_control_banks, write_few
from scripts.features.bank import bank_path, read_bank
from scripts.features.extraction import Extractor
from tests.cohorts import builder, draw_cohort, tiny_encoder


@pytest.mark.parametrize("magnifications", [(5, 10), (2.5, 5, 10)])
def test_every_patch_of_a_row_has_the_features_of_the_lowest_scale(tmp_path, magnifications):
    cohort = draw_cohort(tmp_path, 2)
    Extractor(cohort, builder(magnifications), tiny_encoder(), tmp_path / "banks").run()
    write_control_banks(tmp_path / "banks", tmp_path / "control")
    for entry in cohort:
        paths = [bank_path(tmp_path / folder, entry["slide"]) for folder in ("banks", "control")]
        real, control = (read_bank(path, magnifications) for path in paths)
        rows = control.row_features()
        for s in range(len(magnifications)):
            np.testing.assert_array_equal(rows[:, s], real.row_features()[:, 0])
        np.testing.assert_array_equal(control.rows, real.rows)
        np.testing.assert_array_equal(control.log_weight(), real.log_weight())
        assert (real.row_features()[:, -1] != real.row_features()[:, 0]).any()  # the real ones are as they were
        with h5py.File(bank_path(tmp_path / "control", entry["slide"])) as bank:
            assert "every scale has the features of" in bank.attrs["control"]


def test_control_banks_that_are_there_are_left(tmp_path):
    cohort = draw_cohort(tmp_path, 1)
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "banks").run()
    write_control_banks(tmp_path / "banks", tmp_path / "control")
    (path,) = (tmp_path / "control").iterdir()
    before = path.stat().st_mtime_ns
    write_control_banks(tmp_path / "banks", tmp_path / "control")
    assert path.stat().st_mtime_ns == before


def test_few_slides_are_every_so_many_of_the_training_and_all_others(tmp_path):
    whole = {"training": [{"image": str(i)} for i in range(9)], "testing": [{"image": "t"}, {"image": "u"}]}
    (tmp_path / "datalist.json").write_text(json.dumps(whole))
    path = write_few(tmp_path / "datalist.json", tmp_path / "few" / "datalist.json", 4)
    assert json.loads(path.read_text()) == {
        "training": [{"image": "0"}, {"image": "4"}, {"image": "8"}],
        "testing": whole["testing"],
    }
