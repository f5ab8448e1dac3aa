"""The multiclass and the ordinal task: from a column of classes, or numbers, to scores, maps and a bundle."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from bundle.metadata import fit_metadata
from scripts.core.errors import mistake_in
from scripts.core.tasks import TASKS
from scripts.weights.record import read_origin, read_record
from tests.conftest import ROOT
from tests.worlds import PARTITIONS, PICTURES, World

GRADES = ["lgd", "hgd", "cancer"]
OF_SLIDE = [2, 1, 0, 0, 2, 1, 1, 2]
HEADS = ["global", "5x", "10x"]


def datalist(world: World, name: str, labels: list[Any]) -> str:
    lines = [f"s{i}.tif,{label},p{i},{PARTITIONS[i]}" for i, label in enumerate(labels)]
    (world.cohort / name).write_text("\n".join(["image,label,patient,partition", *lines]) + "\n")
    return str(world.cohort / name)


def settings_of(world: World, task: str, **others: Any) -> dict[str, Any]:
    """Of the training and what follows it; multiclass labels are names, ordinal ones numbers."""
    labels = [GRADES[grade] if task == "multiclass" else grade for grade in OF_SLIDE]
    return {"task": task, "class_names": GRADES, "datalist": datalist(world, f"{task}.csv", labels), **others}


@pytest.fixture(scope="module")
def trained(world: World) -> dict[str, Path]:
    """The folder of the weights of each task."""
    folders = {}
    for task in ("multiclass", "ordinal"):
        made = world.settings_for("train", **settings_of(world, task), epochs=2)
        world.run("train", **made)
        folders[task] = Path(made["ckpt_dir"])
    return folders


def table(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refused(world: World, config: str, **given: Any) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (MONAI raises what it likes around the error)
        world.run(config, **given)
    return str(mistake_in(caught.value))


@pytest.mark.parametrize(
    ("config", "given"),
    [("train", {}), ("compare", {"folds": 2}), ("cross_validate", {"folds": 2}), ("search", {})],
)
def test_a_patient_of_two_classes_is_refused_before_anything_is_extracted(
    world: World, config: str, given: dict[str, Any]
) -> None:
    lines = [f"s{i}.tif,{grade},q{i // 2},{PARTITIONS[i]}" for i, grade in enumerate([0, 0, 1, 2, 0, 0, 1, 1])]
    path = world.cohort / "two_classes.csv"
    path.write_text("\n".join(["image,label,patient,partition", *lines]) + "\n")
    own = {"task": "ordinal", "class_names": GRADES, "datalist": str(path), "feature_dir": "OUT/features", **given}
    made = world.settings_for(config, unit="patient", **own)
    told = "unit patient: slides of 1 patients have different classes (q1). Give all slides of a patient one class"
    assert told in refused(world, config, **made)
    assert not Path(made["feature_dir"]).exists()


@pytest.mark.parametrize("task", ["multiclass", "ordinal"])
def test_every_slide_gets_one_class_by_every_head(world: World, trained: dict[str, Path], task: str) -> None:
    own = settings_of(world, task)
    # Maps of one task are of classes, as elsewhere, those of the other of what is above a class.
    drawn = PICTURES if task == "ordinal" else {"report": True}
    out = world.run("evaluate", **drawn, ckpt_dir=str(trained[task]), partition="training", **own)
    rows = table(out)
    calibrated = [f"{name}_calibrated" for name in GRADES]
    assert list(rows[0]) == ["slide", "head", *GRADES, *calibrated, "decision", "label", "patient_number"]
    assert {row["slide"]: row["label"] for row in rows} == {f"s{i}": GRADES[OF_SLIDE[i]] for i in range(4)}
    for row in rows:
        for names in (GRADES, calibrated):
            p = np.array([float(row[name]) for name in names])
            assert p.sum() == pytest.approx(1, abs=1e-5)
            assert p.min() >= 0
        assert [row["decision"]] == [n for n, d in zip(GRADES, TASKS[task].decided(p), strict=True) if d]

    metrics = json.loads((out / "metrics.json").read_text())
    for head in HEADS:
        of_head = sorted((row for row in rows if row["head"] == head), key=lambda row: row["slide"])
        p = np.array([[float(row[name]) for name in GRADES] for row in of_head])
        truth, decided = np.array(OF_SLIDE[:4]), TASKS[task].decided(p).argmax(axis=1)
        found = {name: metrics[head][name]["value"] for name in TASKS[task].scores}
        wanted = {
            "accuracy": sk.accuracy_score(truth, decided),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, decided),
            "macro_f1": sk.f1_score(truth, decided, labels=range(3), average="macro", zero_division=0),
            "roc_auc": sk.roc_auc_score(truth, p, multi_class="ovr", average="macro"),
        }
        if task == "ordinal":
            wanted["quadratic_kappa"] = sk.cohen_kappa_score(truth, decided, labels=range(3), weights="quadratic")
        assert found == pytest.approx(wanted, abs=1e-6)
        confusion = sk.confusion_matrix(truth, decided, labels=range(3)).tolist()
        assert metrics[head]["confusion"]["slides_with_one_class"] == confusion
        point = metrics[head]["operating_point"]
        decisions = [row["decision"] for row in of_head]
        right = np.mean([d == GRADES[g] for d, g in zip(decisions, truth, strict=True)])
        assert point["accuracy"]["value"] == pytest.approx(right)
        assert "threshold" not in point["classes"]["hgd"]
    page = (out / "report.html").read_text()
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]
    assert shown["classes"] == TASKS[task].logit_names(GRADES)
    for slide in shown["slides"]:
        p = [[float(row[name]) for name in GRADES] for row in rows if row["slide"] == slide["name"]]
        assert np.allclose(slide["probabilities"], TASKS[task].per_logit(np.array(p)), atol=1e-4)
        (row,) = (row for row in rows if (row["slide"], row["head"]) == (slide["name"], "global"))
        decided = GRADES[TASKS[task].decided(p[0]).argmax()]
        assert slide["prediction"] == decided
        assert slide["is_wrong"] == (decided != row["label"])
    rule = {"multiclass": "the most probable class", "ordinal": "the median class"}[task]
    assert f"At the operating point, by the head 5x: calibrated, {rule}" in page


def test_the_prior_of_the_draws_is_taken_back_exactly(world: World, trained: dict[str, Path]) -> None:
    own = settings_of(world, "multiclass")
    rows = table(world.run("evaluate", ckpt_dir=str(trained["multiclass"]), **own))
    # Of the four training slides two are lgd, and each class is drawn as often.
    shift = np.log([0.5, 0.25, 0.25]) - np.log(1 / 3)
    for row in rows:
        file = "model.pt" if row["head"] == "global" else f"model_{row['head']}.pt"
        point = read_origin(trained["multiclass"] / file)["operating_point"][row["head"]]
        assert point["rule"] == "the most probable class"
        assert [one["shift"] for one in point["classes"].values()] == pytest.approx(shift)
        logits = np.log([float(row[name]) for name in GRADES]) + shift
        wanted = softmax(logits * point["classes"]["hgd"]["slope"])
        assert [float(row[f"{name}_calibrated"]) for name in GRADES] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("task", "maps"), [("multiclass", GRADES), ("ordinal", ["above lgd", "above hgd"])])
def test_maps_are_of_the_classes_or_of_what_is_above_them(
    world: World, trained: dict[str, Path], task: str, maps: list[str]
) -> None:
    given = {"heatmap_formats": "plain", "heatmap_classes": maps, "top_patches": 1}
    out = world.run("inference", ckpt_dir=str(trained[task]), class_names=GRADES, **given)
    found = {path.name for path in out.glob("heatmaps/s0/*_plain.png")}
    plain = [name.replace(" ", "_") for name in maps]
    kinds = ("", "_contribution")
    assert found == {f"{head}_{name}{kind}_plain.png" for head in HEADS for name in plain for kind in kinds}
    with (out / "heatmaps" / "s0" / "patches.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert [column for column in columns if column.endswith("_contribution")] == [
        f"{head}_{name}_contribution" for head in HEADS for name in maps
    ]
    rows = table(out)
    assert [row["head"] for row in rows] == HEADS
    assert list(rows[0]) == ["slide", "head", *GRADES, *(f"{name}_calibrated" for name in GRADES), "decision"]


@pytest.mark.parametrize(("task", "logits"), [("multiclass", GRADES), ("ordinal", ["above lgd", "above hgd"])])
def test_the_weights_say_what_their_logits_and_scores_are(
    world: World, trained: dict[str, Path], task: str, logits: list[str]
) -> None:
    record = read_record(trained[task] / "model.pt")
    assert record["settings"]["task"] == task
    metadata = json.loads((ROOT / "configs" / "metadata.json").read_text())
    fitted = fit_metadata(metadata, record)
    shapes = fitted["network_data_format"]
    pred = shapes["outputs"]["pred"]
    # MONAI Label names by this the scores that it serves, which are those of the classes.
    assert pred["channel_def"] == {str(k): name for k, name in enumerate(GRADES)}
    assert pred.get("logit_def", pred["channel_def"]) == {str(k): name for k, name in enumerate(logits)}
    assert pred["spatial_shape"] == [len(logits)]
    assert shapes["post_processed_outputs"]["pred"]["channel_def"] == {str(k): name for k, name in enumerate(GRADES)}
    assert shapes["post_processed_outputs"]["head_scores"]["spatial_shape"] == [3]
    assert fitted["label_classes"] == f"{task}: lgd, hgd, cancer"


@pytest.mark.parametrize(
    "method", ["ssmil", "msmil", "mil_att", "mil_att_trans", "abmil", "clam_mb", "dsmil", "transmil"]
)
def test_every_method_trains_ordered_classes(world: World, method: str) -> None:
    own = settings_of(world, "ordinal", method=method)
    made = world.settings_for("train", **own, epochs=1)
    world.run("train", **made)
    out = world.run("evaluate", ckpt_dir=made["ckpt_dir"], **own)
    rows = table(out)
    assert {row["decision"] for row in rows} <= set(GRADES)
    for row in rows:
        assert sum(float(row[name]) for name in GRADES) == pytest.approx(1, abs=1e-5)


def test_the_same_labels_as_names_numbers_and_columns_train_the_same(world: World) -> None:
    names = datalist(world, "names.csv", [GRADES[grade] for grade in OF_SLIDE])
    numbers = datalist(world, "numbers.csv", OF_SLIDE)
    rows = [
        ["image", *GRADES, "patient", "partition"],
        *([f"s{i}.tif", *np.eye(3, dtype=int)[g].tolist(), f"p{i}", PARTITIONS[i]] for i, g in enumerate(OF_SLIDE)),
    ]
    columns = world.cohort / "columns.csv"
    columns.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    labels = []
    for path in (names, numbers, str(columns)):
        cohort = world.parse("train", "cohort", task="ordinal", class_names=GRADES, datalist=path)
        labels.append(np.stack([entry["label"] for entry in cohort.partition("training")]))
    assert np.array_equal(labels[0], np.eye(3)[OF_SLIDE[:4]])
    assert np.array_equal(labels[0], labels[1])
    assert np.array_equal(labels[0], labels[2])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"threshold": "f1"}, "threshold: got 'f1', and in the multiclass task the most probable class is decided"),
        ({"threshold": 0.4}, "threshold: got 0.4, and in the multiclass task the most probable class is decided"),
        ({"calibration": "platt"}, "calibration: got 'platt', which fits each class alone"),
        ({"class_names": ["cancer"]}, "class_names: got ['cancer'], and in the multiclass task a slide has one of"),
        ({"positive_classes": ["cancer"]}, "positive_classes: got ['cancer'], and the multiclass task sets no classes"),
    ],
)
def test_settings_that_contradict_the_task_are_refused(world: World, given: dict[str, Any], told: str) -> None:
    assert refused(world, "train", **{**settings_of(world, "multiclass"), **given}).startswith(told)


def test_a_slide_of_two_classes_is_named(world: World) -> None:
    path = datalist(world, "two.csv", ["cancer;lgd", *(GRADES[grade] for grade in OF_SLIDE[1:])])
    told = refused(world, "train", task="multiclass", class_names=GRADES, datalist=path)
    assert "two.csv line 2, slide s0.tif: label 'cancer;lgd' has 2 classes (lgd, cancer)" in told
    assert "in the multiclass task a slide has exactly one" in told


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "ordinal"])
def test_methods_are_compared_cross_validated_and_searched(world: World, command: Any, task: str) -> None:
    own = settings_of(world, task)
    shared = {
        **{key: world.settings_for("compare", **own)[key] for key in ("dataset_dir", "feature_dir", "patch_size")},
        **own, "epochs": 1,
    }  # fmt: skip
    lead = {"multiclass": "balanced accuracy", "ordinal": "quadratic weighted kappa"}[task]
    out = world.out()
    # In folds, which are scored together, or as the datalist has them.
    compared = {"methods": ["mustmil", "mil_att"], "seeds": [0], **({"folds": 2} if task == "ordinal" else {})}
    done = command("comparing", "compare", **shared, **compared, output_dir=out)
    assert done.returncode == 0, done.stderr
    text = (out / "comparison.md").read_text()
    assert f"behind MuSTMIL global in {lead}" in text
    assert "| MILModel att 10x |" in text
    each = "fold" if task == "ordinal" else "training"
    assert f"The same at the operating point of each {each}: calibrated on its validation slides, the m" in text
    assert (out / "attention.png").is_file()
    out = world.out()
    done = command("cross_validating", "cross_validate", **shared, folds=3, output_dir=out)
    assert done.returncode == 0, done.stderr
    with (out / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["head"] == "global"]
    tested = {row["slide"]: row["label"] for row in rows}
    assert tested == {f"s{i}": GRADES[grade] for i, grade in enumerate(OF_SLIDE)}
    told = json.loads((out / "cross_validation.json").read_text())
    found = told["heads"]["global"]["pooled"]
    assert set(TASKS[task].scores) <= found.keys()
    p = np.array([[float(row[f"{grade}_calibrated"]) for grade in GRADES] for row in rows])
    assert p.sum(axis=1) == pytest.approx(np.ones(len(rows)))
    median = (1 - p.cumsum(axis=1)[:, :-1] >= 0.5).sum(axis=1)
    decided = [GRADES[place] for place in (p.argmax(axis=1) if task == "multiclass" else median)]
    assert [row["decision"] for row in rows] == decided
    right = np.mean([row["label"] == row["decision"] for row in rows])
    assert found["operating_point"]["accuracy"]["value"] == pytest.approx(right)
    # Exclusive classes have no thresholds.
    assert all(fold["operating_point"]["global"]["thresholds"] == {} for fold in told["folds"])
    tables = (out / "cross_validation.md").read_text()
    assert f"calibrated on its validation slides, {TASKS[task].decision}. All slides scored together:" in tables
    del shared["epochs"]
    grid = {"lr": [0.001, 0.01], "epochs": [1]}
    done = command("searching", "search", **shared, grid=grid, output_dir=world.out())
    assert done.returncode == 0, done.stderr
    assert "2 trials, 0 of them failed" in done.stdout


@pytest.mark.parametrize("labels", [GRADES, list(range(3))])
def test_checking_writes_a_list_of_the_same_classes(world: World, labels: list[Any]) -> None:
    path = datalist(world, "checked.csv", [labels[grade] for grade in OF_SLIDE])
    out = world.run("check", task="ordinal", class_names=GRADES, datalist=path)
    with (out / "slides.csv").open(newline="") as file:
        rows = {row["slide"]: [int(row[name]) for name in GRADES] for row in csv.DictReader(file)}
    assert rows == {f"s{i}": np.eye(3, dtype=int)[grade].tolist() for i, grade in enumerate(OF_SLIDE)}
