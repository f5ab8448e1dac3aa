"""``ensembling`` makes one set of weights of several trainings, and every workflow uses it as weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.errors import mistake_in
from scripts.weights.operating_point import OPERATING_POINT
from scripts.weights.record import read_origin
from tests.worlds import CLASSES, PICTURES, World

HEADS = ["global", "5x", "10x"]

pytestmark = pytest.mark.slow


def trained(world: World, **settings: Any) -> list[str]:
    """The folders of the weights of three trainings with seeds of their own."""
    folders = []
    for seed in range(3):
        made = world.settings_for("train", seed=seed, split_seed=0, epochs=2, **settings)
        world.run("train", **made)
        folders.append(made["ckpt_dir"])
    return folders


def ensemble(world: World, members: Any) -> str:
    made = world.settings_for("ensemble", members=members, ckpt_dir="OUT/models")
    world.run("ensemble", **made)
    return str(made["ckpt_dir"])


@pytest.fixture(scope="module")
def members(world: World) -> list[str]:
    return world.members([0, 1, 2])


@pytest.fixture(scope="module")
def together(world: World, members: list[str]) -> str:
    return ensemble(world, members)


def table(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(rows: list[dict[str, str]], suffix: str = "", classes: list[str] = CLASSES) -> np.ndarray:
    return np.array([[float(row[f"{name}{suffix}"]) for name in classes] for row in rows])


@pytest.mark.parametrize("config", ["evaluate", "inference"])
def test_predictions_are_the_mean_of_the_members_with_their_spread(
    world: World, members: list[str], together: str, config: str
) -> None:
    quick = {"report": False, **({"heatmaps": False} if config == "inference" else {})}
    rows = table(world.run(config, ckpt_dir=together, **quick))
    of_members = [table(world.run(config, ckpt_dir=folder, **quick)) for folder in members]
    assert [(row["slide"], row["head"]) for row in rows] == [(row["slide"], row["head"]) for row in of_members[0]]
    calibrated = np.stack([numbers(of_member, "_calibrated") for of_member in of_members])
    assert numbers(rows) == pytest.approx(calibrated.mean(axis=0), abs=1e-5)
    assert numbers(rows, "_calibrated") == pytest.approx(calibrated.mean(axis=0), abs=1e-5)
    assert numbers(rows, "_spread") == pytest.approx(calibrated.std(axis=0, ddof=1), abs=1e-5)
    assert numbers(rows, "_spread").max() > 0


def test_decisions_are_at_the_mean_of_the_members_thresholds(world: World) -> None:
    members = trained(world, threshold="youden")
    together = ensemble(world, members)
    metrics = json.loads((world.run("evaluate", ckpt_dir=together) / "metrics.json").read_text())
    for head in HEADS:
        file = "model.pt" if head == "global" else f"model_{head}.pt"
        points = [read_origin(Path(folder) / file)[OPERATING_POINT][head]["classes"] for folder in members]
        for name in CLASSES:
            wanted = np.mean([of_class[name]["threshold"] for of_class in points])
            assert metrics[head]["operating_point"]["classes"][name]["threshold"] == pytest.approx(wanted)


def test_an_evaluation_says_that_it_is_of_an_ensemble(
    world: World, together: str, capfd: pytest.CaptureFixture[str]
) -> None:
    output = world.run("evaluate", **PICTURES, ckpt_dir=together)
    page = (output / "report.html").read_text()
    assert "an ensemble of 3, each trained on 4 slides, chosen on 2 at most" in page
    row = table(output)[0]
    # The spread is around the mean, which `calibrating` may take elsewhere.
    mean, spread, calibrated = (f"{float(row[f'cancer{of}']):.3f}" for of in ("", "_spread", "_calibrated"))
    assert f"<td>{mean} ± {spread} <small>{calibrated}</small></td>" in page
    spread = json.loads((output / "metrics.json").read_text())["global"]["spread"]
    assert spread["mean"] == pytest.approx(
        numbers([row for row in table(output) if row["head"] == "global"], "_spread").mean(), abs=1e-6
    )
    assert "members of the ensemble were trained on other slides" not in capfd.readouterr().err
    world.run("evaluate", ckpt_dir=together, datalist=world.fewer)
    assert "3 of the 3 members of the ensemble were trained on other slides" in capfd.readouterr().err


def maps(world: World, folder: str) -> dict[str, np.ndarray]:
    """The columns of ``patches.csv`` that are values of maps, without cells of other scales."""
    output = world.run("inference", ckpt_dir=folder, report=False, heatmap_classes=CLASSES)
    with next(output.rglob("patches.csv")).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.endswith(("_attention", "_contribution"))]
    return {name: np.array([float(row[name]) for row in rows if row[name]]) for name in names}


def test_heatmaps_are_those_of_the_mean(world: World, members: list[str], together: str) -> None:
    found, of_members = maps(world, together), [maps(world, folder) for folder in members]
    assert found
    for name, values in found.items():
        assert values == pytest.approx(np.mean([of[name] for of in of_members], axis=0), abs=1e-5), name


@pytest.mark.parametrize("settings", [
    {"task": "binary", "positive_classes": ["cancer"]},
    {"method": "msmil"},
    {"method": "ssmil"},
    {"magnifications": [10], "feature_dir": "OUT/features"},
], ids=lambda settings: "-".join(map(str, settings.values())))  # fmt: skip
def test_every_task_and_method_has_ensembles(world: World, settings: dict[str, Any]) -> None:
    together = ensemble(world, trained(world, **settings))
    features = {key: settings[key] for key in settings if key == "feature_dir"}
    rows = table(world.run("evaluate", ckpt_dir=together, **features))
    spreads = [name for name in rows[0] if name.endswith("_spread")]
    assert spreads
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in spreads)


def test_calibrating_decides_again_on_the_mean(world: World, members: list[str]) -> None:
    together = ensemble(world, members)
    world.run("calibrate", ckpt_dir=together, threshold="youden", calibration="temperature")
    for head in HEADS:
        origin = read_origin(Path(together) / ("model.pt" if head == "global" else f"model_{head}.pt"))
        point = origin[OPERATING_POINT][head]
        assert point["rule"] == "youden"
        assert {of_class["shift"] for of_class in point["classes"].values()} == {0.0}
        assert {of_class["slope"] for of_class in point["classes"].values()} != {1.0}
    rows = table(world.run("evaluate", ckpt_dir=together))
    assert (numbers(rows) != numbers(rows, "_calibrated")).any()


def test_the_prior_is_corrected_in_each_member_or_not_at_all(world: World) -> None:
    together = ensemble(world, trained(world, prior_correction=False))
    with pytest.raises(RuntimeError) as refused:
        world.run("calibrate", ckpt_dir=together, prior_correction=True)
    assert "the ensemble's members were calibrated without it" in str(mistake_in(refused.value))
    world.run("calibrate", ckpt_dir=together)
    assert (
        read_origin(Path(together) / "model.pt")["recalibrated"]["made_by"]["configuration"]["prior_correction"]
        is False
    )
