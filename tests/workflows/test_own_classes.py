"""The binary task with classes of one's own: from a column of names to predictions, and what is refused on the way."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import mistake_in
from scripts.weights.record import read_record
from tests.worlds import NO_PICTURES

OWN: dict[str, Any] = {"task": "binary", "class_names": ["benign", "malignant"], "positive_classes": ["malignant"]}


@pytest.fixture(scope="module")
def entries(cohort: Path) -> dict[str, list[dict[str, Any]]]:
    """The drawn cohort's slides; those with its first two classes are malignant."""
    lists = json.loads((cohort / "datalist.json").read_text())
    return {
        part: [{**entry, "label": ["benign", "malignant"][any(entry["label"][:2])]} for entry in lists[part]]
        for part in lists
    }


def write_list(path: Path, entries: dict[str, list[dict[str, Any]]], plain: bool = False) -> str:
    """A CSV with a column ``label``: the class's name, or 0 and 1."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "partition", "label"])
        for part, slides in entries.items():
            for slide in slides:
                label = int(slide["label"] == "malignant") if plain else slide["label"]
                writer.writerow([slide["image"], slide["patient"], part, label])
    return str(path)


def base_settings(cohort: Path, trained: Path, out: Path, **others: Any) -> dict[str, Any]:
    places = {"output_dir": str(out), "ckpt_dir": str(out / "models"), "feature_dir": str(trained / "features")}
    return {"dataset_dir": str(cohort), **places, **others}


def refusal(workflow: Any, *arguments: Any, **given: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        workflow(*arguments, **given)
    return str(mistake_in(caught.value))


def predictions(out: Path) -> list[dict[str, str]]:
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_own_classes_are_trained_evaluated_and_predicted(workflow, cohort, trained, entries, tmp_path):
    datalist = write_list(tmp_path / "names.csv", entries)
    own = base_settings(cohort, trained, tmp_path, datalist=datalist, **OWN)
    workflow("training", "train", epochs=1, **own)
    assert read_record(tmp_path / "models" / "model.pt")["settings"]["positive_classes"] == ["malignant"]
    told = json.loads((tmp_path / "training.json").read_text())
    assert told["made_by"]["configuration"]["positive_classes"] == ["malignant"]

    workflow("evaluating", "evaluate", partition="training", **own, **NO_PICTURES)
    rows = predictions(tmp_path)
    columns = ["slide", "head", "malignant", "malignant_calibrated", "decision", "label", "patient_number"]
    assert list(rows[0]) == columns
    truth = {Path(slide["image"]).stem: slide["label"] for slide in entries["training"]}
    assert set(truth.values()) == {"benign", "malignant"}
    assert {row["slide"]: row["label"] for row in rows} == {
        name: str(int(label == "malignant")) for name, label in truth.items()
    }
    classes = json.loads((tmp_path / "metrics.json").read_text())["global"]["classes"]
    assert {name: scores["slides"] for name, scores in classes.items()} == {
        "malignant": list(truth.values()).count("malignant")
    }

    # What the scores mean decides whether the weights may be used, and a training may go on.
    other = {**own, "positive_classes": ["benign"]}
    said = refusal(workflow, "evaluating", "evaluate", **other)
    assert said.startswith("positive_classes: got ['benign'], and the weights were trained with ['malignant']. Leave")
    said = refusal(workflow, "training", "train", **other, resume=True)
    assert "positive_classes ['malignant'], now ['benign']" in said

    # Evaluation takes it from the weights, a training has to be given it.
    lacking = {key: value for key, value in own.items() if key not in ("positive_classes", "task", "class_names")}
    workflow("evaluating", "evaluate", partition="training", **lacking, **NO_PICTURES)
    assert predictions(tmp_path) == rows
    lacking = {key: value for key, value in own.items() if key != "positive_classes"}
    said = refusal(workflow, "training", "train", **lacking, resume=True)
    assert said.startswith("positive_classes: not given, and whether the label") or "(positive_classes" in said

    image = str(cohort / entries["testing"][0]["image"])
    own = {key: value for key, value in own.items() if key not in ("feature_dir", "datalist")}
    workflow("inferring", "inference", **{**own, "dataset_dir": image, "heatmap_kinds": "attention", "report": False})
    assert list(predictions(tmp_path)[0]) == ["slide", "head", "malignant", "malignant_calibrated", "decision"]
    assert len(list(tmp_path.glob("heatmaps/*/global_malignant.png"))) == 1


def test_plain_0_and_1_need_no_positive_classes_and_train_the_same(
    workflow, cohort, trained, entries, tmp_path, capsys
):
    probabilities = []
    for name, own in (("plain", {**OWN, "positive_classes": None}), ("names", OWN)):
        out = tmp_path / name
        datalist = write_list(tmp_path / f"{name}.csv", entries, plain=name == "plain")
        settings = {key: value for key, value in own.items() if value is not None}
        all_given = base_settings(cohort, trained, out, datalist=datalist, **settings)
        workflow("training", "train", epochs=1, **all_given)
        workflow("evaluating", "evaluate", partition="training", **all_given, **NO_PICTURES)
        rows = predictions(out)
        assert list(rows[0])[2] == ("positive" if name == "plain" else "malignant")
        probabilities.append([(row["slide"], row["head"], row["label"], list(row.values())[2]) for row in rows])
    assert probabilities[0] == probabilities[1]


def test_labels_that_are_all_0_are_told_in_one_line_before_anything_is_done(
    workflow, cohort, trained, entries, tmp_path, capsys
):
    none = {part: [{**slide, "label": "benign"} for slide in slides] for part, slides in entries.items()}
    own = base_settings(cohort, trained, tmp_path, datalist=write_list(tmp_path / "none.csv", none), **OWN)
    workflow("training", "train", epochs=1, **own)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no slide has" in line]
    assert " WARNING " in line
    assert "training: no slide has malignant; validation: no slide has malignant. Such a class cannot be" in line
    workflow("evaluating", "evaluate", **own, **NO_PICTURES)
    assert {row["label"] for row in predictions(tmp_path)} == {"0"}
    assert np.isfinite([float(row["malignant"]) for row in predictions(tmp_path)]).all()
