"""The tables: every number is the mean and standard deviation of the runs, in Markdown and in CSV."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from scripts.evaluation.bootstrap import paired_difference
from scripts.evaluation.metrics import frequency_baseline, score_names
from scripts.experiments.comparison_results import compare
from scripts.experiments.comparison_tables import comparison_tables, markdown, write_runs, write_summary
from tests.comparisons import CLASSES, MAGNIFICATIONS, write_cohort

TASK = "multilabel"


@pytest.fixture
def runs(tmp_path):
    return write_cohort(tmp_path)


@pytest.fixture
def tables(runs):
    return compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=100)


def cells(text, title, line):
    """The cells of the first line that starts with ``line``, in the table that follows ``title``."""
    lines = text[text.index(title) :].splitlines()
    found = next(item for item in lines if item.startswith(f"| {line} "))
    return [cell.strip() for cell in found.strip("|").split("|")]


def text_of(runs, tables, seeds=(0, 1), num_patients=12, known=True):
    chance = frequency_baseline(runs[0].labels, runs[0].labels, TASK)
    return markdown(comparison_tables(*tables, TASK, len(runs[0].slides), num_patients, seeds, chance, known))


def test_the_table_holds_mean_and_standard_deviation_over_the_trainings(runs, tables):
    text = text_of(runs, tables)
    for row in tables[0]:
        line = cells(text, "| output", row.title)
        mine = [run for run in runs if run.method == row.method]
        for place, name in enumerate(score_names(TASK), start=1):
            values = [run.scores[row.head][name] for run in mine]
            assert line[place] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
        assert line[7:9] == [str(row.phases), str(row.parameters)]
        assert line[9] == f"{row.seconds.mean():.1f} ± {row.seconds.std(ddof=1):.1f}"
    assert "12 test slides of 12 patients, 2 trainings of each method (seeds 0, 1)" in text
    assert "its interval and p come from a bootstrap over patients and trainings." in text
    unknown = text_of(runs, tables, known=False)
    assert "12 test slides, patients not known (each slide counts as one), 2 trainings of each method" in unknown
    few = text_of(runs, tables, num_patients=3)
    assert "12 test slides of 3 patients" in few
    assert "it has no interval and no p, because the patients are fewer than 10." in few


def test_the_lead_is_told_with_its_interval_and_p(runs, tables):
    text = text_of(runs, tables)
    row = next(row for row in tables[0] if row.title == "SSMIL 5x")
    b = row.behind
    line = cells(text, "| output", "SSMIL 5x")
    assert line[5] == f"{b.difference:+.3f} [{b.low:+.3f}, {b.high:+.3f}]"
    assert line[6] == f"{b.p_value:.3f}"
    assert cells(text, "| output", "MuSTMIL global")[5:7] == ["", ""]


def test_each_class_and_each_map_has_its_numbers(runs, tables):
    text = text_of(runs, tables)
    rows, maps = tables
    line = cells(text, "ROC-AUC of each class", "SSMIL 10x")
    wanted = next(row for row in rows if row.title == "SSMIL 10x")
    assert (
        line[1]
        == f"{wanted.classes['cancer']['roc_auc'].mean():.3f} ± {wanted.classes['cancer']['roc_auc'].std(ddof=1):.3f}"
    )
    line = cells(text, "patch by patch, average precision", "MSMIL global 5x")
    one = next(one for one in maps if one.title == "MSMIL global 5x")
    values = one.classes["hgd"]["average_precision"]
    assert line[1:3] == ["attention", "5x"]
    assert line[4] == f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
    # Chance: an AUC of one half, and the share of positive patches for the average precision.
    assert cells(text, "patch by patch, average precision", "chance")[3] == "0.250 (2)"
    assert cells(text, "patch by patch, ROC-AUC", "chance")[3] == "0.500 (2)"


def test_scores_at_the_operating_points_have_a_table_with_the_lead(runs, tables, tmp_path):
    text, title = (
        text_of(runs, tables),
        "The same at the operating point of each training: calibrated on its validation",
    )
    write_summary(tmp_path / "comparison.csv", *tables)
    write_runs(tmp_path / "runs.csv", runs, TASK)
    summary = {(line["method"], line["output"], line["score"]): line for line in read(tmp_path / "comparison.csv")}
    for row in tables[0]:
        mine = [run for run in runs if run.method == row.method]
        values = [f1_score(run.labels, run.decisions[row.head].decided, average="micro") for run in mine]
        line = cells(text, title, row.title)
        assert line[2] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
        told = summary[row.method, row.head, "operating_point_micro_f1"]
        assert float(told["mean"]) == pytest.approx(np.mean(values), rel=1e-5)
        lines = [one for one in read(tmp_path / "runs.csv") if (one["method"], one["output"]) == (row.method, row.head)]
        assert [float(one["operating_point_micro_f1"]) for one in lines] == pytest.approx(values, rel=1e-5)
        if b := row.decided_behind:
            assert line[4] == f"{b.difference:+.3f} [{b.low:+.3f}, {b.high:+.3f}]"
            assert float(told["behind"]) == pytest.approx(b.difference, rel=1e-4, abs=1e-9)
    decided = {
        (method, head): np.stack([run.decisions[head].decided for run in runs if run.method == method])
        for method, head in (("mustmil", "global"), ("ssmil", "5x"))
    }
    wanted = paired_difference(
        decided["mustmil", "global"], decided["ssmil", "5x"], runs[0].labels, TASK, "micro_f1", 100
    )
    assert next(row.decided_behind for row in tables[0] if row.title == "SSMIL 5x") == wanted


def test_weights_without_an_operating_point_leave_the_table_out(runs):
    old = [replace(runs[0], decisions={}), *runs[1:]]
    assert "operating point" not in text_of(old, compare(old, MAGNIFICATIONS, TASK, CLASSES, num_resamples=50))


def test_of_folds_the_operating_point_is_that_of_each(runs, tables):
    chance = frequency_baseline(runs[0].labels, runs[0].labels, TASK)
    text = markdown(comparison_tables(*tables, TASK, 12, 12, (0, 1), chance, folds=3))
    assert "The same at the operating point of each fold: calibrated on its validation slides, decided at its" in text


def test_a_class_frequency_line_stands_below(runs, tables):
    chance = frequency_baseline(runs[0].labels, runs[0].labels, TASK)
    line = cells(text_of(runs, tables), "| output", "class frequencies alone")
    assert line[1:5] == [f"{chance[name]:.3f}" for name in score_names(TASK)]


def test_columns_line_up_as_plain_text(runs, tables):
    lines = [line for line in text_of(runs, tables).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 4  # scores, those at the operating points, classes, maps


def test_one_training_has_no_standard_deviation(tmp_path):
    runs = write_cohort(tmp_path, seeds=(3,))
    text = text_of(runs, compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=50), seeds=(3,))
    assert "±" not in text.split("\n", 1)[1]
    assert "nan" not in text


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_summary_has_a_line_for_each_number(runs, tables, tmp_path):
    write_summary(tmp_path / "comparison.csv", *tables)
    lines = read(tmp_path / "comparison.csv")
    rows, maps = tables
    for row in rows:
        mine = {
            (line["class"], line["score"]): line
            for line in lines
            if (line["method"], line["output"]) == (row.method, row.head)
        }
        for name, values in row.scores.items():
            line = mine["", name]
            assert float(line["mean"]) == pytest.approx(values.mean(), rel=1e-5)
            assert float(line["sd"]) == pytest.approx(values.std(ddof=1), rel=1e-4, abs=1e-9)
            assert line["trainings"] == "2"
        assert float(mine["", "phases"]["mean"]) == row.phases
        assert float(mine["", "parameters"]["mean"]) == row.parameters
        if row.behind:
            assert float(mine["", "micro_f1"]["behind"]) == pytest.approx(row.behind.difference, rel=1e-4, abs=1e-9)
    told = {
        (line["method"], line["output"], line["class"]) for line in lines if line["score"] == "localisation_roc_auc"
    }
    assert told == {(one.method, f"{one.kind} {one.map_name}", name) for one in maps for name in [*CLASSES, "all"]}


def test_each_run_and_output_has_a_line(runs, tmp_path):
    write_runs(tmp_path / "runs.csv", runs, TASK)
    lines = read(tmp_path / "runs.csv")
    assert [(line["method"], line["seed"], line["output"]) for line in lines] == [
        (run.method, str(run.seed), head) for run in runs for head in run.scores
    ]
    assert [float(line["training_seconds"]) for line in lines if line["output"] == "global"] == [2, 3, 6, 9]
    for line in lines:
        run = next(r for r in runs if r.method == line["method"] and str(r.seed) == line["seed"])
        assert float(line["micro_f1"]) == pytest.approx(run.scores[line["output"]]["micro_f1"], rel=1e-5)


def test_a_lead_on_very_few_slides_has_no_interval(tmp_path):
    runs = write_cohort(tmp_path, num_slides=9)
    text = text_of(runs, compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=50))
    line = cells(text, "| output", "SSMIL 5x")
    assert re.fullmatch(r"[+-]\d\.\d{3}", line[5])
    assert line[6] == "-"
