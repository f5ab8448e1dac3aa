"""`runtime: auto` goes on with what made the features that are there."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.core.errors import SettingsError
from scripts.core.machine import CPU_BATCH
from scripts.encoders import runtimes
from scripts.encoders.runtimes import OPENVINO
from scripts.weights import same_runtime as module
from scripts.weights.same_runtime import check_precision, same_runtime
from tests.conftest import ROOT
from tests.weights.test_ensembles import training

CPU = {"device": "cpu", "backbone": "efficientnet_lite0"}


@pytest.fixture(autouse=True)
def untold() -> None:
    """What is told once a process was not told yet."""
    module._tell_faster.cache_clear()
    module._warn_of_other.cache_clear()


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "find_spec", lambda name: None)


def bank(folder: Path, runtime: str | None) -> Path:
    """A folder with a bank, as far as it says how it was made."""
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / "s.h5", "w") as file:
        file.attrs["settings"] = json.dumps({"backbone": "tiny", **({"runtime": runtime} if runtime else {})})
    return folder


def weights(folder: Path, runtime: str) -> Path:
    return training(folder, 0, decided={"runtime": runtime})


@pytest.mark.parametrize(("made_with", "runtime"), [("torch", "torch"), ("openvino", "openvino"), (None, "torch")])
def test_banks_are_gone_on_with_whatever_the_weights_were_trained_on(tmp_path: Path, made_with: str, runtime: str):
    places = {"feature_dir": bank(tmp_path / "banks", made_with), "ckpt_dir": weights(tmp_path / "models", "compile")}
    assert same_runtime({**CPU, **places}) == runtime


@pytest.mark.parametrize("feature_dir", [None, "empty", "damaged"])
@pytest.mark.parametrize("runtime", ["torch", "openvino", "compile"])
def test_without_banks_it_is_what_made_the_features_of_the_weights(tmp_path: Path, feature_dir: Any, runtime: str):
    if feature_dir is not None:
        (tmp_path / feature_dir).mkdir()
        (tmp_path / "damaged" / "s.h5").write_bytes(b"no bank") if feature_dir == "damaged" else None
    ckpt_dir = weights(tmp_path / "models", runtime)
    place = None if feature_dir is None else tmp_path / feature_dir
    assert same_runtime({**CPU, "feature_dir": place, "ckpt_dir": ckpt_dir}) == runtime


def test_without_features_it_is_torch_and_what_is_faster_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        found = [same_runtime({**CPU, "feature_dir": tmp_path / "none", "ckpt_dir": tmp_path}) for _ in range(2)]
    assert found == ["torch", "torch"]
    assert [message for message in caplog.messages if "give --runtime openvino" in message] == caplog.messages[:1]
    assert len(caplog.messages) == 1


def test_where_openvino_is_not_installed_nothing_is_told(
    tmp_path: Path, without_openvino: None, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        assert same_runtime({**CPU, "ckpt_dir": tmp_path}) == "torch"
    assert caplog.messages == []


def test_banks_of_openvino_are_not_gone_on_with_without_it(tmp_path: Path, without_openvino: None):
    folder = bank(tmp_path / "banks", "openvino")
    with pytest.raises(SettingsError) as refused:
        same_runtime({**CPU, "feature_dir": folder})
    assert str(refused.value) == (
        f"runtime: the feature banks in {folder} were made with openvino, and openvino is not installed. "
        f"Run on a CPU with `pip install openvino=={OPENVINO}`, or choose another `feature_dir`."
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weights_of_openvino_serve_without_it_with_a_warning(
    tmp_path: Path, without_openvino: None, device: str, caplog: pytest.LogCaptureFixture
):
    settings = {**CPU, "device": torch.device(device), "ckpt_dir": weights(tmp_path / "models", "openvino")}
    assert [same_runtime(settings) for _ in range(2)] == ["torch", "torch"]
    (told,) = caplog.messages
    why = "openvino is not installed" if device == "cpu" else "openvino does not run on cuda"
    assert told == (
        f"runtime: the weights were trained on features of openvino, and {why}: torch encodes, and differs slightly"
    )


def test_the_settings_of_a_config_are_those_that_were_chosen(tmp_path: Path):
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "train.json")
    parser.update({"feature_dir": str(bank(tmp_path / "banks", "openvino")), "device": "cpu"})
    settings = parser.get_parsed_content("settings")
    assert settings["runtime"] == "openvino"
    assert settings["encode_batch"] == CPU_BATCH
    assert settings["num_workers"] >= 2
    assert settings["cache_gb"] > 0


def test_what_is_given_is_taken(tmp_path: Path):
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "train.json")
    given = {"runtime": "torch", "num_workers": 0, "encode_batch": 7, "cache_gb": 0.5}
    parser.update({"feature_dir": str(bank(tmp_path / "banks", "openvino")), "device": "cpu", "num_workers": 0})
    parser.update({f"advanced#{name}": value for name, value in given.items() if name != "num_workers"})
    settings = parser.get_parsed_content("settings")
    assert {name: settings[name] for name in given} == given


@pytest.mark.parametrize(("made_with", "wanted"), [(None, "int8"), ("amp", "int8"), ("int8", "amp")])
def test_int8_and_other_banks_are_not_mixed(tmp_path: Path, made_with: str | None, wanted: str):
    folder = bank(tmp_path / "banks", "openvino")
    if made_with is not None:
        with h5py.File(folder / "s.h5", "a") as file:
            file.attrs["settings"] = json.dumps({**json.loads(file.attrs["settings"]), "precision": made_with})
    check_precision({**CPU, "feature_dir": folder, "precision": made_with or "amp"})
    check_precision({**CPU, "feature_dir": tmp_path / "none", "precision": wanted})
    with pytest.raises(SettingsError, match=f"^precision: is {wanted}, and the feature banks in .* were made"):
        check_precision({**CPU, "feature_dir": folder, "precision": wanted})


def test_the_version_of_openvino_that_errors_name_is_the_one_that_is_pinned():
    assert f"openvino=={OPENVINO}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
