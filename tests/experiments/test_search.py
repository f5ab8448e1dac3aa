"""The grid search: which point wins, what is told of all, what is refused."""

from __future__ import annotations

import csv
import json

import pytest

import scripts.experiments.search
from scripts.core.errors import SettingsError
from scripts.experiments.search import GridSearch
from tests.experiments.test_board import events_of, settings_of

SETTINGS = {"method": "mustmil", "magnifications": [5, 10], "seed": 0}


@pytest.fixture
def trials(monkeypatch):
    """Trials whose loss is |lr - 0.01| + num_nodes / 1e6, without a training; the names of those that ran."""
    ran = []

    def run(experiments, bundle_root, num_processes, desc):
        failed = {}
        for one in experiments:
            if (one.folder / "done.json").is_file():
                continue
            ran.append(one.name)
            if one.settings["lr"] > 1:
                failed[one.name] = SettingsError("lr", "the loss is nan", "Lower it.")
                continue
            one.folder.mkdir(parents=True)
            (one.folder / "done.json").touch()
            loss = abs(one.settings["lr"] - 0.01) + one.settings.get("num_nodes", 0) / 1e6
            best = {"global": {"validation_loss": loss, "epoch": 2}}
            told = {"phases": [{"seconds": 1.5}], "best": best}
            (one.folder / "training.json").write_text(json.dumps(told))
        return failed

    monkeypatch.setattr(scripts.experiments.search, "run_experiments", run)
    return ran


def test_the_lowest_validation_loss_of_the_whole_grid_wins(trials, tmp_path, capsys):
    grid = {"lr": [0.1, 0.01, 0.001], "num_nodes": [128, 64]}
    best = GridSearch(grid, SETTINGS, tmp_path).run()
    assert best.settings == {"lr": 0.01, "num_nodes": 64}
    assert len(trials) == 6
    assert json.loads((tmp_path / "best.json").read_text()) == best.settings
    with open(tmp_path / "search.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(float(line["lr"]), int(line["num_nodes"])) for line in lines} == {
        (a, b) for a in grid["lr"] for b in grid["num_nodes"]
    }
    losses = [float(line["global_validation_loss"]) for line in lines]
    assert losses == sorted(losses)
    assert "--lr 0.01 --num_nodes 64" in capsys.readouterr().out
    for line in lines:
        events = events_of(tmp_path / "tensorboard" / line["trial"])
        assert settings_of(events)["lr"].number_value == float(line["lr"])
        assert events.Scalars("global/validation_loss")[0].value == pytest.approx(float(line["global_validation_loss"]))


def test_a_head_that_does_not_learn_ranks_nothing(trials, tmp_path):
    with pytest.raises(SettingsError, match="alpha and beta: both are 0"):
        GridSearch({"lr": [0.1]}, {**SETTINGS, "alpha": 0.0, "beta": 0.0}, tmp_path).run()
    with pytest.raises(SettingsError, match="5x"):  # these trials have a global head alone
        GridSearch({"lr": [0.1], "alpha": [0.0]}, SETTINGS, tmp_path).run()


def test_a_larger_grid_runs_only_what_is_new(trials, tmp_path):
    GridSearch({"lr": [0.1, 0.01]}, SETTINGS, tmp_path).run()
    first = list(trials)
    GridSearch({"lr": [0.001, 0.1, 0.01]}, SETTINGS, tmp_path).run()
    assert len(trials) == 3
    assert trials[:2] == first


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, r"grid: got \{\}\. Give values for settings"),
        ("lr", "grid: got 'lr'"),
        (
            {"learning_rate": [1.0]},
            "grid: 'learning_rate' is no setting of the search. Known are epochs, optimizer_name",
        ),
        ({"lr": 0.1}, "grid lr: got 0.1. Give a list of values"),
        ({"lr": []}, r"grid lr: got \[\]"),
        ({"lr": [0.1, -1.0]}, "lr: got -1.0"),
        ({"lr": [0.1, 0.1]}, r"grid lr: got \[0.1, 0.1\]. Name each value once"),
        ({"optimizer_name": ["Adam", "Adan"]}, "optimizer_name: got 'Adan'. Choose one of Adam"),
        ({"epochs": [2.5]}, "epochs: got 2.5"),
    ],
)
def test_a_grid_that_cannot_be_searched_is_refused_before_anything_runs(grid, message, tmp_path):
    with pytest.raises(SettingsError, match=message):
        GridSearch(grid, SETTINGS, tmp_path)


def test_a_trial_without_a_result_is_named(trials, tmp_path):
    search = GridSearch({"lr": [0.1]}, SETTINGS, tmp_path)
    search.run()
    (told,) = tmp_path.glob("trials/*/training.json")
    told.write_text("{}")
    with pytest.raises(SettingsError, match="does not hold the result of a trial .*Delete the folder"):
        search.run()


def test_a_trial_that_fails_costs_nothing_but_itself(trials, tmp_path, capsys):
    best = GridSearch({"lr": [1e30, 0.01]}, SETTINGS, tmp_path).run()
    assert best.settings == {"lr": 0.01}
    assert "2 trials, 1 of them failed" in capsys.readouterr().out
    with open(tmp_path / "search.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["global_validation_loss"] for line in lines] == ["0.0", "failed"]
    with pytest.raises(SettingsError, match="the loss is nan"):
        GridSearch({"lr": [1e30, 1e29]}, SETTINGS, tmp_path / "all").run()


def test_no_trial_has_a_slide_that_is_left_out(monkeypatch, tmp_path):
    seen = []
    told = SettingsError("lr", "the loss is nan", "Lower it.")
    monkeypatch.setattr(
        scripts.experiments.search,
        "run_experiments",
        lambda runs, *_, **__: seen.extend(runs) or {run.name: told for run in runs},
    )
    with pytest.raises(SettingsError, match="the loss is nan"):
        GridSearch({"lr": [0.1, 0.01]}, {**SETTINGS, "leave_out": ["c"]}, tmp_path).run(["b"])
    assert [run.settings["leave_out"] for run in seen] == [["b", "c"]] * 2
