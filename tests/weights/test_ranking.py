"""A head that ranks validation bags no better than chance is told of, and no other."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scripts.weights.doubts import doubt_of_head
from scripts.weights.operating_point import OPERATING_POINT, find_points
from scripts.weights.ranking import doubt_of_ranking, ranking_of

TRAINED = {"method": "mustmil", "magnifications": [5, 10], "alpha": 1.0, "beta": 1.0, "unit": "slide"}


def slides(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties ``[n, K]`` that know nothing of the labels ``[n, K]``, of which two go together."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < [0.5, 0.2, 0.7]).astype(float)
    y[:, 1] *= y[:, 0]
    scores = rng.normal(size=(n, 3)).round(1)
    scores[:, 2] -= scores[:, 0]
    return scores, y


def test_it_is_the_mean_roc_auc_of_the_classes_that_some_slides_have_and_some_have_not() -> None:
    scores, y = slides()
    wanted = np.mean([roc_auc_score(y[:, k], scores[:, k]) for k in range(3)])
    assert ranking_of(scores, y)["roc_auc"] == pytest.approx(wanted)
    with_all = np.column_stack([y, np.ones(len(y)), np.zeros(len(y))])
    more = np.column_stack([scores, scores[:, :2]])
    assert ranking_of(more, with_all) == pytest.approx(ranking_of(scores, y))


@pytest.mark.parametrize("n", [40, 150, 3000])
def test_orders_by_chance_stay_below_the_limit_19_times_in_20(n: int) -> None:
    scores, y = slides(n)
    limit, rng = ranking_of(scores, y)["limit"], np.random.default_rng(1)
    by_chance = np.array([ranking_of(scores[rng.permutation(n)], y)["roc_auc"] for _ in range(3000)])
    assert (by_chance < limit).mean() == pytest.approx(0.95, abs=0.015)
    assert (limit - 0.5) / 1.6449 == pytest.approx(by_chance.std(), rel=0.05)


def of_one_class(positives: int, negatives: int) -> np.ndarray:
    return np.repeat([1.0, 0.0], [positives, negatives])[:, None]


FEW = {
    "no slide": np.zeros((0, 2)),
    "one label": np.ones((50, 2)),
    "two": np.eye(2),
    "seven and seven": of_one_class(7, 7),
    "three and many": of_one_class(3, 200),
}


@pytest.mark.parametrize("y", FEW.values(), ids=FEW)
def test_of_too_few_slides_nothing_is_said(y: np.ndarray) -> None:
    assert ranking_of(np.arange(float(y.size)).reshape(y.shape), y) == {}
    assert doubt_of_ranking({"slides": len(y), "ranking": {}}) is None
    assert doubt_of_ranking({"slides": len(y)}) is None  # as points of earlier versions are
    assert ranking_of(np.arange(16.0)[:, None], of_one_class(8, 8))["limit"] < 0.75


def test_logits_that_are_large_are_ranked_as_they_are_and_nan_is_not() -> None:
    noise, y = slides()
    points = find_points(60 + noise[:, None] + 20 * y[:, None], y, ["global"], list("abc"), np.zeros(3), "none", 0.5)
    assert points["global"]["ranking"]["roc_auc"] == 1.0
    noise[0, 0] = np.nan
    assert ranking_of(noise, y) == {}


def test_a_head_that_gives_all_slides_the_same_is_doubted() -> None:
    _, y = slides()
    assert doubt_of_ranking({"slides": 40, "ranking": ranking_of(np.full(y.shape, 0.3), y)}) is not None


def test_a_head_that_knows_nothing_is_doubted_and_one_that_knows_something_is_not() -> None:
    noise, y = slides()
    logits = np.stack([noise, noise + 2 * y], axis=1)
    points = find_points(logits, y, ["global", "5x"], ["a", "b", "c"], np.zeros(3), "temperature", 0.5)
    origin = {OPERATING_POINT: points, "made_by": {"configuration": TRAINED}}
    doubt = doubt_of_head(origin, "global")
    assert doubt is not None
    assert "it ranks the 40 validation bags no better than chance does (ROC-AUC 0." in doubt
    assert doubt_of_head(origin, "5x") is None
    assert doubt_of_head({}, "global") is None


@pytest.mark.parametrize("task", ["multiclass", "ordinal"])
def test_exclusive_classes_are_ranked_by_their_probabilities(task: str) -> None:
    rng = np.random.default_rng(0)
    y = np.eye(3)[rng.integers(0, 3, 60)]
    z = rng.normal(size=(60, 1, 3)) + 3 * y[:, None] if task == "multiclass" else _cumulative(y, rng)
    points = find_points(z, y, ["global"], ["a", "b", "c"], np.zeros(3), "none", 0.5, task)
    assert points["global"]["ranking"]["roc_auc"] > 0.9


def _cumulative(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ordinal logits ``[n, 1, 2]``, of more than class 0, and of more than class 1."""
    rank = y.argmax(axis=1)[:, None] + 0.2 * rng.normal(size=(len(y), 1))
    return (8 * (rank - [0.5, 1.5]))[:, None]


@pytest.mark.parametrize(("weights", "head"), [({"alpha": 0.0}, "global"), ({"beta": 0.0}, "5x")])
def test_a_head_that_was_not_trained_is_doubted_whatever_it_ranks(weights: dict[str, float], head: str) -> None:
    origin = {"made_by": {"configuration": {**TRAINED, **weights}}}
    assert "did not train it" in (doubt_of_head(origin, head) or "")
    assert doubt_of_head(origin, "5x" if head == "global" else "global") is None
