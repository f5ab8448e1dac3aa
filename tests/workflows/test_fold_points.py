"""The operating points of folds: each fold's validation slides decide its own, and its test slides nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
from monai.bundle import ConfigParser
from scipy.special import expit, logit
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score

from scripts.core.overrides import place_advanced
from scripts.datalists.classes import balanced_weights
from scripts.datalists.folds import Folds
from scripts.evaluation.label_texts import label_of_text
from scripts.experiments.cross_validation import CrossValidation
from scripts.weights.calibration import prior_shift
from scripts.weights.record import read_origin
from tests.conftest import ROOT
from tests.foreign import grid, random_features, write_trident

pytestmark = pytest.mark.slow

CLASSES, HEADS = ["a", "b"], ["global", "5x", "10x"]
SLIDES, FOLDS = 64, 2
RULES = {"threshold": "f1", "calibration": "platt", "prior_correction": True}
Settings = dict[str, Any]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings that name slides with imported features, of which a part says something of the label."""
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["image,label,patient"]
    for i in range(SLIDES):
        label = [name for k, name in enumerate(CLASSES) if i % 5 < 2 + k or i % 7 == k]
        for magnification, side, columns in ((5, 256, 1), (10, 128, 2)):
            coords = grid(columns, columns, side)
            features = random_features(len(coords), seed=100 * i + magnification)
            features[:, : len(CLASSES)] += [0.8 * (name in label) for name in CLASSES]
            write_trident(folder / f"{magnification}x" / f"s{i:02d}.h5", coords, features, magnification, size=None)
        lines.append(f"s{i:02d}.svs,{';'.join(label) or '0;0'},p{i * 3 // 4}")
    (folder / "datalist.csv").write_text("\n".join(lines) + "\n")
    given: Settings = {
        "dataset_dir": str(folder), "feature_dir": str(folder / "banks"), "class_names": CLASSES, "patch_size": 64,
        "magnifications": [5, 10],
    }  # fmt: skip
    features_of = [str(folder / f"{m}x") for m in (5, 10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        monai.bundle.run(
            run_id="importing", config_file="configs/extract.json", features=features_of,
            output_dir=str(folder / "imported"), **given,
        )  # fmt: skip
    return {**given, "backbone": "imported", "epochs": 3, "folds": FOLDS, **RULES}


def parsed(config: str, part: str, **settings: Any) -> Any:
    """What a shipped config runs in the end."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / f"{config}.json"))
    parser.update(settings)
    place_advanced(parser)
    return parser.get_parsed_content(part)


def validate(cohort: Settings, output: Path, change: Callable[[Folds], Folds] = lambda split: split) -> Path:
    """Cross-validate, perhaps with other labels in the same folds."""
    made: CrossValidation = parsed("cross_validate", "cross_validation", **cohort, output_dir=str(output))
    made.split = change(made.split)
    made.run()
    return output


def with_other_labels(split: Folds) -> Folds:
    """The same folds, in which each slide that the first one tests has just the classes that it had not."""
    tested = {entry["slide"] for entry in split.part(0, "testing")}
    slides = []
    for slide in split.slides:
        own = str(slide.row.label).split(";")
        others = ";".join(name for name in CLASSES if name not in own) or "0;0"
        slides.append(replace(slide, row=replace(slide.row, label=others)) if slide.name in tested else slide)
    entries = [{**e, "label": 1 - e["label"]} if e["slide"] in tested else e for e in split.entries]
    return Folds(slides, entries, split.partitions)


@pytest.fixture(scope="module")
def validated(cohort: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return validate(cohort, tmp_path_factory.mktemp("validated"))


def table(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def content_of(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "cross_validation.json").read_text())
    return content


def points_of(output: Path, fold: int) -> dict[str, Any]:
    """By head, the operating point that rides with the weights of a fold."""
    files = {head: "model.pt" if head == "global" else f"model_{head}.pt" for head in HEADS}
    folder = output / f"fold_{fold}" / "models"
    return {head: read_origin(folder / file)["operating_point"][head] for head, file in files.items()}


def test_each_slide_is_decided_at_the_operating_point_of_the_weights_that_have_not_seen_it(validated: Path) -> None:
    points = {str(fold): points_of(validated, fold) for fold in range(1, FOLDS + 1)}
    lines = table(validated)
    assert len(lines) == SLIDES * len(HEADS)
    for line in lines:
        decided = []
        for name, one in points[line["fold"]][line["head"]]["classes"].items():
            p = expit(one["slope"] * (logit(float(line[name])) + one["shift"]) + one["intercept"])
            assert float(line[f"{name}_calibrated"]) == pytest.approx(p, abs=1e-5)
            decided += [name] if float(line[f"{name}_calibrated"]) >= one["threshold"] else []
        assert line["decision"] == ";".join(decided or ["0"] * len(CLASSES))
    told = [
        {head: of["thresholds"] for head, of in fold["operating_point"].items()}
        for fold in content_of(validated)["folds"]
    ]
    assert told == [
        {head: {name: one["threshold"] for name, one in of["classes"].items()} for head, of in points[fold].items()}
        for fold in points
    ]
    assert told[0] != told[1]


def test_the_validation_slides_of_a_fold_decide_by_the_rules_that_the_user_gave(validated: Path) -> None:
    for fold in range(1, FOLDS + 1):
        listed = json.loads((validated / f"fold_{fold}" / "datalist.json").read_text())
        labels = np.array([label_of_text(entry["label"], CLASSES) for entry in listed["training"]], np.float32)
        for point in points_of(validated, fold).values():
            assert (point["rule"], point["calibration"]) == (RULES["threshold"], RULES["calibration"])
            assert point["slides"] == len(listed["validation"])
            shifts = [one["shift"] for one in point["classes"].values()]
            assert shifts == pytest.approx(prior_shift(labels, balanced_weights(labels)), abs=1e-6)


def test_other_labels_of_a_folds_test_slides_change_none_of_its_thresholds(
    validated: Path, cohort: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    other = validate(cohort, tmp_path, with_other_labels)
    assert points_of(other, 1) == points_of(validated, 1)
    # The slides on which the second fold is trained and validated have other labels.
    assert points_of(other, 2) != points_of(validated, 2)
    first, second = ([line for line in table(output) if line["fold"] == "1"] for output in (validated, other))
    for one, two in zip(first, second, strict=True):
        assert one["label"] != two["label"]
        assert {**one, "label": ""} == {**two, "label": ""}
    scores = [content_of(output)["folds"][0]["operating_point"] for output in (validated, other)]
    assert scores[0]["global"]["thresholds"] == scores[1]["global"]["thresholds"]
    assert scores[0]["global"]["scores"] != scores[1]["global"]["scores"]


def test_all_slides_are_scored_at_the_operating_points_beside_a_half(validated: Path) -> None:
    content, lines = content_of(validated), table(validated)
    for head in HEADS:
        own = [line for line in lines if line["head"] == head]
        y, called = (np.array([label_of_text(line[key], CLASSES) for line in own]) for key in ("label", "decision"))
        p, calibrated = (
            np.array([[float(line[f"{name}{suffix}"]) for name in CLASSES] for line in own])
            for suffix in ("", "_calibrated")
        )
        pooled = content["heads"][head]["pooled"]
        assert pooled["micro_f1"]["value"] == pytest.approx(f1_score(y, p >= 0.5, average="micro"))
        point = pooled["operating_point"]
        assert point["micro_f1"]["value"] == pytest.approx(f1_score(y, called, average="micro"))
        assert point["micro_accuracy"]["value"] == pytest.approx(accuracy_score(y.ravel(), called.ravel()))
        assert point["brier"]["value"] == pytest.approx(brier_score_loss(y.ravel(), calibrated.ravel()), abs=1e-6)
        low, high = point["micro_f1"]["ci95"]
        assert low < point["micro_f1"]["value"] < high
        of_folds = [
            f1_score(*(v[[line["fold"] == str(fold) for line in own]] for v in (y, called)), average="micro")
            for fold in range(1, FOLDS + 1)
        ]
        spread = content["heads"][head]["folds"]["operating_point"]["micro_f1"]
        assert spread == pytest.approx({"mean": np.mean(of_folds), "sd": np.std(of_folds, ddof=1)})
    text = (validated / "cross_validation.md").read_text()
    told = (
        "The same at the operating point of each fold: calibrated on its validation slides, decided at its thresholds."
    )
    assert told in text
    assert "Each fold: the thresholds of output global:" in text


def test_comparing_in_folds_scores_them_at_the_same_operating_points(
    validated: Path,
    cohort: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(ROOT)
    parsed("compare", "comparison", **cohort, output_dir=str(tmp_path), methods=["mustmil"], seeds=[0]).run()
    assert "operating points of folds: their thresholds are not to be trusted: fewer than 10 validation" in caplog.text
    with (tmp_path / "comparison.csv").open(newline="") as file:
        found = {(line["output"], line["score"]): float(line["mean"]) for line in csv.DictReader(file) if line["mean"]}
    for head, of_head in content_of(validated)["heads"].items():
        for name in ("micro_f1", "macro_f1"):
            wanted = of_head["pooled"]["operating_point"][name]["value"]
            assert found[head, f"operating_point_{name}"] == pytest.approx(wanted, rel=1e-5)
    assert "The same at the operating point of each fold" in (tmp_path / "comparison.md").read_text()
