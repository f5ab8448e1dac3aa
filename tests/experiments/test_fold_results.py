"""The predictions of all folds together: their scores, against scikit-learn and plain resampling, and their tables."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from scripts.core.errors import SettingsError
from scripts.evaluation.metrics import score_names
from scripts.evaluation.reports import label_of_text, without_nan
from scripts.experiments.comparison_results import Run
from scripts.experiments.fold_results import Pooled, fold_tables, pool, pooled_run, pooled_scores, spread

CLASSES = ["cancer", "hgd", "normal"]
PATIENTS = {f"s{i:02d}": f"p{i // 2}" for i in range(30)}


def run_of(slides: list[str], seed: int) -> Run:
    """A fold's evaluation with made-up results."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (len(slides), 3)).astype(float)
    p = {head: (0.3 * labels + 0.7 * rng.random(labels.shape)).round(6) for head in ("global", "5x")}
    scores = {head: {name: float(rng.random()) for name in score_names("multilabel")} for head in p}
    return Run("mustmil", 0, tuple(slides), labels, p, scores, {}, {}, {})


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
    pooled = pool(runs, PATIENTS)
    pooled.write(tmp_path / "predictions.csv", CLASSES)
    lines = read(tmp_path / "predictions.csv")
    scores = pooled_scores(pooled, "multilabel", CLASSES)
    for head in ("global", "5x"):
        own = [line for line in lines if line["head"] == head]
        assert [line["slide"] for line in own] == sorted(PATIENTS)
        p = np.array([[float(line[name]) for name in CLASSES] for line in own])
        y = np.array([label_of_text(line["label"], CLASSES) for line in own])
        called = (p >= 0.5).astype(float)
        found = {name: scores[head][name]["value"] for name in score_names("multilabel")}
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
    # Of the second fold no slide has regions of the class.
    found = [(0.8, 3), (np.nan, 0), (0.5, 1)]
    maps = [{"global attention": {"hgd": {"roc_auc": auc, "slides": n, "positive_share": 0.1}}} for auc, n in found]
    own = [
        replace(run, training=of_fold, localisation=of_map, fold=i)
        for i, (run, of_fold, of_map) in enumerate(zip(runs, training, maps, strict=True), start=1)
    ]
    whole = pooled_run(own, "multilabel", CLASSES)
    assert list(whole.slides) == sorted(PATIENTS)
    assert whole.fold is None
    p = {slide: row for run in runs for slide, row in zip(run.slides, run.probabilities["5x"], strict=True)}
    assert np.array_equal(whole.probabilities["5x"], [p[slide] for slide in whole.slides])
    y, called = whole.labels, whole.probabilities["5x"] >= 0.5
    assert whole.scores["5x"]["micro_f1"] == pytest.approx(f1_score(y, called, average="micro"))
    assert whole.classes["5x"]["hgd"]["f1"] == pytest.approx(f1_score(y[:, 1], called[:, 1]))
    assert whole.seconds("global") == 1 + 2 + 3
    of_map = whole.localisation["global attention"]["hgd"]
    assert (of_map["roc_auc"], of_map["slides"]) == (pytest.approx((3 * 0.8 + 0.5) / 4), 4)


def test_each_line_has_the_fold_in_which_the_slide_was_tested_and_what_that_fold_predicted(runs, tmp_path):
    pool(runs, PATIENTS).write(tmp_path / "predictions.csv", CLASSES)
    found = {(line["slide"], line["head"]): line for line in read(tmp_path / "predictions.csv")}
    assert len(found) == 2 * 30
    for fold, run in enumerate(runs, start=1):
        for i, slide in enumerate(run.slides):
            line = found[slide, "5x"]
            assert line["fold"] == str(fold)
            assert [float(line[name]) for name in CLASSES] == run.probabilities["5x"][i].tolist()


def test_intervals_resample_patients_with_all_of_their_slides(runs):
    """Twice each slide is no more to go by, if it is of the same patient."""
    scores = pooled_scores(pool(runs, PATIENTS), "multilabel", CLASSES)
    twins = [
        Run(
            r.method, r.seed, (*r.slides, *(f"{s}b" for s in r.slides)), np.concatenate([r.labels] * 2),
            {head: np.concatenate([p] * 2) for head, p in r.probabilities.items()}, r.scores, {}, {}, {},
        )
        for r in runs
    ]  # fmt: skip
    doubled = pooled_scores(
        pool(twins, {**PATIENTS, **{f"{s}b": p for s, p in PATIENTS.items()}}), "multilabel", CLASSES
    )
    for name in score_names("multilabel"):
        np.testing.assert_allclose(doubled["global"][name]["ci95"], scores["global"][name]["ci95"])
    alone = pooled_scores(pool(runs, {slide: slide for slide in PATIENTS}), "multilabel", CLASSES)
    assert alone["global"]["micro_f1"]["ci95"] != scores["global"]["micro_f1"]["ci95"]


def test_the_order_of_the_folds_plays_no_part(runs):
    one, other = (pooled_scores(pool(order, PATIENTS), "multilabel", CLASSES) for order in (runs, runs[::-1]))
    assert without_nan(one) == without_nan(other)


def test_the_spread_is_that_of_the_folds_in_which_a_score_is_defined(runs):
    values = [run.scores["global"]["micro_f1"] for run in runs]
    found = spread(runs, "global", "multilabel")["micro_f1"]
    assert found["mean"] == pytest.approx(sum(values) / 3)
    assert found["sd"] == pytest.approx((sum((v - sum(values) / 3) ** 2 for v in values) / 2) ** 0.5)
    for run in runs[1:]:
        run.scores["global"]["roc_auc"] = np.nan
    of_one = spread(runs, "global", "multilabel")["roc_auc"]
    assert of_one["mean"] == runs[0].scores["global"]["roc_auc"]
    assert np.isnan(of_one["sd"])


def test_a_slide_that_two_folds_tested_is_refused():
    with pytest.raises(SettingsError, match=r"^folds: slide s01 was tested in two of them\. Delete"):
        pool(folds_of([0, 1], [1, 2]), PATIENTS)


def content_of(runs: list[Run], pooled: Pooled, patients: int | None = 15):
    sizes = {"slides": {"training": 7, "validation": 8, "testing": 9}, "patients": None}
    if patients:
        sizes["patients"] = {"training": 4, "validation": 5, "testing": 6}
    scores = pooled_scores(pooled, "multilabel", CLASSES)
    return {
        "heads": {head: {"pooled": scores[head], "folds": spread(runs, head, "multilabel")} for head in scores},
        "folds": [{"fold": i, **sizes, "scores": run.scores} for i, run in enumerate(runs, start=1)],
        "slides": 30,
        "patients": patients,
    }


def test_the_tables_have_the_numbers_of_the_file(runs):
    content = content_of(runs, pool(runs, PATIENTS))
    pooled, folds, f1, auc, each = fold_tables(content, "multilabel")
    assert pooled.caption.startswith("30 slides of 15 patients in 3 folds, each slide tested once.")
    of_head = content["heads"]["global"]
    score = of_head["pooled"]["micro_f1"]
    assert pooled.rows[0][2] == "{:.3f} [{:.3f}, {:.3f}]".format(score["value"], *score["ci95"])
    assert folds.rows[0][2] == "{mean:.3f} ± {sd:.3f}".format(**of_head["folds"]["micro_f1"])
    for table, name in ((f1, "f1"), (auc, "roc_auc")):
        assert table.rows[1][3].startswith(
            f"{content['heads']['5x']['pooled']['classes']['normal'][name]['value']:.3f}"
        )
    assert each.rows[2][:6] == ["3", "7", "8", "9", "6", f"{runs[2].scores['global']['micro_accuracy']:.3f}"]


def test_one_class_is_not_shown_twice(runs):
    content = content_of(runs, pool(runs, PATIENTS))
    for of_head in content["heads"].values():
        of_head["pooled"]["classes"] = {"cancer": of_head["pooled"]["classes"]["cancer"]}
    assert len(fold_tables(content, "multilabel")) == 3


def test_what_is_not_known_or_not_defined_is_a_dash(runs):
    content = content_of(runs, pool(runs, PATIENTS), patients=None)
    content["heads"]["global"]["pooled"]["roc_auc"] = {"value": np.nan, "ci95": [np.nan, np.nan]}
    content["heads"]["global"]["folds"]["roc_auc"] = {"mean": np.nan, "sd": np.nan}
    pooled, folds, *_, each = fold_tables(content, "multilabel")
    assert "patients not known" in pooled.caption
    assert pooled.rows[0][4] == folds.rows[0][4] == each.rows[0][4] == "-"
