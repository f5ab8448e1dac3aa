"""Patches of imported features are shown as they were cut, whatever their magnification is called."""

import numpy as np
import pytest
import torch

from scripts.core.errors import SlideError
from scripts.heatmaps.bag_maps import BagMaps
from scripts.heatmaps.mapped_slides import MappedSlide
from scripts.networks.methods import attention_maps, get_network
from scripts.slides.slide import resample
from tests.cohorts import builder, draw_slide


def mapped(opened, bags, side):
    """A slide with the maps of two patches whose sides are so many level-0 pixels."""
    network = get_network("ssmil", num_classes=2, num_features=4, num_scales=1, num_nodes=8)
    item = {
        "image": torch.rand(2, 1, 4), "log_weight": torch.zeros(2, 1), "base_mpp": opened.base_mpp,
        "corners": torch.tensor([[[400.0, 40.0]], [[400.0 + side, 40.0]]]), "patch_level0": torch.tensor([side]),
    }  # fmt: skip
    specs = attention_maps("ssmil", [10])
    return MappedSlide(opened, BagMaps(network, specs, item), specs, bags)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return draw_slide(tmp_path_factory.mktemp("mapped") / "s.tif")


@pytest.mark.parametrize("side", [128.0, 144.0, 112.0])
def test_a_gallery_shows_what_was_encoded(slide, side):
    """At 0.5 um/px a 10x patch of 64 px covers 128 px; TRIDENT's, whose 10x is nominal, more or less."""
    bags = builder([10])
    opened = bags.open_slide({"image": str(slide)})
    shown = mapped(opened, bags, side)
    patch = shown._read(0, (400.0, 40.0))
    pixels = opened.read_pixels(400, 40, int(side), int(side), 0)
    assert np.array_equal(patch, resample(pixels, (64, 64)))


def test_a_slide_that_is_too_coarse_for_our_own_patches_is_refused(tmp_path):
    bags = builder([10])
    opened = bags.open_slide({"image": str(draw_slide(tmp_path / "s.tif", mpp=2.0))})
    with pytest.raises(SlideError, match="coarser than the 1 um/px asked for"):
        mapped(opened, bags, 32.0)
    # As TRIDENT cut them, they are there.
    assert mapped(opened, bags, 40.0)._read(0, (400.0, 40.0)).shape == (64, 64, 3)
