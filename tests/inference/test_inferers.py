"""Prediction with trained weights alone: anything else is refused, however it was loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks import convert_to_torchscript

from scripts.core.errors import SettingsError
from scripts.inference.inferers import TrainedInferer
from scripts.networks.mustmil import MuSTMIL
from scripts.networks.state_record import sign
from tests.cohorts import join_log_weight

SETTINGS = {
    "method": "mustmil",
    "task": "multilabel",
    "class_names": ["a", "b", "c"],
    "magnifications": [5, 10],
    "patch_size": 224,
    "backbone": "efficientnet_lite0",
    "backbone_sha256": "ab12",
    "num_nodes": 4,
}
DATA = {"training_slides": 3, "validation_slides": 1, "drawn_slides": 0}


def network(seed: int) -> MuSTMIL:
    torch.manual_seed(seed)
    return MuSTMIL(3, 2, 6, 4).eval()


def trained() -> MuSTMIL:
    source, target = network(1), network(2)
    sign(source, {"settings": SETTINGS, "data": DATA})
    target.load_state_dict(source.state_dict())
    return target


def bag() -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(2, 4, 2, 6, generator=torch.Generator().manual_seed(0))
    log_weight = torch.zeros(2, 4, 2)
    log_weight[0, :3, 0] = -math.log(3)
    log_weight[1, 2:] = -math.inf
    return features, log_weight


@pytest.mark.parametrize("meta", [False, True])
def test_scores_as_the_network_does_on_features_and_log_weight(meta: bool) -> None:
    model, (features, log_weight) = trained(), bag()
    joined = join_log_weight(features, log_weight)
    inferer = TrainedInferer(SETTINGS)
    assert isinstance(inferer, Inferer)
    result = inferer(MetaTensor(joined, meta={"filename_or_obj": ["a.svs", "b.svs"]}) if meta else joined, model)
    assert torch.equal(torch.as_tensor(result), model(features, log_weight))


def test_further_arguments_reach_the_network() -> None:
    joined = join_log_weight(*bag())
    assert torch.equal(TrainedInferer()(joined, trained(), no_head=True), joined)


def test_random_weights_are_refused() -> None:
    with pytest.raises(SettingsError, match="weights: no weights were loaded"):
        TrainedInferer()(join_log_weight(*bag()), network(1))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if not key.startswith("myfc")},
        lambda state: {},
    ],
    ids=["prefixed", "missing", "empty"],
)
def test_weights_that_were_loaded_in_part_are_refused(spoil: Callable[[dict], dict]) -> None:
    model = network(2)
    model.load_state_dict(spoil(network(1).state_dict()), strict=False)
    with pytest.raises(SettingsError, match=r"the file lacks \d+ of the network's weights"):
        TrainedInferer()(join_log_weight(*bag()), model)


def test_weights_of_other_settings_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"other settings \(magnifications \[5, 10\], now \[10, 20\]\)"):
        TrainedInferer({**SETTINGS, "magnifications": [10, 20]})(join_log_weight(*bag()), trained())


def test_an_exported_network_passes(tmp_path: Path) -> None:
    model, joined = trained(), join_log_weight(*bag())
    torch.jit.save(convert_to_torchscript(model), tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    assert torch.allclose(TrainedInferer(SETTINGS)(joined, loaded), model(joined), atol=1e-6)
