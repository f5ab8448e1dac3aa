"""Training on a server with several GPUs, which this one need not have: their number is what torch is made to say."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monailabel.tasks.train.bundle import BundleTrainTask

from bundle.label_app.lib.infer_task import _find_device
from bundle.label_app.lib.reasons import RequestError, find_reason
from bundle.label_app.lib.train_task import SlideTrainTask
from scripts.core.settings import check_settings
from scripts.datalists.labels import CLASS_NAMES
from tests.label.fixtures import NAME, NUM_SLIDES
from tests.label.servers import ROOT

TASKS = {"own": lambda path: SlideTrainTask(str(path), {}), "stock": lambda path: BundleTrainTask(str(path), {})}
PLAIN = {"model": NAME, "max_epochs": 1, "val_split": 0.4}


class Labelled:
    """A datastore whose slides all have a label."""

    def __init__(self, folder: Path, labels: list[dict]) -> None:
        self.entries = []
        for number, label in enumerate(labels):
            path = folder / f"label_{number}.json"
            path.write_text(json.dumps({"label": label}), encoding="utf-8")
            self.entries.append({"image": str(folder / f"demo_{number:03}.tiff"), "label": str(path)})

    def datalist(self):
        return [dict(entry) for entry in self.entries]

    def list_images(self):
        return [entry["image"] for entry in self.entries]


@pytest.fixture(autouse=True)
def kept_modules(monkeypatch):
    """MONAI Label unloads `scripts` in its process, which is that of all tests here."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "scripts"}
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture
def bundle(tmp_path):
    """A bundle of which nothing is run."""
    folder = tmp_path / NAME
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "models").mkdir()
    torch.save({}, folder / "models" / "model.pt")
    return folder


@pytest.fixture
def labelled(tmp_path):
    return Labelled(tmp_path, [dict.fromkeys(CLASS_NAMES, 0)] * NUM_SLIDES)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu=0: "NVIDIA H100")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


@pytest.fixture
def started(two_gpus):
    """What a training starts, in place of starting it."""
    started = []
    two_gpus.setattr(SlideTrainTask, "run_multi_gpu", lambda task, request, cmd, env: started.append((cmd, env)))
    two_gpus.setattr(BundleTrainTask, "run_multi_gpu", lambda task, request, cmd, env: started.append((cmd, env)))
    two_gpus.setattr(BundleTrainTask, "run_single_gpu", lambda task, request, overrides: started.append(overrides))
    return started


@pytest.mark.parametrize("app", TASKS)
@pytest.mark.parametrize("device", [None, "cuda", ["NVIDIA H100:0", "NVIDIA H100:1"]])
def test_each_rank_of_a_training_takes_a_gpu_of_its_own(app, device, bundle, labelled, started, monkeypatch):
    TASKS[app](bundle)({**PLAIN, **({"device": device} if device else {})}, labelled)
    ((command, env),) = started
    assert env["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "--nproc_per_node=2" in command
    files = command[command.index("--config_file") + 1].strip("[]").replace("'", "").split(",")
    assert [Path(file).name for file in files] == ["monailabel_train.json", "multi_gpu_train.json"]
    for rank in range(2):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        parser = ConfigParser()
        parser.read_config(files)
        device = parser.get_parsed_content("device")
        assert device == torch.device("cuda", rank)
        check_settings(device=device)


@pytest.mark.parametrize(("device", "wanted"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("NVIDIA H100:1", "cuda:1")])
def test_a_device_that_a_client_names_trains_alone(device, wanted, bundle, labelled, started):
    TASKS["own"](bundle)({**PLAIN, "device": device}, labelled)
    (overrides,) = started
    assert str(overrides["device"]) == wanted


def run_with(task, program):
    """Let a task run a program in the place of torchrun, on both GPUs that it sees."""
    command = ["torchrun", sys.executable, "-c", f"import os, sys; {program}"]
    task.run_multi_gpu({}, command, {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"})


@pytest.fixture
def plain_python(monkeypatch):
    """Leave out of a command how the task starts torchrun."""
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(command[3:], **options))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "print('[rank1]: error: lr: the loss is nan. Lower it.'); "
            "print('[rank0]: error: rank 0: stopped, because rank 1 failed. See its message.'); sys.exit(1)",
            "lr: the loss is nan. Lower it.",
        ),
        ("sys.stderr.write('error: device: is bad. Give another.\\n'); sys.exit(3)", "device: is bad. Give another."),
        ("os.kill(os.getpid(), 9)", "The lines above say why."),
    ],
)
def test_a_training_that_fails_in_several_processes_is_an_error_with_its_reason(bundle, plain_python, program, reason):
    with pytest.raises(RequestError, match=r"train: failed in 2 processes, with status -?\d+\. ") as found:
        run_with(TASKS["own"](bundle), program)
    assert str(found.value).endswith(reason)


def test_a_training_on_some_of_the_gpus_of_a_machine_runs_on_these(bundle, plain_python, monkeypatch, capfd):
    # MONAI Label numbers the GPUs that it sees anew.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    run_with(TASKS["own"](bundle), "print('runs on', os.environ['CUDA_VISIBLE_DEVICES'])")
    assert "runs on 2,5" in capfd.readouterr().out


@pytest.mark.parametrize(("device", "wanted"), [("cuda:1", "cuda:1"), ("NVIDIA H100:1", "cuda:1"), ("cuda", "cuda")])
def test_a_slide_is_predicted_on_the_gpu_that_a_client_names(two_gpus, device, wanted):
    assert _find_device({"device": device}) == wanted
    with pytest.raises(RequestError, match=r"device: got 'cuda:2'\. Give one of cpu, cuda:0, cuda:1"):
        _find_device({"device": "cuda:2"})


# --- in two processes on the CPU -------------------------------------------------------------------------------------


@pytest.fixture(params=TASKS)
def app(request, monkeypatch):
    """Each app; the stock one starts the torchrun that is on the path, and ours its own."""
    if request.param == "stock":
        monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return request.param


@pytest.fixture(scope="module")
def unpacked(packed, cohort, tmp_path_factory):
    """A bundle that was trained and packed, beside the slides to train on."""
    folder = tmp_path_factory.mktemp("gpus")
    shutil.unpack_archive(packed, folder)
    for path in (cohort / "slides").glob("*.tiff"):
        shutil.copy(path, folder)
    return folder


def test_several_processes_train_and_leave_weights(unpacked, app):
    store = Labelled(unpacked, [dict.fromkeys(CLASS_NAMES, number % 2) for number in range(NUM_SLIDES)])
    weights = unpacked / NAME / "models" / "model.pt"
    before = weights.read_bytes()
    TASKS[app](unpacked / NAME)({**PLAIN, "device": "cuda", "force_multi_gpu": True, "gpus": "0,1"}, store)
    assert weights.read_bytes() != before
    assert json.loads((unpacked / NAME / "output" / "training.json").read_text())["ranks"] == 2


def test_a_label_that_cannot_be_used_fails_several_processes_aloud(unpacked, app, capfd):
    store = Labelled(unpacked, [{"tumour": 1}] * NUM_SLIDES)
    request = {**PLAIN, "device": "cuda", "force_multi_gpu": True, "gpus": "0,1"}
    if app == "own":
        with pytest.raises(RequestError, match=r"train: failed in 2 processes, with status 1\. slide demo_000: label"):
            TASKS[app](unpacked / NAME)(request, store)
    else:
        # It reports success; the reason stands in the last lines, of which its server shows 20.
        TASKS[app](unpacked / NAME)(request, store)
        printed = capfd.readouterr()
        last = (printed.out + printed.err).splitlines()[-20:]
        assert any(line.strip().startswith("traceback : slide demo_000: label has no cancer.") for line in last)


def test_a_label_that_cannot_be_used_fails_one_process_too(unpacked, app, monkeypatch):
    # What a run sets for its process.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    factory = logging.getLogRecordFactory()
    try:
        with pytest.raises(Exception, match=".") as found:
            TASKS[app](unpacked / NAME)({**PLAIN, "device": "cpu"}, Labelled(unpacked, [{"tumour": 1}] * NUM_SLIDES))
    finally:
        logging.setLogRecordFactory(factory)
    assert find_reason(found.value)[1].startswith("slide demo_000: label has no cancer.")
