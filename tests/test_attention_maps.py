from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.attention_maps import AttentionMap, gather_attention
from scripts.grid import log_share
from scripts.networks import MuSTMIL


def a_map(attention, side=253.67, base_mpp=0.2523):
    corners = np.stack([np.arange(len(attention)), np.zeros(len(attention))], axis=1) * side
    return AttentionMap(corners, side, base_mpp, np.array(attention, dtype=np.float64))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=40),
    num_padding=st.integers(0, 5),
    side=st.floats(1, 2000),
)
def test_rows_that_share_a_patch_are_summed_and_padding_is_left_out(rows, num_padding, side):
    expected = defaultdict(float)
    for column, row, value in rows:
        expected[column * side, row * side] += value
    corners = np.array([(column * side, row * side) for column, row, _ in rows] + [(np.nan, np.nan)] * num_padding)
    attention = np.array([value for *_, value in rows] + [0.0] * num_padding)
    found = gather_attention(attention, corners, side, 0.25)
    assert dict(zip(map(tuple, found.corners.tolist()), found.attention, strict=True)) == pytest.approx(expected)
    by_row_then_column = [tuple(corner) for corner in found.corners[:, ::-1].tolist()]
    assert by_row_then_column == sorted(by_row_then_column)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.25, 0.2500001, 0.26, 3.0]) | st.floats(0.3, 2), min_size=1))
def test_a_percentile_counts_the_patches_below_and_shares_the_rank_of_equals(attention):
    # What differs by less than float32 can tell counts as equal.
    same = [[abs(a - b) <= 1e-6 * max(a, b) for b in attention] for a in attention]
    below = [
        sum(b < a and not s for b, s in zip(attention, row, strict=True))
        for a, row in zip(attention, same, strict=True)
    ]
    expected = [100 * (low + (sum(row) + 1) / 2) / len(attention) for low, row in zip(below, same, strict=True)]
    percentile = a_map(attention).percentile
    assert percentile == pytest.approx(expected)
    assert percentile.min() > 0
    assert percentile.max() <= 100


def test_an_attention_that_prefers_nothing_ranks_all_patches_alike():
    # In float32, with 1, 3 and 4 rows to a patch: log weights and sums must not decide between them.
    rows = np.array([[0, 0], [1, 1], [1, 2], [1, 3], [2, 4], [2, 5], [2, 6], [2, 7], [3, 8]])
    weight = torch.from_numpy(log_share(rows))[:, 0]
    attention = torch.softmax(7.3 + weight, dim=0).numpy()
    corners = np.stack([rows[:, 0] * 100.0, np.zeros(len(rows))], axis=1)
    found = gather_attention(attention, corners, 100.0, 0.5)
    assert found.percentile == pytest.approx([62.5] * 4)
    assert found.attention == pytest.approx([0.25] * 4)


def test_each_map_of_the_network_sums_to_one_over_the_unique_patches():
    torch.manual_seed(0)
    network = MuSTMIL(num_classes=3, num_scales=2, num_features=6, num_nodes=8).eval()
    rows = np.array([[0, 0], [0, 1], [0, 2], [1, 3], [1, 4]])
    corners = [np.stack([rows[:, s] * side, rows[:, s] * 0.0], axis=1) for s, side in enumerate((200.0, 100.0))]
    features = [torch.randn(n, 6) for n in (2, 5)]
    x = torch.stack([features[s][rows[:, s]] for s in (0, 1)], dim=1)[None]
    _, attention = network.attend(x, torch.from_numpy(log_share(rows))[None])
    for m, s in ((0, 1), (1, 0), (2, 1)):
        for k in range(3):
            found = gather_attention(attention[0, :, m, k].detach().numpy(), corners[s], 100.0, 0.5)
            assert len(found.attention) == len(features[s])
            assert found.attention.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("attention", "corners"),
    [
        (np.ones(3), np.zeros((2, 2))),
        (np.ones((3, 1)), np.zeros((3, 1, 2))),
        (np.ones(2), np.full((2, 2), np.nan)),
        (np.array([1.0, np.nan]), np.zeros((2, 2))),
        (np.array([1.0, -0.5]), np.array([[0.0, 0.0], [1.0, 0.0]])),
        (np.ones(1), np.array([[np.inf, 0.0]])),
    ],
)
def test_what_is_no_attention_over_patches_is_refused(attention, corners):
    with pytest.raises(ValueError, match="attention"):
        gather_attention(attention, corners, 100.0, 0.5)


@pytest.mark.parametrize(("side", "mpp"), [(0.0, 0.5), (100.0, 0.0), (np.nan, 0.5), (100.0, np.inf)])
def test_a_patch_without_a_size_is_refused(side, mpp):
    with pytest.raises(ValueError, match="size"):
        gather_attention(np.ones(1), np.zeros((1, 2)), side, mpp)
