"""Links of patches that lie anywhere, compared with plain loops over all pairs, and with our own grids."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.bags import free_links
from scripts.bags.free_links import link_patches
from scripts.bags.grid import link_grids
from scripts.core.magnification import Scale
from tests.bags.test_grid import random_tissue


def contour_grids(seed, side, steps, num_contours):
    """Positions as CLAM makes them: a grid for each contour, from the corner of its box, column by column."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_contours):
        corner, size = rng.integers(0, 500, 2), rng.integers(1, 400, 2)
        x, y = (np.arange(c, c + s, max(1, side // steps)) for c, s in zip(corner, size, strict=True))
        grid = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
        found.append(grid[rng.random(len(grid)) < 0.8])
    return np.unique(np.concatenate(found), axis=0).astype(np.float64)


def plain_ancestor(centre, corners, side):
    """The corner of the patch that contains a centre, by a loop; ``None`` without one."""
    best = None
    for x, y in corners:
        if x <= centre[0] < x + side and y <= centre[1] < y + side:
            distance = (centre[0] - x - side / 2) ** 2 + (centre[1] - y - side / 2) ** 2
            if best is None or (-distance, y, x) > best[0]:
                best = (-distance, y, x), (x, y)
    return None if best is None else best[1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sides=st.sampled_from([(64, 32), (100, 40), (128, 64, 32), (81, 27), (50, 50)]),
    steps=st.sampled_from([1, 2]),
    contours=st.integers(1, 4),
    pairs_at_once=st.sampled_from([1, 100, 1 << 20]),
)
def test_each_patch_is_linked_to_the_nearest_that_contains_its_centre(seed, sides, steps, contours, pairs_at_once):
    corners = [contour_grids(seed + s, side, steps, contours) for s, side in enumerate(sides)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(free_links, "PAIRS_AT_ONCE", pairs_at_once)
        links = link_patches(corners, sides)
    wanted = set()
    for x, y in corners[-1]:
        centre = (x + sides[-1] / 2, y + sides[-1] / 2)
        row = [plain_ancestor(centre, lower, side) for lower, side in zip(corners[:-1], sides[:-1], strict=True)]
        if None not in row:
            wanted.add((*row, (x, y)))
    kept = [of_scale[used] for of_scale, used in zip(corners, links.patches, strict=True)]
    found = [tuple(tuple(of_scale[patch]) for of_scale, patch in zip(kept, row, strict=True)) for row in links.rows]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert links.orphans == len(corners[-1]) - len(wanted)
    # As in our own grids: each patch is in a row, and they go from top to bottom and left to right.
    for s, used in enumerate(links.patches):
        assert set(links.rows[:, s]) == set(range(len(used)))
        assert kept[s].tolist() == sorted(kept[s].tolist(), key=lambda corner: corner[::-1])
    assert links.rows[:, -1].tolist() == list(range(len(links.rows)))
    assert links.unused == sum(len(c) for c in corners[:-1]) - sum(len(p) for p in links.patches[:-1])


@settings(max_examples=100, deadline=None)
@given(
    magnifications=st.sampled_from([(5, 10), (5, 12.5), (2.5, 5, 20), (4, 10), (10,)]),
    size=st.tuples(st.integers(500, 6000), st.integers(500, 6000)),
    base_mpp=st.sampled_from([0.5, 0.25, 0.2525, 0.4933]),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    seed=st.integers(0, 1000),
    of_pieces=st.booleans(),
    is_rounded=st.booleans(),
    lower=st.sampled_from([0.0, 0.3]),
)
def test_our_own_grids_are_linked_as_they_were_laid(
    magnifications, size, base_mpp, overlap, seed, of_pieces, is_rounded, lower
):
    tissue = random_tissue(seed, 0.5)
    scales = [Scale(m, 224, base_mpp) for m in magnifications]
    pieces = tissue.pieces_level0() if of_pieces else None
    thresholds = [lower] * (len(scales) - 1) + [0.3]
    grid = link_grids(scales, size, tissue.fraction, thresholds, overlap, pieces)
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(len(coords)) for coords in grid.coords]
    given_corners = [
        (np.rint(coords) if is_rounded else coords)[order] for coords, order in zip(grid.coords, shuffled, strict=True)
    ]
    links = link_patches(given_corners, [scale.patch_level0 for scale in scales], tolerance_px=1.0)
    if not links.orphans:
        assert np.array_equal(links.rows, grid.rows)
        for order, used, coords in zip(shuffled, links.patches, grid.coords, strict=True):
            assert np.array_equal(order[used], np.arange(len(coords)))
    assert (links.orphans, links.unused) == (0, 0)


def test_borders_and_equal_distances_are_decided_in_one_way():
    low = np.array([[0.0, 0], [100, 0], [0, 100], [100, 100]])
    # The centre (100, 50) is on the border of two: it belongs to the right one.
    links = link_patches([low, np.array([[75.0, 25]])], [100, 50])
    assert low[links.patches[0]].tolist() == [[100, 0]]
    # Four overlapping patches are equally near to the centre (100, 100).
    low = np.array([[20.0, 20], [80, 20], [20, 80], [80, 80]])
    links = link_patches([low, np.array([[75.0, 75]])], [100, 50])
    assert low[links.patches[0]].tolist() == [[80, 80]]


def test_without_patches_there_are_no_rows():
    none, some = np.zeros((0, 2)), np.array([[0.0, 0], [50, 0]])
    for corners in ([none, some], [some, none], [none, none]):
        links = link_patches(corners, [100, 50])
        assert links.rows.shape == (0, 2)
        assert links.orphans == len(corners[1])


def test_a_million_patches_are_linked_without_a_table_of_all_pairs():
    side = 1000
    high = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * 224.0
    low = np.stack(np.meshgrid(np.arange(side // 2), np.arange(side // 2)), axis=-1).reshape(-1, 2) * 448.0
    low = np.concatenate([low, low + 100])  # overlapping
    tracemalloc.start()
    start = time.perf_counter()
    links = link_patches([low, high], [448, 224])
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(links.rows) == len(high)
    assert peak < 1e9
    assert seconds < 120
