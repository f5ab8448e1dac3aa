import itk
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.bags.tissue import TissueMask, _stained, find_tissue, read_tissue_mask
from scripts.bags.tissue_settings import TissueSettings
from scripts.core.errors import SlideError
from scripts.slides.slide import Slide
from tests.pyramids import PINK, with_tissue, write_pyramid


def slide_with(tmp_path, boxes, size=(1600, 2000), mpp=2.0, colour=PINK, seed=0):
    """A slide of boxes of stain on paper-white that is not perfect."""
    image = with_tissue(*size, boxes, colour).astype(int)
    image -= np.random.default_rng(seed).integers(0, 8, image.shape)
    return Slide(write_pyramid(tmp_path / "t.tif", image.clip(0, 255).astype(np.uint8), mpp=mpp, downsamples=(1, 4)))


def test_stained_tissue_is_found_where_it_is(tmp_path):
    mask = find_tissue(slide_with(tmp_path, [(400, 400, 1200, 1000)]))
    # Squares of 100 level-0 px, well inside and well outside.
    corners = np.array([[500, 500], [1050, 850], [100, 100], [1500, 1200], [400 - 50, 600]], dtype=float)
    inside, corner, outside, far, half = mask.fraction(corners, 100.0)
    assert (inside, corner, outside, far) == (1, 1, 0, 0)
    assert half == pytest.approx(0.5, abs=0.1)
    assert mask.area_mm2 == pytest.approx(1.6 * 1.2, rel=0.05)


@pytest.mark.parametrize("colour", [(235, 205, 225), (90, 40, 120)])
def test_faint_and_dark_stains_are_tissue(tmp_path, colour):
    mask = find_tissue(slide_with(tmp_path, [(400, 400, 1200, 1000)], colour=colour))
    assert mask.area_mm2 == pytest.approx(1.6 * 1.2, rel=0.05)


def test_grey_shadows_are_not_tissue(tmp_path):
    assert not find_tissue(slide_with(tmp_path, [(400, 400, 1200, 1000)], colour=(120, 120, 120))).tissue.any()


def test_a_slide_that_is_all_tissue_is_not_split(tmp_path):
    mask = find_tissue(slide_with(tmp_path, [(0, 0, 2000, 800), (0, 800, 2000, 1600)]))
    assert mask.tissue.mean() > 0.99


def test_a_strip_of_glass_at_the_border_is_no_hole(tmp_path):
    mask = find_tissue(slide_with(tmp_path, [(60, 0, 2000, 1600)]))  # 60 px = 120 um of glass on the left
    assert mask.fraction(np.array([[0.0, 100.0]]), 50.0) == 0


def test_specks_are_removed_and_cracks_are_closed(tmp_path):
    halves = [(400, 400, 790, 1000), (800, 400, 1200, 1000)]  # a crack of 10 px = 20 um
    mask = find_tissue(slide_with(tmp_path, [*halves, (1700, 200, 1720, 220)]))
    assert mask.fraction(np.array([[785.0, 500.0]]), 20.0) == 1
    assert mask.fraction(np.array([[1650.0, 150.0]]), 150.0) == 0


def test_a_crack_stays_open_where_nothing_is_closed(tmp_path):
    # 20 um wide, from the top to the bottom of the tissue.
    slide = slide_with(tmp_path, [(400, 400, 790, 1000), (800, 400, 1200, 1000)])
    within = np.stack([np.full(50, 793.0), np.linspace(420.0, 970.0, 50)], axis=1)
    closed, left_open = find_tissue(slide), find_tissue(slide, TissueSettings(closing_um=0))
    assert closed.fraction(within, 2.0) == pytest.approx(np.ones(50))
    assert left_open.fraction(within, 2.0) == pytest.approx(np.zeros(50))
    assert (len(closed.pieces_level0()), len(left_open.pieces_level0())) == (1, 2)
    # Between nothing and all of the crack of 600 px is missing, and a pixel of the mask to either side.
    missing_um2 = (closed.area_mm2 - left_open.area_mm2) * 1e6
    assert 0 < missing_um2 <= (20 + 2 * 8) * 1200


@pytest.mark.parametrize("mpp", [4.0, 8.0, 16.0])
def test_masks_have_the_resolution_that_was_set(tmp_path, mpp):
    box = (404, 404, 1196, 996)
    mask = find_tissue(slide_with(tmp_path, [box]), TissueSettings(mpp=mpp))
    assert mask.pixel_level0 == (mpp / 2, mpp / 2)
    assert mask.tissue.shape == (1600 * 2 / mpp, 2000 * 2 / mpp)
    # In micrometres it is the same tissue: its borders are where they are, to a pixel of the mask.
    (found,) = mask.pieces_level0()
    assert np.abs(found - box).max() <= mpp / 2
    assert mask.area_mm2 == pytest.approx(1.584 * 1.184, rel=0.05)


def tissue_by_itk(stain, mpp):
    """The same by the filters of ITK, with which banks were made before."""

    def large(objects, smallest_px):
        types = (itk.Image[itk.UC, 2], itk.Image[itk.UL, 2])
        image = itk.image_from_array(objects.astype(np.uint8))
        components = itk.connected_component_image_filter(image, fully_connected=True, ttype=types)
        components = itk.array_from_image(components).astype(int)
        return (np.bincount(components.ravel()) >= smallest_px)[components] & objects

    image = itk.image_from_array(stain.astype(np.float32))
    smooth = itk.discrete_gaussian_image_filter(image, variance=1.0, use_image_spacing=False)
    otsu = itk.OtsuThresholdImageFilter[type(smooth), itk.Image[itk.UC, 2]].New(smooth)
    otsu.Update()
    found = itk.array_from_image(smooth) >= np.clip(otsu.GetThreshold(), 12, 30)
    radius = max(1, round(32 / mpp))
    disc = itk.FlatStructuringElement[2].Ball([radius, radius])
    padded = itk.image_from_array(np.pad(found, radius).astype(np.uint8))
    closed = itk.binary_morphological_closing_image_filter(padded, kernel=disc, foreground_value=1)
    objects = large(itk.array_from_image(closed)[radius:-radius, radius:-radius] > 0, 100**2 / mpp**2)
    return ~large(np.pad(~objects, 1, constant_values=True), 150**2 / mpp**2)[1:-1, 1:-1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), height=st.integers(2, 90), width=st.integers(2, 90), side=st.integers(1, 12),
    levels=st.lists(st.integers(0, 255), min_size=1, max_size=5), grain=st.integers(1, 9),
    mpp=st.sampled_from([1.0, 4.7, 8.0, 20.0]),
)  # fmt: skip
def test_tissue_is_what_itk_finds_to_the_last_pixel(seed, height, width, side, levels, grain, mpp):
    rng = np.random.default_rng(seed)
    blocks = rng.choice(levels, (height // side + 1, width // side + 1)).repeat(side, axis=0).repeat(side, axis=1)
    stain = (blocks[:height, :width] + rng.integers(0, grain, (height, width))).clip(0, 255).astype(np.uint8)
    assert np.array_equal(_stained(stain, mpp, TissueSettings()), tissue_by_itk(stain, mpp))


def test_tissue_of_a_real_slide_is_what_itk_finds(real_slide):
    slide = Slide(real_slide)
    overview = slide.read_overview(8.0)
    found = find_tissue(slide)
    assert np.array_equal(found.tissue, tissue_by_itk(overview.max(axis=-1) - overview.min(axis=-1), 8.0))


def test_two_backends_find_the_same_tissue_on_a_real_slide(real_slide):
    masks = [find_tissue(Slide(real_slide, reader=backend)) for backend in ("cucim", "openslide")]
    assert np.array_equal(masks[0].tissue, masks[1].tissue)
    assert 0.2 < masks[0].tissue.mean() < 0.5  # two fifths of the region is tissue, see it with `inspecting`


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    x=st.floats(-30, 130), y=st.floats(-30, 130), side=st.floats(0.5, 90),
    pixel=st.tuples(st.floats(0.7, 9), st.floats(0.7, 9)),
)  # fmt: skip
def test_a_share_of_tissue_is_the_exact_area(seed, x, y, side, pixel):
    tissue = np.random.default_rng(seed).random((9, 13)) > 0.5
    share = TissueMask(tissue, pixel, base_mpp=0.5).fraction(np.array([[x, y]]), side)[0]

    def overlap(start, stop, low, high):
        return max(0.0, min(stop, high) - max(start, low))

    area = sum(
        overlap(x, x + side, j * pixel[0], (j + 1) * pixel[0]) * overlap(y, y + side, i * pixel[1], (i + 1) * pixel[1])
        for i, j in zip(*tissue.nonzero(), strict=True)
    )
    assert share == pytest.approx(area / side**2, abs=1e-6)


def test_a_mask_keeps_its_place_in_micrometres_through_itk(tmp_path):
    tissue = np.zeros((40, 60), dtype=bool)
    tissue[10, 20] = True
    mask = TissueMask(tissue, pixel_level0=(16.0, 16.0), base_mpp=0.5)
    mask.write(tmp_path / "mask.mha")
    image = itk.imread(str(tmp_path / "mask.mha"))
    assert np.array_equal(itk.array_from_image(image), tissue)
    # The pixel (20, 10) spans 160..168 um by 80..88 um; ITK speaks of centres, in millimetres.
    assert tuple(image.TransformIndexToPhysicalPoint([20, 10])) == pytest.approx((0.164, 0.084))


@pytest.mark.parametrize("suffix", ["png", "mha", "tif"])
def test_a_users_mask_covers_the_slide_at_any_size(tmp_path, suffix):
    slide = slide_with(tmp_path, [(0, 0, 100, 100)])
    pixels = np.zeros((160, 200), dtype=np.uint8)
    pixels[80:, :100] = 3  # the lower left quarter; any value but 0 is tissue
    path = tmp_path / f"mask.{suffix}"
    itk.imwrite(itk.image_from_array(pixels), str(path))
    mask = read_tissue_mask(path, slide)
    corners = np.array([[100.0, 900.0], [1500.0, 900.0], [100.0, 100.0], [900.0, 1000.0]])
    assert mask.fraction(corners, 200.0).tolist() == [1, 0, 0, 0.5]


@pytest.mark.parametrize("how", [{}, {"photometric": "miniswhite"}, {"photometric": "palette"}])
def test_a_mask_is_what_its_values_say_however_a_viewer_shows_them(tmp_path, how):
    slide = slide_with(tmp_path, [(0, 0, 100, 100)])
    tissue = np.zeros((160, 200), dtype=bool)
    tissue[80:, :100] = True
    if how:
        tissue = tissue.astype(np.uint8)
    if how.get("photometric") == "palette":
        how = {**how, "colormap": np.full((3, 256), 7, dtype=np.uint16)}
    tifffile.imwrite(tmp_path / "mask.tif", tissue, **how)
    assert np.array_equal(read_tissue_mask(tmp_path / "mask.tif", slide).tissue, tissue)


def test_a_mask_whose_values_mean_nothing_is_refused(tmp_path):
    slide = slide_with(tmp_path, [(0, 0, 100, 100)])
    nan, inks = np.full((160, 200), np.nan, dtype=np.float32), np.zeros((160, 200, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "nan.tif", nan)
    itk.imwrite(itk.image_from_array(nan), str(tmp_path / "nan.mha"))
    tifffile.imwrite(tmp_path / "inks.tif", inks, photometric="separated")
    for name, says in [("nan.tif", "no numbers"), ("nan.mha", "no numbers"), ("inks.tif", "stored as CMYK")]:
        with pytest.raises(SlideError, match=rf"its mask .*{name} cannot be read \(.*{says}\)"):
            read_tissue_mask(tmp_path / name, slide)


def test_a_users_mask_must_fit_the_slide(tmp_path):
    slide = slide_with(tmp_path, [(0, 0, 100, 100)])
    turned, broken = tmp_path / "turned.png", tmp_path / "broken.png"
    itk.imwrite(itk.image_from_array(np.ones((200, 160), dtype=np.uint8)), str(turned))
    broken.write_bytes(b"not a picture")
    for path, message in [
        (turned, r"turned\.png is 160 x 200 px, which is not the slide's proportion \(2000 x 1600 px\)"),
        (broken, r"broken\.png cannot be read"),
        (tmp_path / "absent.png", r"absent\.png does not exist\. Correct the key `mask`"),
    ]:
        with pytest.raises(SlideError, match=message):
            read_tissue_mask(path, slide)
