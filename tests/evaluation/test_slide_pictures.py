"""Which slides are shown: those that are most wrong and those that are most right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from scripts.evaluation.slide_pictures import extreme_slides


def test_wrong_and_right_are_by_cross_entropy():
    rng = np.random.default_rng(2)
    p, y = rng.random((12, 3)), rng.integers(0, 2, (12, 3))
    loss = [
        np.mean([log_loss([b], [a], labels=[0, 1]) for a, b in zip(*row, strict=True)])
        for row in zip(p, y, strict=True)
    ]
    order = [int(i) for i in np.argsort(loss)]
    assert extreme_slides(p, y, 3) == (order[::-1][:3], order[:3])


@given(st.integers(1, 9), st.integers(1, 4))
def test_no_slide_is_both(num_slides, number):
    p = np.linspace(0.1, 0.9, num_slides)[:, None]
    wrong, right = extreme_slides(p, np.zeros((num_slides, 1)), number)
    assert not {*wrong} & {*right}
    assert len(wrong) == min(number, -(-num_slides // 2))
    assert len(wrong) + len(right) == min(2 * number, num_slides)


@pytest.mark.parametrize("wrong_first", [True, False])
def test_certainty_has_no_infinite_loss(wrong_first):
    p = np.array([[1.0], [0.0]]) if wrong_first else np.array([[0.0], [1.0]])
    wrong, right = extreme_slides(p, np.zeros((2, 1)))
    assert (wrong, right) == (([0], [1]) if wrong_first else ([1], [0]))
