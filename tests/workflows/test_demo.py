"""``make demo``, on few slides and for two epochs."""

import json
import sys

import pytest

from scripts.demo.run import main


@pytest.fixture(autouse=True)
def forked(preloaded, monkeypatch):
    monkeypatch.setattr(sys, "executable", preloaded.python)


@pytest.mark.slow
def test_it_extracts_trains_evaluates_and_prints_what_came_out(cohort, tmp_path, capfd):
    options = {"dataset_dir": cohort, "output_dir": tmp_path, "num_slides": 6, "epochs": 2}
    assert main([f"--{key}={value}" for key, value in options.items()]) == 0
    told = capfd.readouterr().out
    for run_id in ("extracting", "training", "evaluating"):
        assert f"$ python -m monai.bundle run {run_id} --config_file=configs/" in told
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for head in ("global", "5x", "10x"):
        assert f"{metrics[head]['micro_f1']['value']:.3f}" in next(
            line for line in told.splitlines() if line.startswith(head)
        )
    assert f"over the {metrics['patients']} patients of the {metrics['slides']} test slides." in told
    assert "they say nothing about tissue" in told
    assert f"tensorboard --logdir {tmp_path / 'tensorboard'}" in told


def test_it_stops_at_the_first_step_that_fails(cohort, tmp_path, capfd):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    assert main([f"--dataset_dir={cohort}", f"--output_dir={blocked}"]) == 1
    assert "error: " in capfd.readouterr().err
