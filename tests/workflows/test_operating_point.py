"""The operating point of a training: who decides it, and who uses it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logit

from scripts.datalists.classes import balanced_weights
from scripts.weights.calibration import prior_shift
from scripts.weights.record import read_origin
from tests.conftest import ROOT
from tests.worlds import CLASSES, LABELS, PARTITIONS, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield World(tmp_path_factory.mktemp("points"))


def trained(world: World, **settings: Any) -> tuple[Path, dict[str, Any]]:
    """The folder of the weights of a training, and the operating point of the file that predicts."""
    made = world.settings_for("train", **settings)
    world.run("train", **made)
    folder = Path(made["ckpt_dir"])
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
    trained(world, threshold="sensitivity=0.9")
    told = capfd.readouterr().err
    assert "correction of the prior, in logits: cancer " in told
    assert "operating point of head global on 2 validation slides: calibration temperature" in told
    assert "their thresholds are not to be trusted: fewer than 10 validation slides have these classes" in told


def test_a_resumed_training_stores_the_point_of_one_that_was_not_stopped(world: World) -> None:
    _, whole = trained(world, epochs=3)
    made = world.settings_for("train", epochs=1)
    world.run("train", **made)
    world.run("train", **{**made, "epochs": 3, "resume": True})
    assert read_origin(Path(made["ckpt_dir"]) / "model.pt")["operating_point"] == whole
