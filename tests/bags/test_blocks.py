import numpy as np
import pytest

from scripts.bags.blocks import plan_blocks
from scripts.bags.grid import LinkedGrid, link_grids
from scripts.core.magnification import Scale
from tests.cohorts import PATCH_PX, builder, read_patches
from tests.pyramids import noise, write_pyramid


def grid_of(
    size_level0=(9000, 7000),
    magnifications=(5, 10),
    base_mpp=0.25,
    level=1,
    downsample=4.0,
    keep=0.6,
    seed=0,
    overlap=0.0,
):
    """A grid of 64 px patches, of which a share is kept at random."""
    rng = np.random.default_rng(seed)
    scales = [Scale(m, PATCH_PX, base_mpp, level, downsample) for m in magnifications]
    return link_grids(
        scales, size_level0, lambda corners, _: (rng.random(len(corners)) < keep).astype(float), 0.5, overlap
    )


def regions(grid, block):
    """For each part: scale, patch, and (left, top, right, bottom) in pixels of the level."""
    for part in block.parts:
        side = grid.scales[part.scale_index].patch_read_px
        for patch, corner in zip(part.patches, part.corners_px + block.corner_px, strict=True):
            yield part.scale_index, int(patch), (*corner, *(corner + side))


@pytest.mark.parametrize("block_px", [1, 200, 640, 10**6])
@pytest.mark.parametrize("magnifications", [(5,), (5, 10), (5, 12.5), (2.5, 5, 10)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_every_patch_is_cut_from_one_block_just_where_it_lies(magnifications, block_px, overlap):
    grid = grid_of(magnifications=magnifications, overlap=overlap)
    cut = [region for block in plan_blocks(grid, block_px) for region in regions(grid, block)]
    assert sorted((s, patch) for s, patch, _ in cut) == [
        (s, patch) for s, coords in enumerate(grid.coords) for patch in range(len(coords))
    ]
    for s, patch, (left, top, *_) in cut:
        assert [left, top] == [round(float(v) / 4.0) for v in grid.coords[s][patch]]


@pytest.mark.parametrize("block_px", [1, 200, 640])
def test_no_pixel_is_read_twice_where_scales_share_a_level(block_px):
    grid = grid_of()
    reads = np.zeros((1750 + 256, 2250 + 256), dtype=int)
    needed = np.zeros_like(reads)
    for block in plan_blocks(grid, block_px):
        (left, top), (width, height) = block.corner_px, block.size_px
        reads[top : top + height, left : left + width] += 1
        for _, _, (x0, y0, x1, y1) in regions(grid, block):
            needed[y0:y1, x0:x1] += 1
    assert reads.max() == 1
    assert (reads[needed > 0] == 1).all()
    assert needed.max() == 2  # by 5x and by 10x


def test_a_block_is_as_large_as_its_patches_and_no_larger_than_asked():
    grid = grid_of()
    for block in plan_blocks(grid, block_px=640):
        cut = np.array([region for _, _, region in regions(grid, block)])
        assert block.corner_px == tuple(cut[:, :2].min(axis=0))
        assert block.size_px == tuple(cut[:, 2:].max(axis=0) - block.corner_px)
        assert max(block.size_px) <= 640


def test_levels_have_blocks_of_their_own_from_low_magnification_to_high():
    low, high = Scale(5, 64, 0.5, level=1, downsample=4.0), Scale(10, 64, 0.5, level=0)
    grid = link_grids([low, high], (3000, 3000), lambda corners, _: np.ones(len(corners)))
    blocks = plan_blocks(grid, block_px=640)
    assert [block.level for block in blocks] == sorted((block.level for block in blocks), reverse=True)
    assert {(block.level, part.scale_index) for block in blocks for part in block.parts} == {(1, 0), (0, 1)}
    corners = [block.corner_px[::-1] for block in blocks if block.level == 0]
    assert corners == sorted(corners)  # from top to bottom, as a file is stored


def test_a_bag_without_rows_has_no_blocks():
    scales = (Scale(5, 64, 0.5), Scale(10, 64, 0.5))
    empty = LinkedGrid(scales, (np.zeros((0, 2)),) * 2, np.zeros((0, 2), np.int64), 0)
    assert plan_blocks(empty) == []


@pytest.mark.parametrize("reader", ["auto", "cucim", "openslide"])
@pytest.mark.parametrize("magnifications", [(5, 10), (5, 12.5)])
@pytest.mark.parametrize(("mpp", "downsamples"), [(0.5, (1, 4)), (0.25, (1, 4, 16)), (0.27, (1, 2))])
def test_a_patch_cut_from_a_block_is_the_patch_read_alone(tmp_path, mpp, downsamples, magnifications, reader):
    image = (noise(1500, 1900) // 2 + (40, 0, 60)).astype(np.uint8)  # patches at the right and lower edge reach beyond
    entry = {"image": str(write_pyramid(tmp_path / "s.tif", image, mpp=mpp, downsamples=downsamples))}
    bag = builder(magnifications, reader=reader, min_tissue=0.01)(entry)
    together = bag.read_all(num_workers=2)
    assert len(plan_blocks(bag.grid, block_px=300)) > 1
    for s, patches in enumerate(together):
        assert np.array_equal(patches, read_patches(bag, s, np.arange(len(patches))))


def test_so_it_is_on_a_real_slide_with_both_readers(real_slide):
    for reader in ("cucim", "openslide"):
        bag = builder(reader=reader)({"image": real_slide})
        for s, patches in enumerate(bag.read_all()):
            assert np.array_equal(patches, read_patches(bag, s, np.arange(len(patches))))
