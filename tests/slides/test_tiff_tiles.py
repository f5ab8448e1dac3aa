"""Tiles that are missing, cut off or damaged are told before cuCIM makes up what they show."""

from __future__ import annotations

import re
import shutil

import cv2
import numpy as np
import pytest
import tifffile
from cucim import CuImage
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.errors import SlideError
from scripts.slides.slide import Slide
from scripts.slides.tiff_tiles import TiffTiles, check_complete
from tests.pyramids import noise, write_pyramid

COMPRESSIONS = (None, "jpeg", "lzw", "adobe_deflate", "jpeg2000", "zstd")
SIZE = (700, 500)
SIZES = [SIZE, (175, 125)]


def smooth(width=SIZE[0], height=SIZE[1]):
    return cv2.GaussianBlur(noise(height, width), (0, 0), 3)


def write(folder, compression, **how):
    return write_pyramid(folder / f"{compression}.tif", smooth(), downsamples=(1, 4), compression=compression, **how)


def whole(tiles, sizes=SIZES):
    """Check every tile of every level."""
    for level, (width, height) in enumerate(sizes):
        tiles.check(0, 0, width, height, level)


def problem_of(path, sizes=SIZES):
    try:
        whole(TiffTiles(path, sizes), sizes)
    except ValueError as error:
        return str(error)
    return None


def place_of(path, tile, page=0):
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[page].dataoffsets[tile], tiff.pages[page].databytecounts[tile]


def overwrite(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_sound_file_is_sound_whatever_its_codec(tmp_path, compression):
    path = write(tmp_path, compression)
    check_complete(path, SIZES)
    whole(TiffTiles(path, SIZES))


def test_a_real_slide_is_sound(real_slide):
    levels = Slide(real_slide).level_sizes
    tiles = TiffTiles(real_slide, levels)
    for level, (width, height) in enumerate(levels):
        tiles.check(0, 0, width, height, level)


@pytest.mark.parametrize("compression", ["jpeg", "lzw", "adobe_deflate"])
def test_a_tile_of_zeros_is_damaged_and_named_and_the_others_can_be_read(tmp_path, compression):
    path = write(tmp_path, compression)
    overwrite(path, place_of(path, 8)[0], bytes(place_of(path, 8)[1]))  # the third of the second row of six
    tiles = TiffTiles(path, SIZES)
    for _ in range(2):  # once is not remembered as sound
        with pytest.raises(ValueError, match=r"the tile at \(256, 128\) is damaged: ."):
            whole(tiles)
    tiles.check(0, 0, 256, 500, 0)
    tiles.check(384, 0, 316, 500, 0)
    tiles.check(0, 0, *SIZES[1], 1)
    slide = Slide(path, reader="cucim")
    slide.read_region((384, 0), (316, 500), 0.5)
    with pytest.raises(SlideError, match=r"cucim cannot read .* \(the tile at \(256, 128\) is damaged"):
        slide.read_region((200, 200), (100, 100), 0.5)


def test_cucim_alone_shows_another_tile_in_the_place_of_a_damaged_one(tmp_path):
    # Why there is this file: should a later cuCIM refuse such tiles, it can go.
    path = write(tmp_path, "jpeg")
    with CuImage(str(path)) as sound:
        there, other = (np.asarray(sound.read_region((x, 128), (128, 128))) for x in (256, 128))
    overwrite(path, place_of(path, 8)[0], bytes(place_of(path, 8)[1]))
    with CuImage(str(path)) as damaged:
        shown = np.asarray(damaged.read_region((128, 128), (256, 128)))
    assert np.array_equal(shown[:, :128], other)
    assert not np.array_equal(shown[:, 128:], there)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
    return write(tmp_path_factory.mktemp("jpeg"), "jpeg")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_passes_for_sound_is_what_every_decoder_takes_for_sound(jpeg, tmp_path_factory, data):
    tile = data.draw(st.integers(0, 23))
    offset, count = place_of(jpeg, tile)
    begin = data.draw(st.integers(0, count - 1))
    path = tmp_path_factory.mktemp("flipped") / "f.tif"
    shutil.copy(jpeg, path)
    overwrite(path, offset + begin, data.draw(st.binary(min_size=1, max_size=min(40, count - begin))))
    problem = problem_of(path)
    if problem is None:
        # Then OpenSlide, which stops at any doubt of its own decoder, reads it too, and both show the same.
        regions = [Slide(path, reader=backend).read_region((0, 0), SIZE, 0.5) for backend in ("cucim", "openslide")]
        assert np.abs(regions[0].astype(int) - regions[1]).max() <= 2
    else:
        assert re.fullmatch(r"the tile at \(\d+, \d+\) is damaged: .+", problem)


@pytest.mark.parametrize("backend", ["auto", "cucim", "openslide"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.95, 0.999])
def test_a_file_that_was_cut_off_is_never_read_as_if_it_were_whole(tmp_path, backend, share):
    path = write(tmp_path, "jpeg")
    with open(path, "r+b") as file:
        file.truncate(round(share * path.stat().st_size))
    with pytest.raises(SlideError, match=r"jpeg\.tif: cannot be read as a slide"):
        Slide(path, reader=backend)


def test_tiles_beyond_the_end_are_counted(tmp_path):
    path = write(tmp_path, None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags["TileOffsets"]
        tag.overwrite([*tag.value[:-2], 10**8, 10**8])
    for check in (check_complete, TiffTiles):
        with pytest.raises(ValueError, match="the file ends before 2 of the 24 tiles of a level: it is cut off"):
            check(path, SIZES)
    for backend in ("auto", "cucim", "openslide"):
        with pytest.raises(SlideError, match=r"None\.tif: cannot be read as a slide .*it is cut off"):
            Slide(path, reader=backend)


def test_tiles_that_do_not_fill_the_level_are_told_before_openslide_shows_white_in_their_place(tmp_path):
    path = write(tmp_path, "jpeg")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["TileWidth"].overwrite(512)
    for check in (check_complete, TiffTiles):
        with pytest.raises(ValueError, match="8 tiles are wanted, 24 are listed"):
            check(path, SIZES)
    for backend in ("auto", "cucim", "openslide"):
        with pytest.raises(SlideError, match="8 tiles are wanted, 24 are listed"):
            Slide(path, reader=backend)


def test_a_level_that_no_page_holds_is_not_vouched_for(tmp_path):
    with pytest.raises(ValueError, match="no page of the TIFF is 33 x 44 px"):
        TiffTiles(write(tmp_path, "jpeg"), [SIZE, (33, 44)])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"photometric": "ycbcr"}, "its pixels are stored as YCBCR"),
        ({"photometric": "rgb", "predictor": True, "compression": "lzw"}, "its tiles are stored with a predictor"),
        ({"photometric": "rgb", "planarconfig": "separate"}, "its channels are stored apart"),
        ({"photometric": "rgb", "tile": None}, "it is stored in strips"),
    ],
)
def test_what_readers_show_differently_is_not_read_with_cucim(tmp_path, how, says):
    image = smooth()
    image = image.transpose(2, 0, 1) if "planarconfig" in how else image
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, np.ascontiguousarray(image), **{"tile": (128, 128), "metadata": None, **how})
    assert says in str(problem_of(path, [SIZE]))
    with pytest.raises(SlideError, match=r"cannot be read as a slide|is a TIFF in strips"):
        Slide(path, reader="cucim", mpp=0.5)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("compression", [None, "jpeg", "lzw"])
def test_what_is_stored_turned_is_read_with_no_reader(tmp_path, compression, level):
    path = tmp_path / "turned.tif"
    with tifffile.TiffWriter(path) as tiff:
        for i, (width, height) in enumerate(SIZES):
            turned = [(274, "H", 1, 6, True)] if i == level else []
            how = {"tile": (128, 128), "photometric": "rgb", "compression": compression, "metadata": None}
            tiff.write(smooth(width, height), subfiletype=min(i, 1), extratags=turned, **how)
    for check in (check_complete, TiffTiles):
        with pytest.raises(ValueError, match=r"it is stored turned \(Orientation 6\)"):
            check(path, SIZES)
    for backend in ("auto", "cucim", "openslide"):
        with pytest.raises(SlideError, match=r"turned\.tif: cannot be read as a slide \(.*it is stored turned"):
            Slide(path, reader=backend, mpp=0.5)


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (4, "uint8"), (3, "uint16")])
def test_what_is_not_rgb_of_eight_bits_is_not_read_with_cucim(tmp_path, channels, dtype):
    path, image = tmp_path / "odd.tif", np.zeros((SIZE[1], SIZE[0], channels), dtype=dtype).squeeze()
    tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb" if channels > 1 else "minisblack", metadata=None)
    bits = 8 * np.dtype(dtype).itemsize
    assert f"it stores {channels} channels of {bits} bits" in str(problem_of(path, [SIZE]))


@pytest.fixture
def tables(real_slide, tmp_path):
    """A slide whose tiles share their JPEG tables, and where in the file these are."""
    path = tmp_path / real_slide.name
    shutil.copy(real_slide, path)
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags["JPEGTables"]
        return path, tag.valueoffset, tag.count, tiff.pages[0].imagewidth, tiff.pages[0].imagelength


def test_shared_tables_are_those_of_a_real_slide(tables):
    path, _, _, width, height = tables
    assert problem_of(path, [(width, height)]) is None


@pytest.mark.parametrize("place", [0, 1, 2, 3, -2, -1])
def test_damaged_tables_are_told_before_cucim_takes_its_tiles_for_decoded(tables, place):
    path, offset, count, width, height = tables
    overwrite(path, offset + place % count, b"\x79")
    assert problem_of(path, [(width, height)]) == "the JPEG tables of a level are damaged"
    with pytest.raises(SlideError, match="tables of a level are damaged"):
        Slide(path, reader="cucim")


def test_a_tile_that_does_not_begin_as_a_jpeg_is_told(tables):
    path, _, _, width, height = tables
    overwrite(path, place_of(path, 0)[0] + 1, b"\x79")
    assert problem_of(path, [(width, height)]) == "the tile at (0, 0) is damaged: it does not begin as a JPEG"
