"""An encoder of one's own, from extraction to a packed bundle: what was trained with it is used with it alone."""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import monai.bundle
import pytest
import torch
from torch import nn

from bundle.pack import pack
from bundle.verify import FAILED, load_schema, verify
from scripts.core.errors import mistake_in
from scripts.weights.record import read_record
from tests.conftest import ROOT
from tests.worlds import NO_PICTURES

CLASSES = ("cancer", "hgd", "lgd", "hyperplastic", "normal")
GIVEN = {"size": 64, "mean": [0.7, 0.6, 0.5], "std": [0.2, 0.25, 0.3]}


def save_encoder(path: Path, seed: int) -> Path:
    """A small network as TorchScript: patches of 64 px to 16 features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convolutions = nn.Conv2d(3, 16, 7, stride=4), nn.ReLU()
    network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 3, 64, 64)), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def encoders(folder: Path) -> list[Path]:
    return [save_encoder(folder / f"encoder_{seed}.pt", seed) for seed in (0, 1)]


def options(folder: Path, cohort: Path, encoder: Path) -> dict[str, Any]:
    names = {name: str(folder / name) for name in ("output_dir", "ckpt_dir", "feature_dir")}
    return {**names, "dataset_dir": str(cohort), "backbone_weights": str(encoder)}


@pytest.fixture(scope="module")
def trained(folder: Path, cohort: Path, encoders: list[Path]) -> dict[str, Any]:
    own = options(folder, cohort, encoders[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        monai.bundle.run(
            run_id="training",
            config_file="configs/train.json",
            backbone="torchscript",
            backbone_input=GIVEN,
            epochs=1,
            **own,
        )
    return own


def probabilities(path: Path) -> dict[str, float]:
    """Those of each slide, head and class."""
    with path.open(encoding="utf-8", newline="") as file:
        return {
            f"{row['slide']} {row['head']} {name}": float(row[name]) for row in csv.DictReader(file) for name in CLASSES
        }


def test_the_bank_and_the_weights_know_the_encoder(trained: dict[str, Any], folder: Path) -> None:
    bank = next((folder / "feature_dir").glob("*.h5"))
    with h5py.File(bank) as file:
        settings = json.loads(file.attrs["settings"])
        assert file["10x"]["features"].shape[1] == 16
    assert (settings["backbone"], settings["input_px"]) == ("torchscript", 64)
    assert settings["mean"] == pytest.approx([255 * value for value in GIVEN["mean"]])
    record = read_record(folder / "ckpt_dir" / "model.pt")["settings"]
    assert record["backbone"] == "torchscript"
    assert record["backbone_input"] == GIVEN
    assert record["num_features"] == 16


def test_evaluating_takes_the_encoder_from_the_weights_and_refuses_another_file(
    trained: dict[str, Any], workflow: Any, encoders: list[Path], tmp_path: Path
) -> None:
    workflow("evaluating", "evaluate", **{**trained, "output_dir": str(tmp_path)}, **NO_PICTURES)
    assert (tmp_path / "predictions.csv").is_file()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"backbone_weights": 1}, "trained with other settings (backbone_sha256"),
        ({"backbone_input": {**GIVEN, "size": 32}}, "backbone_input"),
        ({"backbone": "efficientnet_lite0"}, "backbone"),
    ],
)
def test_evaluating_with_another_encoder_is_refused(
    trained: dict[str, Any], workflow: Any, encoders: list[Path], tmp_path: Path, wrong: dict[str, Any], told: str
) -> None:
    given = {**trained, **wrong, "output_dir": str(tmp_path)}
    if wrong == {"backbone_weights": 1}:
        given["backbone_weights"] = str(encoders[1])
    with pytest.raises(RuntimeError) as refused:
        workflow("evaluating", "evaluate", **given, **NO_PICTURES)
    assert told in str(mistake_in(refused.value))
    assert not (tmp_path / "predictions.csv").exists()


def test_inferring_without_a_bank_gives_the_scores_of_the_evaluation(
    trained: dict[str, Any], workflow: Any, cohort: Path, tmp_path: Path
) -> None:
    workflow("evaluating", "evaluate", **{**trained, "output_dir": str(tmp_path / "a")}, **NO_PICTURES)
    given = {key: trained[key] for key in ("dataset_dir", "ckpt_dir", "backbone_weights")}
    out = str(tmp_path / "b")
    workflow("inferring", "inference", **given, output_dir=out, heatmaps=False, report=False)

    evaluated, inferred = (probabilities(tmp_path / name / "predictions.csv") for name in ("a", "b"))
    assert evaluated.keys() <= inferred.keys()
    assert {slide: inferred[slide] for slide in evaluated} == pytest.approx(evaluated, abs=1e-5)


def test_a_packed_bundle_names_the_encoder_and_does_not_contain_it(
    trained: dict[str, Any], folder: Path, encoders: list[Path], tmp_path: Path
) -> None:
    packed = pack(ROOT, folder / "ckpt_dir", tmp_path)
    assert not [name for name in packed.sizes if "encoder" in name and name.endswith(".pt")]
    with zipfile.ZipFile(packed.path) as file:
        (name,) = [name for name in file.namelist() if name.endswith("configs/metadata.json")]
        metadata = json.loads(file.read(name))
    sha256 = hashlib.sha256(encoders[0].read_bytes()).hexdigest()
    assert f"Their encoder, torchscript with weights of SHA-256 {sha256}, is not part" in metadata["data_source"]
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [2, 17]
    findings = list(verify(packed.path, load_schema()))
    assert not [str(finding) for finding in findings if finding.state == FAILED]


def test_encoders_are_listed_without_slides(command: Any) -> None:
    done = command("encoders", "extract")
    assert done.returncode == 0
    assert "uni2_h" in done.stdout
    assert "CC-BY-NC-ND-4.0" in done.stdout
