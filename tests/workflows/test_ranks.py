"""Workflows in two ranks, against one: all in one run of torchrun."""

import csv
import json
import re
from pathlib import Path

import h5py
import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.core.errors import mistake_in
from scripts.core.settings import check_settings
from tests.conftest import ROOT
from tests.torchruns import torchrun

pytestmark = pytest.mark.slow

JOBS = """
import json, sys
import monai.bundle

for job in json.load(open(sys.argv[1])):
    monai.bundle.run(**job)
"""
TRAIN = ROOT / "configs" / "train.json"
METHODS = ("mustmil", "msmil")
INFERRED = {"heatmap_classes": ["cancer", "normal"], "top_patches": 1}
TRAINING = {"epochs": 3, "optimizer_name": "SGD", "lr": 0.1, "seed": 2}


def overlaid(config):
    return [f"configs/{config}.json", f"configs/multi_gpu_{config}.json"]


def places(folder, models=None):
    return {"output_dir": str(folder), "ckpt_dir": str(models or folder / "models")}


@pytest.fixture(scope="module")
def data(cohort, tmp_path_factory):
    """Settings: four slides to train on, one to validate, one to test."""
    folder = tmp_path_factory.mktemp("ranks_data")
    slides = json.loads((cohort / "datalist.json").read_text())
    slides["training"].append({**slides["validation"].pop(), "patient": "another"})
    (folder / "datalist.json").write_text(json.dumps(slides))
    assert [len(slides[name]) for name in ("training", "validation", "testing")] == [4, 1, 1]
    return {
        "dataset_dir": str(cohort),
        "datalist": str(folder / "datalist.json"),
        "feature_dir": str(folder / "features"),
    }


@pytest.fixture(scope="module")
def two(data, trained, preloaded, tmp_path_factory):
    """The folder of what two ranks did: an output folder for each training and evaluation."""
    folder = tmp_path_factory.mktemp("two_ranks")
    jobs = [{"run_id": "extracting", "config_file": "configs/extract.json", **data, "output_dir": str(folder)}]
    for method in METHODS:
        training = {"run_id": "training", "config_file": overlaid("train"), "method": method, **data, **TRAINING}
        jobs.append({**training, **places(folder / method)})
    jobs.append({**jobs[1], **places(folder / "resumed"), "epochs": 1})
    jobs.append({**jobs[-1], "epochs": TRAINING["epochs"], "resume": True})
    for partition in ("testing", "training"):
        evaluating = {"run_id": "evaluating", "config_file": overlaid("evaluate"), "partition": partition, **data}
        jobs.append({**evaluating, **places(folder / partition, trained / "models")})
    # The last partition again, against the first.
    against = {"internal": str(folder / "testing"), "report": False}
    jobs.append({**jobs[-1], **places(folder / "against", trained / "models"), **against})
    inferring = {"run_id": "inferring", "config_file": "configs/inference.json", **INFERRED}
    slides = {"dataset_dir": str(data["dataset_dir"]) + "/slides"}
    jobs.append({**inferring, **slides, **places(folder / "inferring", trained / "models")})
    checking = {"run_id": "checking", "config_file": "configs/check.json", **data}
    jobs.append({**checking, "output_dir": str(folder / "checking")})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = torchrun(folder, JOBS, folder / "jobs.json", python=preloaded.python)
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.parametrize("given", ["cuda", "cuda:0", "cpu"])
def test_over_a_config_that_names_a_device_each_rank_takes_its_own_gpu(given, tmp_path, monkeypatch):
    # As MONAI Label writes it, which knows one device for all ranks.
    (tmp_path / "train.json").write_text(json.dumps({**ConfigParser.load_config_file(TRAIN), "device": given}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for place in range(2):
        for name, value in {"RANK": place + 2, "LOCAL_RANK": place, "WORLD_SIZE": 4}.items():
            monkeypatch.setenv(name, str(value))
        parser = ConfigParser()
        parser.read_config([tmp_path / "train.json", *overlaid("train")[1:]])
        device = parser.get_parsed_content("device")
        assert device == torch.device("cuda", place)
        check_settings(device=device)


def weights(path):
    state = torch.load(path, weights_only=True)
    return state.get("model", state)


def datasets(path):
    content = {}
    with h5py.File(path) as bank:
        bank.visititems(lambda name, item: content.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
        attributes = dict(bank.attrs)
        # Somebody may commit between two runs, and each of two ranks has half of the machine.
        return content, attributes | {"made_by": json.loads(attributes["made_by"]) | {"git": None, "machine": None}}


def test_extraction_gives_the_banks_that_one_rank_gives(two, data, workflow, tmp_path):
    folders = [Path(data["feature_dir"]), tmp_path / "features"]
    workflow("extracting", "extract", **{**data, "output_dir": str(tmp_path), "feature_dir": str(folders[1])})
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:
        (two_ranks, made), (one_rank, alone) = (datasets(folder / name) for folder in folders)
        assert made.keys() == alone.keys()
        assert [key for key in made if not np.array_equal(made[key], alone[key])] == []
        assert two_ranks.keys() == one_rank.keys()
        assert [key for key in two_ranks if not np.array_equal(two_ranks[key], one_rank[key])] == []


def test_the_first_rank_alone_tells_of_it(two):
    log = (two / "log.txt").read_text()
    assert log.count("extracting 6 of 6 slides into") == log.count("extracted 6 slides, ") == 1
    told = re.findall(r"wrote (\S+\.(?:csv|json|html))", log)
    # Three evaluations write predictions, metrics and localisation, two a report; `inferring` the first and the last.
    assert len(told) == len(set(told)) == 13
    assert log.count("Differences to the internal test, internal test") == 1
    for folder in (two / "mustmil" / "tensorboard" / "training", two / "testing" / "tensorboard" / "evaluation"):
        assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_on_a_bag_each_as_one_does_on_two(two, data, workflow, tmp_path, method):
    workflow("training", "train", method=method, batch_size=2, **data, **TRAINING, **places(tmp_path))
    for path in sorted((tmp_path / "models").glob("[!.]*")):
        one_rank, two_ranks = weights(path), weights(two / method / "models" / path.name)
        assert one_rank.keys() == two_ranks.keys()
        for key, value in one_rank.items():
            assert torch.allclose(value, two_ranks[key], rtol=0, atol=1e-5), (path.name, key)
    one_rank, two_ranks = (json.loads((f / "training.json").read_text()) for f in (tmp_path, two / method))
    assert two_ranks["ranks"] == 2
    for head, best in one_rank["best"].items():
        assert two_ranks["best"][head]["epoch"] == best["epoch"]
        assert two_ranks["best"][head]["validation_loss"] == pytest.approx(best["validation_loss"], abs=1e-5)


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(two):
    for path in (two / "mustmil" / "models").glob("[!.]*"):
        straight, resumed = weights(path), weights(two / "resumed" / "models" / path.name)
        assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_a_training_in_two_ranks_is_not_resumed_in_one(two, data, workflow):
    settings = {**TRAINING, "epochs": 4, "resume": True}
    with pytest.raises(RuntimeError) as caught:
        workflow("training", "train", method="mustmil", **data, **settings, **places(two / "mustmil"))
    assert "settings (ranks 2, now 1)" in str(mistake_in(caught.value))


# One slide, fewer than ranks, and four; the rank that has no slide of its own must count nothing twice.
@pytest.mark.parametrize("partition", ["testing", "training"])
def test_evaluation_gives_what_one_rank_gives_to_the_last_digit(two, data, trained, workflow, tmp_path, partition):
    given = {"partition": partition, "report": False}
    workflow("evaluating", "evaluate", **given, **data, **places(tmp_path, trained / "models"))
    for name in ("metrics.json", "predictions.csv", "localisation.json", "localisation.csv"):
        assert (tmp_path / name).read_bytes() == (two / partition / name).read_bytes()


def files_of(folder):
    """The content of each file, by its name from the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_inferring_gives_the_files_that_one_rank_gives(two, data, trained, workflow, tmp_path):
    slides = {"dataset_dir": f"{data['dataset_dir']}/slides"}
    workflow("inferring", "inference", **slides, **INFERRED, **places(tmp_path, trained / "models"))
    found, wanted = files_of(two / "inferring"), files_of(tmp_path)
    assert found.keys() == wanted.keys()
    assert len([name for name in found if name.endswith("patches.csv")]) == len(
        list(Path(slides["dataset_dir"]).glob("*.t*"))
    )
    assert [name for name in found if found[name] != wanted[name]] == []


KILLED = """
import json, os, signal, sys, time
from pathlib import Path
import monai.bundle
from scripts.core.ranks import rank
from scripts.datalists.failures import PassingSlides

folder, taken = Path(sys.argv[1]), []
encode = PassingSlides._pass


def dying(self, entry):
    taken.append(entry["slide"])
    (folder / f"rank{rank()}.json").write_text(json.dumps(taken))
    if len(taken) == 2:
        (folder / f"second{rank()}").touch()
        while not (folder / f"second{1 - rank()}").exists():
            time.sleep(0.05)
        while not (folder / "out" / "heatmaps" / taken[0] / "patches.csv").exists():  # the last of its files
            time.sleep(0.05)
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(5)  # in which torchrun tells this rank to stop
    return encode(self, entry)


PassingSlides._pass = dying
monai.bundle.run(**json.loads((folder / "job.json").read_text()))
"""


def test_a_rank_that_is_killed_costs_inferring_its_slide_alone(cohort, trained, preloaded, tmp_path):
    out = tmp_path / "out"
    job = {
        "run_id": "inferring", "config_file": "configs/inference.json", "dataset_dir": f"{cohort}/slides",
        "heatmap_classes": ["cancer"], "top_patches": 0, "handlers#0#write_seconds": 0,
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps({**job, **places(out, trained / "models")}))
    done = torchrun(tmp_path, KILLED, tmp_path, python=preloaded.python)
    assert done.returncode != 0
    assert "error: rank 0: was told to stop (SIGTERM), and begins no other slide. What is finished" in done.stderr
    survived, died = (json.loads((tmp_path / f"rank{number}.json").read_text()) for number in range(2))
    finished = {"predictions.csv": survived, "predictions.rank1.csv": died[:1]}
    for name, slides in finished.items():
        with (out / name).open(newline="", encoding="utf-8") as file:
            assert list(dict.fromkeys(row["slide"] for row in csv.DictReader(file))) == slides
    heatmaps = {path.parent.name for path in out.glob("heatmaps/*/*_cancer.png")}
    assert heatmaps == {*survived, *died[:1]}


def test_checking_gives_the_tables_that_one_rank_gives(two, data, workflow, tmp_path):
    workflow("checking", "check", **data, output_dir=str(tmp_path))
    for name in ("checking.csv", "slides.csv"):
        assert (tmp_path / name).read_bytes() == (two / "checking" / name).read_bytes()


def test_an_external_validation_gives_what_one_rank_gives_to_the_last_digit(two, data, trained, workflow, tmp_path):
    given = {"partition": "training", "internal": str(two / "testing"), "report": False}
    workflow("evaluating", "evaluate", **given, **data, **places(tmp_path, trained / "models"))
    one_rank = (tmp_path / "metrics.json").read_bytes()
    assert one_rank == (two / "against" / "metrics.json").read_bytes()
    assert json.loads(one_rank)["global"]["external"]["micro_f1"].keys() == {"internal", "external", "difference"}


def test_without_torchrun_the_configs_for_several_ranks_are_those_of_one(data, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plain, ranked = tmp_path / "plain", tmp_path / "ranked"
    for folder, configs in ((plain, ["configs/train.json"]), (ranked, overlaid("train"))):
        monai.bundle.run(run_id="training", config_file=configs, **data, **TRAINING, **places(folder))
    for folder, configs in ((plain, ["configs/evaluate.json"]), (ranked, overlaid("evaluate"))):
        monai.bundle.run(run_id="evaluating", config_file=configs, report=False, **data, **places(folder))
    for name in ("metrics.json", "predictions.csv"):
        assert (plain / name).read_bytes() == (ranked / name).read_bytes()


@pytest.mark.parametrize(("run_id", "config"), [("inspecting", "inspect")])
def test_what_ranks_cannot_share_is_refused(cohort, workflow, tmp_path, monkeypatch, run_id, config):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError) as caught:
        workflow(run_id, config, output_dir=str(tmp_path))
    assert "torchrun: each of the 2 ranks would do all the work" in str(mistake_in(caught.value))
    assert "Run it without torchrun, in one process." in str(mistake_in(caught.value))


@pytest.mark.parametrize(("run_id", "config"), [("training", "train"), ("evaluating", "evaluate")])
def test_a_config_that_ranks_would_not_share_is_refused(data, workflow, tmp_path, monkeypatch, run_id, config):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError) as caught:
        workflow(run_id, config, **data, **places(tmp_path))
    assert (
        f"torchrun: each of the 2 ranks would do all the work, and write the same files. Add configs/multi_gpu_{config}"
        in str(mistake_in(caught.value))
    )
