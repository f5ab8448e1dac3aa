"""Overlap, and a grid for each piece of tissue, on thin biopsies."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.bags.bag import BagBuilder
from scripts.bags.grid import link_grids
from scripts.bags.pieces import _joined
from scripts.bags.tissue import TissueMask
from scripts.core.magnification import Scale
from tests.conftest import ROOT

SCALES = (Scale(5, 224, 0.5), Scale(10, 224, 0.5))  # patches of 896 and 448 px at level 0
SIZE = (20_000, 12_000)


def mask_of(boxes, pixel=20):
    """Tissue in boxes of (left, top, right, bottom) in level-0 pixels."""
    tissue = np.zeros((SIZE[1] // pixel, SIZE[0] // pixel), bool)
    for left, top, right, bottom in boxes:
        tissue[top // pixel : bottom // pixel, left // pixel : right // pixel] = True
    return TissueMask(tissue, (float(pixel), float(pixel)), 0.5)


def grid_of(mask, origin, overlap=0.0, min_tissue=0.7):
    pieces = mask.pieces_level0() if origin == "tissue" else None
    return link_grids(SCALES, SIZE, mask.fraction, min_tissue, overlap, pieces)


def covered_by_pixels(mask, grid):
    """Square millimetres of tissue within a patch of the highest magnification, pixel by pixel of level 0 / 20."""
    y, x = np.nonzero(mask.tissue)
    x0, y0 = x * mask.pixel_level0[0], y * mask.pixel_level0[1]
    parts = np.arange(0.5, 20, 1.0)
    total = 0
    for dx in parts[::4]:
        for dy in parts[::4]:
            px, py = (x0 + dx)[:, None], (y0 + dy)[:, None]
            left, top = grid.coords[-1].T
            side = SCALES[-1].patch_level0
            total += ((px >= left) & (px < left + side) & (py >= top) & (py < top + side)).any(axis=1).sum()
    return total / 25 * (20 * 0.5e-3) ** 2


biopsies = st.lists(
    st.builds(
        lambda x, y, w, h: (x * 20, y * 20, (x + w) * 20, (y + h) * 20),
        st.integers(0, 700), st.integers(0, 500), st.integers(10, 300), st.integers(10, 60),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(biopsies)
def test_grids_of_pieces_cover_at_least_as_much_as_one_from_the_slides_corner(boxes):
    mask = mask_of(boxes)
    side = SCALES[-1].patch_level0
    own, corner = (mask.covered_mm2(grid_of(mask, origin).coords[-1], side) for origin in ("tissue", "slide"))
    assert own >= corner - 1e-6


@settings(max_examples=40, deadline=None)
@given(biopsies, st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.sampled_from([0.1, 0.7]))
def test_no_two_patches_overlap_by_more_than_they_should(boxes, overlap, min_tissue):
    grid = grid_of(mask_of(boxes), "tissue", overlap, min_tissue)
    for scale, corners in zip(grid.scales, grid.coords, strict=True):
        apart = np.abs(corners[:, None] - corners[None]).max(axis=-1)[~np.eye(len(corners), dtype=bool)]
        assert (apart >= scale.patch_level0 * (1 - overlap) - 1e-6).all()
        assert (corners >= 0).all()


def test_a_biopsy_thinner_than_two_patches_is_covered_by_its_own_grid():
    # 400 um thick, and the rows of the slide's grid contain 29%, 100% and 49% of a patch.
    mask = mask_of([(3000, 1660, 15_000, 2460)])
    corner, own = grid_of(mask, "slide"), grid_of(mask, "tissue")
    side = SCALES[-1].patch_level0
    fractions = [mask.covered_mm2(grid.coords[-1], side) / mask.area_mm2 for grid in (corner, own)]
    assert fractions[0] == pytest.approx(448 / 800, abs=0.02)
    assert fractions[1] > 0.97


def test_a_biopsy_as_thick_as_a_patch_is_lost_or_covered():
    # 220 um thick, half of it on either side of a line of the slide's grid: no patch there has 70% of tissue.
    mask = mask_of([(3000, 2020, 15_000, 2460)])
    assert grid_of(mask, "slide").num_rows == 0
    own = grid_of(mask, "tissue")
    assert mask.covered_mm2(own.coords[-1], 448.0) > 0.95 * mask.area_mm2


def test_pieces_far_apart_have_grids_of_their_own_and_near_ones_share_one():
    def phases(boxes):
        return {tuple(np.round(corner % 448, 3)) for corner in grid_of(mask_of(boxes), "tissue").coords[-1]}

    one, far, near = (1000, 1000, 3000, 1600), (9100, 5140, 12_000, 5740), (3300, 1220, 5000, 1820)
    assert len(phases([one])) == 1
    assert len(phases([one, far])) == 2
    assert len(phases([one, near])) == 1


def test_with_overlap_an_ancestor_is_the_nearest_of_those_that_contain_the_centre():
    grid = grid_of(mask_of([(0, 0, *SIZE)]), "slide", overlap=0.5)
    low, high = (coords + scale.patch_level0 / 2 for coords, scale in zip(grid.coords, grid.scales, strict=True))
    for row, patch in grid.rows[:: len(grid.rows) // 200]:
        away = np.abs(low - high[patch]).max(axis=1)
        contains = away <= SCALES[0].patch_level0 / 2 + 1e-6
        distance = np.linalg.norm(low - high[patch], axis=1)
        assert contains[row]
        assert distance[row] == pytest.approx(distance[contains].min())


@settings(max_examples=15, deadline=None)
@given(biopsies, st.sampled_from([0.0, 0.5]))
def test_tissue_that_several_patches_cover_counts_once(boxes, overlap):
    mask = mask_of(boxes)
    grid = grid_of(mask, "slide", overlap, 0.3)
    # The oracle takes 25 points in each pixel of 20 px.
    assert mask.covered_mm2(grid.coords[-1], 448.0) == pytest.approx(covered_by_pixels(mask, grid), rel=0.02, abs=1e-3)


def test_tissue_nowhere_has_no_rows():
    assert grid_of(mask_of([]), "tissue").num_rows == 0


def test_a_noisy_mask_of_thousands_of_specks_is_one_piece():
    tissue = np.random.default_rng(0).random((SIZE[1] // 20, SIZE[0] // 20)) < 0.25
    noisy = TissueMask(tissue, (20.0, 20.0), 0.5)
    assert len(noisy.pieces_level0()) > 20_000
    grid = link_grids(SCALES, SIZE, noisy.fraction, 0.2, 0.0, noisy.pieces_level0())
    x, y = grid.coords[1].T
    assert len(set(x % 448)) == len(set(y % 448)) == 1


@given(st.integers(0, 2**16), st.integers(1, 40), st.sampled_from([0.0, 37.5, 448.0]))
def test_pieces_are_joined_as_by_looking_at_all_pairs(seed, number, reach):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 8000, (number, 2)).astype(float)
    boxes = np.concatenate([corners, corners + rng.integers(1, 900, (number, 2))], axis=1)

    def is_near(a, b):
        return all(a[axis] < b[axis + 2] + reach and b[axis] < a[axis + 2] + reach for axis in range(2))

    expected = [list(box) for box in boxes]
    while pair := next(((a, b) for a, b in itertools.combinations(expected, 2) if is_near(a, b)), None):
        expected = [box for box in expected if box not in pair]
        a, b = pair
        expected.append([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    assert sorted(_joined(boxes, boxes, reach).tolist()) == sorted(expected)


@pytest.mark.parametrize(
    ("row", "overlap"), [("CMU-1-Small-Region, 0.633 mm2", 0.0), ("CMU-1-Small-Region, `--o", 0.5)]
)
def test_a_real_slide_is_covered_as_the_documentation_says(real_slide, row, overlap):
    (line,) = [line for line in (ROOT / "docs" / "methods.md").read_text().splitlines() if line.startswith(f"| {row}")]
    documented = re.findall(r"(\d+)% \((\d\.\d+) mm2\)", line)
    bags = [BagBuilder(overlap=overlap, grid_origin=origin)({"image": real_slide}) for origin in ("slide", "tissue")]
    assert [(f"{100 * bag.covered_fraction:.0f}", f"{bag.covered_mm2:.3f}") for bag in bags] == documented
    for bag in bags:
        assert bag.tissue.area_mm2 == pytest.approx(0.633, abs=5e-4)
        # Of the tissue's pixels, of 8 um, those whose centres lie in a patch.
        y, x = (np.stack(np.nonzero(bag.tissue.tissue)) + 0.5) * bag.tissue.pixel_level0[0]
        left, top = bag.grid.coords[-1].T[..., None]
        side = bag.grid.scales[-1].patch_level0
        inside = ((x >= left) & (x < left + side) & (y >= top) & (y < top + side)).any(axis=0)
        assert bag.covered_mm2 == pytest.approx(inside.mean() * bag.tissue.area_mm2, rel=0.02)
