"""The predictions of all folds together: their scores, against scikit-learn and plain resampling, and their tables."""

from __future__ import annotations

import csv
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from scripts.core.errors import SettingsError
from scripts.evaluation.bootstrap import bootstrap_interval
from scripts.evaluation.label_texts import label_of_text
from scripts.evaluation.localisation import Localisation
from scripts.evaluation.metrics import score_names
from scripts.evaluation.reports import without_nan
from scripts.experiments.comparison_results import Decisions, Run
from scripts.experiments.fold_results import (
    Pooled,
    fold_tables,
    pool,
    pooled_run,
    pooled_scores,
    scores_over_folds,
    warn_of_points,
)

TASK, CLASSES = "multilabel", ["cancer", "hgd", "normal"]
PATIENTS = {f"s{i:02d}": f"p{i // 2}" for i in range(30)}


def run_of(slides: list[str], seed: int) -> Run:
    """A fold's evaluation with made-up results."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (len(slides), 3)).astype(float)
    p = {head: (0.3 * labels + 0.7 * rng.random(labels.shape)).round(6) for head in ("global", "5x")}
    scores = {head: {name: float(rng.random()) for name in score_names(TASK)} for head in p}
    thresholds = {head: dict(zip(CLASSES, rng.uniform(0.3, 0.7, 3).tolist(), strict=True)) for head in p}
    return Run(
        "mustmil", 0, tuple(slides), labels, p, scores, {}, {}, {},
        decisions={head: decisions_of(p[head], labels, thresholds[head]) for head in p},
    )  # fmt: skip


def decisions_of(p: np.ndarray, labels: np.ndarray, thresholds: dict[str, float]) -> Decisions:
    """What a fold decides: its probabilities are calibrated to a half of what they are, and more."""
    calibrated = 0.25 + p / 2
    decided = (calibrated >= list(thresholds.values())).astype(float)
    own = {
        "micro_accuracy": accuracy_score(labels.ravel(), decided.ravel()),
        "micro_f1": f1_score(labels, decided, average="micro"),
        "macro_f1": f1_score(labels, decided, average="macro"),
    }
    return Decisions(calibrated, decided, own, thresholds)


def folds_of(*slides: list[int]) -> list[Run]:
    return [run_of([f"s{i:02d}" for i in own], seed) for seed, own in enumerate(slides)]


@pytest.fixture
def runs() -> list[Run]:
    # Neighbours are patients; the folds are of different sizes and in no order.
    return folds_of([4, 5, 18, 19, *range(8, 16)], [0, 1, 2, 3, 6, 7], [16, 17, *range(20, 30)])


def read(path, class_names=CLASSES):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_scores_are_those_that_scikit_learn_has_of_the_written_predictions(runs, tmp_path):
    pooled = pool(runs, TASK, PATIENTS)
    pooled.write(tmp_path / "predictions.csv", CLASSES, TASK)
    lines = read(tmp_path / "predictions.csv")
    scores = pooled_scores(pooled, TASK, CLASSES)
    for head in ("global", "5x"):
        own = [line for line in lines if line["head"] == head]
        assert [line["slide"] for line in own] == sorted(PATIENTS)
        p = np.array([[float(line[name]) for name in CLASSES] for line in own])
        y = np.array([label_of_text(line["label"], CLASSES) for line in own])
        called = (p >= 0.5).astype(float)
        found = {name: scores[head][name]["value"] for name in score_names(TASK)}
        assert found == pytest.approx({
            "micro_accuracy": accuracy_score(y.ravel(), called.ravel()),
            "micro_f1": f1_score(y, called, average="micro"),
            "macro_f1": f1_score(y, called, average="macro"),
            "roc_auc": roc_auc_score(y.ravel(), p.ravel()),
        })  # fmt: skip
        for k, name in enumerate(CLASSES):
            of_class = scores[head]["classes"][name]
            assert of_class["roc_auc"]["value"] == pytest.approx(roc_auc_score(y[:, k], p[:, k]))
            assert of_class["slides"] == y[:, k].sum()


def test_folds_of_a_method_count_as_one_run_that_tested_each_slide_once(runs):
    training = [{"phases": [{"seconds": 1.0 + i, "parameters": 7, "heads": ["global", "5x"]}]} for i in range(3)]
    # In the first fold three slides have regions of the class, in the second no slide has any.
    found = [[0.9, 0.8, 0.7], [], [0.5]]
    maps = [
        [Localisation(f"{i}{j}", "global", "hgd", 9, 0.1, auc, auc) for j, auc in enumerate(of_fold)]
        for i, of_fold in enumerate(found)
    ]
    told = [{"global": dict.fromkeys(["hgd", "normal", "all"])} if of_fold else {} for of_fold in found]
    own = [
        replace(run, training=of_fold, localised=of_map, localisation=of_json, fold=i)
        for i, (run, of_fold, of_map, of_json) in enumerate(zip(runs, training, maps, told, strict=True), start=1)
    ]
    whole = pooled_run(own, TASK, CLASSES)
    assert list(whole.slides) == sorted(PATIENTS)
    assert whole.fold is None
    p = {slide: row for run in runs for slide, row in zip(run.slides, run.probabilities["5x"], strict=True)}
    assert np.array_equal(whole.probabilities["5x"], [p[slide] for slide in whole.slides])
    y, called = whole.labels, whole.probabilities["5x"] >= 0.5
    assert whole.scores["5x"]["micro_f1"] == pytest.approx(f1_score(y, called, average="micro"))
    assert whole.classes["5x"]["hgd"]["f1"] == pytest.approx(f1_score(y[:, 1], called[:, 1]))
    assert whole.seconds("global") == 1 + 2 + 3
    of_map = whole.localisation["global"]
    assert (of_map["hgd"]["roc_auc"], of_map["hgd"]["slides"]) == (pytest.approx((0.9 + 0.8 + 0.7 + 0.5) / 4), 4)
    assert of_map["normal"]["slides"] == 0


def test_each_line_has_the_fold_in_which_the_slide_was_tested_and_what_that_fold_predicted(runs, tmp_path):
    pool(runs, TASK, PATIENTS).write(tmp_path / "predictions.csv", CLASSES, TASK)
    found = {(line["slide"], line["head"]): line for line in read(tmp_path / "predictions.csv")}
    assert len(found) == 2 * 30
    for fold, run in enumerate(runs, start=1):
        for i, slide in enumerate(run.slides):
            line = found[slide, "5x"]
            assert line["fold"] == str(fold)
            assert [float(line[name]) for name in CLASSES] == run.probabilities["5x"][i].tolist()


def test_intervals_resample_patients_with_all_of_their_slides(runs):
    """Twice each slide is no more to go by, if it is of the same patient."""
    scores = pooled_scores(pool(runs, TASK, PATIENTS), TASK, CLASSES)
    twins = [
        Run(
            r.method, r.seed, (*r.slides, *(f"{s}b" for s in r.slides)), np.concatenate([r.labels] * 2),
            {head: np.concatenate([p] * 2) for head, p in r.probabilities.items()}, r.scores, {}, {}, {},
        )
        for r in runs
    ]  # fmt: skip
    doubled = pooled_scores(pool(twins, TASK, {**PATIENTS, **{f"{s}b": p for s, p in PATIENTS.items()}}), TASK, CLASSES)
    for name in score_names(TASK):
        np.testing.assert_allclose(doubled["global"][name]["ci95"], scores["global"][name]["ci95"])
    alone = pooled_scores(pool(runs, TASK, {slide: slide for slide in PATIENTS}), TASK, CLASSES)
    assert alone["global"]["micro_f1"]["ci95"] != scores["global"]["micro_f1"]["ci95"]


def test_what_folds_decided_is_scored_together_with_what_each_decided_on_its_own_validation_slides(runs, tmp_path):
    pooled = pool(runs, TASK, PATIENTS)
    pooled.write(tmp_path / "predictions.csv", CLASSES, TASK)
    lines = [line for line in read(tmp_path / "predictions.csv") if line["head"] == "5x"]
    p = np.array([[float(line[f"{name}_calibrated"]) for name in CLASSES] for line in lines])
    cut = np.array(
        [[runs[int(line["fold"]) - 1].decisions["5x"].thresholds[name] for name in CLASSES] for line in lines]
    )
    y, called = (np.array([label_of_text(line[key], CLASSES) for line in lines]) for key in ("label", "decision"))
    assert np.array_equal(called, p >= cut)
    found = pooled_scores(pooled, TASK, CLASSES)["5x"]["operating_point"]
    scores = {name: found[name]["value"] for name in ("micro_accuracy", "micro_f1", "macro_f1", "brier")}
    assert scores == pytest.approx({
        "micro_accuracy": accuracy_score(y.ravel(), called.ravel()),
        "micro_f1": f1_score(y, called, average="micro"),
        "macro_f1": f1_score(y, called, average="macro"),
        "brier": ((p - y) ** 2).mean(),
    }, abs=1e-7)  # fmt: skip
    assert "roc_auc" not in found
    patients = [PATIENTS[line["slide"]] for line in lines]
    wanted = bootstrap_interval(called, y, TASK, patients=patients)["micro_f1"]
    assert found["micro_f1"]["ci95"] == pytest.approx(wanted)
    assert found["classes"]["hgd"]["recall"]["value"] == pytest.approx(recall_score(y[:, 1], called[:, 1]))
    assert "threshold" not in found["classes"]["hgd"]
    assert pooled_run(with_training(runs), TASK, CLASSES).decisions["5x"].scores["micro_f1"] == pytest.approx(
        f1_score(y, called, average="micro")
    )


def with_training(runs: list[Run]) -> list[Run]:
    phases = {"phases": [{"seconds": 1.0, "parameters": 7, "heads": ["global", "5x"]}]}
    return [replace(run, training=phases) for run in runs]


def test_a_fold_without_an_operating_point_leaves_decisions_at_a_half(runs, tmp_path, caplog):
    old = [replace(runs[0], decisions={}), *runs[1:]]
    pooled = pool(old, TASK, PATIENTS)
    assert caplog.messages == ["the weights of fold 1 have no operating point: decisions are at 0.5"]
    assert "operating_point" not in pooled_scores(pooled, TASK, CLASSES)["global"]
    assert "operating_point" not in scores_over_folds(old, "global", TASK)
    pooled.write(tmp_path / "predictions.csv", CLASSES, TASK)
    line = read(tmp_path / "predictions.csv")[0]
    assert "cancer_calibrated" not in line
    assert label_of_text(line["decision"], CLASSES) == [float(float(line[name]) >= 0.5) for name in CLASSES]
    assert not any("operating point" in table.caption for table in fold_tables(content_of(old, pooled), TASK))


def test_the_order_of_the_folds_plays_no_part(runs):
    one, other = (pooled_scores(pool(order, TASK, PATIENTS), TASK, CLASSES) for order in (runs, runs[::-1]))
    assert without_nan(one) == without_nan(other)


def test_the_spread_is_that_of_the_folds_in_which_a_score_is_defined(runs):
    values = [run.scores["global"]["micro_f1"] for run in runs]
    found = scores_over_folds(runs, "global", TASK)["micro_f1"]
    assert found["mean"] == pytest.approx(sum(values) / 3)
    assert found["sd"] == pytest.approx((sum((v - sum(values) / 3) ** 2 for v in values) / 2) ** 0.5)
    values = [run.decisions["global"].scores["macro_f1"] for run in runs]
    decided = scores_over_folds(runs, "global", TASK)["operating_point"]["macro_f1"]
    assert decided == pytest.approx({"mean": np.mean(values), "sd": np.std(values, ddof=1)})
    for run in runs[1:]:
        run.scores["global"]["roc_auc"] = np.nan
    of_one = scores_over_folds(runs, "global", TASK)["roc_auc"]
    assert of_one["mean"] == runs[0].scores["global"]["roc_auc"]
    assert np.isnan(of_one["sd"])


@pytest.mark.parametrize("unit", ["slide", "patient"])
def test_thresholds_that_few_validation_slides_or_patients_of_a_fold_chose_are_warned_of(runs, caplog, unit):
    def part(fold: int, name: str) -> list[dict[str, Any]]:
        assert name == "validation"
        return [{"slide": f"v{i}", "patient": f"p{i // 2}", "label": np.array([1.0, i % 4 > 1, 0])} for i in range(24)]

    split: Any = SimpleNamespace(part=part)
    warn_of_points(runs, split, "f1", unit)
    (text,) = caplog.messages
    # Of 24 slides 12 have the second class, and of 12 patients 6.
    few = {"slide": "(cancer 0, normal 0)", "patient": "(cancer 0, hgd 6, normal 0)"}
    assert f"fewer than 10 validation {unit}s have these classes, or have them not {few[unit]}." in text
    assert f"Validate on more {unit}s" in text
    warn_of_points(runs, split, 0.5, unit)
    assert len(caplog.messages) == 1


def test_a_slide_that_two_folds_tested_is_refused():
    with pytest.raises(SettingsError, match=r"^folds: slide s01 was tested in two of them\. Delete"):
        pool(folds_of([0, 1], [1, 2]), TASK, PATIENTS)


def points(run: Run) -> dict[str, dict[str, Any]]:
    return {head: {"scores": of.scores, "thresholds": of.thresholds} for head, of in run.decisions.items()}


def content_of(runs: list[Run], pooled: Pooled, patients: int | None = 15):
    sizes = {"slides": {"training": 7, "validation": 8, "testing": 9}, "patients": None}
    if patients:
        sizes["patients"] = {"training": 4, "validation": 5, "testing": 6}
    scores = pooled_scores(pooled, TASK, CLASSES)
    return {
        "heads": {head: {"pooled": scores[head], "folds": scores_over_folds(runs, head, TASK)} for head in scores},
        "folds": [
            {"fold": i, **sizes, "scores": run.scores, "operating_point": points(run)}
            for i, run in enumerate(runs, start=1)
        ],
        "slides": 30,
        "patients": patients,
    }


def test_the_tables_have_the_numbers_of_the_file(runs):
    content = content_of(runs, pool(runs, TASK, PATIENTS))
    pooled, decided, folds, decided_folds, f1, auc, each, thresholds = fold_tables(content, TASK)
    assert pooled.caption.startswith("30 slides of 15 patients in 3 folds, each slide tested once.")
    of_head = content["heads"]["global"]
    score = of_head["pooled"]["micro_f1"]
    assert pooled.rows[0][2] == "{:.3f} [{:.3f}, {:.3f}]".format(score["value"], *score["ci95"])
    assert folds.rows[0][2] == "{mean:.3f} ± {sd:.3f}".format(**of_head["folds"]["micro_f1"])
    score = of_head["pooled"]["operating_point"]["micro_f1"]
    assert decided.caption.startswith(
        "The same at the operating point of each fold: calibrated on its validation slides"
    )
    assert decided.rows[0][2] == "{:.3f} [{:.3f}, {:.3f}]".format(score["value"], *score["ci95"])
    assert decided_folds.rows[0][2] == "{mean:.3f} ± {sd:.3f}".format(**of_head["folds"]["operating_point"]["micro_f1"])
    own = runs[1].decisions["global"].thresholds
    assert thresholds.rows[1] == ["2", *(f"{own[name]:.3f}" for name in CLASSES)]
    for table, name in ((f1, "f1"), (auc, "roc_auc")):
        assert table.rows[1][3].startswith(
            f"{content['heads']['5x']['pooled']['classes']['normal'][name]['value']:.3f}"
        )
    assert each.rows[2][:6] == ["3", "7", "8", "9", "6", f"{runs[2].scores['global']['micro_accuracy']:.3f}"]


def test_one_class_is_not_shown_twice(runs):
    content = content_of(runs, pool(runs, TASK, PATIENTS))
    for of_head in content["heads"].values():
        of_head["pooled"]["classes"] = {"cancer": of_head["pooled"]["classes"]["cancer"]}
    assert len(fold_tables(content, TASK)) == 6


def test_what_is_not_known_or_not_defined_is_a_dash(runs):
    content = content_of(runs, pool(runs, TASK, PATIENTS), patients=None)
    content["heads"]["global"]["pooled"]["roc_auc"] = {"value": np.nan, "ci95": [np.nan, np.nan]}
    content["heads"]["global"]["folds"]["roc_auc"] = {"mean": np.nan, "sd": np.nan}
    pooled, _, folds, *_, each, _ = fold_tables(content, TASK)
    assert "patients not known" in pooled.caption
    assert pooled.rows[0][4] == folds.rows[0][4] == each.rows[0][4] == "-"
