import hashlib
from pathlib import Path

import itk
import numpy as np
import pytest

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SettingsError, SlideError
from tests.cohorts import read_patches
from tests.pyramids import with_tissue, write_pyramid


@pytest.fixture
def entry(tmp_path):
    image = with_tissue(2000, 2600, [(300, 200, 2500, 1800)])
    image[::7, ::5] -= 40  # so that patches differ
    return {"image": str(write_pyramid(tmp_path / "s.tif", image, mpp=0.5, downsamples=(1, 4)))}


def test_a_bag_holds_linked_patches_of_the_tissue(entry):
    bag = BagBuilder()(entry)
    assert [scale.name for scale in bag.grid.scales] == ["5x", "10x"]
    for x, y in bag.grid.coords[1]:
        assert 300 - 0.3 * 448 <= x <= 2500 - 0.7 * 448
        assert 200 - 0.3 * 448 <= y <= 1800 - 0.7 * 448


def test_a_low_patch_shows_what_its_high_patches_show(entry):
    bag = BagBuilder()(entry)
    row = next(r for r in bag.grid.rows if (bag.grid.rows[:, 0] == r[0]).sum() == 4)
    low, high = bag.read_patch(0, int(row[0])), bag.read_patch(1, int(row[1]))
    left, top = ((bag.grid.coords[1][row[1]] - bag.grid.coords[0][row[0]]) / 4).astype(int)
    expected = high.reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))
    # The low patch comes from a level of the pyramid that was averaged in one step: grey levels are rounded once more.
    assert np.abs(low[top : top + 112, left : left + 112] - expected).max() <= 1.5


def test_patches_come_with_channels_first_and_in_order(entry):
    bag = BagBuilder(patch_size=64)(entry)
    patches = read_patches(bag, 1, [3, 0])
    assert patches.shape == (2, 3, 64, 64)
    assert np.array_equal(patches[1].transpose(1, 2, 0), bag.read_patch(1, 0))
    assert np.array_equal(bag.read_all()[1][[3, 0]], patches)


def test_two_backends_make_the_same_bag_of_a_real_slide(real_slide):
    bags = [BagBuilder([5, 10], reader=reader)({"image": real_slide}) for reader in ("cucim", "openslide")]
    assert bags[0].grid.num_rows == 9
    assert np.array_equal(bags[0].grid.rows, bags[1].grid.rows)
    for s in range(2):
        assert np.array_equal(bags[0].grid.coords[s], bags[1].grid.coords[s])


def test_an_entrys_mpp_decides_the_grid(entry):
    builder = BagBuilder([5], min_tissue=0.3)
    once, twice = builder(entry), builder({**entry, "mpp": 0.25})
    assert twice.grid.scales[0].patch_level0 == 2 * once.grid.scales[0].patch_level0


def test_an_entrys_mask_decides_the_tissue(entry, tmp_path):
    mask = np.zeros((100, 130), dtype=np.uint8)
    mask[:50, 65:] = 1  # the upper right quarter
    itk.imwrite(itk.image_from_array(mask), str(tmp_path / "m.png"))
    coords = BagBuilder()({**entry, "mask": str(tmp_path / "m.png")}).grid.coords[1]
    assert coords[:, 0].min() >= 1300 - 0.3 * 448
    assert coords[:, 1].max() <= 1000 - 0.7 * 448


def test_a_slide_with_too_little_tissue_is_an_error_that_says_so(tmp_path):
    path = write_pyramid(tmp_path / "tiny.tif", with_tissue(2000, 2000, [(100, 100, 350, 350)]), mpp=0.5)
    with pytest.raises(SlideError, match=r"tiny\.tif: no patch of 224 um contains enough tissue .*lower `min_tissue`"):
        BagBuilder()({"image": path})
    assert BagBuilder(min_tissue=0.1)({"image": path}).grid.num_rows == 1


def test_a_slide_without_tissue_can_be_looked_at_and_not_used(tmp_path):
    path = write_pyramid(tmp_path / "blank.tif", with_tissue(2000, 2000, []), mpp=0.5)
    assert BagBuilder().look({"image": path}).grid.num_rows == 0
    with pytest.raises(SlideError, match=r"blank\.tif: no tissue was found\. Look at it with `inspecting`"):
        BagBuilder()({"image": path})


def test_settings_are_checked_before_any_slide(entry):
    with pytest.raises(SettingsError, match="patch_size: got 0"):
        BagBuilder(patch_size=0)
    with pytest.raises(SettingsError, match="magnifications"):
        BagBuilder([])
    with pytest.raises(SettingsError, match="min_tissue"):
        BagBuilder(min_tissue=2)


def test_patches_of_a_slide_that_changed_since_it_was_opened_are_refused(entry):
    bag = BagBuilder((5, 10), 64)(entry)
    Path(entry["image"]).touch()
    with pytest.raises(SlideError, match=r"s\.tif: was changed while it was read\. Run again once it is complete\."):
        bag.read_all()


def test_the_checksum_of_a_slide_is_compared_before_its_bag_is_made(entry):
    sha256 = hashlib.sha256(Path(entry["image"]).read_bytes()).hexdigest()
    assert BagBuilder().verified(entry)[1] is None
    assert BagBuilder().verified(entry, always=True)[1] == sha256
    bag, found = BagBuilder().verified({**entry, "sha256": sha256.upper()})
    assert found == sha256
    assert np.array_equal(bag.grid.rows, BagBuilder()(entry).grid.rows)
    with pytest.raises(SlideError, match=f"its SHA-256 is {sha256}, the datalist says 00"):
        BagBuilder().verified({**entry, "sha256": "00" * 32})


def test_upsampled_patches_are_those_that_are_read_alone(entry):
    bag = BagBuilder((10, 40), 64, read_level="upsample")(entry)
    patches = bag.read_all()
    for scale, coords, pixels in zip(bag.grid.scales, bag.grid.coords, patches, strict=True):
        for corner, patch in list(zip(coords, pixels, strict=True))[::97]:
            alone = bag.slide.read_patch(scale, tuple(corner)).transpose(2, 0, 1)
            assert np.abs(alone.astype(int) - patch).max() <= 1
