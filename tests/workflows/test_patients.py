"""``unit`` patient, as shipped: a training, its evaluation and predictions, with one bag for each patient."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import mistake_in
from scripts.weights.record import read_record
from tests.worlds import CLASSES, LABELS, PICTURES, World

HEADS = ["global", "5x", "10x"]


@pytest.fixture(scope="module")
def models(world: World) -> str:
    """Weights of a training on two patients, validated on another, of two slides each."""
    folder = world.folder / "by_patient"
    own = {"output_dir": str(folder), "ckpt_dir": str(folder / "models")}
    world.run("train", unit="patient", datalist=world.paired, **own)
    return own["ckpt_dir"]


@pytest.fixture(scope="module")
def evaluated(world: World, models: str) -> Path:
    return world.run("evaluate", **PICTURES, datalist=world.paired, ckpt_dir=models)


@pytest.fixture(scope="module")
def inferred(world: World, models: str) -> Path:
    given = {"dataset_dir": str(world.cohort), "datalist": world.paired, "ckpt_dir": models}
    return world.run("inference", heatmap_formats=["geojson"], top_patches=1, **given)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_weights_say_what_a_bag_is_and_how_many_slides_they_are_trained_on(models: str) -> None:
    record = read_record(Path(models) / "model.pt")
    assert record["settings"]["unit"] == "patient"
    assert (record["data"]["training_slides"], record["data"]["validation_slides"]) == (4, 2)


def test_an_evaluation_has_a_line_and_a_label_for_each_patient(evaluated: Path) -> None:
    lines = read(evaluated / "predictions.csv")
    assert list(lines[0])[:2] == ["patient", "head"]
    assert [(line["patient"], line["head"]) for line in lines] == [("q3", head) for head in HEADS]
    # Slides 6 and 7 have hgd and cancer.
    assert {line["label"] for line in lines} == {"cancer;hgd"}
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert (metrics["slides"], metrics["patients"]) == (2, 1)
    assert all("patients" not in metrics[head] for head in HEADS)
    assert (evaluated / "report.html").is_file()


def test_predictions_are_of_patients_and_the_same_as_in_the_evaluation(evaluated: Path, inferred: Path) -> None:
    lines = read(inferred / "predictions.csv")
    assert [line["patient"] for line in lines] == [f"q{i}" for i in range(4) for _ in HEADS]
    tested = [line for line in lines if line["patient"] == "q3" and line["head"] == "global"]
    (expected,) = (line for line in read(evaluated / "predictions.csv") if line["head"] == "global")
    for name in CLASSES:
        assert float(tested[0][name]) == pytest.approx(float(expected[name]), abs=1e-6)


def test_every_slide_has_heatmaps_whose_attention_sums_to_1_over_the_patient(inferred: Path) -> None:
    slides = sorted(path.name for path in (inferred / "heatmaps").iterdir())
    assert slides == [f"s{i}" for i in range(len(LABELS))]
    for patient in range(4):
        sums: dict[str, float] = dict.fromkeys(HEADS, 0.0)
        for slide in (f"s{2 * patient}", f"s{2 * patient + 1}"):
            assert list((inferred / "heatmaps" / slide).glob("*.geojson"))
            for line in read(inferred / "heatmaps" / slide / "patches.csv"):
                for head in HEADS:
                    sums[head] += float(line[f"{head}_cancer_attention"] or 0)
        assert sums == pytest.approx(dict.fromkeys(HEADS, 1.0), abs=1e-4)
    report = (inferred / "report.html").read_text(encoding="utf-8")
    assert "s6, patient q3" in report


def test_the_bag_of_the_weights_is_not_exchanged(world: World, models: str) -> None:
    for ckpt_dir, unit, own in (
        (models, "slide", "patient"),
        (str(world.trained / "models"), "patient", "slide"),
    ):
        with pytest.raises(RuntimeError) as refused:
            world.run("evaluate", datalist=world.paired, ckpt_dir=ckpt_dir, unit=unit)
        told = f"unit: got '{unit}', and the weights were trained with '{own}'. Leave the option out"
        assert str(mistake_in(refused.value)).startswith(told)


def test_with_slides_as_bags_patients_are_scored_by_their_slides(world: World) -> None:
    output = world.run("evaluate", report=True, datalist=world.paired, partition="training")
    metrics, lines = json.loads((output / "metrics.json").read_text()), read(output / "predictions.csv")
    assert (metrics["slides"], metrics["patients"]) == (4, 2)
    for head in HEADS:
        own = {line["slide"]: line for line in lines if line["head"] == head}
        p, y = (np.array([[value(own[f"s{i}"], name) for name in CLASSES] for i in range(4)]) for value in VALUES)
        labels = y.reshape(2, 2, -1).max(axis=1)
        for name, pooled in (("mean", p.reshape(2, 2, -1).mean(axis=1)), ("maximum", p.reshape(2, 2, -1).max(axis=1))):
            of_patients: dict[str, Any] = metrics[head]["patients"][name]
            assert of_patients["micro_accuracy"]["value"] == pytest.approx(((pooled >= 0.5) == (labels == 1)).mean())
            assert of_patients["classes"]["cancer"]["slides"] == labels[:, 0].sum()
    report = (output / "report.html").read_text(encoding="utf-8")
    assert "By patient: the mean, or the maximum, of the probabilities of each patient" in report
    assert "not at the operating point, which slides decided, and which holds for neither" in report


VALUES = (lambda line, name: float(line[name]), lambda line, name: float(name in line["label"].split(";")))


@pytest.mark.slow
def test_methods_are_compared_by_patient_with_their_maps(world: World) -> None:
    output = world.run("compare", unit="patient", datalist=world.paired, methods=["mustmil", "ssmil"], seeds=[0])
    assert "2 test slides of 1 patients" in (output / "comparison.md").read_text()
    assert all((output / name).is_file() for name in ("attention.png", "contribution.png", "report.html"))
    for method in ("mustmil", "ssmil"):
        lines = read(output / "runs" / method / "seed_0" / "predictions.csv")
        assert {line["patient"] for line in lines} == {"q3"}


@pytest.mark.slow
def test_every_patient_is_tested_in_one_fold(world: World) -> None:
    output = world.run("cross_validate", unit="patient", datalist=world.paired, folds=2, views=1)
    lines = read(output / "predictions.csv")
    assert list(lines[0])[:3] == ["patient", "head", "fold"]
    assert [line["patient"] for line in lines] == [f"q{i}" for i in range(4) for _ in HEADS]
    told = json.loads((output / "cross_validation.json").read_text())
    assert (told["slides"], told["patients"]) == (8, 4)
    assert sum(fold["patients"]["testing"] for fold in told["folds"]) == 4
