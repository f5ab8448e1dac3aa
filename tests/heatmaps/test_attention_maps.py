"""Maps over patches: rows that are summed, ranks, and what the network's own maps sum to."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from scripts.bags.grid import row_log_weight
from scripts.heatmaps.attention_maps import KINDS, PatchMap, gather_rows
from scripts.networks.mustmil import MuSTMIL


def a_map(values, kind="attention", side=253.67, base_mpp=0.2523):
    corners = np.stack([np.arange(len(values)), np.zeros(len(values))], axis=1) * side
    return PatchMap(corners, side, base_mpp, np.array(values, dtype=np.float64), kind)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=40),
    num_padding=st.integers(0, 5),
    side=st.floats(1, 2000),
    kind=st.sampled_from(KINDS),
)
def test_rows_that_share_a_patch_are_summed_and_padding_is_left_out(rows, num_padding, side, kind):
    if kind == "contribution":
        rows = [(column, row, 3 * value - 1) for column, row, value in rows]
    expected = defaultdict(float)
    for column, row, value in rows:
        expected[column * side, row * side] += value
    corners = np.array([(column * side, row * side) for column, row, _ in rows] + [(np.nan, np.nan)] * num_padding)
    values = np.array([value for *_, value in rows] + [0.0] * num_padding)
    found = gather_rows(values, corners, side, 0.25, kind)
    assert found.kind == kind
    assert dict(zip(map(tuple, found.corners.tolist()), found.values, strict=True)) == pytest.approx(expected)
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


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([-2.0, -1.0, -1e-9, 0.0, 0.5, 0.5000005, 1.0]) | st.floats(-3, 3), min_size=1))
def test_contributions_that_change_their_sign_are_ranked_the_other_way_round(values):
    percentile, reverse = (a_map(sign * np.array(values), "contribution").percentile for sign in (1, -1))
    assert percentile + reverse == pytest.approx(100 * (len(values) + 1) / len(values))
    # What speaks for the class ranks above what says nothing, and that above what speaks against it.
    signs = np.sign(values)
    assert all(a > b for a in percentile[signs > 0] for b in percentile[signs <= 0])
    assert all(a > b for a in percentile[signs >= 0] for b in percentile[signs < 0])


def test_an_attention_and_a_contribution_of_the_same_values_rank_alike():
    values = [0.0, 0.3, 1e-9, 0.3, 0.3000001, 0.7]
    assert a_map(values).percentile.tolist() == a_map(values, "contribution").percentile.tolist()


def test_an_attention_that_prefers_nothing_ranks_all_patches_alike():
    # In float32, with 1, 3 and 4 rows to a patch: log weights and sums must not decide between them.
    rows = np.array([[0, 0], [1, 1], [1, 2], [1, 3], [2, 4], [2, 5], [2, 6], [2, 7], [3, 8]])
    weight = torch.from_numpy(row_log_weight(rows))[:, 0]
    attention = torch.softmax(7.3 + weight, dim=0).numpy()
    corners = np.stack([rows[:, 0] * 100.0, np.zeros(len(rows))], axis=1)
    found = gather_rows(attention, corners, 100.0, 0.5)
    assert found.percentile == pytest.approx([62.5] * 4)
    assert found.values == pytest.approx([0.25] * 4)


def test_over_the_unique_patches_attention_sums_to_one_and_contribution_to_the_logit_less_its_bias():
    torch.manual_seed(0)
    network = MuSTMIL(num_classes=3, num_scales=2, num_features=6, num_nodes=8).eval()
    rows = np.array([[0, 0], [0, 1], [0, 2], [1, 3], [1, 4]])
    corners = [np.stack([rows[:, s] * side, rows[:, s] * 0.0], axis=1) for s, side in enumerate((200.0, 100.0))]
    features = [torch.randn(n, 6) for n in (2, 5)]
    x = torch.stack([features[s][rows[:, s]] for s in (0, 1)], dim=1)[None]
    with torch.no_grad():
        logits, attention, contribution = network.explain(x, torch.from_numpy(row_log_weight(rows))[None])
    for m, s in ((0, 1), (1, 0), (2, 1)):
        for k in range(3):
            found = gather_rows(attention[0, :, m, k].numpy(), corners[s], 100.0, 0.5)
            assert len(found.values) == len(features[s])
            assert found.values.sum() == pytest.approx(1, abs=1e-6)
            added = gather_rows(contribution[0, :, m, k].numpy(), corners[s], 100.0, 0.5, "contribution")
            bias = network.get_parameter(f"myfc.{m}.bias")[k].item()
            assert added.values.sum() == pytest.approx(logits[0, m, k].item() - bias, abs=1e-6)
            assert np.array_equal(added.corners, found.corners)


@pytest.mark.parametrize(
    ("attention", "corners"),
    [
        (np.ones(2), np.full((2, 2), np.nan)),
        (np.array([1.0, np.nan]), np.zeros((2, 2))),
        (np.array([1.0, -0.5]), np.array([[0.0, 0.0], [1.0, 0.0]])),
        (np.ones(1), np.array([[np.inf, 0.0]])),
    ],
)
def test_what_is_no_attention_over_patches_is_refused(attention, corners):
    with pytest.raises(ValueError, match="attention"):
        gather_rows(attention, corners, 100.0, 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_contribution_may_be_negative_but_not_infinite(value):
    assert a_map([-0.5, 0.5], "contribution").values.min() == -0.5
    with pytest.raises(ValueError, match="contribution must be finite"):
        a_map([0.5, value], "contribution")


def test_the_shade_of_a_contribution_shows_its_sign_and_that_of_attention_its_rank():
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert PatchMap(corners, 1.0, 1.0, np.array([-1.0, 0.0, 4.0]), "contribution").shade.tolist() == [37.5, 50.0, 100.0]
    assert PatchMap(corners, 1.0, 1.0, np.array([2.0, 3.0, 4.0]), "contribution").shade.min() > 50
    assert PatchMap(corners, 1.0, 1.0, np.zeros(3), "contribution").shade.tolist() == [50.0] * 3
    attention = PatchMap(corners, 1.0, 1.0, np.array([0.2, 0.3, 0.5]))
    assert attention.shade.tolist() == attention.percentile.tolist()


def test_a_flat_attention_of_many_patches_is_ranked_and_not_one_tie():
    rng = np.random.default_rng(0)
    inside = rng.random(50_000) < 0.1
    values = np.exp(1e-3 * (rng.normal(size=50_000) + inside))
    corners = np.stack([np.arange(50_000.0), np.zeros(50_000)], axis=1)
    found = gather_rows(values, corners, 1.0, 1.0)
    assert roc_auc_score(inside, found.percentile) == pytest.approx(roc_auc_score(inside, values), abs=1e-3)
    evenly = gather_rows(1 + 1e-6 * np.arange(50_000), corners, 1.0, 1.0).percentile
    assert len(np.unique(evenly)) > 10_000
