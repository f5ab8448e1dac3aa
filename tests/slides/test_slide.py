import logging
import os
import pickle

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scripts.core.errors import SettingsError, SlideError
from scripts.core.repeats import Repeats
from scripts.slides import slide as slides
from scripts.slides.slide import Slide
from tests.limits import within
from tests.pyramids import noise, write_pyramid

BACKENDS = ("cucim", "openslide")


@pytest.fixture(scope="module")
def image():
    # Smooth enough for averaging to mean something, different everywhere.
    return cv2.GaussianBlur(noise(900, 1300), (0, 0), 3)


@pytest.fixture(scope="module")
def pyramid(image, tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("slides") / "p.tif", image, mpp=0.5, downsamples=(1, 4))


def area_average(image, x, y, size, factor):
    """The oracle: block means of level 0, white beyond the border."""
    padded = np.full((size * factor, size * factor, 3), 255.0)
    x0, y0 = max(x, 0), max(y, 0)
    part = image[y0 : max(y + size * factor, 0), x0 : max(x + size * factor, 0)]
    padded[y0 - y : y0 - y + part.shape[0], x0 - x : x0 - x + part.shape[1]] = part
    return padded.reshape(size, factor, size, factor, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_region_at_a_magnification_is_the_area_average_of_the_finest_level(pyramid, image, backend):
    slide = Slide(pyramid, reader=backend)
    region = slide.read_region((100, 40), (64, 64), mpp=1.0)
    assert np.abs(region - area_average(image, 100, 40, 64, 2)).max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("corner", [(-30, -50), (1250, 850), (-500, 100), (1300, 0), (0, 2000), (-20, 880)])
def test_beyond_the_border_every_backend_is_white(pyramid, image, backend, corner):
    region = Slide(pyramid, reader=backend).read_region(corner, (64, 64), mpp=0.5)
    assert np.array_equal(region, area_average(image, *corner, 64, 1))


def test_the_nearest_finer_level_is_read(pyramid):
    slide = Slide(pyramid)
    assert [slide.level_for(mpp) for mpp in (0.5, 1.0, 1.8, 1.95, 8.0)] == [0, 0, 0, 1, 1]  # 1.95: within 5%
    assert [Slide(pyramid, read_level="highest").level_for(mpp) for mpp in (0.5, 2.0, 8.0)] == [0, 0, 0]


def test_read_level_changes_what_is_read_and_hardly_what_is_seen(pyramid, image):
    nearest = Slide(pyramid).read_region((0, 0), (100, 100), mpp=4.0)
    highest = Slide(pyramid, read_level="highest").read_region((0, 0), (100, 100), mpp=4.0)
    assert Slide(pyramid).scale(2.5, 100).level == 1
    assert np.abs(nearest.astype(int) - highest).max() <= 2
    assert np.abs(highest - area_average(image, 0, 0, 100, 8)).max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(-600, 1500), y=st.floats(-600, 1500),
    size=st.integers(1, 96), mpp=st.sampled_from([0.5, 0.8, 1.0, 2.0, 2.7, 4.0]),
)  # fmt: skip
def test_two_backends_give_the_same_pixels(pyramid, x, y, size, mpp):
    regions = [Slide(pyramid, reader=backend).read_region((x, y), (size, size), mpp) for backend in BACKENDS]
    assert regions[0].shape == (size, size, 3)
    assert np.array_equal(*regions)


def test_a_level_that_does_not_divide_is_read_where_it_is_meant(tmp_path):
    # 1003 / 250 = 4.012: positions of such a level fall between the pixels of level 0.
    smooth = cv2.GaussianBlur(noise(803, 1003), (0, 0), 8)
    path = write_pyramid(tmp_path / "odd.tif", smooth, mpp=0.5, downsamples=(1, 4))
    level = tifffile.imread(path, key=1)
    for left, top in [(0, 0), (17, 3), (101, 77), (199, 149)]:
        expected = level[top : top + 50, left : left + 50]
        for backend, tolerance in (("cucim", 0), ("openslide", 1)):
            slide = Slide(path, reader=backend)
            mpp, corner = 0.5 * slide.downsamples[1], (left * slide.downsamples[1], top * slide.downsamples[1])
            region = slide.read_region(corner, (50, 50), mpp)
            assert np.abs(region.astype(int) - expected).max() <= tolerance, (backend, left, top)


def test_two_backends_give_the_same_pixels_of_a_real_slide(real_slide):
    slides = [Slide(real_slide, reader=backend) for backend in BACKENDS]
    for magnification in (5, 10, 12.5, 20):
        for corner in [(0.0, 0.0), (700.4, 1300.6), (2100.0, 2900.0), (-120.0, 333.3)]:
            patches = [s.read_patch(s.scale(magnification, 224), corner).astype(int) for s in slides]
            assert np.abs(patches[0] - patches[1]).max() <= 2


def test_a_real_slide_at_its_own_magnification_is_what_openslide_reads(real_slide):
    with openslide.OpenSlide(real_slide) as oracle:
        expected = np.asarray(oracle.read_region((500, 700), 0, (300, 200)).convert("RGB"))
    region = Slide(real_slide).read_region((500, 700), (300, 200), mpp=0.499)
    assert np.abs(region.astype(int) - expected).max() <= 2


def test_an_overview_is_the_whole_slide(pyramid, image):
    overview = Slide(pyramid).read_overview(mpp=8.0)
    assert overview.shape == (57, 82, 3)  # 900 / 16 and 1300 / 16, rounded up
    assert np.abs(overview[:56, :81] - area_average(image, 0, 0, 81, 16)[:56]).max() <= 2


def test_an_overview_read_in_blocks_is_the_one_read_at_once(pyramid, monkeypatch):
    whole = Slide(pyramid).read_overview(mpp=2.0)
    monkeypatch.setattr("scripts.slides.slide.OVERVIEW_BLOCK_PX", 50)
    assert np.array_equal(Slide(pyramid).read_overview(mpp=2.0), whole)


def test_magnification_finer_than_the_slide_is_refused(pyramid):
    with pytest.raises(SlideError, match=r"p\.tif: has 0\.5 um/px \(20x\), coarser than the 0\.25 um/px"):
        Slide(pyramid).scale(40, 224)
    assert Slide(pyramid).scale(20.5, 224).level == 0  # within the tolerance of MONAI's readers


@pytest.mark.parametrize("backend", BACKENDS)
def test_upsampling_is_asked_for_and_interpolates_the_finest_level(pyramid, image, backend):
    slide = Slide(pyramid, reader=backend, read_level="upsample")
    scale = slide.scale(40, 64)
    assert (scale.level, scale.patch_read_px, scale.patch_level0) == (0, 32, 32)
    wanted = Image.fromarray(image[40:72, 100:132]).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(slide.read_patch(scale, (100, 40)).astype(int) - np.asarray(wanted)).max() <= 1
    # What the slide has is read as ever.
    for mpp in (0.5, 1.0, 8.0):
        assert slide.level_for(mpp) == Slide(pyramid).level_for(mpp)


def test_cucim_is_the_default_and_openslide_takes_what_it_cannot_read(pyramid, tmp_path, image):
    assert Slide(pyramid).backend == "cucim"
    other = tmp_path / "slide.scn"  # a suffix that cuCIM does not claim
    other.write_bytes(pyramid.read_bytes())
    slide = Slide(other)
    assert slide.backend == "openslide"
    assert np.array_equal(slide.read_region((0, 0), (90, 90), 0.5), image[:90, :90])


def test_openslide_reads_tiles_with_a_predictor_on_which_cucim_would_crash(tmp_path):
    image = noise(300, 300)
    path = tmp_path / "predictor.tif"
    tifffile.imwrite(
        path, image, tile=(128, 128), photometric="rgb", compression="adobe_deflate", predictor=True, metadata=None,
        resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
    )  # fmt: skip
    slide = Slide(path)
    assert slide.backend == "openslide"
    assert np.array_equal(slide.read_region((0, 0), (300, 300), 0.5), image)


def test_of_many_slides_that_another_reader_reads_the_first_few_are_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("scripts.slides.slide._repeats", Repeats())
    for i in range(6):
        tifffile.imwrite(
            tmp_path / f"s{i}.tif", noise(300, 300), tile=(128, 128), photometric="rgb", predictor=True, metadata=None,
            compression="adobe_deflate", resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
        )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="scripts.slides.slide"):
        assert {Slide(tmp_path / f"s{i}.tif").backend for i in range(6)} == {"openslide"}
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        *(f"s{i}.tif is read with openslide" for i in range(3)),
        "more slides are read with openslide",
    ]


def test_openslide_reads_where_cucim_is_not_installed(pyramid, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert Slide(pyramid).backend == "openslide"


def test_levels_that_contradict_each_other_are_refused(tmp_path, image):
    path = tmp_path / "odd.tif"
    with tifffile.TiffWriter(path) as tiff:
        for level, size in enumerate(((1300, 900), (650, 200))):
            tiff.write(cv2.resize(image, size), tile=(128, 128), photometric="rgb", metadata=None, subfiletype=level)
    with pytest.raises(SlideError, match=r"its level 1 is 2 times narrower and 4\.5 times lower than level 0"):
        Slide(path, mpp=0.5)


@pytest.mark.parametrize("side", [257, 300, 1009])
def test_levels_may_be_rounded_to_whole_pixels(tmp_path, side):
    path = write_pyramid(tmp_path / "rounded.tif", noise(side, 40 * 7), downsamples=(1, 4, 16, 64))
    assert len(Slide(path).downsamples) == 4


def test_a_slide_travels_to_another_process(pyramid):
    slide = Slide(pyramid)
    copy = pickle.loads(pickle.dumps(slide))
    assert np.array_equal(copy.read_region((5, 5), (40, 40), 1.0), slide.read_region((5, 5), (40, 40), 1.0))


@pytest.mark.parametrize("after", [False, True])
def test_a_slide_that_is_replaced_while_it_is_opened_has_not_the_resolution_of_another(tmp_path, monkeypatch, after):
    path, other = (write_pyramid(tmp_path / f"{name}.tif", noise(256, 256)) for name in ("s", "other"))
    do = slides.open_slide

    def replacing(*args):
        opened = do(*args) if after else None
        other.replace(path)
        return opened or do(*args)

    monkeypatch.setattr(slides, "open_slide", replacing)
    with pytest.raises(SlideError, match=r"s\.tif: was changed while it was read\. Run again once it is complete\."):
        Slide(path, reader="openslide")


def test_bad_slides_are_errors_of_one_line(tmp_path, pyramid):
    with pytest.raises(SlideError, match=r"missing\.svs: no such file\. Check the path in the datalist"):
        Slide(tmp_path / "missing.svs")
    os.mkfifo(tmp_path / "pipe.svs")
    for no_file in (tmp_path, tmp_path / "pipe.svs"):
        with within(10), pytest.raises(SlideError, match="is a folder, a pipe or a device, not a slide"):
            Slide(no_file, mpp=0.5)
    text = tmp_path / "text.tif"
    text.write_text("not a slide")
    with pytest.raises(SlideError, match=r"text\.tif: cannot be read as a slide \(cucim: .*; openslide: .*\)"):
        Slide(text)
    with pytest.raises(SettingsError, match=r"reader: got 'pil'\. Choose one of auto, cucim, openslide"):
        Slide(pyramid, reader="pil")
    with pytest.raises(SettingsError, match="read_level: got 'finest'"):
        Slide(pyramid, read_level="finest")


def test_a_truncated_slide_is_an_error_that_names_it(tmp_path, real_slide):
    cut = tmp_path / "cut.svs"
    cut.write_bytes(real_slide.read_bytes()[:400_000])
    with pytest.raises(SlideError, match=r"cut\.svs"):
        Slide(cut).read_overview(4.0)
