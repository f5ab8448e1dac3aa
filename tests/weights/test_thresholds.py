"""A threshold is the best of all that decide differently, by a plain search through them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from scripts.core.errors import SettingsError
from scripts.core.setting_checks import threshold
from scripts.weights.thresholds import choose_threshold

SLIDES = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=30).filter(
    lambda slides: 0 < sum(y for _, y in slides) < len(slides)
)


def arrays(slides: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for p, _ in slides]) / 20, np.array([y for _, y in slides], float)


def every_threshold() -> np.ndarray:
    """One between each two probabilities of :func:`arrays`, and one beyond each end."""
    return (np.arange(22) - 0.5) / 20


def f1(y: np.ndarray, decided: np.ndarray) -> float:
    return 2 * float((y * decided).sum()) / float(y.sum() + decided.sum())


def sensitivity(y: np.ndarray, decided: np.ndarray) -> float:
    return float(decided[y == 1].mean())


def youden(y: np.ndarray, decided: np.ndarray) -> float:
    return sensitivity(y, decided) - float(decided[y == 0].mean())


BY_SKLEARN = {
    "f1": lambda y, decided: f1_score(y, decided, zero_division=0.0),
    "youden": lambda y, decided: recall_score(y, decided) + recall_score(y, decided, pos_label=0) - 1,
}


@settings(max_examples=50, deadline=None)
@given(SLIDES)
def test_f1_and_youden_are_the_best_that_any_threshold_has(slides: list[tuple[int, bool]]) -> None:
    p, y = arrays(slides)
    for rule, score in (("f1", f1), ("youden", youden)):
        best = max(score(y, p >= t) for t in every_threshold())
        decided = p >= choose_threshold(rule, p, y)
        # By scikit-learn, which would take seconds for all thresholds.
        assert BY_SKLEARN[rule](y, decided) == pytest.approx(best)


@settings(max_examples=50, deadline=None)
@given(SLIDES, st.sampled_from([0.5, 0.8, 0.95]))
def test_a_sensitivity_is_reached_by_the_highest_threshold_that_reaches_it(
    slides: list[tuple[int, bool]], wanted: float
) -> None:
    p, y = arrays(slides)
    chosen = choose_threshold(f"sensitivity={wanted}", p, y)
    assert sensitivity(y, p >= chosen) >= wanted
    higher = [t for t in every_threshold() if (p >= t).sum() < (p >= chosen).sum()]
    assert all(sensitivity(y, p >= t) < wanted for t in higher)


@pytest.mark.parametrize("rule", ["f1", "youden", "sensitivity=0.95"])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_slides_of_one_kind_choose_no_threshold(rule: str, label: float) -> None:
    assert choose_threshold(rule, [0.1, 0.7], [label, label]) == 0.5


def test_a_number_is_taken_as_it_is() -> None:
    assert choose_threshold(0.3, [0.1, 0.7], [0, 1]) == 0.3


def test_of_equally_good_thresholds_the_one_next_to_a_half_is_taken() -> None:
    assert choose_threshold("f1", [0.1, 0.9], [0, 1]) == 0.5


@pytest.mark.parametrize("rule", [0.5, 0.01, "f1", "youden", "sensitivity=0.95", "sensitivity=.9"])
def test_numbers_and_rules_are_taken(rule: Any) -> None:
    threshold("threshold", rule)


@pytest.mark.parametrize(
    "rule", [0, 1, -0.1, True, None, "F1", "sensitivity", "sensitivity=", "sensitivity=2", "sensitivity=nan", [0.5]]
)
def test_others_are_refused_in_one_line(rule: Any) -> None:
    with pytest.raises(SettingsError, match=r"threshold: got .*Give a number .*, f1, youden, or a sensitivity between"):
        threshold("threshold", rule)
