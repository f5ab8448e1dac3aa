"""What runs gave, side by side: means over seeds, what each output cost, and how far it is behind MuSTMIL."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.core.errors import SettingsError
from scripts.evaluation.bootstrap import paired_difference
from scripts.experiments.comparison_results import compare, read_run
from tests.comparisons import CLASSES, MAGNIFICATIONS, write_cohort, write_run

TASK = "multilabel"


@pytest.fixture
def runs(tmp_path):
    return write_cohort(tmp_path)


def test_a_run_is_read_as_it_was_written(tmp_path):
    probabilities, labels = write_run(tmp_path / "run", "mustmil", 0)
    run = read_run(tmp_path / "run", "mustmil", 0, CLASSES)
    assert run.slides == tuple(f"s{i:02d}" for i in range(len(labels)))
    np.testing.assert_array_equal(run.labels, labels)
    assert list(run.probabilities) == ["global", "5x", "10x"]
    for head, wanted in probabilities.items():
        np.testing.assert_allclose(run.probabilities[head], wanted, rtol=1e-8)
        point = run.decisions[head]
        np.testing.assert_allclose(point.calibrated, 0.1 + 0.8 * wanted, atol=1e-6)
        np.testing.assert_array_equal(point.decided, point.calibrated >= [point.thresholds[name] for name in CLASSES])


def test_each_output_of_each_method_has_a_row_with_every_training(runs):
    rows, maps = compare(runs, MAGNIFICATIONS, TASK, CLASSES)
    assert [row.title for row in rows] == [
        "MuSTMIL global", "MuSTMIL 5x", "MuSTMIL 10x", "MSMIL global", "SSMIL 5x", "SSMIL 10x",
    ]  # fmt: skip
    for row in rows:
        mine = [run for run in runs if run.method == row.method]
        assert row.scores["micro_f1"].tolist() == [run.scores[row.head]["micro_f1"] for run in mine]
        for name in CLASSES:
            told = [run.classes[row.head][name]["f1"] for run in mine]
            np.testing.assert_array_equal(row.classes[name]["f1"], told)
    titles = [
        "MuSTMIL global", "MuSTMIL 5x", "MuSTMIL 10x", "MSMIL global 5x", "MSMIL global 10x", "SSMIL 5x", "SSMIL 10x",
    ]  # fmt: skip
    assert [(one.kind, one.title) for one in maps] == [
        (kind, t) for kind in ("attention", "contribution") for t in titles
    ]
    assert [one.scale for one in maps] == ["10x", "5x", "10x", "5x", "10x", "5x", "10x"] * 2


def test_an_output_costs_the_phases_that_it_needs(runs):
    rows, _ = compare(runs, MAGNIFICATIONS, TASK, CLASSES)
    cost = {row.title: (row.phases, row.parameters, row.seconds.tolist()) for row in rows}
    # Each phase of the made-up runs trains 10 weights in 2 s, and a second more for each seed.
    assert cost["MuSTMIL global"] == cost["MuSTMIL 5x"] == (1, 10, [2.0, 3.0])
    assert cost["MSMIL global"] == (3, 30, [6.0, 9.0])
    assert cost["SSMIL 5x"] == cost["SSMIL 10x"] == (1, 10, [2.0, 3.0])


def test_every_output_is_compared_with_mustmils_global_one_on_the_same_slides(runs):
    rows, _ = compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=200)
    assert rows[0].behind is None
    repeats = {
        (method, head): np.stack([run.probabilities[head] for run in runs if run.method == method])
        for method, head in (("mustmil", "global"), ("ssmil", "5x"))
    }
    wanted = paired_difference(
        repeats["mustmil", "global"], repeats["ssmil", "5x"], runs[0].labels, TASK, "micro_f1", 200
    )
    assert next(row.behind for row in rows if row.title == "SSMIL 5x") == wanted


def test_the_comparison_is_of_patients(tmp_path):
    runs = write_cohort(tmp_path, num_slides=24)
    slides = runs[0].slides
    first, second = (
        np.stack([run.probabilities[head] for run in runs if run.method == method])
        for method, head in (("mustmil", "global"), ("ssmil", "5x"))
    )

    def behind(patients):
        rows, _ = compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=200, patients=patients)
        return next(row.behind for row in rows if row.title == "SSMIL 5x")

    own = {slide: f"P{i // 2}" for i, slide in enumerate(slides)}  # of twelve patients two slides each
    wanted = paired_difference(
        first, second, runs[0].labels, TASK, "micro_f1", 200, patients=[own[slide] for slide in slides]
    )
    assert behind(own) == wanted
    assert behind({slide: f"P{slide}" for slide in slides}) == behind(None) != wanted
    few = behind({slide: f"P{i // 3}" for i, slide in enumerate(slides)})  # of eight patients three each
    assert few.difference == wanted.difference
    assert np.isnan([few.low, few.high, few.p_value]).all()


def test_without_mustmil_nothing_is_compared_with_it(runs):
    rows, _ = compare([run for run in runs if run.method != "mustmil"], MAGNIFICATIONS, TASK, CLASSES)
    assert all(row.behind is None for row in rows)


def test_without_regions_there_are_no_maps(tmp_path):
    _, maps = compare(write_cohort(tmp_path, regions=False), MAGNIFICATIONS, TASK, CLASSES)
    assert maps == []


def test_runs_on_other_slides_or_labels_are_not_compared(tmp_path):
    write_run(tmp_path / "a", "mustmil", 0)
    write_run(tmp_path / "b", "ssmil", 0, num_slides=7)
    write_run(tmp_path / "c", "ssmil", 0, cohort=1)
    one = read_run(tmp_path / "a", "mustmil", 0, CLASSES)
    fewer, other = (read_run(tmp_path / name, "ssmil", 0, CLASSES) for name in "bc")
    for two in (fewer, other):
        with pytest.raises(SettingsError, match="ssmil with seed 0 was tested on other slides than mustmil"):
            compare([one, two], MAGNIFICATIONS, TASK, CLASSES)


@pytest.mark.parametrize("name", ["metrics.json", "training.json", "predictions.csv"])
@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_folder_without_its_results_is_named(tmp_path, name, content):
    write_run(tmp_path, "mustmil", 0)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match="does not hold the results of a run .*Delete the folder"):
        read_run(tmp_path, "mustmil", 0, CLASSES)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("predictions.csv", "s00,global,0", "s00,global,7"),
        ("predictions.csv", "s00,5x", "s00,global"),
        ("metrics.json", '"classes"', '"klasses"'),
        ("metrics.json", "{", "[{"),
        ("training.json", '"phases"', '"fases"'),
        ("training.json", '"seed": 0', '"seed": 1'),
        ("metrics.json", '"operating_point"', '"point"'),
        ("localisation.json", '"roc_auc"', '"auc"'),
        ("localisation.csv", "roc_auc", "auc"),
    ],
)
def test_results_that_were_changed_are_not_put_into_a_table(tmp_path, name, old, new):
    write_run(tmp_path, "mustmil", 0)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(SettingsError, match="does not hold the results of a run"):
        read_run(tmp_path, "mustmil", 0, CLASSES)
