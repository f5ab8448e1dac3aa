"""The table of formats in docs/reliability.md, each tried on a file written here: read right, or refused by name."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable

import cv2
import numpy as np
import openslide
import pytest
import tifffile
import wsidicom
from PIL import Image

from scripts.core.errors import SlideError
from scripts.core.repeats import Repeats
from scripts.slides.slide import Slide
from tests.dicoms import JPEG, write_dicom
from tests.pyramids import BOUNDS, BOUNDS_SLIDE, noise, write_pyramid

SUBIFDS = BOUNDS_SLIDE.with_name("subifd.ome.tif")
SIZES = [(640, 768), (320, 384), (160, 192)]
CONVERT = r"vips tiffsave IN OUT\.tif --tile --pyramid --compression jpeg --Q 85 --bigtiff"


@functools.cache
def levels():
    """Three levels of soft patches in the colours of stained tissue."""
    coarse = noise(12, 10) // 2 + np.array((90, 40, 90), dtype=np.uint8)
    return [cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC) for size in SIZES]


def write_tiff(path, compression=None, tile=(128, 128), subifds=False, big=False, change=lambda pixels: pixels, **tags):
    """A pyramid at 0.5 um/px, with pages or SubIFDs as its levels."""
    ome = {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"} if subifds else None
    if ome is not None:
        ome |= {"PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, bigtiff=big, ome=subifds) as tiff:
        for index, pixels in enumerate(levels()):
            own = {"subifds": len(SIZES) - 1} if subifds and not index else {}
            per_cm = {} if subifds else {"resolution": (2e4 / 2**index,) * 2, "resolutionunit": "CENTIMETER"}
            options = {"photometric": "rgb", "compression": compression, "tile": tile, **own, **per_cm, **tags}
            metadata = ome if own else None
            tiff.write(change(pixels), subfiletype=1 if index else 0, metadata=metadata, **options)


def apart(pixels):
    return np.moveaxis(pixels, -1, 0).copy()


def opaque(pixels):
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, dtype=np.uint8)])


READ: dict[str, tuple[str, str, Callable]] = {
    "tiles": ("s.tif", "cucim", write_tiff),
    "JPEG": ("s.tif", "cucim", functools.partial(write_tiff, compression="jpeg")),
    "LZW": ("s.tif", "cucim", functools.partial(write_tiff, compression="lzw")),
    "deflate": ("s.tif", "cucim", functools.partial(write_tiff, compression="deflate")),
    "Aperio's JPEG 2000": ("s.svs", "cucim", functools.partial(write_tiff, compression="aperio_jp2000_rgb")),
    "BigTIFF": ("s.tif", "cucim", functools.partial(write_tiff, compression="jpeg", big=True)),
    "predictor": ("s.tif", "openslide", functools.partial(write_tiff, compression="deflate", predictor=True)),
    "Zstandard": ("s.tif", "openslide", functools.partial(write_tiff, compression="zstd")),
    "RGBA": ("s.tif", "openslide", functools.partial(write_tiff, change=opaque, extrasamples=["unassalpha"])),
    "planes": ("s.tif", "openslide", functools.partial(write_tiff, change=apart, planarconfig="separate")),
    "SubIFDs": ("s.ome.tif", "tifffile", functools.partial(write_tiff, subifds=True)),
    "SubIFDs, JPEG": ("s.ome.tiff", "tifffile", functools.partial(write_tiff, compression="jpeg", subifds=True)),
    "SubIFDs, LZW": (
        "s.ome.tif", "tifffile", functools.partial(write_tiff, compression="lzw", predictor=True, subifds=True)
    ),
    "SubIFDs, JPEG 2000": (
        "s.ome.tif", "tifffile", functools.partial(write_tiff, compression="jpeg2000", subifds=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_tiff_is_read_as_tifffile_reads_it(tmp_path, case, caplog):
    name, reader, write = READ[case]
    write(tmp_path / name)
    slide = Slide(tmp_path / name)
    assert (slide.backend, slide.level_sizes, slide.unseen_levels) == (reader, SIZES, 0)
    assert slide.base_mpp == pytest.approx(0.5)
    with tifffile.TiffFile(tmp_path / name) as tiff:
        first = tiff.pages.first
        pages = [first, *first.pages] if first.pages else list(tiff.pages)
        for level, (width, height) in enumerate(SIZES):
            stored = pages[level].asarray()
            stored = (np.moveaxis(stored, 0, -1) if stored.shape[0] == 3 else stored)[..., :3]
            for left, top, w, h in ((0, 0, width, height), (37, 61, 101, 67)):
                region = slide.read_pixels(left, top, w, h, level)
                assert np.array_equal(region, stored[top : top + h, left : left + w])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_photograph_among_the_subifds_is_no_level(tmp_path, alone, caplog):
    path, options = tmp_path / "s.ome.tif", {"photometric": "rgb", "tile": (128, 128)}
    images = [levels()[0], noise(300, 100), *([] if alone else levels()[1:])]
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for index, pixels in enumerate(images):
            own = {"metadata": None, "subfiletype": 1}
            if not index:
                own = {
                    "subifds": len(images) - 1,
                    "metadata": {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
                }
            tiff.write(pixels, **options, **own)
    slide = Slide(path)
    assert (slide.level_sizes, slide.unseen_levels) == (SIZES[:1] if alone else SIZES, 0)
    assert slide.backend == ("cucim" if alone else "tifffile")
    for level, (width, height) in enumerate(slide.level_sizes):
        assert np.array_equal(slide.read_pixels(0, 0, width, height, level), levels()[level])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.skipif(not SUBIFDS.is_file(), reason=f"no file {SUBIFDS}")
def test_levels_in_subifds_of_scanned_pixels_are_used():
    slide = Slide(SUBIFDS)
    with tifffile.TiffFile(SUBIFDS) as tiff:
        pages = [tiff.pages.first, *tiff.pages.first.pages]
        assert slide.level_sizes == [(page.imagewidth, page.imagelength) for page in pages]
        assert len(pages) > 1
        for level, (width, height) in enumerate(slide.level_sizes):
            assert np.array_equal(slide.read_pixels(0, 0, width, height, level), pages[level].asarray())


@pytest.mark.skipif(not BOUNDS_SLIDE.is_file(), reason=f"no file {BOUNDS_SLIDE}")
def test_a_slide_with_bounds_has_the_pixels_of_openslide_where_level_0_has_them():
    slide = Slide(BOUNDS_SLIDE)
    # Across the corner of what was scanned, and inside.
    for left, top in ((BOUNDS[0] - 64, BOUNDS[1] - 64), (BOUNDS[0] + 900, BOUNDS[1] + 1100)):
        with openslide.OpenSlide(BOUNDS_SLIDE) as oracle:
            pixels = np.asarray(oracle.read_region((left, top), 0, (256, 256)))
        expected = np.where(pixels[..., 3:] == 0, 255, pixels[..., :3])
        assert np.array_equal(slide.read_pixels(left, top, 256, 256, 0), expected)


def test_a_dicom_series_is_read_as_wsidicom_reads_it(tmp_path):
    options = {"syntax": JPEG, "photometric": "YBR_FULL_422", "stored": "YCbCr"}
    write_dicom(tmp_path, levels()[0], downsamples=(1, 2, 4), **options)
    slide = Slide(tmp_path)
    assert (slide.backend, slide.level_sizes, slide.base_mpp) == ("openslide", SIZES, 0.5)
    with wsidicom.WsiDicom.open(tmp_path) as oracle:
        for index, level in enumerate(oracle.levels):
            expected = np.asarray(oracle.read_region((0, 0), level.level, SIZES[index]))
            assert np.array_equal(slide.read_level_region((0, 0), SIZES[index], index), expected)


def test_levels_that_a_reader_does_not_see_are_spoken_of_once_and_of_the_first_slides(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("scripts.slides.slide._repeats", Repeats())
    write_tiff(tmp_path / "s.ome.tif", compression="jpeg", subifds=True)
    slide = Slide(tmp_path / "s.ome.tif", reader="openslide")
    assert (slide.level_sizes, slide.unseen_levels) == (SIZES[:1], 2)
    assert "s.ome.tif: 2 of its levels are SubIFDs, which openslide does not see: low magnifications" in caplog.text
    assert "Leave `reader` at auto, or convert it: vips tiffsave" in caplog.text
    for i in range(9):
        (tmp_path / f"s{i}.ome.tif").write_bytes((tmp_path / "s.ome.tif").read_bytes())
        Slide(tmp_path / "s.ome.tif", reader="openslide")
        Slide(tmp_path / f"s{i}.ome.tif", reader="openslide")
    assert len(caplog.records) == 4


def test_so_they_are_where_tifffile_cannot_read_them(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("scripts.slides.slide._repeats", Repeats())
    write_tiff(tmp_path / "s.ome.tif", compression="jpeg", subifds=True)
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as tiff, open(tmp_path / "s.ome.tif", "r+b") as file:
        file.seek(tiff.pages.first.pages[0].dataoffsets[0])
        file.write(bytes(64))
    assert Slide(tmp_path / "s.ome.tif").backend == "cucim"
    assert "which cucim does not see (tifffile: the tile at (0, 0) is damaged: " in caplog.text


def write_picture(path, **options):
    Image.fromarray(levels()[0]).save(path, **options)


def write_false_colours(path):
    write_tiff(path, compression="jpeg")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for page in tiff.pages:
            page.tags["PhotometricInterpretation"].overwrite(int(tifffile.PHOTOMETRIC.RGB))


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("s.svs", b"pixels")


REFUSED: dict[str, tuple[str, Callable, str]] = {
    "strips": (
        "s.tif", functools.partial(write_tiff, tile=None, rowsperstrip=16),
        rf"is a TIFF in strips of 16 rows, not in tiles, which no reader takes\. Convert it: {CONVERT}\.",
    ),
    "compressed strips": (
        "s.svs", functools.partial(write_tiff, tile=None, compression="lzw", rowsperstrip=64),
        rf"is a TIFF in strips of 64 rows, not in tiles, .* Convert it: {CONVERT}\.",
    ),
    "planes in strips": (
        "s.tif", functools.partial(write_tiff, tile=None, change=apart, planarconfig="separate"),
        r"is a TIFF in strips of \d+ rows, not in tiles",
    ),
    "one strip": ("s.tif", lambda path: tifffile.imwrite(path, levels()[0]), "is a TIFF in strips of 768 rows"),
    "WebP tiles": (
        "s.tif", functools.partial(write_tiff, compression="webp"),
        rf"is a TIFF compressed as WEBP, which no reader takes\. Convert it: {CONVERT}\.",
    ),
    "JPEG 2000 tiles": ("s.tif", functools.partial(write_tiff, compression="jpeg2000"), "compressed as JPEG2000"),
    "false colours": (
        "s.tif", write_false_colours,
        r"says that its pixels are RGB, and stores them as YCbCr: its colours would be false\. Convert the slide again",
    ),
    "PNG": (
        "s.png", write_picture,
        rf"is a PNG image, no slide that can be read in parts\. Convert it \({CONVERT}\), and set its `mpp` in the",
    ),
    "JPEG": ("s.jpg", write_picture, "is a JPEG image, no slide that can be read in parts"),
    "PNG that calls itself TIFF": ("s.tif", functools.partial(write_picture, format="PNG"), "is a PNG image, no slide"),
    "BMP": ("s.bmp", write_picture, "is a BMP image, no slide that can be read in parts"),
    "MIRAX without its folder": (
        "s.mrxs", functools.partial(write_picture, format="JPEG"),
        r"is the thumbnail of a MIRAX slide, whose data .* which is not there\. Copy .*/s, too\.",
    ),
    "ZIP": ("s.svs", write_zip, r"is a ZIP archive, no slide\. Unpack or export the slide"),
    "text": ("s.svs", lambda path: path.write_text("no slide"), "cannot be read as a slide"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_right_is_refused_as_what_it_is(tmp_path, case):
    name, write, message = REFUSED[case]
    write(tmp_path / name)
    with pytest.raises(SlideError, match=message) as caught:
        Slide(tmp_path / name, mpp=0.5)
    assert "\n" not in str(caught.value)
    assert "channels, got" not in str(caught.value)


def test_one_question_opens_a_slide(tmp_path, monkeypatch):
    from scripts.slides import isolation

    asked = []
    ask = isolation._Process.ask
    monkeypatch.setattr(isolation._Process, "ask", lambda self, *a: (asked.append(a[0]), ask(self, *a))[1])
    write_pyramid(tmp_path / "s.tif", levels()[0])
    Slide(tmp_path / "s.tif")
    write_dicom(tmp_path / "d", levels()[0], downsamples=(1, 2))
    Slide(tmp_path / "d")
    assert asked == ["open"] * 2
