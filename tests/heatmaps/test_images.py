"""Heatmaps as pictures and images: what is read back lies where the patches lie, in micrometres."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import itk
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.spatial import KDTree

from scripts.bags.bag import BagBuilder
from scripts.heatmaps.attention_maps import KINDS, PatchMap, gather_rows
from scripts.heatmaps.images import (
    COLOUR_MAPS,
    OPACITY,
    Thumbnail,
    class_colour,
    overlay,
    patch_image,
    read_thumbnail,
    shade_colours,
    shade_image,
    with_palette,
    write_patch_image,
    write_png,
)
from scripts.heatmaps.legend import legend_colours
from tests.pyramids import noise, write_pyramid

# At this resolution no patch is a whole number of pixels.
BASE_MPP = 0.2523
SIZE = (3301, 2104)  # width, height in pixels
HOT_BOX = (2330, 20, 3230, 760)  # left, top, right, bottom: the tissue of one kind, at the upper right
COLD_BOX = (150, 1030, 2660, 2080)  # that of the other kind, at the lower left
PATCH_PX = 64  # at 10x 253.67 px of level 0, at 5x twice as much


def corner_image():
    """Two kinds of tissue on glass, RGB: purple and grainy in HOT_BOX, pink and smooth in COLD_BOX."""
    grain = cv2.GaussianBlur(noise(SIZE[1], SIZE[0], seed=3)[..., 0], (0, 0), 5).astype(int) - 128
    image = np.full((SIZE[1], SIZE[0], 3), 244, dtype=np.uint8)
    for (left, top, right, bottom), colour, strength in ((HOT_BOX, (120, 60, 150), 5), (COLD_BOX, (232, 150, 196), 1)):
        box = image[top:bottom, left:right]
        box[:] = np.clip(colour + strength * grain[top:bottom, left:right, None], 0, 255)
    return image


def write_corner_slide(path, mpp=BASE_MPP):
    """The image above as a slide; without a resolution in the file for ``mpp`` None."""
    return write_pyramid(path, corner_image(), mpp=mpp, downsamples=(1, 4))


def is_in(box, point_um, slack_um=0.0):
    """Whether a point (x, y) in micrometres lies in a box of pixels, or off it by no more than the slack."""
    left, top, right, bottom = np.multiply(box, BASE_MPP)
    x, y = point_um
    return left - slack_um <= x <= right + slack_um and top - slack_um <= y <= bottom + slack_um


def read_png(path):
    """Pixels, RGB, by OpenCV, and micrometres per pixel (x, y) by the PNG standard: no library that wrote it."""
    data = Path(path).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (crc,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert crc == zlib.crc32(kind + content)
        chunks.setdefault(kind, content)
        place += 12 + length
    x_per_metre, y_per_metre, unit = struct.unpack(">IIB", chunks[b"pHYs"])
    assert unit == 1  # metres
    return cv2.imread(str(path))[..., ::-1], (1e6 / x_per_metre, 1e6 / y_per_metre)


def shades_in(picture, plain, kind):
    """The shade at each pixel, read off an overlay and the picture under it; NaN where nothing is laid over."""
    table = 255 * COLOUR_MAPS[kind](np.linspace(0, 1, 256))[:, :3]
    found = np.full(picture.shape[:2], np.nan)
    # Palettes move colours: less than a colour of the map does.
    covered = (np.abs(picture.astype(float) - plain) > 12).any(axis=-1)
    colours = (picture[covered] - (1 - OPACITY) * plain[covered].astype(float)) / OPACITY
    found[covered] = KDTree(table).query(colours)[1] * 100 / 255
    return found


def hottest_um_of_png(path, plain, patch_um):
    """(x, y) in micrometres of the middle of the hottest square of a patch's size, wherever it lies."""
    picture, (x_um, y_um) = read_png(path)
    picture = picture[: len(plain), : plain.shape[1]]  # without its legend
    kind = "contribution" if path.stem.endswith("_contribution") else "attention"
    # Each third pixel of each third row: a patch has many more.
    shade = np.nan_to_num(shades_in(picture[1::3, 1::3], plain[1::3, 1::3], kind)).astype(np.float32)
    x_um, y_um = 3 * x_um, 3 * y_um
    smooth = cv2.blur(shade, (round(patch_um / x_um), round(patch_um / y_um)), borderType=cv2.BORDER_CONSTANT)
    y, x = np.unravel_index(np.argmax(smooth), smooth.shape)
    return (x + 0.5) * x_um, (y + 0.5) * y_um


def hottest_um_of_mha(path):
    """(x, y) in micrometres of the hottest pixel's centre, by ITK's own transform."""
    image = itk.imread(str(path))
    pixels = itk.array_view_from_image(image)
    row, column = np.unravel_index(np.argmax(pixels), pixels.shape)
    return tuple(1e3 * v for v in image.TransformIndexToPhysicalPoint([int(column), int(row)]))


@st.composite
def maps_on_grids(draw):
    """Some cells of a grid from the slide's corner, with a slide that they lie in, in any proportion."""
    side = draw(st.sampled_from([20.0, 37.123, 253.6663]))
    mpp = draw(st.sampled_from([BASE_MPP, 0.499, 1.0]))
    columns, rows = draw(st.integers(1, 9)), draw(st.integers(1, 7))
    cells = st.tuples(st.integers(0, columns - 1), st.integers(0, rows - 1))
    chosen = sorted(draw(st.sets(cells, min_size=1)), key=lambda cell: cell[::-1])
    values = np.array(draw(st.lists(st.floats(1e-6, 1), min_size=len(chosen), max_size=len(chosen))))
    kind = draw(st.sampled_from(KINDS))
    if kind == "contribution":
        values *= draw(hnp.arrays(np.float64, len(chosen), elements=st.sampled_from([-2.5, 2.5])))
    # The last cells may reach beyond the border.
    cut = draw(st.floats(0.0, 0.9))
    size_um = ((columns - cut) * side * mpp, (rows - cut) * side * mpp)
    return PatchMap(np.array(chosen) * side, side, mpp, values, kind), size_um


@settings(max_examples=40, deadline=None)
@given(maps_on_grids(), st.sampled_from([150, 400]))
def test_an_overlay_shows_each_patch_in_its_place(made, longest_px):
    heat, size_um = made
    mpp = max(size_um) / longest_px
    shape = (int(np.ceil(round(size_um[1] / mpp, 6))), int(np.ceil(round(size_um[0] / mpp, 6))), 3)
    thumbnail = Thumbnail(noise(*shape[:2]) // 4 + 60, mpp, size_um)
    picture = overlay(thumbnail, heat)
    assert picture.shape == shape
    centres_um = (heat.corners + heat.patch_level0 / 2) * heat.base_mpp
    for (x, y), expected in zip(centres_um, heat.shade, strict=True):
        row, column = int(y / mpp), int(x / mpp)
        if row < shape[0] and column < shape[1]:
            around = np.s_[row : row + 1, column : column + 1]
            assert shades_in(picture[around], thumbnail.pixels[around], heat.kind) == pytest.approx(expected, abs=3)
    # Glass stays glass: of the pixels that lie off every patch, none has changed.
    y, x = ((np.arange(length) + 0.5) * mpp for length in shape[:2])
    gap = np.full(shape[:2], np.inf)
    for left, top in heat.corners * heat.base_mpp:
        off_x = np.maximum(np.maximum(left - x, x - left - heat.patch_um), 0)
        off_y = np.maximum(np.maximum(top - y, y - top - heat.patch_um), 0)
        gap = np.minimum(gap, np.maximum(off_x[None, :], off_y[:, None]))
    assert np.array_equal(picture[gap > mpp], thumbnail.pixels[gap > mpp])


def shade_pixel_by_pixel(heat, thumbnail):
    """The shade of a thumbnail, one patch after the other onto all its pixels."""
    height, width = thumbnail.pixels.shape[:2]
    pixel_level0 = thumbnail.mpp / heat.base_mpp
    total, number = np.zeros((height, width)), np.zeros((height, width))
    for (x, y), shade in sorted(zip(heat.corners, heat.shade, strict=True), key=lambda patch: patch[1]):
        ends = []
        for corner, length in ((y, height), (x, width)):
            first, last = (round(end / pixel_level0) for end in (corner, corner + heat.patch_level0))
            if first == last:
                first = int(np.floor((corner + heat.patch_level0 / 2) / pixel_level0))
            ends.append(slice(min(first, length), min(max(last, first + 1), length)))
        if heat.patch_level0 < pixel_level0:
            total[tuple(ends)], number[tuple(ends)] = shade, 1
        else:
            total[tuple(ends)] += shade
            number[tuple(ends)] += 1
    with np.errstate(invalid="ignore"):
        return total / number


@settings(max_examples=40, deadline=None)
@given(maps_on_grids(), st.sampled_from([3, 40, 150]), st.sampled_from([1.0, 0.5, 0.37]), st.floats(0.0, 30.0))
def test_an_overlay_is_the_pixel_by_pixel_mix_of_tissue_and_shade(made, longest_px, step, shift):
    # Patches that meet, overlap, lie on no whole pixel, are smaller than one, or reach beyond the border.
    heat, size_um = made
    heat = replace(heat, corners=heat.corners * step + shift)
    mpp = max(size_um) / longest_px
    shape = [max(1, round(length / mpp)) for length in size_um[::-1]]
    thumbnail = Thumbnail(noise(*shape), mpp, size_um)
    expected = shade_pixel_by_pixel(heat, thumbnail)
    shade = shade_image(heat, thumbnail)
    assert np.allclose(shade, expected, rtol=1e-6, equal_nan=True)
    covered = ~np.isnan(shade)
    mixed = thumbnail.pixels.copy()
    colours = shade_colours(shade[covered], heat.kind)
    mixed[covered] = np.round((1 - OPACITY) * mixed[covered] + OPACITY * colours)
    assert np.array_equal(overlay(thumbnail, heat), mixed)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_colours_stay_wherever_they_are_and_every_other_pixel_has_the_librarys_choice(kind):
    exact = legend_colours(kind)
    # In their upper bits most are the same.
    near = np.clip(np.add(exact, [[1, -1, 2]], dtype=int), 0, 255).astype(np.uint8)
    colours = np.concatenate([exact, near])
    rng = np.random.default_rng(5)
    pixels = np.concatenate([noise(80, 90, seed=6), colours[rng.integers(0, len(colours), (80, 90))]])
    picture = with_palette(pixels, exact)
    palette = np.array(picture.getpalette(), dtype=np.uint8).reshape(-1, 3)
    stored = palette[np.asarray(picture)]
    is_exact = (pixels[..., None, :] == exact).all(axis=-1).any(axis=-1)
    assert is_exact[80:].mean() > 0.4
    assert np.array_equal(stored[is_exact], pixels[is_exact])
    only = Image.new("P", (1, 1))
    only.putpalette(palette.ravel().tolist())
    chosen = np.asarray(Image.fromarray(pixels).quantize(palette=only, dither=Image.Dither.NONE))
    assert np.array_equal(stored[~is_exact], palette[chosen][~is_exact])
    assert (palette[chosen][is_exact] != pixels[is_exact]).any()  # the library alone would not keep them


def test_a_png_has_the_size_of_its_pixels_and_256_colours_near_those_of_the_tissue_in_half_the_bytes(tmp_path):
    pixels, exact = (
        cv2.GaussianBlur(corner_image(), (0, 0), 2)[:800],
        np.array([[1, 2, 3], [250, 0, 0]], dtype=np.uint8),
    )
    pixels[0, :2] = exact
    write_png(tmp_path / "map.png", pixels, BASE_MPP, exact)
    stored, um = read_png(tmp_path / "map.png")
    assert stored.shape == pixels.shape
    assert um == pytest.approx((BASE_MPP, BASE_MPP), rel=1e-4)
    assert len(np.unique(stored.reshape(-1, 3), axis=0)) <= 256
    assert (stored[0, :2] == exact).all()
    off = np.abs(stored.astype(int) - pixels)
    assert off.mean() < 4
    assert np.percentile(off, 99) < 20
    _, plain = cv2.imencode(".png", pixels)
    assert (tmp_path / "map.png").stat().st_size < len(plain) / 2
    write_png(tmp_path / "again.png", pixels, BASE_MPP, exact)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "map.png").read_bytes()


@settings(max_examples=40, deadline=None)
@given(maps_on_grids())
def test_an_mha_has_each_patchs_value_with_its_sign_at_its_centre_in_millimetres(tmp_path_factory, made):
    heat, size_um = made
    path = tmp_path_factory.getbasetemp() / "map.mha"
    write_patch_image(path, heat, size_um)
    image = itk.imread(str(path))
    assert isinstance(image, itk.Image[itk.F, 2])
    pixels = itk.array_view_from_image(image)
    assert image.TransformIndexToPhysicalPoint([0, 0]) == pytest.approx([heat.patch_um / 2e3] * 2)
    extent_um = 1e3 * np.multiply(image.GetSpacing(), pixels.shape[::-1])
    assert (extent_um >= np.array(size_um) - 1e-6).all()
    assert (extent_um < np.array(size_um) + heat.patch_um).all()
    for corner, value in zip(heat.corners, heat.values, strict=True):
        centre_mm = (corner + heat.patch_level0 / 2) * heat.base_mpp / 1e3
        assert image.GetPixel(image.TransformPhysicalPointToIndex(centre_mm.tolist())) == pytest.approx(value)
    assert np.count_nonzero(pixels) == len(heat.values)
    assert pixels.sum(dtype=float) == pytest.approx(heat.values.sum(), abs=1e-5)


@pytest.fixture(scope="module")
def corner_bag(tmp_path_factory):
    path = write_corner_slide(tmp_path_factory.mktemp("slide") / "corner.tif")
    return BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)({"image": path})


@pytest.mark.parametrize("scale_index", [0, 1], ids=["5x", "10x"])
def test_attention_in_one_corner_of_a_slide_is_found_there_in_every_file(corner_bag, tmp_path, scale_index):
    grid, slide = corner_bag.grid, corner_bag.slide
    side = grid.scales[scale_index].patch_level0
    assert side != round(side)
    corners = grid.coords[scale_index][grid.rows[:, scale_index]]
    left, top, right, bottom = HOT_BOX
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    attention = np.exp(-((corners + side / 2 - middle) ** 2).sum(axis=1) / 500**2)
    heat = gather_rows(attention / attention.sum(), corners, side, slide.base_mpp)
    thumbnail = read_thumbnail(slide)
    write_png(tmp_path / "map.png", overlay(thumbnail, heat), thumbnail.mpp)
    write_patch_image(tmp_path / "map.mha", heat, thumbnail.size_um)
    plain = cv2.resize(corner_image(), thumbnail.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    for found in (
        hottest_um_of_png(tmp_path / "map.png", plain, heat.patch_um),
        hottest_um_of_mha(tmp_path / "map.mha"),
    ):
        assert is_in(HOT_BOX, found)
        assert found == pytest.approx(middle * BASE_MPP, abs=heat.patch_um)


def test_neighbouring_patches_meet_without_gap_or_overlap(corner_bag):
    thumbnail = read_thumbnail(corner_bag.slide, 500)
    scale = corner_bag.grid.scales[1]
    cells = np.stack(np.meshgrid(np.arange(13), np.arange(8)), axis=-1).reshape(-1, 2)
    heat = PatchMap(cells * scale.patch_level0, scale.patch_level0, BASE_MPP, np.arange(1.0, len(cells) + 1))
    picture = shade_image(heat, thumbnail)
    side_px = scale.patch_um / thumbnail.mpp
    values, count = np.unique(picture[: int(8 * side_px), : int(13 * side_px)], return_counts=True)
    assert len(values) == len(cells)
    assert not np.isnan(values).any()
    assert (np.abs(np.sqrt(count) - side_px) < 1).all()


def test_patches_smaller_than_a_pixel_are_seen_and_the_hottest_wins():
    corners = np.stack([np.arange(20.0), np.zeros(20)], axis=1)
    heat = PatchMap(corners, 1.0, 1.0, np.linspace(1, 2, 20))
    thumbnail = Thumbnail(np.full((1, 5, 3), 255, np.uint8), 4.0, (20.0, 4.0))
    seen = shade_image(heat, thumbnail)[0]
    assert not np.isnan(seen).any()
    assert (np.diff(seen) > 0).all()
    assert seen[-1] == 100


def test_a_thumbnail_has_the_size_asked_for_but_is_never_finer_than_the_slide(corner_bag):
    thumbnail = read_thumbnail(corner_bag.slide, 1000)
    assert thumbnail.pixels.shape == (638, 1000, 3)
    assert thumbnail.size_um == pytest.approx(np.multiply(SIZE, BASE_MPP))
    whole = read_thumbnail(corner_bag.slide, 100_000)
    assert whole.mpp == pytest.approx(BASE_MPP)
    assert np.array_equal(whole.pixels, corner_image())


def test_tissue_can_be_seen_through_every_colour(corner_bag):
    thumbnail = read_thumbnail(corner_bag.slide, 800)
    for attention in ([1.0], [1.0, 2.0, 3.0]):
        corners = np.zeros((len(attention), 2))
        corners[:, 0] = np.arange(len(attention)) * 4000.0
        heat = PatchMap(corners, 4000.0, BASE_MPP, np.array(attention))
        contrast = overlay(thumbnail, heat).std(axis=(0, 1)) / thumbnail.pixels.std(axis=(0, 1))
        assert (contrast > 0.4).all()


@pytest.mark.parametrize("corners", [[[40.0, 0.0]], [[0.0, 20.0]], [[-10.0, 0.0]]])
def test_patches_off_the_slide_are_no_image(corners):
    heat = PatchMap(np.array(corners), 10.0, 0.5, np.ones(1))
    with pytest.raises(ValueError, match="outside"):
        patch_image(heat, (20.0, 10.0))


def test_where_patches_overlap_every_picture_has_their_mean(tmp_path):
    # Three patches of 16 um in a line, half of each shared: on a thumbnail and an image of 2 um a pixel.
    heat = PatchMap(np.array([[8.0, 4.0], [16.0, 4.0], [24.0, 4.0]]), 16.0, 1.0, np.array([1.0, 2.0, 6.0]))
    a, b, c = heat.shade
    seen = shade_image(heat, Thumbnail(np.full((12, 32, 3), 255, np.uint8), 2.0, (64.0, 24.0)))
    want = np.repeat([np.nan, a, (a + b) / 2, (b + c) / 2, c, np.nan, np.nan, np.nan], 4)
    assert seen[5] == pytest.approx(want, nan_ok=True)
    assert np.isnan(seen[[1, 10]]).all()
    write_patch_image(tmp_path / "map.mha", heat, (64.0, 24.0))
    image = itk.imread(str(tmp_path / "map.mha"))
    assert list(image.GetSpacing()) == pytest.approx([2e-3, 2e-3])
    pixels = itk.array_view_from_image(image)
    assert pixels.shape == (12, 32)
    assert pixels[5] == pytest.approx(np.repeat([0, 1, 1.5, 4, 6, 0, 0, 0], 4))
    assert not pixels[[1, 10]].any()


def test_classes_have_colours_that_differ():
    colours = [class_colour(k) for k in range(9)]
    assert len(set(colours)) == 9
    assert class_colour(9) == class_colour(0)
    assert all(isinstance(part, int) and 0 <= part <= 255 for colour in colours for part in colour)
