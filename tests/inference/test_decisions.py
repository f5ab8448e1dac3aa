"""Decisions at the operating point: of whatever weights ran, for a workflow and for MONAI Label."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch

from scripts.inference.decisions import Decided
from scripts.inference.inferers import TrainedInferer
from scripts.networks.methods import get_network
from scripts.networks.state_record import sign
from tests.bundles import SCANNED, SETTINGS

HEADS, CLASSES = ["global", "5x", "10x"], ["cancer", "hgd"]


def trained(**points: dict[str, float]) -> Any:
    """A network whose weights have this operating point of each class, at every head."""
    torch.manual_seed(0)
    network = get_network("mustmil", num_classes=2, num_scales=2, num_features=6, num_nodes=4)
    origin = {"operating_point": {head: {"classes": points} for head in HEADS}} if points else {}
    sign(network, {"settings": SETTINGS, "data": SCANNED, "version": "0.0.0"}, origin)
    network.load_state_dict(network.state_dict())
    return network.eval()


def point(shift: float, slope: float, intercept: float, threshold: float) -> dict[str, float]:
    return {"shift": shift, "slope": slope, "intercept": intercept, "threshold": threshold}


POINTS = {"cancer": point(-1.0, 0.5, 0.25, 0.4), "hgd": point(0.5, 2.0, 0.0, 0.9)}


def wanted(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities and decisions ``[H, K]``, number by number."""
    z = logits.numpy().astype(float)
    calibrated = np.empty_like(z)
    for h in range(z.shape[0]):
        for k, one in enumerate(POINTS.values()):
            calibrated[h, k] = 1 / (1 + np.exp(-(one["slope"] * (z[h, k] + one["shift"]) + one["intercept"])))
    return calibrated, calibrated >= [0.4, 0.9]


def test_of_the_network_that_an_inferer_ran_whatever_network_the_config_has() -> None:
    # As MONAI Label does it: weights are loaded into a copy of the config's network, which transforms do not see.
    of_config = trained()
    served = copy.deepcopy(of_config)
    served.load_state_dict(trained(**POINTS).state_dict())
    inferer = TrainedInferer()
    decide = Decided("pred", inferer, HEADS, CLASSES)
    bag = torch.randn(1, 5, 2, 7)
    assert decide({"pred": inferer(bag, of_config)[0]}).keys() == {"pred"}
    logits = inferer(bag, served)[0].detach()
    made = decide({"pred": logits})
    calibrated, decision = wanted(logits)
    assert made["calibrated"].numpy() == pytest.approx(calibrated, abs=1e-6)
    assert made["decision"].tolist() == decision.tolist()
    assert made["threshold"].tolist() == [[0.4, 0.9]] * 3
    assert "latencies" not in made


def test_a_reply_of_monai_labels_stock_app_has_them_in_the_one_place_that_it_copies() -> None:
    logits = torch.tensor([[0.3, 2.0], [1.5, -1.0], [-3.0, 0.0]])
    request = {"pred": logits, "image_path": "a.svs", "latencies": {"pre": {"EncodeSlided": 1.5}}}
    made = Decided("pred", trained(**POINTS), HEADS, CLASSES)(request)
    calibrated, decision = wanted(logits)
    told = json.loads(json.dumps(made["latencies"]))
    assert told["pre"] == {"EncodeSlided": 1.5}
    assert list(told["operating_point"]) == HEADS
    for h, head in enumerate(HEADS):
        for k, (name, threshold) in enumerate(zip(CLASSES, (0.4, 0.9), strict=True)):
            assert told["operating_point"][head][name] == {
                "calibrated": pytest.approx(calibrated[h, k], abs=1e-6),
                "threshold": threshold,
                "decision": bool(decision[h, k]),
            }
    assert decision.any()
    assert not decision.all()
    assert request["latencies"].keys() == {"pre"}


def test_weights_without_an_operating_point_leave_a_request_as_it_was() -> None:
    request = {"pred": torch.zeros(3, 2), "image_path": "a.svs", "latencies": {"pre": {}}}
    assert Decided("pred", trained(), HEADS, CLASSES)(request).keys() == request.keys()
    assert "operating_point" not in request["latencies"]


def test_a_head_whose_scores_may_mean_nothing_is_warned_of_once_for_each_weights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network, logits = trained(**POINTS), {"pred": torch.zeros(3, 2)}
    decide = Decided("pred", network, HEADS, CLASSES)
    decide(logits)
    assert not caplog.messages
    made_by = {"configuration": {"method": "mustmil", "magnifications": [5, 10], "alpha": 0.0, "beta": 1.0}}
    points = {head: {"classes": POINTS, "slides": 30} for head in HEADS}
    points["10x"]["ranking"] = {"roc_auc": 0.5, "limit": 0.7}
    sign(
        network,
        {"settings": SETTINGS, "data": SCANNED, "version": "0.0.0"},
        {"operating_point": points, "made_by": made_by},
    )
    network.load_state_dict(network.state_dict())
    for _ in range(2):
        decide(logits)
    untrained, by_chance = caplog.messages
    assert untrained == (
        "what is predicted by the head global may mean nothing: its training, with alpha 0 and beta 1, did not train it"
    )
    assert "the head 10x may mean nothing: it ranks the 30 validation bags no better than chance" in by_chance
