"""Variants beside their methods: which heads they show, what the parts bring, and where it is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scripts.experiments.comparison
from scripts.core.files import write_json
from scripts.core.settings import LATER
from scripts.evaluation.bootstrap import paired_difference
from scripts.evaluation.metrics import frequency_baseline
from scripts.experiments.board import write_comparison
from scripts.experiments.comparison import Comparison
from scripts.experiments.comparison_results import Row, Run, compare, read_run
from scripts.experiments.comparison_tables import comparison_tables, markdown, write_runs, write_summary
from scripts.experiments.fold_results import pooled_run
from scripts.experiments.trainings import Experiment
from scripts.experiments.variants import read_variants
from tests.comparisons import CLASSES, MAGNIFICATIONS, write_cohort, write_run
from tests.conftest import ROOT

TASK = "multilabel"
SHARED = {"magnifications": MAGNIFICATIONS, "task": TASK, "class_names": CLASSES, "alpha": 1.0, "beta": 1.0}
ITEMS = ["mustmil beta=0", "mustmil alpha=0", "ssmil class_attention=shared"]


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Two trainings of each method, and of three variants, whose made-up results are those of other seeds."""
    made = write_cohort(tmp_path, num_slides=24)
    for place, variant in enumerate(read_variants(ITEMS, SHARED)):
        for seed in (0, 1):
            folder, other = tmp_path / variant.folder / str(seed), 10 * (place + 1) + seed
            write_run(folder, variant.method, other, num_slides=24)
            made.append(read_run(folder, variant.method, other, CLASSES).of_variant(variant, SHARED))
    return made


def by_title(rows: list[Row]) -> dict[str, Row]:
    return {row.title: row for row in rows}


def of_output(runs: list[Run], name: str, head: str) -> np.ndarray:
    return np.stack([run.probabilities[head] for run in runs if run.variant.name == name])


def test_a_variant_has_the_rows_and_maps_of_the_heads_that_it_trains(runs: list[Run]) -> None:
    rows, maps = compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=10)
    wanted = [
        "MuSTMIL beta=0 global", "MuSTMIL alpha=0 5x", "MuSTMIL alpha=0 10x",
        "SSMIL class_attention=shared 5x", "SSMIL class_attention=shared 10x",
    ]  # fmt: skip
    assert [row.title for row in rows][6:] == wanted
    assert [one.title for one in maps if one.kind == "attention"][7:] == wanted
    assert [(row.method, row.variant_of) for row in rows][5:8] == [
        ("ssmil", None), ("mustmil beta=0", "mustmil"), ("mustmil alpha=0", "mustmil"),
    ]  # fmt: skip


def test_what_a_part_brings_is_the_difference_of_the_same_head_on_the_same_slides(runs: list[Run]) -> None:
    rows = by_title(compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=100)[0])
    labels = runs[0].labels
    for title, plain, variant, head in (
        ("MuSTMIL beta=0 global", "mustmil", "mustmil beta=0", "global"),
        ("MuSTMIL alpha=0 10x", "mustmil", "mustmil alpha=0", "10x"),
        ("SSMIL class_attention=shared 5x", "ssmil", "ssmil class_attention=shared", "5x"),
    ):
        both = [of_output(runs, name, head) for name in (plain, variant)]
        assert rows[title].brings == paired_difference(both[0], both[1], labels, TASK, "micro_f1", 100)
        decided = [
            np.stack([run.decisions[head].decided for run in runs if run.variant.name == name])
            for name in (plain, variant)
        ]
        wanted = paired_difference(decided[0], decided[1], labels, TASK, "micro_f1", 100)
        assert rows[title].decided_brings == wanted
    assert all(rows[title].brings is None for title in ("MuSTMIL global", "MuSTMIL 5x", "SSMIL 5x", "MSMIL global"))
    # The difference to MuSTMIL's global head is that of every other row.
    assert rows["MuSTMIL beta=0 global"].behind == rows["MuSTMIL beta=0 global"].brings
    assert rows["SSMIL class_attention=shared 5x"].behind is not None


def test_without_its_method_a_variant_is_compared_with_none(runs: list[Run]) -> None:
    others = [run for run in runs if run.variant.name != "ssmil"]
    rows = by_title(compare(others, MAGNIFICATIONS, TASK, CLASSES, num_resamples=10)[0])
    assert rows["SSMIL class_attention=shared 5x"].brings is None
    assert rows["MuSTMIL beta=0 global"].brings is not None


def table(runs: list[Run], folder: Path | None = None) -> list[Any]:
    rows, maps = compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=50)
    chance = frequency_baseline(runs[0].labels, runs[0].labels, TASK)
    if folder is not None:
        write_summary(folder / "comparison.csv", rows, maps)
        write_runs(folder / "runs.csv", runs, TASK)
    return comparison_tables(rows, maps, TASK, len(runs[0].slides), len(runs[0].slides), (0, 1), chance)


def test_the_table_has_a_line_for_each_head_that_both_train(runs: list[Run], tmp_path: Path) -> None:
    (parts,) = (one for one in table(runs, tmp_path) if one.caption.startswith("What each part brings"))
    rows = by_title(compare(runs, MAGNIFICATIONS, TASK, CLASSES, num_resamples=50)[0])
    assert [line[0] for line in parts.rows] == [title for title, row in rows.items() if row.variant_of]
    with open(tmp_path / "comparison.csv", newline="", encoding="utf-8") as file:
        lines = {(line["method"], line["output"], line["score"]): line for line in csv.DictReader(file)}
    for title, variant, plain, *others in parts.rows:
        row = rows[title]
        method = rows[f"{title.split()[0]} {row.head}"]
        found = []
        for prefix, of in (("", "scores"), ("operating_point_", "decided")):
            for one in (row, method):
                values = getattr(one, of)["micro_f1"]
                found.append(f"{values.mean():.3f} ± {values.std(ddof=1):.3f}")
            b = row.decided_brings if prefix else row.brings
            assert b is not None
            found += [f"{b.difference:+.3f} [{b.low:+.3f}, {b.high:+.3f}]", f"{b.p_value:.3f}"]
            line = lines[row.method, row.head, f"{prefix}micro_f1"]
            assert float(line["brings"]) == pytest.approx(b.difference, rel=1e-4, abs=1e-9)
            assert float(line["brings_p_value"]) == pytest.approx(b.p_value, rel=1e-4)
        assert [variant, plain, *others] == found
    assert lines["mustmil", "5x", "micro_f1"]["brings"] == ""
    with open(tmp_path / "runs.csv", newline="", encoding="utf-8") as file:
        told = {(line["method"], line["output"]) for line in csv.DictReader(file)}
    assert {output for output in told if " " in output[0]} == {
        ("mustmil beta=0", "global"), ("mustmil alpha=0", "5x"), ("mustmil alpha=0", "10x"),
        ("ssmil class_attention=shared", "5x"), ("ssmil class_attention=shared", "10x"),
    }  # fmt: skip


def test_without_variants_there_is_no_such_table(runs: list[Run]) -> None:
    assert "What each part brings" in markdown(table(runs))
    assert "What each part brings" not in markdown(table([run for run in runs if not run.changed]))


def test_folds_of_a_variant_are_pooled_as_those_of_a_method_are(tmp_path: Path) -> None:
    (variant,) = read_variants(["mustmil beta=0"], SHARED)
    write_run(tmp_path, "mustmil", 0)
    pooled = pooled_run([read_run(tmp_path, "mustmil", 0, CLASSES).of_variant(variant, SHARED)], TASK, CLASSES)
    assert pooled.variant.name == "mustmil beta=0"
    assert list(pooled.scores) == list(pooled.probabilities) == list(pooled.decisions) == ["global"]


def test_the_board_has_a_line_for_each_run_of_a_variant(runs: list[Run], tmp_path: Path) -> None:
    write_comparison(tmp_path / "board", runs, "", {}, SHARED)
    for run in runs:
        assert list((tmp_path / "board" / run.variant.folder / f"seed_{run.seed}").iterdir())


def planned(folder: Path, methods: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """The runs of a comparison."""
    seen: list[Experiment] = []
    monkeypatch.setattr(
        scripts.experiments.comparison, "run_experiments", lambda runs, *args, **kwargs: seen.extend(runs) or {}
    )
    monkeypatch.setenv("RANK", "1")
    data = [{"slide": "a", "label": np.array([1.0, 0.0, 1.0])}]
    Comparison(methods, [0], {**LATER, **SHARED}, data, data, folder).run()
    return seen


def test_runs_of_a_variant_have_a_folder_and_settings_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["mustmil", "mustmil beta=0", "mustmil linking=shuffled class_attention=shared"]
    plain, alone, shuffled = planned(tmp_path, methods, monkeypatch)
    assert [str(one.folder.relative_to(tmp_path / "runs")) for one in (plain, alone, shuffled)] == [
        "mustmil/seed_0", "mustmil_beta=0/seed_0", "mustmil_class_attention=shared_linking=shuffled/seed_0",
    ]  # fmt: skip
    assert [one.name for one in (plain, alone)] == ["mustmil, seed 0", "mustmil beta=0, seed 0"]
    assert alone.settings == {**plain.settings, "beta": 0}
    assert shuffled.settings == {**plain.settings, "linking": "shuffled", "class_attention": "shared"}


def test_a_run_that_an_earlier_version_finished_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = planned(tmp_path, ["mustmil"], monkeypatch)
    plain.folder.mkdir(parents=True)
    later = ("linking", "class_attention", "attention_entropy", "classifier_init")
    before = {name: value for name, value in plain.settings.items() if name not in later}
    write_json(plain.folder / "settings.json", before)
    write_json(plain.folder / "done.json", {})
    assert plain.is_done


def test_the_shipped_overlay_names_mustmil_and_a_variant_for_each_part() -> None:
    overlay, config = (
        json.loads((ROOT / "configs" / f"{name}.json").read_text(encoding="utf-8")) for name in ("ablations", "compare")
    )
    assert overlay.keys() <= config.keys()
    plain, *variants = read_variants(overlay["methods"], {**config, **config["advanced"]})
    assert plain.name == "mustmil"
    assert {(variant.method, *variant.settings.items()) for variant in variants} == {
        ("mustmil", part)
        for part in (
            ("beta", 0), ("alpha", 0), ("linking", "shuffled"), ("linking", "pooled"), ("linking", "repeated"),
            ("class_attention", "shared"), ("class_attention", "separate"),
        )
    }  # fmt: skip
