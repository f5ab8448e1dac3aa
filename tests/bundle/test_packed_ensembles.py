"""A packed ensemble: one bundle, one exported network, and texts that say what it is made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ckpt_export
from monai.data import load_net_with_metadata

from bundle.archive import unpack
from bundle.checked import Bundle
from bundle.pack import pack
from bundle.verify import FAILED, OK, check, load_schema, verify
from scripts.weights.checkpoints import load_weights
from scripts.weights.ensembles import Members
from scripts.weights.record import read_record
from scripts.workflow import network_of
from tests.bundles import DRAWN, SCANNED, copied, make_weights, write

pytestmark = pytest.mark.slow


def make_ensemble(folder: Path, data: tuple[dict[str, int], ...] = (SCANNED, SCANNED), **settings: Any) -> Path:
    """Weights of an ensemble of random trainings, each on so many slides."""
    places = [str(make_weights(folder / f"seed_{s}", of, 10 * s, **settings)) for s, of in enumerate(data)]
    members = Members(places)
    members.write(network_of({**members.settings}, members.num_logits, members.settings), folder / "ensemble")
    return folder / "ensemble"


@pytest.fixture(scope="module")
def bundle(trained_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    return unpack(pack(trained_repository, make_ensemble(folder), folder / "dist").path, folder / "unpacked")


def test_every_rule_of_a_bundle_holds(bundle: Path) -> None:
    found = list(verify(bundle, load_schema()))
    assert not [str(finding) for finding in found if finding.state == FAILED]
    assert {"TorchScript", "ONNX", "operating point", "weights"} <= {finding.rule for finding in found}


def test_metadata_and_card_say_what_it_is_made_of(bundle: Path) -> None:
    source = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))["data_source"]
    for text in (source, (bundle / "docs" / "README.md").read_text(encoding="utf-8")):
        assert "an ensemble of 2 trainings, each trained on 31 slides and chosen on 7 others" in text
        assert "calibration of each member (temperature)" in text


def test_one_member_of_synthetic_slides_makes_the_bundle_a_demonstration(
    trained_repository: Path, tmp_path: Path
) -> None:
    packed = pack(trained_repository, make_ensemble(tmp_path, (SCANNED, DRAWN)), tmp_path / "dist")
    assert "Demonstration weights" in str(packed)
    assert read_record(tmp_path / "ensemble" / "model.pt")["data"]["drawn_slides"] == 32


def test_monais_export_is_one_network_with_the_mean_and_the_spread(bundle: Path, tmp_path: Path) -> None:
    configs = {
        "meta_file": str(bundle / "configs/metadata.json"),
        "config_file": str(bundle / "configs/inference.json"),
    }
    path, weights = str(tmp_path / "model.ts"), str(bundle / "models" / "model.pt")
    ckpt_export("network_def", path, ckpt_file=weights, key_in_ckpt="", bundle_root=str(bundle), **configs)
    exported, metadata, _ = load_net_with_metadata(path)
    record = read_record(weights)["settings"]
    network = network_of(record, 5, record).eval()
    load_weights(network, weights)
    x = torch.randn(1, 4, 2, 1281)
    with torch.no_grad():
        for one, other in zip(exported.with_spread(x), network.with_spread(x), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert torch.allclose(exported(x), network(x), atol=1e-5)
    assert metadata["operating_point"]["global"]["classes"]["cancer"]["threshold"] == 0.25


def test_a_repository_with_an_ensemble_in_its_models_can_be_checked(trained_repository: Path, tmp_path: Path) -> None:
    root = copied(trained_repository, tmp_path)
    write(root, "bundle/contents.py", "")  # what makes it a repository
    shutil.rmtree(root / "models")
    make_ensemble(tmp_path / "made").rename(root / "models")
    repository = Bundle.of_folder(root, {})
    assert repository.kind == "repository"
    for rule in ("weights", "network in and out", "TorchScript"):
        assert check(rule, repository).state == OK
    (root / "models" / "model.pt").write_bytes(b"no weights")
    assert check("network in and out", repository).state == OK
    assert check("weights", repository).state == FAILED
