"""The operating point of a training: who decides it, and who uses it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logit

from scripts.core.errors import mistake_in
from scripts.datalists.classes import balanced_weights
from scripts.networks.state_record import weights_sha256
from scripts.weights.calibration import prior_shift
from scripts.weights.record import read_origin, read_weights
from tests.worlds import CLASSES, LABELS, PARTITIONS, World


def trained(world: World, **settings: Any) -> tuple[Path, dict[str, Any]]:
    """The folder of the weights of a training, and the operating point of the file that predicts."""
    folder = world.train(**settings)
    served = "model.pt" if (folder / "model.pt").is_file() else "model_10x.pt"
    return folder, read_origin(folder / served)["operating_point"]


def table(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def with_labels(world: World, name: str, partition: str) -> str:
    """A datalist in which the slides of a partition have all other classes."""
    lines = ["image,label,patient,partition"]
    for i, (label, of) in enumerate(zip(LABELS, PARTITIONS, strict=True)):
        others = ";".join(c for c in CLASSES if c not in label.split(";"))
        lines.append(f"s{i}.tif,{others if of == partition else label},p{i},{of}")
    (world.cohort / name).write_text("\n".join(lines) + "\n")
    return str(world.cohort / name)


def test_labels_of_test_slides_change_no_threshold_and_those_of_validation_slides_do(world: World) -> None:
    _, plain = trained(world, threshold="f1")
    _, tested = trained(world, threshold="f1", datalist=with_labels(world, "tested.csv", "testing"))
    _, validated = trained(world, threshold="f1", datalist=with_labels(world, "validated.csv", "validation"))
    assert plain == tested
    assert plain != validated


def test_the_shift_is_that_of_the_training_slides_and_their_balanced_draws(world: World) -> None:
    _, points = trained(world)
    labels = np.array([[name in label.split(";") for name in CLASSES] for label in LABELS[:4]], float)
    wanted = prior_shift(labels, balanced_weights(labels))
    for point in points.values():
        assert [one["shift"] for one in point["classes"].values()] == pytest.approx(wanted)
        assert point["slides"] == PARTITIONS.count("validation")


@pytest.mark.parametrize(
    ("method", "heads"), [("mustmil", ["global", "5x", "10x"]), ("ssmil", ["5x", "10x"]), ("msmil", ["global"])]
)
def test_evaluating_and_inferring_use_it_for_every_head(world: World, method: str, heads: list[str]) -> None:
    folder, _ = trained(world, method=method, epochs=2, threshold="youden")
    evaluated = world.run("evaluate", ckpt_dir=str(folder))
    predicted = world.run("inference", ckpt_dir=str(folder), heatmaps=False, report=False)
    metrics = json.loads((evaluated / "metrics.json").read_text())
    for rows in (table(evaluated), table(predicted)):
        assert sorted({row["head"] for row in rows}) == sorted(heads)
        for row in rows:
            served = "model.pt" if (folder / "model.pt").is_file() else "model_10x.pt"
            file = f"model_{row['head']}.pt" if rows == table(evaluated) and row["head"] != "global" else served
            point = read_origin(folder / file)["operating_point"][row["head"]]["classes"]
            decided = []
            for name in CLASSES:
                one, p = point[name], float(row[name])
                wanted = one["slope"] * (logit(p) + one["shift"]) + one["intercept"]
                assert logit(float(row[f"{name}_calibrated"])) == pytest.approx(wanted, abs=1e-4)
                decided += [name] if float(row[f"{name}_calibrated"]) >= one["threshold"] else []
            assert row["decision"] == ";".join(decided or ["0"] * len(CLASSES))
    for head in heads:
        told = metrics[head]["operating_point"]["classes"]
        own = read_origin(folder / ("model.pt" if head == "global" else f"model_{head}.pt"))["operating_point"][head]
        assert {name: one["threshold"] for name, one in told.items()} == pytest.approx(
            {name: one["threshold"] for name, one in own["classes"].items()}
        )


def test_it_is_told_and_thresholds_of_few_slides_are_warned_of(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.run("train", threshold="sensitivity=0.9")
    told = capfd.readouterr().err
    assert "correction of the prior, in logits: cancer " in told
    assert "operating point of head global on 2 validation slides: calibration temperature" in told
    assert "their thresholds are not to be trusted: fewer than 10 validation slides have these classes" in told


@pytest.mark.parametrize("config", ["evaluate", "inference"])
def test_an_output_that_was_not_trained_is_warned_of_once_where_its_weights_are_used(
    world: World, capfd: pytest.CaptureFixture[str], config: str
) -> None:
    folder = world.train(alpha=0.0)
    capfd.readouterr()
    world.run(config, ckpt_dir=str(folder))
    warnings = [line for line in capfd.readouterr().err.splitlines() if "may mean nothing" in line]
    assert len(warnings) == 1
    assert "by the head global may mean nothing: its training, with alpha 0 and beta 1, did not train it" in warnings[0]


def test_a_resumed_training_stores_the_point_of_one_that_was_not_stopped(world: World) -> None:
    _, whole = trained(world, epochs=3)
    made = world.settings_for("train", epochs=1)
    world.run("train", **made)
    world.run("train", **{**made, "epochs": 3, "resume": True})
    assert read_origin(Path(made["ckpt_dir"]) / "model.pt")["operating_point"] == whole


def calibrated(world: World, folder: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    """The origins of the files of weights, by name, after ``calibrating``."""
    world.run("calibrate", ckpt_dir=str(folder), **settings)
    return {path.name: read_origin(path) for path in sorted(folder.glob("model*.pt"))}


def points_of(folder: Path) -> dict[str, Any]:
    return {path.name: read_origin(path)["operating_point"] for path in sorted(folder.glob("model*.pt"))}


def checksums_of(folder: Path) -> dict[str, str]:
    return {path.name: weights_sha256(read_weights(path)) for path in folder.glob("model*.pt")}


RULES = [
    {"threshold": "youden"},
    {"calibration": "none", "threshold": 0.3},
    {"calibration": "platt", "threshold": "sensitivity=0.9", "prior_correction": False},
]


@pytest.mark.parametrize("rules", RULES)
def test_calibrating_stores_what_a_training_with_these_rules_would_store(world: World, rules: dict[str, Any]) -> None:
    folder, _ = trained(world)
    before, weights = points_of(folder), checksums_of(folder)
    wanted = points_of(trained(world, **rules)[0])
    origins = calibrated(world, folder, **rules)
    assert {name: origin["operating_point"] for name, origin in origins.items()} == wanted != before
    assert checksums_of(folder) == weights
    for name, origin in origins.items():
        assert origin["recalibrated"]["before"] == before[name]
        stored = origin["recalibrated"]["made_by"]["configuration"]
        assert {key: stored[key] for key in rules} == rules
        # The training is what it was, and its files still belong together.
        assert origin["made_by"]["configuration"]["threshold"] == 0.5
    rows = table(world.run("inference", ckpt_dir=str(folder), heatmaps=False, report=False))
    for row in rows:
        classes = wanted["model.pt"][row["head"]]["classes"]
        decided = [name for name in CLASSES if float(row[f"{name}_calibrated"]) >= classes[name]["threshold"]]
        assert row["decision"] == ";".join(decided or ["0"] * len(CLASSES))


@pytest.mark.parametrize(("method", "epochs"), [("ssmil", 2), ("msmil", 3)])
def test_calibrating_without_options_decides_as_before(world: World, method: str, epochs: int) -> None:
    folder, _ = trained(world, method=method, epochs=epochs, threshold="f1", calibration="platt")
    before = points_of(folder)
    calibrated(world, folder)
    assert points_of(folder) == before
    calibrated(world, folder, threshold=0.7)
    again = calibrated(world, folder)
    served = "model.pt" if method == "msmil" else "model_10x.pt"
    assert {point["rule"] for point in again[served]["operating_point"].values()} >= {0.7}
    # However often it is decided again, what the training had found is kept.
    assert again[served]["recalibrated"]["before"] == before[served]


def test_the_correction_that_a_training_left_out_is_that_of_its_slides(world: World) -> None:
    wanted = points_of(trained(world)[0])
    folder, _ = trained(world, prior_correction=False)
    with pytest.raises(RuntimeError) as refused:
        calibrated(world, folder, prior_correction=True, datalist=world.fewer)
    cause = "the weights do not record it, and the datalist does not have their training slides"
    assert cause in str(mistake_in(refused.value))
    calibrated(world, folder, prior_correction=True)
    assert points_of(folder) == wanted
    # It is known now, whatever slides the datalist has.
    calibrated(world, folder, prior_correction=True, datalist=world.fewer)
    shifts = [one["shift"] for one in points_of(folder)["model.pt"]["global"]["classes"].values()]
    assert shifts == [one["shift"] for one in wanted["model.pt"]["global"]["classes"].values()] != [0, 0, 0]


@pytest.mark.parametrize(("partition", "names"), [("testing", "s6, s7"), ("training", "s0, s1, s2, ...")])
def test_test_and_training_slides_are_refused_and_change_nothing(world: World, partition: str, names: str) -> None:
    folder, _ = trained(world)
    before = {path.name: path.read_bytes() for path in folder.glob("model*.pt")}
    with pytest.raises(RuntimeError) as refused:
        calibrated(world, folder, threshold="f1", data=f"$@cohort.partition('{partition}')")
    assert f"are no validation slides of the datalist ({names})" in str(mistake_in(refused.value))
    assert {path.name: path.read_bytes() for path in folder.glob("model*.pt")} == before


def test_labels_of_test_slides_have_no_part_in_calibrating(world: World) -> None:
    folder, _ = trained(world)
    plain = calibrated(world, folder, threshold="f1")["model.pt"]["operating_point"]
    tested = calibrated(world, folder, threshold="f1", datalist=with_labels(world, "tested.csv", "testing"))
    assert tested["model.pt"]["operating_point"] == plain


def test_what_was_before_is_told(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    folder, _ = trained(world, threshold=0.4)
    capfd.readouterr()
    calibrated(world, folder, threshold=0.6)
    told = capfd.readouterr().err
    before = re.search(r"before, model.pt, head global on 2 validation slides: calibration temperature .*", told)
    assert before is not None
    assert "threshold 0.4 (cancer 0.400, hgd 0.400, lgd 0.400)" in before[0]
    assert re.search(r"operating point of head global on 2 validation slides: .*threshold 0.6 \(cancer 0.600", told)
    assert "model.pt; its weights are as they were" in told
