import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.bags.grid import link_grids, row_log_weight, tissue_thresholds
from scripts.bags.tissue import TissueMask
from scripts.core.errors import SettingsError
from scripts.core.magnification import Scale


def everywhere(corners, side):
    return np.ones(len(corners))


def scales_of(magnifications, base_mpp=0.5, patch=224):
    return [Scale(m, patch, base_mpp) for m in magnifications]


def random_tissue(seed, share):
    rng = np.random.default_rng(seed)
    tissue = rng.random((23, 31)) < share
    if seed % 2:  # pieces apart from each other
        tissue &= np.kron(rng.random((6, 8)) < 0.2, np.ones((4, 4)))[:23, :31] > 0
    return TissueMask(tissue, pixel_level0=(180.0, 180.0), base_mpp=0.5)


grids = st.builds(
    lambda magnifications, width, height, base_mpp, seed, share, min_tissue, overlap, of_pieces: link_grids(
        scales_of(sorted(magnifications), base_mpp),
        (width, height),
        (tissue := random_tissue(seed, share)).fraction,
        min_tissue,
        overlap,
        tissue.pieces_level0() if of_pieces else None,
    ),
    magnifications=st.sets(st.sampled_from([1.25, 2.5, 4, 5, 7.5, 10, 12.5, 20]), min_size=1, max_size=4),
    width=st.integers(100, 6000),
    height=st.integers(100, 6000),
    base_mpp=st.sampled_from([0.2525, 0.499, 0.5]),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.3, 0.8, 1.0]),
    min_tissue=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    overlap=st.sampled_from([0.0, 0.0, 0.25, 0.5]),
    of_pieces=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(grids)
def test_every_rows_ancestors_contain_the_rows_centre(grid):
    finest = grid.scales[-1]
    centres = grid.coords[-1][grid.rows[:, -1]] + finest.patch_level0 / 2
    for s, scale in enumerate(grid.scales):
        corners = grid.coords[s][grid.rows[:, s]]
        slack = 1e-6 * scale.patch_level0
        assert (centres >= corners - slack).all()
        assert (centres <= corners + scale.patch_level0 + slack).all()


@settings(max_examples=80, deadline=None)
@given(grids)
def test_no_patch_appears_twice_and_the_rows_use_every_patch(grid):
    for s, coords in enumerate(grid.coords):
        assert len(np.unique(coords, axis=0)) == len(coords)
        assert set(grid.rows[:, s].tolist()) == set(range(len(coords)))
    assert len(np.unique(grid.rows[:, -1])) == grid.num_rows


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000), min_tissue=st.floats(0.05, 1.0),
    width=st.integers(300, 5000), height=st.integers(300, 5000),
)  # fmt: skip
def test_a_patch_is_kept_for_its_tissue_and_for_nothing_else(seed, min_tissue, width, height):
    mask, scale = random_tissue(seed, 0.6), Scale(10, 224, 0.5)
    grid = link_grids([scale], (width, height), mask.fraction, min_tissue)
    side = scale.patch_level0
    expected = [
        (column * side, row * side)
        for row in range(math.ceil(height / side))
        for column in range(math.ceil(width / side))
        if mask.fraction(np.array([[column * side, row * side]]), side)[0] >= min_tissue - 1e-9
    ]
    assert [tuple(corner) for corner in grid.coords[0].tolist()] == expected
    assert grid.orphans == 0


@settings(max_examples=50, deadline=None)
@given(width=st.integers(100, 9000), height=st.integers(100, 9000))
def test_at_5x_and_10x_a_patch_holds_up_to_four_whole(width, height):
    grid = link_grids(scales_of([5, 10]), (width, height), everywhere)
    low, high = (grid.coords[s][grid.rows[:, s]] for s in range(2))
    inside = (high >= low) & (high + grid.scales[1].patch_level0 <= low + grid.scales[0].patch_level0)
    assert inside.all()
    assert np.bincount(grid.rows[:, 0]).max() <= 4
    assert grid.num_rows == math.ceil(width / 448) * math.ceil(height / 448)


def test_the_rows_of_a_small_grid_by_hand():
    # 1000 x 500 px at 0.5 um/px: 10x patches of 448 px make 3 x 2 cells, 5x patches of 896 px make 2 x 1.
    grid = link_grids(scales_of([5, 10]), (1000, 500), everywhere)
    assert grid.coords[0].tolist() == [[0, 0], [896, 0]]
    assert grid.coords[1].tolist() == [[0, 0], [448, 0], [896, 0], [0, 448], [448, 448], [896, 448]]
    assert grid.rows.tolist() == [[0, 0], [0, 1], [1, 2], [0, 3], [0, 4], [1, 5]]
    assert np.exp(-grid.log_weight()).round(6).tolist() == [[4, 1], [4, 1], [2, 1], [4, 1], [4, 1], [2, 1]]


def test_ratios_that_are_not_whole_link_by_the_centre():
    # 12.5x patches of 358.4 px in 5x patches of 896 px: centres at 179.2, 537.6, 896.0, 1254.4, ...
    grid = link_grids(scales_of([5, 12.5]), (1792, 358), everywhere)
    assert grid.coords[1][:, 0].tolist() == pytest.approx([0, 358.4, 716.8, 1075.2, 1433.6])
    assert grid.rows[:, 0].tolist() == [0, 0, 1, 1, 1]


def test_patches_without_an_ancestor_are_left_out_and_counted():
    # Tissue in the left 448 px only: each 10x patch there is all tissue, its 5x ancestor only half.
    tissue = TissueMask(np.array([[True, False]]), pixel_level0=(448.0, 896.0), base_mpp=0.5)
    linked = link_grids(scales_of([5, 10]), (896, 896), tissue.fraction, [0.5, 0.7])
    assert (linked.num_rows, linked.orphans) == (2, 0)
    orphaned = link_grids(scales_of([5, 10]), (896, 896), tissue.fraction, [0.6, 0.7])
    assert (orphaned.num_rows, orphaned.orphans) == (0, 2)
    assert orphaned.rows.shape == (0, 2)
    assert orphaned.log_weight().shape == (0, 2)


def test_a_slide_that_is_all_tissue_has_every_patch_whatever_the_threshold():
    # Areas are sums in floats, which may come out slightly below those of the squares.
    tissue = TissueMask(np.ones((301, 299), dtype=bool), pixel_level0=(32.1, 32.1), base_mpp=0.2493)
    grid = link_grids(scales_of([5, 10], 0.2493), (8900, 9200), tissue.fraction, [1.0, 1.0])
    assert grid.num_rows == link_grids(scales_of([5, 10], 0.2493), (8900, 9200), tissue.fraction, 1.0).num_rows > 50


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=40))
def test_weights_of_the_rows_that_share_a_patch_add_up_to_one(rows):
    weights = np.exp(row_log_weight(np.array(rows)))
    for s in range(2):
        for patch in set(np.array(rows)[:, s]):
            assert weights[np.array(rows)[:, s] == patch, s].sum() == pytest.approx(1.0, abs=1e-5)


def test_one_share_of_tissue_is_for_the_highest_magnification():
    assert tissue_thresholds(0.7, 3) == (0.0, 0.0, 0.7)
    assert tissue_thresholds([0.1, 0.2, 0.3], 3) == (0.1, 0.2, 0.3)
    for wrong in (1.5, -0.1, [0.1, 0.2], [0.1, 0.2, 3], None, True, "0.7", {"a": 1}, [0.1, 0.2, "0.3"]):
        with pytest.raises(SettingsError, match="min_tissue: got .* one for each magnification from low to high"):
            tissue_thresholds(wrong, 3)
