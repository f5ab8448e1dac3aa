"""``comparing`` and ``searching``, as shipped, in processes of their own."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

from scripts.weights.record import read_record
from tests.conftest import ROOT
from tests.torchruns import TORCHRUN

pytestmark = pytest.mark.slow
METHODS, SEEDS = ["mustmil", "msmil"], [0, 1]


def start(preloaded, log, **given):
    options = [f"--{key}={value}" for key, value in given.items()]
    call = ["python", "-m", "monai.bundle", "run", "comparing", "--config_file=configs/compare.json", *options]
    with open(log, "w") as file:
        return preloaded.popen(call, stdout=file, stderr=file, start_new_session=True)


def base_settings(cohort, trained, output):
    return {
        "dataset_dir": cohort, "output_dir": output, "feature_dir": trained / "features",
        "methods": METHODS, "seeds": SEEDS, "epochs": 3, "num_processes": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def compared(cohort, trained, preloaded, tmp_path_factory):
    """The folder of a comparison that was killed in the middle of its runs and started again, and what it printed."""
    output, log = tmp_path_factory.mktemp("compared"), tmp_path_factory.mktemp("logs") / "log.txt"
    process = start(preloaded, log, **base_settings(cohort, trained, output))
    deadline = time.monotonic() + 300
    while not list(output.glob("runs/*/*/models/last.ckpt")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for lock in output.glob("runs/*/*/.lock"):  # its runs end with it, which takes a moment
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    assert not list(output.glob("runs/mustmil/seed_1/done.json"))  # else it came too late
    again = start(preloaded, log, **base_settings(cohort, trained, output))
    assert again.wait(600) == 0, log.read_text()
    return output, log.read_text()


def weights(path):
    state = torch.load(path, weights_only=True)
    return state.get("model", state)


def test_a_killed_comparison_ends_with_a_table_of_every_method_and_seed(compared):
    output, told = compared
    text = (output / "comparison.md").read_text()
    assert text.strip() in told
    for title in ("MuSTMIL global", "MuSTMIL 5x", "MuSTMIL 10x", "MSMIL global", "class frequencies alone"):
        assert f"| {title} " in text
    assert "comparing: 100%" in told.replace("\r", "\n")
    for name in ("comparison.png", "attention.png", "contribution.png"):
        assert (output / name).stat().st_size > 10_000
    with open(output / "runs.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["method"], int(line["seed"])) for line in lines} == {(m, s) for m in METHODS for s in SEEDS}


def test_a_run_of_it_is_the_training_that_a_user_would_have_started(compared, workflow, cohort, trained, tmp_path):
    output, _ = compared
    models = output / "runs" / "mustmil" / "seed_0" / "models"
    names = ["model.pt", "model_10x.pt", "model_5x.pt"]
    assert sorted(path.name for path in models.iterdir()) == names  # what it would have resumed from is gone
    for name in names:
        user, seed_0 = weights(trained / "models" / name), weights(models / name)
        # One thread sums in another order than two.
        assert all(torch.allclose(seed_0[key], user[key], atol=1e-5) for key in user)
    assert not torch.equal(
        weights(output / "runs" / "mustmil" / "seed_1" / "models" / "model.pt")["embed.0.weight"],
        weights(models / "model.pt")["embed.0.weight"],
    )
    workflow(
        "evaluating", "evaluate", dataset_dir=str(cohort), feature_dir=str(trained / "features"), method="msmil",
        output_dir=str(tmp_path), ckpt_dir=str(output / "runs" / "msmil" / "seed_1" / "models"), report=False,
    )  # fmt: skip
    told, found = (
        json.loads((folder / "metrics.json").read_text()) for folder in (output / "runs/msmil/seed_1", tmp_path)
    )
    assert list(found) == ["global", "slides", "patients", "made_by"]
    assert found["global"]["roc_auc"]["value"] == told["global"]["roc_auc"]["value"]


def test_every_seed_is_tested_on_the_same_slides(compared):
    output, _ = compared
    tested = set()
    for path in output.glob("runs/*/*/predictions.csv"):
        with open(path, newline="") as file:
            tested.add(tuple(sorted({line["slide"] for line in csv.DictReader(file)})))
    assert len(tested) == 1


def test_a_second_start_from_another_folder_runs_nothing_and_says_the_same(
    compared, command, cohort, trained, elsewhere
):
    output, _ = compared
    before = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/*.json")}
    table = (output / "comparison.md").read_text()
    again = command("comparing", "compare", folder=elsewhere, **base_settings(cohort, trained, output))
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/*.json")} == before
    assert (output / "comparison.md").read_text() == table


def test_other_settings_in_the_same_folder_are_refused_in_one_line(compared, command, cohort, trained):
    output, _ = compared
    done = command("comparing", "compare", **{**base_settings(cohort, trained, output), "lr": 0.5})
    assert done.returncode == 1
    assert "holds a run with other settings (lr 0.001, now 0.5). Choose another `output_dir`" in done.stderr
    assert "Traceback" not in done.stderr


def test_variants_stand_beside_their_method_whose_finished_runs_are_used(compared, command, cohort, trained, tmp_path):
    output = tmp_path / "again"
    shutil.copytree(compared[0], output)
    before = (output / "runs" / "mustmil" / "seed_0" / "done.json").stat().st_mtime_ns
    own = {"methods": ["mustmil", "mustmil beta=0", "mustmil linking=shuffled"], "seeds": [0]}
    done = command("comparing", "compare", **{**base_settings(cohort, trained, output), **own})
    assert done.returncode == 0, done.stderr
    assert (output / "runs" / "mustmil" / "seed_0" / "done.json").stat().st_mtime_ns == before
    text = (output / "comparison.md").read_text()
    assert "What each part brings" in text
    for title in ("MuSTMIL beta=0 global", "MuSTMIL linking=shuffled global", "MuSTMIL linking=shuffled 5x"):
        assert f"| {title} " in text
    assert "MuSTMIL beta=0 5x" not in text
    shuffled = output / "runs" / "mustmil_linking=shuffled" / "seed_0"
    assert read_record(shuffled / "models" / "model.pt")["settings"]["linking"] == "shuffled"
    # Evaluating by hand takes the linking from the weights.
    told = json.loads((shuffled / "metrics.json").read_text())["made_by"]["configuration"]
    assert told["linking"] == "shuffled"
    by_hand = {"dataset_dir": cohort, "feature_dir": trained / "features", "ckpt_dir": shuffled / "models"}
    done = command("evaluating", "evaluate", output_dir=tmp_path / "by_hand", split_seed=0, report=False, **by_hand)
    assert done.returncode == 0, done.stderr
    scores = [
        [float(line["cancer"]) for line in csv.DictReader((folder / "predictions.csv").read_text().splitlines())]
        for folder in (tmp_path / "by_hand", shuffled, output / "runs" / "mustmil" / "seed_0")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0] != pytest.approx(scores[2], abs=1e-4)


def test_searching_from_another_folder_runs_the_grid_and_names_the_best(command, cohort, trained, tmp_path, elsewhere):
    settings = {
        "dataset_dir": cohort, "output_dir": tmp_path, "feature_dir": trained / "features", "num_processes": 2,
        "grid": {"lr": [0.001, 1e-7], "epochs": [3]},
    }  # fmt: skip
    done = command("searching", "search", folder=elsewhere, **settings)
    assert done.returncode == 0, done.stderr
    assert "--epochs 3 --lr 0.001" in done.stdout
    assert json.loads((tmp_path / "best.json").read_text()) == {"lr": 0.001, "epochs": 3}
    with open(tmp_path / "search.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["lr"]) for line in lines] == [0.001, 1e-7]
    # The trial is the training that a user starts with these settings.
    best = torch.load(trained / "models" / "last.ckpt", weights_only=True)["best"]["losses"]["global"]
    assert float(lines[0]["global_validation_loss"]) == pytest.approx(best, rel=1e-4)
    assert np.isfinite(float(lines[1]["global_validation_loss"]))


def test_under_torchrun_the_ranks_share_the_grid_and_one_tells_of_it(cohort, trained, preloaded, tmp_path):
    settings = {
        "dataset_dir": cohort, "output_dir": tmp_path, "feature_dir": trained / "features",
        "grid": {"lr": [0.001, 1e-7], "epochs": [1]},
    }  # fmt: skip
    options = [f"--{key}={value}" for key, value in settings.items()]
    command = [
        preloaded.python,
        *TORCHRUN,
        "-m",
        "monai.bundle",
        "run",
        "searching",
        "--config_file=configs/search.json",
        *options,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 trials, 0 of them failed") == 1
    assert len(list(tmp_path.glob("trials/*/done.json"))) == 2
