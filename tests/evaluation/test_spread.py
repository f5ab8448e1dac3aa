"""The spread of an ensemble's members, and the decisions that are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scripts.evaluation.spread import spread_report

PATIENTS = [f"p{i // 2}" for i in range(60)]


def test_its_numbers_are_those_of_numpy_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    decided, y = rng.random((60, 3)) < 0.4, rng.random((60, 3)) < 0.4
    spread = rng.random((60, 3)) / 4 + 0.1 * (decided != y)
    found, wrong = spread_report(spread, decided, y, 0, PATIENTS), decided != y
    assert found["mean"] == pytest.approx(spread.mean())
    assert (found["of_right"], found["of_wrong"]) == pytest.approx((spread[~wrong].mean(), spread[wrong].mean()))
    assert found["roc_auc"]["value"] == pytest.approx(roc_auc_score(wrong.ravel(), spread.ravel()))
    low, high = found["roc_auc"]["ci95"]
    assert low < found["roc_auc"]["value"] < high


def test_a_spread_that_knows_nothing_has_a_half_within_its_interval() -> None:
    rng = np.random.default_rng(1)
    decided, y = rng.random((60, 3)) < 0.4, rng.random((60, 3)) < 0.4
    low, high = spread_report(rng.random((60, 3)), decided, y, 0, PATIENTS)["roc_auc"]["ci95"]
    assert low < 0.5 < high


def test_without_a_wrong_decision_nothing_is_ranked() -> None:
    y = np.eye(3)
    found = spread_report(np.full((3, 3), 0.1), y > 0, y, 0, ["a", "b", "c"])
    assert np.isnan([found["of_wrong"], found["roc_auc"]["value"], *found["roc_auc"]["ci95"]]).all()
    assert found["of_right"] == pytest.approx(0.1)
