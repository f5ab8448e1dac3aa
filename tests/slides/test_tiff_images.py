"""TIFFs of several images: the first is the slide, and it is one plane, or the file is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from scripts.core.errors import SlideError
from scripts.slides.slide import Slide
from tests.pyramids import noise

SLIDE, LABEL = noise(512, 640), noise(128, 256)
TILED = {"photometric": "rgb", "tile": (128, 128), "resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}


def write_images(path, *images, axes="YXS"):
    with tifffile.TiffWriter(path) as tiff:
        for image in images:
            tiff.write(image, metadata={"axes": axes}, **TILED)
    return path


@pytest.mark.parametrize("name", ["s.ome.tif", "s.tif"])
def test_the_first_image_is_the_slide_or_the_file_is_refused(tmp_path, name):
    message = r"begins with an image of 256 x 128 px, .*; image 2 of the file has 640 x 512 px\. Write the slide as the"
    with pytest.raises(SlideError, match=message):
        Slide(write_images(tmp_path / name, LABEL, SLIDE))
    assert Slide(write_images(tmp_path / name, SLIDE, LABEL)).level_sizes[0] == (640, 512)


@pytest.mark.parametrize(
    ("name", "images", "axes"),
    [
        ("z.ome.tif", [np.stack([SLIDE] * 3)], "ZYXS"),
        ("t.ome.tif", [np.stack([SLIDE] * 3)], "TYXS"),
        ("s.tif", [SLIDE] * 3, "YXS"),
    ],
)
def test_of_several_planes_none_is_taken_unasked(tmp_path, name, images, axes):
    message = r"has 3 images of 640 x 512 px, planes of a stack or points in time, .* Write the plane that is in focus"
    with pytest.raises(SlideError, match=message):
        Slide(write_images(tmp_path / name, *images, axes=axes))
