"""Ink and coloured glass: rows lie on tissue alone, or it is said that nothing tells glass from tissue."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace

import cv2
import itk
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scripts.bags.bag import BagBuilder
from scripts.bags.ink import Ink, find_ink
from scripts.bags.tissue import TissueMask, find_tissue
from scripts.checking.inspection import describe
from scripts.checking.problems import WARNS
from scripts.checking.slides import SlideChecker
from scripts.core.errors import SlideError
from scripts.slides.frames import Rectangle
from scripts.slides.slide import Slide
from tests.conftest import ROOT
from tests.pyramids import write_pyramid

SHARED = ROOT.parent / "shared"
SIDE_PX, PATCH_PX = 1400, 112  # at 2 um/px, where a 5x patch of 112 px covers 112 px
GLASS = (243, 242, 241)
# Optical densities of R, G, B (Ruifrok and Johnston, 2001).
HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
# Medians of pen marks of real slides, and of other pens.
INKS = {
    "blue": [(93, 142, 212), (63, 70, 175), (30, 50, 130)],
    "green": [(113, 194, 183), (56, 140, 90), (20, 90, 80)],
    "red": [(208, 71, 100), (214, 40, 60), (180, 20, 30)],
    "black": [(24, 20, 14), (32, 30, 38)],
}
EACH_INK = [(name, colour) for name, colours in INKS.items() for colour in colours]


def stained(densities: NDArray[np.float64], *stains: tuple[float, float, float]) -> NDArray[np.uint8]:
    """The colour of so much of each stain ``[..., n]``, by the law of Beer and Lambert."""
    return np.round(255 * 10 ** -(densities @ np.array(stains))).astype(np.uint8)


def tissue(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Haematoxylin and eosin in spots and bands, with nuclei that are next to haematoxylin alone."""
    rng = np.random.default_rng(seed)
    spots = np.stack([cv2.GaussianBlur(rng.random((height, width)), (0, 0), s) for s in (2, 6)], axis=-1)
    spots = (spots - spots.min(axis=(0, 1))) / np.ptp(spots, axis=(0, 1))
    return stained(spots * (0.9, 0.5) + (0.05, 0.1), HAEMATOXYLIN, EOSIN)


def picture(background: tuple[int, int, int] = GLASS) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A piece of tissue in the middle of glass, and where it is."""
    image = np.full((SIDE_PX, SIDE_PX, 3), background, dtype=np.uint8)
    where = np.zeros((SIDE_PX, SIDE_PX), dtype=bool)
    where[448:952, 448:952] = True  # where patches of the grid begin and end, and less than one beyond
    image[where] = tissue(504, 504).reshape(-1, 3)
    return image, where


def with_ring(image: NDArray[np.uint8], colour: tuple[int, int, int], blur: float = 6.0) -> NDArray[np.uint8]:
    """A ring of ink around the tissue, 300 um wide, with streaks and out of focus."""
    ring = np.zeros(image.shape[:2], dtype=np.float32)
    cv2.circle(ring, (SIDE_PX // 2, SIDE_PX // 2), 550, 1.0, thickness=150)
    thick = cv2.GaussianBlur(np.random.default_rng(1).random((1, SIDE_PX)).astype(np.float32), (0, 0), 4)
    amount = cv2.GaussianBlur(ring, (0, 0), blur) * (0.9 + 0.4 * (thick - thick.mean()) / np.ptp(thick))
    density = -np.log10(np.array(colour) / 255)
    return np.round(image * 10 ** -(amount[..., None] * density)).astype(np.uint8)


def write(folder: Path, image: NDArray[np.uint8], mpp: float = 2.0) -> str:
    return str(write_pyramid(folder / "s.tif", image, mpp=mpp, downsamples=(1, 4)))


def corners(path: str) -> set[tuple[float, float]]:
    return {tuple(map(float, corner)) for corner in builder().look({"image": path}).grid.coords[0]}


def builder() -> BagBuilder:
    return BagBuilder([5], patch_size=PATCH_PX)


def patches_on(where: NDArray[np.bool_]) -> set[tuple[float, float]]:
    """The patches that hold enough tissue, counted pixel by pixel."""
    starts = range(0, SIDE_PX - PATCH_PX + 1, PATCH_PX)
    return {
        (float(x), float(y)) for y in starts for x in starts if where[y : y + PATCH_PX, x : x + PATCH_PX].mean() >= 0.7
    }


# --- ink --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "colour"), EACH_INK)
def test_rows_lie_on_all_of_the_tissue_and_on_no_ink(tmp_path, monkeypatch, name, colour):
    plain, where = picture()
    image = with_ring(plain, colour)
    path = write(tmp_path, image)
    found = find_tissue(Slide(path))
    assert corners(path) == patches_on(where)
    assert found.ink_colours == (name,)
    drawn_mm2 = ((image.astype(int) - plain).min(axis=-1) < -20).sum() * 4e-6
    assert found.ink_mm2 == pytest.approx(drawn_mm2, rel=0.25)  # with a margin around it
    monkeypatch.setattr("scripts.bags.tissue.find_ink", lambda overview, mpp: Ink(np.zeros((1, 1), bool), ()))
    if name != "black":  # grey was no tissue before
        assert len(corners(path)) > 2 * len(patches_on(where))


def test_ink_in_several_colours_is_named_and_left_out(tmp_path):
    image, where = picture()
    image = with_ring(image, INKS["green"][0])
    for left, colour in ((0, INKS["red"][1]), (150, INKS["blue"][0]), (300, INKS["black"][0])):
        cv2.line(image, (left + 60, 40), (left + 60, 200), colour, 60)
    path = write(tmp_path, image)
    assert corners(path) == patches_on(where)
    assert find_tissue(Slide(path)).ink_colours == ("blue", "green", "red", "black")


def test_the_pale_end_of_a_stroke_belongs_to_it_and_a_pale_stain_does_not():
    stroke = np.full((200, 400, 3), 243, dtype=np.uint8)
    share = np.linspace(1, 0.1, 300)[:, None]
    stroke[80:120, 50:350] = np.round(243 * 10 ** -(share * -np.log10(np.array(INKS["blue"][0]) / 255)))
    ink = find_ink(stroke, 8.0)
    assert ink.colours == ("blue",)
    assert ink.mask[100, 60:300].all()
    assert not ink.mask[:60].any()
    assert not ink.mask[140:].any()
    stroke[80:120, 50:190] = 243  # without its core: as the counterstain of an immunohistochemical slide
    assert find_ink(stroke, 8.0).colours == ()


def test_a_stroke_of_which_no_colour_is_large_alone_is_ink():
    image = np.full((100, 100, 3), 243, dtype=np.uint8)
    image[40:55, 30:46], image[40:55, 46:60] = INKS["blue"][0], INKS["green"][1]  # 128 and 112 um by 120 um
    ink = find_ink(image, 8.0)
    assert ink.colours in (("blue",), ("green",))
    assert ink.mask[40:55, 30:60].all()


def test_a_slide_of_nothing_but_ink_is_refused_and_the_ink_told_of(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path, with_ring(np.full((SIDE_PX, SIDE_PX, 3), GLASS, np.uint8), INKS["blue"][0]))
    with pytest.raises(SlideError, match="no tissue was found"):
        builder()({"image": path})
    assert [(r.levelno, "of blue ink are left out of the tissue" in r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, True)  # more ink than tissue
    ]


def test_a_speck_is_no_ink():
    image = np.full((100, 100, 3), 243, dtype=np.uint8)
    cv2.circle(image, (50, 50), 6, INKS["blue"][1], -1)  # 96 um across
    assert not find_ink(image, 8.0).mask.any()


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.integers(0, 2**16))
def test_no_mixture_of_haematoxylin_eosin_and_dab_is_ink(h, e, d, seed):
    """However thick: not even where pixels are a few grey levels off."""
    rng = np.random.default_rng(seed)
    for amounts, stains in (((h, e), (HAEMATOXYLIN, EOSIN)), ((h, d), (HAEMATOXYLIN, DAB))):
        colour = stained(np.array(amounts), *stains)
        if colour.min() < 4:  # black in one channel: nothing is left to tell dyes by
            continue
        image = np.clip(colour + rng.integers(-2, 3, (60, 60, 3)), 0, 255).astype(np.uint8)
        assert not find_ink(image, 8.0).mask.any(), colour


@pytest.mark.parametrize("grey", [0.98, 0.9, 0.6])
def test_glass_and_shadow_are_no_ink(grey):
    for tint in ((1, 1, 1), (1, 0.99, 0.97), (0.97, 0.99, 1)):
        image = np.full((60, 60, 3), 255 * grey * np.array(tint), dtype=np.uint8)
        assert not find_ink(image, 8.0).mask.any()


def test_bands_of_rows_do_not_show(monkeypatch):
    image = with_ring(picture()[0], INKS["green"][1])[::4, ::4]
    whole = find_ink(image, 8.0)
    monkeypatch.setattr("scripts.bags.ink.BAND_ROWS", 7)
    assert np.array_equal(find_ink(image, 8.0).mask, whole.mask)


def test_the_tissue_of_a_real_slide_is_what_its_colour_says(real_slide, monkeypatch):
    found = find_tissue(Slide(real_slide))
    assert found.ink_colours == ()
    monkeypatch.setattr("scripts.bags.tissue.find_ink", lambda overview, mpp: Ink(np.zeros((1, 1), bool), ()))
    assert np.array_equal(found.tissue, find_tissue(Slide(real_slide)).tissue)


@pytest.mark.parametrize(("name", "colour"), [("pen_blue", "blue"), ("pen_green", "green")])
def test_a_ring_of_ink_on_pixels_of_a_real_slide_has_no_rows(name, colour):
    bag = BagBuilder().look({"image": shared(f"cases/{name}.tif")})
    assert bag.grid.num_rows == 6  # 28 of 34 were ink
    assert bag.tissue.ink_colours == (colour,)


def test_the_tissue_of_real_fields_is_no_ink():
    """Haematoxylin is blue, and blood is red: of 165 fields of colon next to nothing may be lost."""
    pixels = lost = 0
    for path in sorted(shared("tissue/glas").glob("*.jpg")):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        image = cv2.resize(image, None, fx=0.62 / 8, fy=0.62 / 8, interpolation=cv2.INTER_AREA)
        pixels, lost = pixels + image[..., 0].size, lost + find_ink(image, 8.0).mask.sum()
    assert pixels > 300_000
    assert lost < 0.001 * pixels


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"no {name} in {SHARED}")
    return SHARED / name


# --- tissue everywhere ------------------------------------------------------------------------------------


def false_colours(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a reader shows that takes Y, Cb and Cr for R, G and B."""
    y_cr_cb = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    return np.ascontiguousarray(y_cr_cb[..., [0, 2, 1]])


def edged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As a scanner fills up its last tiles: 32 um of white."""
    image[:, -16:] = image[-16:] = 255
    return image


COLOURED = {
    "yellowed glass": lambda: picture((240, 228, 200))[0],
    "yellowed glass, last tiles filled up": lambda: edged(picture((240, 228, 200))[0]),
    "blue paper": lambda: picture((90, 130, 200))[0],
    "green paper": lambda: picture((150, 200, 160))[0],
    "red paper": lambda: picture((220, 90, 110))[0],
    "false colours": lambda: false_colours(picture()[0]),
    "all tissue": lambda: tissue(SIDE_PX, SIDE_PX),
}


@pytest.mark.parametrize("what", COLOURED)
def test_tissue_that_is_everywhere_is_a_warning_wherever_a_slide_is_looked_at(tmp_path, caplog, what):
    caplog.set_level(logging.INFO)
    path = write(tmp_path, COLOURED[what]())
    checked = SlideChecker(builder(), class_names=["cancer"])({"image": path, "slide": "s"})
    told = [(p.severity, p.check, p.what) for p in checked.problems]
    assert [(severity, check) for severity, check, _ in told] == [(WARNS, "tissue")]
    assert "of the slide is tissue, up to all four borders" in told[0][2]
    assert checked.is_usable
    assert caplog.text == ""
    bag_builder = builder()
    bag = bag_builder({"image": path})
    bag_builder({"image": path})
    (record,) = caplog.records  # once a slide
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{path}: {told[0][2]}. Look at it with `inspecting`; give a `mask`")
    assert f"warning      {told[0][2]}. Look" in describe(bag)
    assert bag.tissue.ink_colours == ()


def test_many_slides_with_tissue_everywhere_are_few_lines(tmp_path, caplog, monkeypatch):
    bag_builder = builder()
    bag = bag_builder.look({"image": write(tmp_path, COLOURED["all tissue"]())})
    looks = {f"{tmp_path}/s{i}.tif": SimpleNamespace(path=tmp_path / f"s{i}.tif") for i in range(165)}
    monkeypatch.setattr(bag_builder, "look", lambda entry: dataclasses.replace(bag, slide=looks[entry["image"]]))
    for path in looks:
        bag_builder({"image": path})
    assert len(caplog.records) == 4
    assert "`checking` names all of them" in caplog.messages[-1]


@pytest.mark.parametrize(("what", "warned"), [("yellowed glass", True), ("all tissue", True), ("plain glass", False)])
def test_around_the_bounds_is_white_that_does_not_count(tmp_path, monkeypatch, what, warned):
    scanned = COLOURED[what]() if warned else picture()[0]
    image = np.full((2 * SIDE_PX, 2 * SIDE_PX, 3), 255, dtype=np.uint8)
    image[500 : 500 + SIDE_PX, 300 : 300 + SIDE_PX] = scanned
    image[:400, :200] = 200  # so that what is not white is more than the bounds
    slide = Slide(write(tmp_path, image))
    assert find_tissue(slide).doubt() is None
    bounds = Rectangle(300, 500, SIDE_PX, SIDE_PX)
    monkeypatch.setattr("scripts.slides.slide.find_bounds", lambda path, size_level0: bounds)
    doubt = find_tissue(Slide(slide.path)).doubt()
    assert (doubt is not None) == warned
    if doubt is not None:
        assert doubt[0].startswith(("100%", "99%"))


@given(
    corner=st.tuples(st.integers(0, 900), st.integers(0, 900)), size=st.tuples(*[st.integers(300, 2000)] * 2),
    origin=st.sampled_from([(0.0, 0.0), (80.0, 160.0)]), full=st.booleans(),
)  # fmt: skip
def test_tissue_that_fills_the_bounds_is_everywhere_whatever_lies_around_them(corner, size, origin, full):
    bounds = Rectangle(*(8 * round(v / 8) for v in (*np.add(corner, origin), *size)))
    x, y = (int((start - of) // 8) for start, of in zip(bounds[:2], origin, strict=True))
    tissue_px = np.zeros((400, 400), dtype=bool)
    tissue_px[y : y + int(bounds.height) // 8, x : x + int(bounds.width) // (8 if full else 16)] = True
    mask = TissueMask(tissue_px, (8.0, 8.0), 1.0, origin_level0=origin, bounds_level0=bounds)
    assert mask.is_everywhere == full
    assert not dataclasses.replace(mask, bounds_level0=None).is_everywhere


def test_a_users_mask_is_not_doubted(tmp_path, caplog):
    path = write(tmp_path, with_ring(picture()[0], INKS["blue"][0]))
    itk.imwrite(itk.image_from_array(np.ones((100, 100), np.uint8)), str(tmp_path / "m.png"))
    entry = {"image": path, "slide": "s", "mask": str(tmp_path / "m.png")}
    caplog.set_level(logging.INFO)
    builder()(entry)
    assert caplog.text == ""
    assert SlideChecker(builder(), class_names=["cancer"])(entry).problems == []


@pytest.mark.parametrize(("rows", "level"), [(SIDE_PX // 4, logging.INFO), (SIDE_PX, logging.WARNING)])
def test_ink_is_told_of_wherever_a_slide_is_looked_at_and_more_than_tissue_is_a_warning(tmp_path, caplog, rows, level):
    caplog.set_level(logging.INFO)
    image = picture()[0]
    image[:rows] = with_ring(image, INKS["blue"][0])[:rows]
    path = write(tmp_path, image)
    checked = SlideChecker(builder(), class_names=["cancer"], min_rows=1)({"image": path, "slide": "s"})
    ((severity, check, what),) = [(p.severity, p.check, p.what) for p in checked.problems]
    assert (severity, check) == (WARNS, "ink")
    assert what.endswith("mm2 of blue ink are left out of the tissue")
    bag = builder()({"image": path})
    assert [(r.levelno, what in r.getMessage()) for r in caplog.records] == [(level, True)]
    assert f"ink          {what}. Look" in describe(bag)


def test_plain_glass_is_not_warned_of(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path, picture()[0])
    assert SlideChecker(builder(), class_names=["cancer"], min_rows=1)({"image": path, "slide": "s"}).problems == []
    builder()({"image": path})
    assert caplog.text == ""


def test_a_real_field_that_is_all_tissue_only_warns(tmp_path):
    image = cv2.cvtColor(cv2.imread(str(shared("tissue/glas/testA_10.jpg"))), cv2.COLOR_BGR2RGB)
    path = write(tmp_path, image, mpp=0.62)
    checked = SlideChecker(BagBuilder([10], patch_size=112), class_names=["cancer"], min_rows=1)(
        {"image": path, "slide": "s"}
    )
    assert [(p.severity, p.check) for p in checked.problems] == [(WARNS, "tissue")]
    assert checked.is_usable


def test_yellowed_glass_on_pixels_of_a_real_slide_is_warned_of():
    assert find_tissue(Slide(shared("cases/yellow_glass.tif"))).doubt() is not None
