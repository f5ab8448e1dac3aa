"""Many trainings in folders of their own: what counts as done, what is refused, what runs where."""

from __future__ import annotations

import json
import multiprocessing.spawn
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.experiments.trainings import Experiment, leaving_out, run_experiments
from tests.conftest import ROOT
from tests.torchruns import TORCHRUN

# A bundle whose workflows write what they were given, so that what is tested is who runs them, when and where.
TRAIN = {
    "imports": [
        "$import pathlib", "$import os", "$import time", "$import torch", "$import scripts",
        "$import scripts.core.errors",
    ],
    "bundle_root": ".", "output_dir": ".", "ckpt_dir": ".", "lr": 1.0, "resume": False, "wait": 0.0, "fails": False,
    "text": "$' '.join(map(str, (@lr, @resume, os.getpid())))",
    "training": [
        "$pathlib.Path(@output_dir, 'begun').write_text(str(os.getpid()))",
        "$time.sleep(@wait)",
        "$(_ for _ in ()).throw(scripts.core.errors.SettingsError('lr', 'fails', 'Take another.')) if @fails else None",
        "$pathlib.Path(@output_dir, 'training.txt').write_text(@text)",
        "$pathlib.Path(@output_dir, 'threads').write_text(str(torch.get_num_threads()))",
        "$print('some output')",
    ],
}  # fmt: skip
EVALUATE = {
    "imports": ["$import pathlib"], "bundle_root": ".", "output_dir": ".", "partition": "testing",
    "evaluating": ["$pathlib.Path(@output_dir, 'evaluating.txt').write_text(@partition)"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def forked(preloaded, monkeypatch):
    """Runs start in hundredths of a second."""
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(preloaded.python))


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "configs").mkdir()
    for name, config in (("train", TRAIN), ("evaluate", EVALUATE), ("metadata", {})):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(config))
    return tmp_path


def experiment(bundle, name="a", **settings):
    return Experiment(name, bundle / "runs" / name, settings)


def test_each_runs_in_its_folder_with_the_settings_that_its_configs_know_and_only_once(bundle):
    first = experiment(bundle, "a", lr=0.5, partition="validation")
    run_experiments([first], bundle)
    assert (first.folder / "training.txt").read_text().startswith("0.5 False ")
    assert (first.folder / "evaluating.txt").read_text() == "validation"
    assert "some output" in (first.folder / "log.txt").read_text()
    assert first.is_done
    before = (first.folder / "training.txt").stat().st_mtime_ns

    begun = experiment(bundle, "b", lr=0.25)
    (begun.folder / "models").mkdir(parents=True)
    (begun.folder / "models" / "last.ckpt").touch()
    run_experiments([first, begun], bundle, num_processes=2)
    assert (first.folder / "training.txt").stat().st_mtime_ns == before
    assert (begun.folder / "training.txt").read_text().startswith("0.25 True ")  # it goes on
    assert not (begun.folder / "models" / "last.ckpt").exists()  # which nothing resumes from any more

    with pytest.raises(SettingsError, match=r"b: holds a run with other settings \(lr 0\.25, now 0\.125\)\. Choose"):
        run_experiments([experiment(bundle, "b", lr=0.125)], bundle)


def test_what_was_stopped_goes_on_with_as_many_threads_on_which_last_digits_depend(bundle, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    first, second = experiment(bundle, "a"), experiment(bundle, "b")
    run_experiments([first, second], bundle, num_processes=2)
    (second.folder / "done.json").unlink()
    (second.folder / "threads").unlink()
    run_experiments([first, second], bundle, num_processes=2)
    assert [(one.folder / "threads").read_text() for one in (first, second)] == ["2", "2"]


def test_damaged_settings_are_named(bundle):
    one = experiment(bundle)
    one.folder.mkdir(parents=True)
    (one.folder / "settings.json").write_text("{")
    with pytest.raises(SettingsError, match=r"settings\.json: is damaged .*Delete the folder"):
        run_experiments([one], bundle)


def test_a_failure_is_told_and_the_others_run_to_their_end(bundle):
    bad, good = experiment(bundle, "bad", fails=True), experiment(bundle, "good")
    failed = run_experiments([bad, good], bundle)
    assert str(failed.pop("bad")) == "lr: fails. Take another."
    assert not failed
    assert good.is_done
    assert not bad.is_done


def test_a_run_may_go_on_with_other_places_and_workers_but_not_as_another_run(bundle):
    one = experiment(bundle, lr=0.5, num_workers=2, dataset_dir="a")
    one.folder.mkdir(parents=True)
    (one.folder / "settings.json").write_text(json.dumps(one.settings))
    assert not experiment(bundle, lr=0.5, num_workers=0, dataset_dir="/b/a", cache_gb=1.0).is_done
    with pytest.raises(SettingsError, match=r"datalist_sha256 None, now 'x'"):
        _ = experiment(bundle, lr=0.5, datalist_sha256="x").is_done
    (one.folder / "settings.json").unlink()
    (one.folder / "done.json").touch()
    with pytest.raises(SettingsError, match=r"settings\.json: is missing beside done\.json"):
        _ = one.is_done


@pytest.mark.parametrize(
    ("task", "names", "positive"),
    [
        ("multilabel", ["a", "b"], None),
        ("binary", ["hgd", "cancer", "lgd"], ["hgd", "cancer"]),
        ("binary", ["a", "b"], None),
    ],
)
def test_a_run_of_version_0_3_0_has_the_default_positive_classes(bundle, task, names, positive):
    old = experiment(bundle, task=task, class_names=names)
    old.folder.mkdir(parents=True)
    for name, content in (("settings", old.settings), ("done", {})):
        (old.folder / f"{name}.json").write_text(json.dumps(content))
    assert experiment(bundle, **old.settings, positive_classes=positive).is_done
    with pytest.raises(SettingsError, match=r"other settings \(positive_classes .*, now \['x'\]\)"):
        _ = experiment(bundle, **old.settings, positive_classes=["x"]).is_done


def test_a_process_that_is_killed_is_told_with_its_log(bundle):
    one = experiment(bundle, wait=60.0)

    def kill():
        while not (begun := one.folder / "begun").exists() or not begun.read_text():
            time.sleep(0.05)
        os.kill(int(begun.read_text()), signal.SIGKILL)

    killer = multiprocessing.get_context("fork").Process(target=kill)
    killer.start()
    with pytest.raises(SettingsError, match=r"a: its process was killed.*log\.txt; the same command goes on"):
        run_experiments([one], bundle)
    killer.join()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_runs_end_with_the_process_that_started_them(bundle, how, preloaded):
    # A shell starts what it runs in the background deaf to interrupts, and so the tests' own children.
    code = (
        "import signal\nfrom tests.experiments.test_trainings import *\n"
        f"from pathlib import Path\nroot = Path({str(bundle)!r})\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    run_experiments([experiment(root, wait=60.0)], root)\n"
    )
    (bundle / "main.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [preloaded.python, str(bundle / "main.py")], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    begun = bundle / "runs" / "a" / "begun"
    deadline = time.monotonic() + 300
    while not begun.exists() or not begun.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(how)
    _, told = parent.communicate(timeout=120)
    assert ("stopped; the same command goes on from here" in told) == (how == signal.SIGINT)
    worker = int(begun.read_text())
    while _runs(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (bundle / "runs" / "a" / "training.txt").exists()


def _runs(pid):
    try:
        # A zombie that nobody waits for has ended, too.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("num_processes", [0, -1, 1.5, True, "2"])
def test_the_number_of_processes_is_checked(bundle, num_processes):
    with pytest.raises(SettingsError, match="num_processes: got "):
        run_experiments([experiment(bundle)], bundle, num_processes)


def test_under_torchrun_each_rank_takes_its_share_and_waits_for_the_others(bundle, preloaded):
    code = (
        "import os, sys\nfrom tests.experiments.test_trainings import *\n"
        f"from pathlib import Path\nroot = Path({str(bundle)!r})\n"
        "if __name__ == '__main__':\n"
        "    several = [experiment(root, name) for name in 'abc'] + [experiment(root, 'd', fails=True)]\n"
        "    failed = run_experiments(several, root)\n"
        "    assert all(one.is_done for one in several[:3])\n"
        "    assert list(failed) == ['d'], failed\n"  # on both ranks, of which one ran it
        "    (root / f'rank{os.environ[\"RANK\"]}').touch()\n"
    )
    (bundle / "main.py").write_text(code)
    subprocess.run(
        [preloaded.python, *TORCHRUN, str(bundle / "main.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    assert (bundle / "rank0").exists()
    assert (bundle / "rank1").exists()
    pids = [(bundle / "runs" / name / "training.txt").read_text().split()[2] for name in "abc"]
    assert pids[0] == pids[2] != pids[1]  # of all, whatever is left of them


def test_slides_that_are_left_out_are_a_setting_of_a_run(bundle):
    plain = {"lr": 0.5}
    assert leaving_out(plain, []) == plain == leaving_out({**plain, "leave_out": []}, [])
    fewer = leaving_out({**plain, "leave_out": ["b"]}, ["c", "a", "b"])
    assert fewer == {**plain, "leave_out": ["a", "b", "c"]}
    run_experiments([experiment(bundle, **fewer)], bundle)
    with pytest.raises(SettingsError, match=r"other settings \(leave_out \['a', 'b', 'c'\], now None\)"):
        run_experiments([experiment(bundle, **leaving_out(plain, []))], bundle)
