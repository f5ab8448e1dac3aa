"""External validation: differences against scores and resamples made one by one, and what is warned of."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score

from scripts.core.errors import SettingsError
from scripts.evaluation.bootstrap import difference_interval, resampled_scores
from scripts.evaluation.external import Predictions, compare_with_internal, external_warnings
from scripts.evaluation.external_tables import external_tables
from scripts.evaluation.metrics import CLASS_SCORE_NAMES, score_names
from scripts.evaluation.predictions_file import internal_test, read_predictions
from scripts.evaluation.reports import EvaluationReport
from scripts.evaluation.score_texts import interval_text
from tests.evaluation.test_reports import CLASSES, HEADS, evaluate, evaluation, read_csv, some_slides, with_patients

SHA256 = {head: f"{head:0>64}" for head in HEADS}
POINTS: dict[str, str | None] = {head: f"{head:1>64}" for head in HEADS}
MADE_BY = {"weights_sha256": SHA256, "operating_point_sha256": POINTS}


class Network:
    """Weights of these checksums."""

    def __init__(self, weights: dict[str, str] = SHA256, points: dict[str, str | None] = POINTS) -> None:
        self.weights, self.points = weights, points

    def weights_sha256(self, heads: Any) -> dict[str, str]:
        return {head: self.weights[head] for head in heads}

    def points_sha256(self, heads: Any) -> dict[str, str | None]:
        return {head: self.points[head] for head in heads}


def read_internal(folder: Path, output_dir: Path, classes: Any = CLASSES, heads: Any = HEADS, **sums: Any) -> Any:
    network: Any = Network(**sums)
    return internal_test(folder, output_dir, classes, network, heads)


def predicted(
    n: int,
    seed: int,
    shift: float = 0.0,
    frequency: float = 0.5,
    knowledge: float = 1.5,
    names: str = "s",
    each: int = 1,
) -> Predictions:
    """A test set of n slides, ``each`` of one patient, that two heads predict."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < frequency).astype(float)
    z = rng.normal(shift, size=(n, 2, 3)) + knowledge * (y[:, None] - 0.5)
    slides = [f"{names}{i:04d}" for i in range(n)]
    p = 1 / (1 + np.exp(-z))
    decided = (p**2 >= 0.4).astype(float)
    return Predictions(slides, [f"{names}{i // each}" for i in range(n)], y, p, p**2, True, decided=decided)


def compared(external: Predictions, internal: Predictions) -> dict[str, Any]:
    return compare_with_internal(external, internal, ["global", "5x"], CLASSES, "multilabel", 3)


# --- differences -------------------------------------------------------------------------------------------


def test_differences_are_those_of_the_scores_of_both_test_sets() -> None:
    internal, external = predicted(60, 0), predicted(50, 1, knowledge=0.3)
    report = compared(external, internal)
    for h, head in enumerate(("global", "5x")):
        both = [(of.labels, of.probabilities[:, h], of.probabilities[:, h] ** 2 >= 0.4) for of in (internal, external)]
        wanted = {
            "micro_f1": [f1_score(y, p >= 0.5, average="micro") for y, p, _ in both],
            "roc_auc": [roc_auc_score(y.ravel(), p.ravel()) for y, p, _ in both],
        }
        for name, (inside, outside) in wanted.items():
            of = report[head][name]
            assert (of["internal"], of["external"]) == pytest.approx((inside, outside))
            assert of["difference"]["value"] == pytest.approx(outside - inside)
        decided = [f1_score(y, d, average="micro") for y, _, d in both]
        at_point = report[head]["operating_point"]
        assert (at_point["micro_f1"]["internal"], at_point["micro_f1"]["external"]) == pytest.approx(tuple(decided))
        assert list(at_point) == ["micro_accuracy", "micro_f1", "macro_f1", "classes"]
        for k, name in enumerate(CLASSES):
            of_class = report[head]["classes"][name]
            assert list(of_class) == [*CLASS_SCORE_NAMES, "frequency", "probabilities"]
            precision = [average_precision_score(y[:, k], p[:, k]) for y, p, _ in both]
            found = of_class["average_precision"]
            assert (found["internal"], found["external"]) == pytest.approx(tuple(precision))
            recall = [recall_score(y[:, k], d[:, k]) for y, _, d in both]
            found = at_point["classes"][name]["recall"]
            assert (found["internal"], found["external"]) == pytest.approx(tuple(recall))
            assert of_class["frequency"]["external"] == pytest.approx(external.labels[:, k].mean())


def test_intervals_are_of_patients_resampled_in_each_test_set_for_itself() -> None:
    internal, external = predicted(40, 0, each=2), predicted(30, 1, names="t", each=3)
    found = compared(external, internal)["global"]["micro_accuracy"]["difference"]
    drawn = []
    for of, seed in ((internal, (3, 2)), (external, (3,))):
        right = (of.probabilities[:, 0] >= 0.5) == of.labels  # [n, K]
        number = {patient: i for i, patient in enumerate(dict.fromkeys(of.patients))}
        own = np.array([number[patient] for patient in of.patients])
        draws = np.random.default_rng(seed).integers(len(number), size=(1000, len(number)))
        drawn.append(np.array([np.concatenate([right[own == i] for i in draw]).mean() for draw in draws]))
    assert found["ci95"] == pytest.approx(np.percentile(drawn[1] - drawn[0], [2.5, 97.5]).tolist())


def test_of_two_samples_alike_the_resamples_are_not() -> None:
    one = predicted(40, 0)
    difference = compared(one, one)["global"]["micro_f1"]["difference"]
    assert difference["value"] == 0
    assert difference["ci95"][0] < -0.05 < 0.05 < difference["ci95"][1]


def test_nineteen_of_twenty_intervals_hold_the_difference_in_truth() -> None:
    # A logit is normal around half of the knowledge, on the right side of 0.
    truth = norm.cdf(1.0 / 2) - norm.cdf(2.0 / 2)
    held = 0
    for seed in range(60):
        internal, external = predicted(60, 2 * seed, knowledge=2.0), predicted(50, 2 * seed + 1, knowledge=1.0)
        drawn = [
            resampled_scores(of.probabilities[:, 0], of.labels, "multilabel", 300, seed)["micro_accuracy"]
            for of, seed in ((external, (3,)), (internal, (3, 2)))
        ]
        low, high = difference_interval(*drawn)
        held += low <= truth <= high
    assert held >= 60 * (0.95 - 3 * np.sqrt(0.95 * 0.05 / 60))


@pytest.mark.parametrize("lacks", ["calibrated", "decided"])
def test_without_an_operating_point_of_either_there_is_none_to_compare(lacks: str) -> None:
    one, other = predicted(20, 0), predicted(20, 1)
    without: dict[str, Any] = {lacks: None}
    assert "operating_point" not in compared(replace(one, **without), other)["global"]
    assert "operating_point" not in compared(one, replace(other, **without))["global"]


def test_an_undefined_score_has_no_difference() -> None:
    internal, external = predicted(20, 0), predicted(20, 1, frequency=0.0)
    found = compared(external, internal)["global"]["classes"]["cancer"]["recall"]
    assert np.isnan(found["difference"]["value"])
    assert np.isnan(found["difference"]["ci95"]).all()


# --- drift -------------------------------------------------------------------------------------------------


def warnings_of(external: Predictions, internal: Predictions) -> list[str]:
    return external_warnings(compared(external, internal), external, internal)


def test_probabilities_that_are_shifted_are_found_and_others_are_not() -> None:
    internal = predicted(100, 0)
    (told,) = warnings_of(predicted(100, 1, shift=1.0, names="t"), internal)
    assert told.startswith("Probabilities drift from the internal test: ")
    assert all(f"`{name}` by head {head} (distance 0." in told for name in CLASSES for head in ("global", "5x"))
    assert told.endswith("Scores and thresholds of the internal test need not hold here.")
    assert warnings_of(predicted(100, 1, names="t"), internal) == []


def test_a_class_that_is_more_frequent_is_found() -> None:
    told = warnings_of(predicted(100, 1, frequency=0.85, knowledge=0, names="t"), predicted(100, 0, knowledge=0))
    assert len(told) == 1
    assert told[0].startswith("Class frequencies drift from the internal test: `cancer` 8")


def test_without_drift_few_test_sets_are_warned_of() -> None:
    warned = sum(
        bool(warnings_of(predicted(40, 2 * seed, names="t"), predicted(40, 2 * seed + 1))) for seed in range(12)
    )
    assert warned <= 12 * (0.05 + 3 * np.sqrt(0.05 * 0.95 / 12))


def test_slides_of_the_internal_test_are_told() -> None:
    one = predicted(40, 0)
    (told,) = warnings_of(one, one)
    assert told == (
        "40 slides have a name of the internal test (`s0000`, `s0001`, `s0002`, ...). "
        "If they are the same slides, this is no external validation."
    )


def test_patients_as_bags_are_called_so() -> None:
    one = replace(predicted(40, 0), unit="patient")
    (text,) = warnings_of(one, one)
    assert text.startswith("40 patients have a name of the internal test")
    assert text.endswith("If they are the same patients, this is no external validation.")


def test_few_patients_are_told_of_either_test_set() -> None:
    many, few = predicted(40, 0), predicted(8, 1, names="t", each=2)
    assert (
        "Differences to the internal test, external slides: its intervals rest on 4 patients"
        in warnings_of(few, many)[0]
    )
    assert (
        "Differences to the internal test, internal test: its intervals rest on 4 patients" in warnings_of(many, few)[0]
    )


# --- files -------------------------------------------------------------------------------------------------


class Board:
    def write(self, *args: Any) -> None:
        pass


def two_evaluations(folder: Path, patients: bool = True) -> dict[str, Any]:
    """An internal evaluation of 30 slides of 15 patients, and one of 20 slides from elsewhere beside it."""
    slides = some_slides(30, 3)
    data = with_patients(slides, [f"={i // 2}" for i in range(30)]) if patients else []
    evaluate(slides, EvaluationReport(folder / "in", HEADS, CLASSES, "multilabel", data=data, made_by=MADE_BY))
    others = some_slides(20, 3)
    for slide in others:
        slide["slide"] = f"other {slide['slide']}"
        slide["image"] = slide["image"] + 1.5
    internal = read_internal(folder / "in", folder / "out")
    report = EvaluationReport(folder / "out", HEADS, CLASSES, "multilabel", data=data, internal_test=internal)
    evaluate(others, report)
    written: dict[str, Any] = json.loads((folder / "out" / "metrics.json").read_text())
    assert json.loads(json.dumps(report.internal)) == written["internal"]
    return written


def test_an_evaluation_has_the_comparison_in_each_head_and_says_with_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        written = two_evaluations(tmp_path)
    inside = json.loads((tmp_path / "in" / "metrics.json").read_text())
    assert list(written) == [*HEADS, "slides", "patients", "internal"]
    assert (written["internal"]["slides"], written["internal"]["patients"]) == (30, 15)
    for head in HEADS:
        for name in score_names("multilabel"):
            of = written[head]["external"][name]
            assert of["internal"] == pytest.approx(inside[head][name]["value"], abs=1e-12)
            assert of["external"] == written[head][name]["value"]
            assert of["difference"]["ci95"][0] <= of["difference"]["value"] <= of["difference"]["ci95"][1]
    moved = written["10x"]["external"]["micro_accuracy"]["difference"]
    assert f"10x, less the internal test's: micro_accuracy {interval_text(moved)}, micro_f1 -0." in caplog.text
    (told,) = [text for text in written["internal"]["warnings"] if text.startswith("Probabilities drift")]
    assert f"metrics.json: {told}" in caplog.text


def test_patients_of_the_predictions_are_numbers_that_say_nothing_else(tmp_path: Path) -> None:
    two_evaluations(tmp_path)
    rows = read_csv(tmp_path / "in")
    assert list(rows[0])[-2:] == ["label", "patient_number"]
    assert [int(row["patient_number"]) for row in rows[::3]] == [1 + i // 2 for i in range(30)]


def test_without_patients_there_is_no_column_and_it_is_told(tmp_path: Path) -> None:
    told = two_evaluations(tmp_path, patients=False)["internal"]["warnings"]
    assert "patient_number" not in read_csv(tmp_path / "in")[0]
    assert any("which patients the slides of the internal test are of is not known" in text for text in told)


def test_without_an_internal_test_nothing_is_compared(tmp_path: Path) -> None:
    metrics = evaluation(tmp_path, some_slides(4, 3))
    assert "internal" not in metrics
    assert "external" not in metrics["global"]
    assert external_tables({}, {}) == []


def test_tables_show_what_the_file_has(tmp_path: Path) -> None:
    written = two_evaluations(tmp_path)
    scores, *of_classes = external_tables({head: written[head] for head in HEADS}, written["internal"])
    assert "30 slides of 15 patients" in scores["caption"]
    assert len(scores["rows"]) == len(HEADS) * len(score_names("multilabel"))
    head, title, inside, outside, difference = scores["rows"][1]
    of = written["global"]["external"]["micro_f1"]
    assert (head, title, inside, outside) == ("global", "micro-F1", f"{of['internal']:.3f}", f"{of['external']:.3f}")
    assert difference.startswith(f"{of['difference']['value']:.3f} [")
    assert [len(table["rows"]) for table in of_classes] == [3, 3, 3]
    assert all(len(row) == len(table["head"]) for table in (scores, *of_classes) for row in table["rows"])
    name, inside, outside, _, distance, *_ = of_classes[0]["rows"][0]
    of_class = written["global"]["external"]["classes"]["cancer"]
    assert (name, inside) == ("cancer", f"{of_class['frequency']['internal']:.1%}")
    assert distance == f"{of_class['probabilities']['distance']:.3f}"


def test_predictions_that_were_written_are_read_again_sorted_by_name(tmp_path: Path) -> None:
    slides = some_slides(6, 3)[::-1]
    evaluation(tmp_path, slides)
    found = read_predictions(tmp_path / "predictions.csv", HEADS, CLASSES)
    assert found.slides == sorted(slide["slide"] for slide in slides)
    assert found.patients == found.slides
    assert not found.patients_known
    assert found.calibrated is None
    for i, slide in enumerate(slides[::-1]):
        assert found.labels[i].tolist() == slide["label"].tolist()
        assert found.probabilities[i] == pytest.approx(
            1 / (1 + np.exp(-slide["image"][0].numpy().astype(float))), rel=1e-6
        )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: None, "this evaluation would replace it. Give another `output_dir`."),
        (lambda folder: (folder / "metrics.json").unlink(), "there is no metrics.json. Name the `output_dir` of an"),
        (lambda folder: (folder / "metrics.json").write_text("{"), "does not contain the results of an evaluation"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), "does not contain the results of an evaluation"),
        (lambda folder: (folder / "predictions.csv").unlink(), "does not contain the results of an evaluation"),
        (lambda folder: (folder / "predictions.csv").write_text("slide,head\n"), "does not contain the results of an"),
    ],
)
def test_what_is_no_evaluation_is_refused_in_one_line(tmp_path: Path, change: Any, told: str) -> None:
    folder = tmp_path / "in"
    evaluate(some_slides(4, 3), EvaluationReport(folder, HEADS, CLASSES, "multilabel", made_by=MADE_BY))
    own = folder if change(folder) is None and "replace" in told else tmp_path / "out"
    with pytest.raises(SettingsError) as refused:
        read_internal(folder, own)
    assert told in str(refused.value)
    assert str(refused.value).startswith(f"internal {folder}: ")
    assert "\n" not in str(refused.value)


def test_an_evaluation_of_other_weights_classes_or_heads_is_refused_with_both(tmp_path: Path) -> None:
    evaluate(some_slides(4, 3), EvaluationReport(tmp_path / "in", HEADS, CLASSES, "multilabel", made_by=MADE_BY))
    others: list[tuple[dict[str, Any], str]] = [
        (
            {"weights": {**SHA256, "5x": "f" * 64}},
            r"is of other weights \(SHA-256 of head 5x: 0000\S+, now ffffffffffff\.\.\.",
        ),
        (
            {"classes": ["a", "b", "c"]},
            r"its classes are \['cancer', 'hgd', 'normal'\], and those of the weights \['a', 'b'",
        ),
        ({"heads": ["5x"]}, r"its heads are \['global', '5x', '10x'\], and those of the weights \['5x'\]"),
    ]
    for given, told in others:
        with pytest.raises(SettingsError, match=told):
            read_internal(tmp_path / "in", tmp_path / "out", **given)


def test_an_evaluation_from_before_the_weights_had_an_operating_point_is_refused(tmp_path: Path) -> None:
    none: dict[str, str | None] = dict.fromkeys(HEADS)
    made_by = {**MADE_BY, "operating_point_sha256": none}
    evaluate(some_slides(4, 3), EvaluationReport(tmp_path / "in", HEADS, CLASSES, "multilabel", made_by=made_by))
    with pytest.raises(SettingsError, match="it decided at another operating point of these weights .*, or at none"):
        read_internal(tmp_path / "in", tmp_path / "out")
    assert read_internal(tmp_path / "in", tmp_path / "out", points=none) is not None


def test_an_evaluation_that_does_not_name_its_weights_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluation(tmp_path / "in", some_slides(4, 3))
    assert read_internal(tmp_path / "in" / "metrics.json", tmp_path / "out") is not None
    assert "it does not say of which weights it is" in caplog.text
