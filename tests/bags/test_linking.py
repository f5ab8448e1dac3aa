"""How rows are made of unique patches, against plain loops over the rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.bags.grid import of_rows
from scripts.bags.linking import Linking
from scripts.core.errors import SettingsError

F = 5
LINKINGS = ("linked", "repeated", "shuffled", "pooled")
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**16)


class Slide:
    """Random features and corners of unique patches, and rows in which each patch is at least once."""

    def __init__(self, seed: int, num_scales: int = 2, num_rows: int | None = None) -> None:
        rng = np.random.default_rng(seed)
        num_rows = num_rows or int(rng.integers(2, 12))
        counts = [int(rng.integers(1, num_rows + 1)) for _ in range(num_scales - 1)] + [num_rows]
        columns = [np.concatenate([np.arange(n), rng.integers(0, n, num_rows - n)]) for n in counts]
        self.rows = np.stack([rng.permutation(column) for column in columns], axis=1)
        self.features = [rng.standard_normal((n, F)).astype(np.float32) for n in counts]
        self.coords = [rng.uniform(0, 1e5, (n, 2)) for n in counts]

    def linked(self, linking: str, name: str = "s0") -> dict[str, Any]:
        made = Linking(linking, self.rows.shape[1])
        return made.rows_of(name, self.rows, self.coords, lambda rows: of_rows(self.features, rows))


def patch_of_row(slide: Slide, found: dict[str, Any]) -> np.ndarray:
    """Which patch of each scale each row has, by its corners, which differ between patches."""
    return np.array([
        [int(np.flatnonzero((slide.coords[s] == corner).all(axis=1))[0]) for s, corner in enumerate(corners)]
        for corners in found["corners"]
    ])  # fmt: skip


@few
@given(seeds, st.integers(1, 3))
def test_linked_rows_are_the_patches_with_minus_the_logarithm_of_how_many_rows_share_each(
    seed: int, scales: int
) -> None:
    slide = Slide(seed, scales)
    found = slide.linked("linked")
    for j, row in enumerate(slide.rows):
        for s, patch in enumerate(row):
            assert np.array_equal(found["image"][j, s], slide.features[s][patch])
            assert np.array_equal(found["corners"][j, s], slide.coords[s][patch])
            sharing = slide.rows[:, s].tolist().count(patch)
            assert found["log_weight"][j, s] == pytest.approx(-math.log(sharing), abs=1e-6)


@few
@given(seeds, st.integers(1, 3))
def test_repeated_rows_are_the_same_and_weigh_the_same(seed: int, scales: int) -> None:
    slide = Slide(seed, scales)
    found, linked = slide.linked("repeated"), slide.linked("linked")
    assert np.array_equal(found["image"], linked["image"])
    assert np.array_equal(found["corners"], linked["corners"])
    assert found["log_weight"].dtype == np.float32
    assert not found["log_weight"].any()


@few
@given(seeds, st.integers(2, 3))
def test_a_shuffled_row_has_the_lower_patches_of_another_row_with_their_features_and_log_weights(
    seed: int, scales: int
) -> None:
    slide = Slide(seed, scales)
    found, linked = slide.linked("shuffled"), slide.linked("linked")
    patches = patch_of_row(slide, found)
    assert np.array_equal(patches[:, -1], slide.rows[:, -1])
    # The same lower rows, each once, with all their scales together.
    assert sorted(map(tuple, patches[:, :-1])) == sorted(map(tuple, slide.rows[:, :-1]))
    weight_of = [dict(zip(slide.rows[:, s], linked["log_weight"][:, s], strict=True)) for s in range(scales)]
    for j, row in enumerate(patches):
        for s, patch in enumerate(row):
            assert np.array_equal(found["image"][j, s], slide.features[s][patch])
            assert found["log_weight"][j, s] == weight_of[s][patch]


def test_no_row_keeps_its_own_lower_patch_where_all_differ() -> None:
    slide = Slide(0, num_rows=50)
    slide.rows = np.stack([np.arange(50)] * 2, axis=1)
    slide.features[0], slide.coords[0] = slide.features[1], slide.coords[1]
    patches = patch_of_row(slide, slide.linked("shuffled"))
    assert (patches[:, 0] != patches[:, 1]).all()
    # One cycle: from any row, following the lower patches leads through all of them.
    place, seen = 0, []
    while place not in seen:
        seen.append(place)
        place = int(patches[place, 0])
    assert len(seen) == 50


def test_the_order_is_the_slides_own_and_always_the_same() -> None:
    slide = Slide(3, num_rows=30)
    one, again, other = (slide.linked("shuffled", name)["corners"] for name in ("s0", "s0", "s1"))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_lone_row_stays_as_it_is() -> None:
    slide = Slide(1, num_rows=1)
    for linking in ("shuffled", "pooled"):
        found = slide.linked(linking)
        assert np.array_equal(found["image"][0, 1], slide.features[1][0])
        assert np.array_equal(found["corners"][0, 0], slide.coords[0][0])


@few
@given(seeds, st.integers(2, 3))
def test_a_pooled_patch_is_the_mean_of_the_highest_ones_inside_it(seed: int, scales: int) -> None:
    slide = Slide(seed, scales)
    found, linked = slide.linked("pooled"), slide.linked("linked")
    for key in ("log_weight", "corners"):
        assert np.array_equal(found[key], linked[key])
    assert np.array_equal(found["image"][:, -1], linked["image"][:, -1])
    for j, row in enumerate(slide.rows):
        for s, patch in enumerate(row[:-1]):
            inside = {int(other[-1]) for other in slide.rows if other[s] == patch}
            mean = np.mean([slide.features[-1][i].astype(float) for i in inside], axis=0)
            np.testing.assert_allclose(found["image"][j, s], mean, rtol=1e-5, atol=1e-6)


def test_a_highest_patch_counts_once_in_however_many_rows_it_is() -> None:
    rows = np.array([[0, 0], [0, 0], [0, 1], [1, 2]])
    features = [np.zeros((2, 1), np.float32), np.array([[1], [4], [7]], np.float32)]
    coords = [np.zeros((2, 2)), np.zeros((3, 2))]
    found = Linking("pooled", 2).rows_of("s", rows, coords, lambda r: of_rows(features, r))
    assert found["image"][:, 0, 0].tolist() == [2.5, 2.5, 2.5, 7]


@pytest.mark.parametrize("linking", LINKINGS)
def test_the_slides_own_arrays_are_left_as_they_are(linking: str) -> None:
    slide = Slide(5)
    before = slide.rows.copy(), [f.copy() for f in slide.features]
    slide.linked(linking)
    assert np.array_equal(slide.rows, before[0])
    assert all(np.array_equal(one, other) for one, other in zip(slide.features, before[1], strict=True))


@pytest.mark.parametrize("linking", ["shuffled", "pooled"])
def test_one_magnification_has_no_links_to_take_away(linking: str) -> None:
    with pytest.raises(SettingsError, match=f"got '{linking}', and with one magnification there are no links"):
        Linking(linking, 1)


def test_another_linking_is_refused() -> None:
    with pytest.raises(SettingsError, match="linking: got 'free'. Choose one of linked, repeated, shuffled, pooled"):
        Linking("free", 2)
