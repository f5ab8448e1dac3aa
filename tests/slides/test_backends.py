"""cuCIM and OpenSlide, as the process that reads has them: the same pixels, and white where there is nothing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import openslide
import pytest
import tifffile

from scripts.core.errors import SlideError
from scripts.slides.backends import BACKENDS, load_library, openslide_properties
from scripts.slides.slide import Slide
from tests.pyramids import noise, write_pyramid


@pytest.fixture(scope="module")
def image():
    return noise(515, 770)


@pytest.fixture(scope="module")
def pyramid(image, tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("backends") / "p.tif", image, downsamples=(1, 4, 16))


@pytest.mark.parametrize("name", ["cucim", "openslide"])
def test_a_backend_reads_the_pixels_of_each_level_where_they_are(pyramid, name):
    backend = BACKENDS[name](str(pyramid))
    assert backend.level_sizes == [(770, 515), (192, 128), (48, 32)]
    for level, (left, top, width, height) in enumerate([(101, 57, 300, 200), (33, 5, 64, 64), (0, 0, 48, 32)]):
        out = np.empty((height, width, 3), dtype=np.uint8)
        backend.read(left, top, level, out)
        stored = tifffile.imread(pyramid, key=level)[top : top + height, left : left + width].astype(int)
        # OpenSlide interpolates where 770 / 192 is not quite 4.
        assert np.abs(out - stored).max() <= (0 if name == "cucim" or level == 0 else 40)
    backend.close()


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError])
def test_whatever_cucim_says_of_no_file_it_is_loaded(monkeypatch, error):
    def refuse(path):
        raise error(f"cannot open {path!r}")

    monkeypatch.setitem(sys.modules, "cucim", SimpleNamespace(CuImage=refuse))
    monkeypatch.setitem(sys.modules, "cupy", None)
    load_library("cucim")


def test_what_a_scanner_has_left_out_is_white(tmp_path, image):
    path = write_pyramid(tmp_path / "sparse.tif", image)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tiff.pages[0].tags[name]
            tag.overwrite([0 if tile == 8 else value for tile, value in enumerate(tag.value)])
    slide = Slide(path)
    assert slide.backend == "openslide"  # cuCIM's tiles have to be there
    expected = image.copy()
    expected[128:256, 128:256] = 255  # the second of the second row of seven
    assert np.array_equal(slide.read_region((0, 0), (770, 515), 0.5), expected)


def test_properties_are_those_of_openslide(pyramid, tmp_path):
    with openslide.OpenSlide(pyramid) as oracle:
        assert openslide_properties(pyramid) == dict(oracle.properties)
    (tmp_path / "no.tif").write_bytes(b"no slide")
    assert openslide_properties(tmp_path / "no.tif") == {}


def test_a_pyramid_that_has_lost_a_level_is_refused(tmp_path, image):
    path = write_pyramid(tmp_path / "p.tif", image, downsamples=(1, 4))
    with tifffile.TiffFile(path) as tiff:
        first, second = tiff.pages
        assert first.offset < second.offset
    with open(path, "r+b") as file:
        file.seek(second.offset)
        file.write(b"\xff\xff")  # the number of tags that follow
    for _ in range(2):
        with pytest.raises(SlideError, match="cucim: suspicious number of tags 65535; openslide: "):
            Slide(path)
