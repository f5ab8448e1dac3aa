"""What MONAI Label does with the shipped configs, and what comes of it: its overrides of a training, its requests."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.core.errors import SettingsError, mistake_in
from scripts.weights.record import is_demonstration, read_record
from tests.conftest import ROOT


def label_files(cohort: Path, partition: str, folder: Path) -> list[dict[str, str]]:
    """A slide and the path of its label's file, as the server's datastore has them."""
    folder.mkdir(exist_ok=True)
    data = []
    for entry in json.loads((cohort / "datalist.json").read_text())[partition]:
        path = folder / f"{Path(entry['image']).stem}.json"
        path.write_text(json.dumps({"label": entry["label"]}))
        data.append({"image": str(cohort / entry["image"]), "label": str(path)})
    return data


def test_a_training_goes_on_from_weights_with_the_servers_overrides(workflow, cohort, trained, tmp_path):
    # The server reads the handlers from the file, looks at each as a component, and puts its loader before them.
    handlers = ConfigParser.load_config_file(str(ROOT / "configs" / "train.json"))["train"]["handlers"]
    assert all(isinstance(handler, dict) and "_target_" in handler for handler in handlers)
    model = str(trained / "models" / "model.pt")
    loader = {"_target_": "CheckpointLoader", "load_path": model, "load_dict": {"model": "$@network"}, "strict": False}
    overrides = {
        "train#handlers": [loader, *handlers],
        "train#trainer#max_epochs": 2,
        "train#dataset#data": label_files(cohort, "training", tmp_path / "labels"),
        "validate#dataset#data": label_files(cohort, "validation", tmp_path / "labels"),
        "device": "cpu",
        "bundle_root": str(tmp_path),
        "feature_dir": str(trained / "features"),
    }
    workflow("run", "train", **overrides)
    record = read_record(tmp_path / "models" / "model.pt")
    assert record == read_record(model)  # of the same slides
    assert record["data"]["drawn_slides"] == record["data"]["training_slides"] + record["data"]["validation_slides"]
    assert is_demonstration(record)
    assert json.loads((tmp_path / "output" / "training.json").read_text())["phases"][0]["epochs"] == 2


@pytest.fixture
def served(trained, monkeypatch):
    """The parts of inference.json as the server takes them from the parsed config."""
    monkeypatch.chdir(ROOT)
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    parser["bundle_root"] = str(ROOT)
    parser["device"] = "cpu"
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(trained / "models" / "model.pt", weights_only=True), strict=False)
    return parser, network.eval()


def test_a_request_is_answered_with_the_scores_of_inferring(served, workflow, cohort, trained, tmp_path):
    parser, network = served
    slide = next((cohort / "slides").iterdir())
    request = {"image": str(slide), "image_path": str(slide), "device": "cpu", "model": "mustmil", "result": {}}
    data = parser.get_parsed_content("preprocessing")(request)
    assert data["model"] == "mustmil"
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    data = parser.get_parsed_content("postprocessing")(data)
    assert isinstance(data["pred"], MetaTensor)
    assert data["pred"].shape == (5,)

    models = str(trained / "models")
    workflow(
        "inferring", "inference", dataset_dir=str(slide), ckpt_dir=models, output_dir=str(tmp_path), heatmaps=False
    )
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = torch.tensor([[float(value) for value in row[2:12]] for row in list(csv.reader(file))[1:]])
    assert torch.allclose(data["head_scores"].as_tensor(), rows[:, :5], atol=1e-5)
    assert torch.allclose(data["calibrated"].float(), rows[:, 5:], atol=1e-5)
    assert torch.equal(data["pred"].as_tensor(), data["head_scores"].as_tensor()[0])


def test_weights_that_did_not_load_are_refused_and_not_scored(served):
    parser, network = served
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    broken = parser.get_parsed_content("network_def", instantiate=True)
    broken.load_state_dict(state, strict=False)
    with pytest.raises(SettingsError, match="weights: the file lacks"):
        parser.get_parsed_content("inferer")(torch.zeros(1, 4, 2, 1281), broken)


def test_inferring_refuses_weights_of_other_magnifications(workflow, cohort, trained, tmp_path):
    settings = {"dataset_dir": str(cohort / "slides"), "ckpt_dir": str(trained / "models"), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as caught:
        workflow("inferring", "inference", **settings, magnifications=[2.5, 10])
    told = str(mistake_in(caught.value))
    assert told.startswith("magnifications: got [2.5, 10], and the weights were trained with [5, 10].")
    assert not list(tmp_path.iterdir())
