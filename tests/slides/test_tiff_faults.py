"""TIFFs that readers show and should not: no RGB, or a first image that is not the slide or one plane of it."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from scripts.core.errors import SlideError
from scripts.slides.first_look import look_at
from scripts.slides.slide import Slide
from scripts.slides.tiff_faults import MOST_PAGES
from tests.limits import within
from tests.pyramids import noise, write_pyramid

SLIDE, LABEL = noise(512, 640), noise(128, 256)
PIXELS = np.arange(128 * 128 * 4, dtype=np.uint8).reshape(128, 128, 4)
TILED = {"tile": (128, 128), "resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}


def write_images(path, *images, axes="YXS"):
    with tifffile.TiffWriter(path) as tiff:
        for image in images:
            tiff.write(image, photometric="rgb", metadata={"axes": axes}, **TILED)
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


@pytest.mark.parametrize(
    ("pixels", "options", "told"),
    [
        (PIXELS[..., :3], {"photometric": "rgb"}, None),
        (PIXELS[..., :3], {"photometric": "rgb", "compression": "jpeg"}, None),
        (PIXELS, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, None),
        (PIXELS[..., 0], {"photometric": "minisblack"}, "1 channel of 8 bits, MINISBLACK"),
        (PIXELS, {"photometric": "separated"}, "4 channels of 8 bits, SEPARATED"),
        (PIXELS[..., 0], {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "8 bits, PALETTE"),
        (PIXELS[..., :3].astype(np.uint16), {"photometric": "rgb"}, "3 channels of 16 bits, RGB"),
        (PIXELS[..., :3].view(np.int8), {"photometric": "rgb"}, "3 channels of 8 bits, RGB, INT"),
    ],
)
def test_what_is_no_rgb_image_is_refused_also_when_it_is_opened(tmp_path, pixels, options, told):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, pixels, **options, **TILED)
    fault = look_at(path).fault
    if told is None:
        assert fault is None
        return
    assert fault is not None
    assert fault[0].startswith("is no RGB image of 8 bits: ")
    assert fault[0].endswith(told)
    with pytest.raises(
        SlideError, match=r"s\.tif: is no RGB image of 8 bits: .* Convert it to RGB of 8 bits, or leave"
    ):
        Slide(path)


def test_a_file_of_thousands_of_pages_is_refused_at_once(tmp_path):
    for pages in (MOST_PAGES, MOST_PAGES + 1):
        with tifffile.TiffWriter(tmp_path / f"{pages}.tif") as tiff:
            for _ in range(pages):
                tiff.write(np.zeros((16, 16, 3), np.uint8), photometric="rgb", contiguous=False, metadata=None)
    assert look_at(tmp_path / f"{MOST_PAGES}.tif").fault is None
    with within(20), pytest.raises(SlideError, match=rf"is a TIFF of more than {MOST_PAGES} pages\. Is it a slide\?"):
        Slide(tmp_path / f"{MOST_PAGES + 1}.tif")


def test_of_other_formats_and_damaged_files_the_readers_speak(tmp_path):
    (tmp_path / "a.tif").write_text("no TIFF")
    (tmp_path / "b.tif").write_bytes(write_pyramid(tmp_path / "s.tif", noise(300, 300)).read_bytes()[:100])
    assert look_at(tmp_path / "a.tif").fault is None
    for name in ("a", "b"):
        with pytest.raises(SlideError, match="cannot be read as a slide"):
            Slide(tmp_path / f"{name}.tif")
