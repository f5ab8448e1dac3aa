"""``cross_validating``, as shipped, in processes of its own."""

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
from sklearn.metrics import f1_score, roc_auc_score

from scripts.datalists.labels import CLASS_NAMES
from scripts.evaluation.label_texts import label_of_text
from tests.conftest import ROOT
from tests.torchruns import TORCHRUN

pytestmark = pytest.mark.slow
FOLDS = 3


def base_settings(cohort, trained, output, **others):
    return {
        "dataset_dir": cohort, "output_dir": output, "feature_dir": trained / "features", "folds": FOLDS, "epochs": 3,
        "num_processes": 2, **others,
    }  # fmt: skip


def start(preloaded, log, **given):
    options = [f"--{key}={value}" for key, value in given.items()]
    call = ["python", "-m", "monai.bundle", "run", "cross_validating", "--config_file=configs/cross_validate.json"]
    with open(log, "w") as file:
        return preloaded.popen([*call, *options], stdout=file, stderr=file, start_new_session=True)


@pytest.fixture(scope="module")
def undisturbed(cohort, trained, preloaded, tmp_path_factory):
    """The folder of a cross-validation that nothing disturbed, and what it printed."""
    output, log = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("logs") / "log.txt"
    process = start(preloaded, log, **base_settings(cohort, trained, output))
    assert process.wait(600) == 0, log.read_text()
    return output, log.read_text()


def test_killed_and_started_again_it_gives_the_same_predictions_to_the_last_digit(
    undisturbed, cohort, trained, preloaded, tmp_path
):
    output, log = tmp_path / "killed", tmp_path / "log.txt"
    # The second kill is of the last fold, which then goes on alone.
    for kill_at in ("fold_1", f"fold_{FOLDS}"):
        process = start(preloaded, log, **base_settings(cohort, trained, output))
        deadline = time.monotonic() + 300
        while not (output / kill_at / "models" / "last.ckpt").exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for lock in output.glob("fold_*/.lock"):  # its runs end with it, which takes a moment
            with open(lock) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        assert not (output / kill_at / "done.json").exists()  # else it came too late
        assert not (output / "predictions.csv").exists()
    again = start(preloaded, log, **base_settings(cohort, trained, output))
    assert again.wait(600) == 0, log.read_text()
    names = ("predictions.csv", "cross_validation.json", "cross_validation.md", "localisation.json", "localisation.csv")
    for name in names:
        assert (output / name).read_bytes() == (undisturbed[0] / name).read_bytes()


def test_every_slide_is_predicted_by_weights_whose_training_has_not_seen_its_patient(undisturbed, cohort):
    output, told = undisturbed
    assert "its partitions are not used: in cross-validation each slide is tested once" in told
    entries = [entry for part in json.loads((cohort / "datalist.json").read_text()).values() for entry in part]
    patient = {entry["image"].split("/")[-1].split(".")[0]: entry["patient"] for entry in entries}
    with open(output / "predictions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert sorted(line["slide"] for line in lines if line["head"] == "global") == sorted(patient)
    for fold in range(1, FOLDS + 1):
        tested = {patient[line["slide"]] for line in lines if line["fold"] == str(fold)}
        listed = json.loads((output / f"fold_{fold}" / "datalist.json").read_text())
        learned = {entry["patient"] for name in ("training", "validation") for entry in listed[name]}
        assert tested
        assert not tested & learned
        assert tested | learned == set(patient.values())
    weights = [
        torch.load(output / f"fold_{fold}" / "models" / "model.pt", weights_only=True)["embed.0.weight"]
        for fold in range(1, FOLDS + 1)
    ]
    assert not torch.equal(weights[0], weights[1])


def test_the_scores_are_those_that_scikit_learn_has_of_the_predictions(undisturbed):
    output, told = undisturbed
    content = json.loads((output / "cross_validation.json").read_text())
    assert (output / "cross_validation.md").read_text().strip() in told
    with open(output / "predictions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for head in ("global", "5x", "10x"):
        own = [line for line in lines if line["head"] == head]
        p = np.array([[float(line[name]) for name in CLASS_NAMES] for line in own])
        y = np.array([label_of_text(line["label"], CLASS_NAMES) for line in own])
        found = content["heads"][head]["pooled"]
        assert found["micro_f1"]["value"] == pytest.approx(f1_score(y, p >= 0.5, average="micro"))
        assert found["roc_auc"]["value"] == pytest.approx(roc_auc_score(y.ravel(), p.ravel()))
    assert content["made_by"]["configuration"]["folds"] == FOLDS


def test_the_maps_of_each_slide_are_compared_with_its_regions_where_it_is_tested(undisturbed):
    output, told = undisturbed
    found, folds = (table(folder / "localisation.csv") for folder in (output, output / "fold_1"))
    each = [line for fold in range(1, FOLDS + 1) for line in table(output / f"fold_{fold}" / "localisation.csv")]
    assert found == each
    assert len(found) > len(folds) > 0
    tested = {line["slide"]: line["fold"] for line in table(output / "predictions.csv")}
    assert {tested[line["slide"]] for line in found} == {str(fold) for fold in range(1, FOLDS + 1)}
    summary = json.loads((output / "localisation.json").read_text())
    for of_map, kind, name in (("global", "attention", "global"), ("5x", "contribution", "5x contribution")):
        aucs = [
            float(line["roc_auc"]) for line in found
            if (line["map"], line["kind"]) == (of_map, kind) and line["roc_auc"]
        ]  # fmt: skip
        of_all = summary[name]["all"]
        assert of_all["roc_auc"]["value"] == pytest.approx(np.mean(aucs))
        low, high = of_all["roc_auc"]["ci95"]
        assert low <= of_all["roc_auc"]["value"] <= high
    assert "Heatmaps, those of each slide by the network that has not seen its patient." in told
    value = summary["global"]["all"]["roc_auc"]
    assert (
        "{:.3f} [{:.3f}, {:.3f}]".format(value["value"], *value["ci95"]) in (output / "cross_validation.md").read_text()
    )


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_fold_is_the_training_that_a_user_starts_with_its_datalist(undisturbed, workflow, cohort, trained, tmp_path):
    output, _ = undisturbed
    workflow(
        "training", "train", dataset_dir=str(cohort), datalist=str(output / "fold_2" / "datalist.json"), epochs=3,
        feature_dir=str(trained / "features"), output_dir=str(tmp_path), ckpt_dir=str(tmp_path),
    )  # fmt: skip
    own, of_fold = (torch.load(f / "model.pt", weights_only=True) for f in (tmp_path, output / "fold_2" / "models"))
    # One thread sums in another order than two.
    assert all(torch.allclose(own[key], of_fold[key], atol=1e-5) for key in own)


def test_comparing_in_folds_gives_the_predictions_of_cross_validating_for_each_method(
    undisturbed, command, cohort, trained, tmp_path
):
    own = base_settings(cohort, trained, tmp_path, methods=["mustmil", "msmil"], seeds=[0])
    done = command("comparing", "compare", **own)
    assert done.returncode == 0, done.stderr
    tables = (tmp_path / "comparison.md").read_text()
    assert f" in {FOLDS} folds, each tested once, and scored together, 1 trainings of each method" in tables
    with open(undisturbed[0] / "predictions.csv", newline="") as file:
        expected = {(line["slide"], line["head"]): line["cancer"] for line in csv.DictReader(file)}
    found = {}
    for fold in range(1, FOLDS + 1):
        with open(tmp_path / f"runs/mustmil/seed_0/fold_{fold}/predictions.csv", newline="") as file:
            found |= {(line["slide"], line["head"]): float(line["cancer"]) for line in csv.DictReader(file)}
    assert found == {key: pytest.approx(float(value), abs=1e-4) for key, value in expected.items()}
    scores = json.loads((undisturbed[0] / "cross_validation.json").read_text())["heads"]["global"]["pooled"]
    with open(tmp_path / "comparison.csv", newline="") as file:
        means = {(r["method"], r["output"], r["class"], r["score"]): r["mean"] for r in csv.DictReader(file)}
    assert float(means["mustmil", "global", "", "micro_f1"]) == pytest.approx(scores["micro_f1"]["value"], abs=0.02)
    with open(tmp_path / "runs.csv", newline="") as file:
        assert [line["fold"] for line in csv.DictReader(file) if line["output"] == "5x"] == ["1", "2", "3"]
    assert (tmp_path / "attention.png").stat().st_size > 10_000


def test_a_second_start_from_another_folder_runs_nothing_and_says_the_same(
    undisturbed, command, cohort, trained, elsewhere
):
    output, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in output.glob("fold_*/*/*.pt")}
    table = (output / "cross_validation.md").read_text()
    again = command("cross_validating", "cross_validate", folder=elsewhere, **base_settings(cohort, trained, output))
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in output.glob("fold_*/*/*.pt")} == before
    assert (output / "cross_validation.md").read_text() == table


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"folds": 2}, "holds a run with other settings"),
        ({"folds": 50}, "patients are too few for 50 folds. Add slides of more patients, or lower `folds`."),
        ({"folds": 1}, "folds: got 1"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(undisturbed, command, cohort, trained, changes, told):
    done = command("cross_validating", "cross_validate", **base_settings(cohort, trained, undisturbed[0], **changes))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told in line
    assert "Traceback" not in done.stderr


def test_one_slide_under_two_names_ends_in_one_line_before_anything_is_trained(command, cohort, trained, tmp_path):
    entries = [entry for part in json.loads((cohort / "datalist.json").read_text()).values() for entry in part]
    (tmp_path / "slides").mkdir()
    for entry in entries:
        os.symlink(cohort / entry["image"], tmp_path / entry["image"])
        entry.pop("regions", None)
        entry.pop("sha256", None)
    first = entries[0]
    copy = f"slides/copy{os.path.splitext(first['image'])[1]}"
    shutil.copy(cohort / first["image"], tmp_path / copy)
    # Only what is computed when it is extracted reveals it: it is of another patient.
    entries.append({**first, "image": copy, "patient": "another"})
    (tmp_path / "datalist.json").write_text(json.dumps(entries))
    shutil.copytree(trained / "features", tmp_path / "features")
    out = tmp_path / "out"
    done = command(
        "cross_validating", "cross_validate", dataset_dir=tmp_path, output_dir=out, feature_dir=tmp_path / "features"
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    name = first["image"].split("/")[-1].split(".")[0]
    assert line.startswith(f"error: slide copy: is the same slide as {name} under another name")
    assert not list(tmp_path.glob("out/fold_*"))


def test_under_torchrun_the_ranks_share_the_folds_and_one_tells_of_them(cohort, trained, preloaded, tmp_path):
    options = [f"--{key}={value}" for key, value in base_settings(cohort, trained, tmp_path, epochs=1).items()]
    call = [*TORCHRUN, "-m", "monai.bundle", "run", "cross_validating", "--config_file=configs/cross_validate.json"]
    done = subprocess.run(
        [preloaded.python, *call, *options], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("each slide tested once") == 1
    assert len(list(tmp_path.glob("fold_*/done.json"))) == FOLDS
    assert (tmp_path / "predictions.csv").is_file()
