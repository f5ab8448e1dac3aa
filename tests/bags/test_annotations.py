"""Annotations of QuPath and ASAP as masks: against shapely, plain geometry, and mask images of the same shapes."""

import codecs
import gzip
import json
import logging
import zipfile
from collections import Counter

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripts.bags.annotation_files import read_annotation_file
from scripts.bags.annotations import AnnotatedTissue
from scripts.bags.bag import BagBuilder
from scripts.bags.shapes import Shapes
from scripts.bags.tissue import TissueMask, find_tissue
from scripts.checking.slides import SlideChecker
from scripts.core.errors import SlideError
from scripts.features.bank_settings import bank_settings
from scripts.slides.slide import Slide
from tests.annotations import asap, collection, feature, write
from tests.cohorts import builder, draw_slide, tiny_encoder
from tests.pyramids import BOUNDS_SLIDE, with_tissue, write_pyramid

# On the pixels of an 8 x 8 px mask of the slide of 1024 x 512 px.
TISSUE = shapely.Polygon(shapely.box(368, 16, 1008, 496).exterior, [shapely.box(600, 200, 728, 328).exterior])
PEN = shapely.box(880, 16, 1008, 496)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return draw_slide(tmp_path_factory.mktemp("annotated") / "s.tif")


def grid(slide, mask, magnifications=(5, 10), **settings):
    bag = builder(magnifications, **settings).look({"image": slide, "mask": mask})
    return [coords.tolist() for coords in bag.grid.coords]


# --- geometry ---------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**16), side=st.floats(3.0, 300.0), points=st.integers(3, 400))
def test_fractions_are_those_of_shapely_for_any_shapes(seed, side, points):
    rng = np.random.default_rng(seed)
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    star = rng.uniform(50, 200, points)
    big = shapely.Polygon(np.stack([250 + star * np.cos(turn), 250 + star * np.sin(turn)], axis=1))
    many = [big, *(shapely.Point(*xy).buffer(30) for xy in rng.uniform(0, 500, (5, 2)))]
    corners = rng.uniform(-50, 500, (8, 2))
    area = shapely.union_all(many)
    expected = [shapely.box(x, y, x + side, y + side).intersection(area).area / side**2 for x, y in corners]
    assert Shapes.union(many).fraction(corners, side) == pytest.approx(np.array(expected), abs=1e-9)


@given(seed=st.integers(0, 2**16))
def test_a_picture_has_the_pixels_whose_centres_are_inside(seed):
    rng = np.random.default_rng(seed)
    area = shapely.union_all([shapely.Point(*xy).buffer(xy[0] / 3) for xy in rng.uniform(10, 90, (6, 2))])
    area = area.difference(shapely.Point(45, 30).buffer(9))
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    expected = shapely.contains_xy(area, x * 2 + 5, y * 3 - 4)
    assert np.array_equal(Shapes(area).drawn((30, 40), (2.0, 3.0), (5.0, -4.0)), expected)


# --- as a mask --------------------------------------------------------------------------------------------


def test_annotations_and_a_mask_image_of_the_same_shapes_give_the_same_grid(slide, tmp_path):
    inside = TISSUE.difference(PEN)
    x, y = np.meshgrid(np.arange(128) * 8 + 4, np.arange(64) * 8 + 4)
    Image.fromarray(shapely.contains_xy(inside, x, y).astype(np.uint8) * 255).save(tmp_path / "m.png")
    drawn = write(tmp_path / "m.geojson", collection(feature(TISSUE, "Tissue"), feature(PEN, "Pen")))
    for thresholds in (0.3, 0.7, 1.0):
        by_image = grid(slide, tmp_path / "m.png", min_tissue=thresholds)
        assert grid(slide, drawn, min_tissue=thresholds, mask_excluded="pen") == by_image
        assert by_image[1]
        own = {"min_tissue": thresholds, "grid_origin": "tissue"}
        assert grid(slide, drawn, mask_excluded="pen", **own) == grid(slide, tmp_path / "m.png", **own) != by_image
    tissue = builder(mask_excluded=["Pen"]).look({"image": slide, "mask": drawn}).tissue
    assert tissue.area_mm2 == pytest.approx(inside.area * 0.5**2 * 1e-6)


def test_tissue_thinner_than_a_pixel_of_the_mask_has_its_own_grid(slide, tmp_path):
    stripes = [feature(shapely.box(401 + 40 * i, 20, 404 + 40 * i, 480), "A") for i in range(12)]
    drawn = write(tmp_path / "m.geojson", collection(*stripes))
    bags = [
        builder(min_tissue=0.0, grid_origin=origin).look({"image": slide, "mask": drawn})
        for origin in ("slide", "tissue")
    ]
    assert all(bag.covered_fraction == pytest.approx(1) for bag in bags)


def test_every_form_of_export_is_read(slide, tmp_path):
    one, square = feature(TISSUE, "Tissue"), json.loads(shapely.to_geojson(TISSUE))
    forms = [collection(one), [one], one, square, collection(feature(shapely.MultiPolygon([TISSUE]), "Tissue"))]
    expected = grid(slide, write(tmp_path / "m.geojson", forms[0]))
    assert all(grid(slide, write(tmp_path / "n.json", form)) == expected for form in forms)
    content = json.dumps(forms[0]).encode()
    (tmp_path / "m.geojson.gz").write_bytes(gzip.compress(content))
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("s.geojson", content)
    (tmp_path / "m.xml").write_text(
        asap(("Polygon", "Tissue", list(TISSUE.exterior.coords)), ("Spline", "Hole", list(TISSUE.interiors[0].coords)))
    )
    assert grid(slide, tmp_path / "m.geojson.gz") == grid(slide, tmp_path / "m.zip") == expected
    assert grid(slide, tmp_path / "m.xml", mask_excluded="Hole") == expected


def test_a_multipolygon_is_the_sum_of_its_parts_without_their_holes(slide, tmp_path):
    holed = shapely.Polygon(shapely.box(372, 20, 692, 340).exterior, [shapely.box(450.5, 100, 580, 250.25).exterior])
    apart = shapely.box(755, 205, 1005, 495)
    many = write(tmp_path / "m.geojson", collection(feature(shapely.MultiPolygon([holed, apart]), "Tissue")))
    two = write(tmp_path / "n.geojson", collection(feature(holed, "Tissue"), feature(apart, "Tissue")))
    tissue = builder().look({"image": slide, "mask": many}).tissue
    expected = 320 * 320 - 129.5 * 150.25 + 250 * 290
    assert tissue.area_mm2 == pytest.approx(expected * 0.5**2 * 1e-6)
    assert tissue.fraction(np.array([[470.0, 120.0], [700.0, 120.0], [600.0, 120.0]]), 50.0).tolist() == [0, 0, 1]
    for origin in ("slide", "tissue"):
        own = {"min_tissue": 0.3, "grid_origin": origin}
        assert grid(slide, many, **own) == grid(slide, two, **own)
        assert grid(slide, many, **own)[1]


def test_a_byte_order_mark_before_the_file_is_no_part_of_it(slide, tmp_path):
    geojson = json.dumps(collection(feature(TISSUE, "Tissue"))).encode()
    xml = asap(("Polygon", "Tissue", list(TISSUE.exterior.coords))).encode()
    for name, content in (("m.geojson", geojson), ("m.xml", xml)):
        (tmp_path / name).write_bytes(content)
        plain = grid(slide, tmp_path / name)
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content)
        assert grid(slide, tmp_path / name) == plain
        assert plain[1]


@pytest.mark.parametrize("member", ["childObjects", "children"])
def test_annotations_within_annotations_are_read_as_if_they_stood_beside_them(slide, tmp_path, member):
    cell = feature(shapely.box(900, 30, 910, 40), objectType="cell")
    pen, fold = feature(PEN, "Pen", **{member: [cell]}), feature(shapely.box(400, 30, 500, 130), "Fold")
    nested = write(tmp_path / "m.geojson", collection(feature(TISSUE, "Tissue", **{member: [pen, fold]})))
    beside = write(tmp_path / "n.geojson", collection(feature(TISSUE, "Tissue"), feature(PEN, "Pen"), fold))
    excluded = {"mask_excluded": ["Pen", "Fold"]}
    assert read_annotation_file(nested).class_names == ["Tissue", "Pen", "Fold"]
    assert read_annotation_file(nested).left_out == {"of QuPath's type cell": 1}
    assert grid(slide, nested, **excluded) == grid(slide, beside, **excluded)
    assert grid(slide, nested, **excluded)[1]


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "Tumor", "color": [1, 2, 3]}}, "Tumor"),
        ({"classification": {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}}, "Tumor: Positive"),
        ({"classification": {"name": "Tumor", "colorRGB": -3670016}}, "Tumor"),  # 0.2, 0.3
        ({"classification": {"parentClass": {"name": "Tumor"}, "name": "Positive", "colorRGB": -1}}, "Tumor: Positive"),
        ({"classification": "Tumor"}, "Tumor"),
        ({"classification": {"name": "Tumor"}, "name": "the left one"}, "Tumor"),
        ({"name": "the left one"}, "the left one"),
        ({}, "Unclassified"),
    ],
)
def test_classes_are_called_as_qupath_shows_them(tmp_path, properties, name):
    path = write(tmp_path / "m.geojson", collection(feature(TISSUE, **properties)))
    assert read_annotation_file(path).class_names == [name]


def test_class_names_compare_in_any_case_and_encoding_of_accents(slide, tmp_path):
    decomposed, composed = "Gewebe\u0308", "GEWEBË"
    drawn = write(tmp_path / "m.geojson", collection(feature(TISSUE, decomposed), feature(PEN, "Pen")))
    assert grid(slide, drawn, mask_tissue=[composed], mask_excluded=["PEN"])[1]


def test_where_all_is_excluded_the_tissue_is_found_without_it(slide, tmp_path):
    drawn = write(tmp_path / "m.geojson", collection(feature(PEN, "Pen")))
    tissue = builder(mask_excluded="Pen").look({"image": slide, "mask": drawn}).tissue
    without = find_tissue(Slide(slide))
    x, y = np.meshgrid(*(np.arange(n) * 16 + 8 for n in reversed(without.tissue.shape)))
    assert np.array_equal(tissue.tissue, without.tissue & ~shapely.contains_xy(PEN, x, y))
    assert np.array_equal(tissue.exclusions["Pen"], shapely.contains_xy(PEN, x, y))
    assert 0 < tissue.area_mm2 < without.area_mm2


@pytest.mark.skipif(not BOUNDS_SLIDE.exists(), reason=f"needs {BOUNDS_SLIDE}")
def test_qupath_counts_from_the_bounds_and_asap_from_the_corner(tmp_path):
    path = BOUNDS_SLIDE
    slide = Slide(path)
    x, y, width, height = slide.bounds_level0
    assert (x, y) != (0, 0)
    corner = shapely.box(0, 0, width / 4, height / 4)  # of what QuPath shows
    moved = shapely.transform(corner, lambda points: points + np.array((x, y)))
    points = list(moved.exterior.coords)[:-1]
    (tmp_path / "a.xml").write_text(asap(("Rectangle", "Tissue", points)))
    files = [
        write(tmp_path / "q.geojson", collection(feature(corner, "Tissue"))),
        write(tmp_path / "l.geojson", collection(feature(moved, "Tissue"), frame={"coordinates": "level0"})),
        tmp_path / "a.xml",
    ]
    for file in files:
        tissue = BagBuilder().tissue_of({"image": path, "mask": file}, slide)
        assert tissue.shapes.area.equals(moved)
    frame = {"coordinates": "qupath", "origin_level0": [x + 1, y]}
    other = write(tmp_path / "o.geojson", collection(feature(corner, "Tissue"), frame=frame))
    with pytest.raises(SlideError, match="states a frame that starts at"):
        BagBuilder().tissue_of({"image": path, "mask": other}, slide)


def test_a_bank_says_what_decided_its_tissue(slide, tmp_path):
    drawn = str(write(tmp_path / "m.geojson", collection(feature(TISSUE, "Tissue"), feature(PEN, "Pen"))))
    entry = {"image": str(slide), "mask": drawn}
    stored = bank_settings(entry, builder(mask_tissue="Tissue", mask_excluded="Pen"), tiny_encoder())
    assert (stored["mask_tissue"], stored["mask_excluded"]) == (["Tissue"], ["Pen"])
    assert len(stored["mask_sha256"]) == 64
    image = bank_settings(
        {**entry, "mask": __file__}, builder(mask_tissue="Tissue", mask_excluded="Pen"), tiny_encoder()
    )
    assert image["mask_tissue"] is None
    assert "mask_excluded" not in image


# --- what is wrong ----------------------------------------------------------------------------------------

BOW_TIE = {"type": "Polygon", "coordinates": [[[400, 50], [900, 450], [900, 50], [400, 450], [400, 50]]]}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.geojson", collection(), "contains no area"),
        ("m.geojson", collection(feature(shapely.Point(1, 1), "A")), r"no area \(but 1 Point, which has no area\)"),
        ("m.geojson", collection(feature(TISSUE, "A", objectType="cell")), r"\(but 1 of QuPath's type cell\)"),
        ("m.geojson", collection(feature(TISSUE, "A", objectType="tile")), r"\(but 1 of QuPath's type tile\)"),
        ("m.geojson", collection({**feature(TISSUE, "A"), "properties": [1]}), "`properties` of a feature are a list"),
        ("m.geojson", collection(feature(shapely.box(0, 0, 1e200, 9), "A")), r"not finite, or beyond 1e\+09 px"),
        ("m.geojson", collection(feature(shapely.box(400, 400, 402, 402), "A")), "no patch of .* contains enough"),
        ("m.geojson", {"slides": []}, "it is no GeoJSON"),
        ("m.geojson", "{", "cannot be read"),
        ("m.geojson", '{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [1, 1]]]}', "are not finite"),
        ("m.geojson", {"type": "Polygon", "coordinates": [[[0, 0], ["a", 1], [1, 1]]]}, "no pair of numbers"),
        ("m.geojson", collection(feature(shapely.box(5000, 50, 6000, 90), "A")), "1 of 1 annotations lie outside of"),
        (
            "m.geojson",
            collection(feature(shapely.box(900, 50, 1200, 90), "A")),
            "59% of the annotated area",
        ),
        ("m.geojson", collection(feature(TISSUE, "A"), feature(PEN, "B")), r"has the classes 'A', 'B', and not all"),
        ("m.geojson", collection(feature(TISSUE, "Ignore*")), "all classes of its mask .* are ignored"),
        ("m.xml", "<html />", "its root is html"),
        ("m.xml", '<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations />', r"it has a document type \(a\)"),
        ("m.xml", asap(("Dot", "A", [(5, 5)])), r"no area \(but 1 Dot, which has no area\)"),
        ("m.xml", asap(("Polygon", "A", [("x", 5), (1, 1), (1, 2)])), "no pair of numbers"),
    ],
)
def test_bad_annotations_are_one_line_that_checking_shows_too(slide, tmp_path, name, content, says):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SlideError, match=says) as refused:
        builder()({"image": slide, "mask": path})
    assert len(str(refused.value).splitlines()) == 1
    facts = SlideChecker(builder(), ["A"])({"image": str(slide), "slide": "s", "mask": str(path)})
    check = "tissue" if says.startswith("no patch") else "mask"  # the annotation is right, and too small
    assert [(p.severity, p.check) for p in facts.problems] == [("blocks", check)]


def test_a_class_that_is_neither_names_all_and_both_settings(slide, tmp_path):
    shapes = [feature(TISSUE, "Tissue"), feature(PEN, "Pen"), feature(PEN, "Fold")]
    drawn = write(tmp_path / "m.geojson", collection(*shapes))
    says = r"'Tissue', 'Pen', 'Fold', and 'Fold' is neither.*`mask_tissue`.*`mask_excluded`"
    with pytest.raises(SlideError, match=says):
        builder(mask_tissue="Tissue", mask_excluded="Pen").look({"image": slide, "mask": drawn})
    twice = write(tmp_path / "n.geojson", collection(feature(PEN, "Tissue"), feature(PEN, "Pen")))
    for origin in ("slide", "tissue"):
        with pytest.raises(SlideError, match="its `mask` leaves no tissue.*correct the `mask`"):
            builder(mask_excluded="Pen", grid_origin=origin)({"image": slide, "mask": twice})
    with pytest.raises(SlideError, match="is a folder. Give a file as `mask`"):
        builder()({"image": slide, "mask": tmp_path})
    with pytest.raises(SlideError, match="both name 'pen'"):
        builder(mask_tissue="Pen", mask_excluded="Pen").look({"image": slide, "mask": drawn})


def test_a_class_that_mask_excluded_does_not_name_is_not_tissue_unless_it_is_said(slide, tmp_path, caplog):
    drawn = write(tmp_path / "m.geojson", collection(feature(PEN, "Pens")))
    with pytest.raises(SlideError, match="the class 'Pens', which `mask_excluded` does not name, and no other class"):
        builder(mask_excluded="Pen").look({"image": slide, "mask": drawn})
    assert builder(mask_tissue="Pens", mask_excluded="Pen").look({"image": slide, "mask": drawn}).tissue.area_mm2 > 0
    with caplog.at_level(logging.INFO, logger="scripts.bags.annotations"):
        builder().look({"image": slide, "mask": drawn})
    assert [line for line in caplog.messages if "the only class of its mask" in line and "'Pens', counts as" in line]


def test_what_qupath_shows_of_the_bundles_heatmaps_is_no_annotation(slide, tmp_path):
    tiles = [feature(shapely.box(x, 16, x + 64, 80), "Tissue", objectType="tile") for x in range(0, 1024, 64)]
    both = write(tmp_path / "m.geojson", collection(feature(TISSUE, "Tissue"), *tiles))
    alone = write(tmp_path / "n.geojson", collection(feature(TISSUE, "Tissue")))
    assert grid(slide, both) == grid(slide, alone)
    assert read_annotation_file(both).left_out == {"of QuPath's type tile": 16}


def test_an_image_as_mask_refuses_class_names_of_its_own_and_a_settings_names_do_not_concern_it(slide, tmp_path):
    mask = tmp_path / "m.png"
    Image.fromarray(np.full((64, 128), 1, np.uint8)).save(mask)
    assert builder(mask_tissue=[1, "Tissue"]).look({"image": slide, "mask": mask}).grid.num_rows
    for key in ("mask_tissue", "mask_excluded"):
        with pytest.raises(SlideError, match=f"is an image, and `{key}` names classes"):
            builder().look({"image": slide, "mask": mask, key: ["Tissue"]})


def test_macos_own_files_in_a_zip_are_no_geojson(slide, tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("s.geojson", json.dumps(collection(feature(TISSUE, "Tissue"))))
        archive.writestr("__MACOSX/._s.geojson", b"\x00\x05\x16\x07")
    assert grid(slide, tmp_path / "m.zip")[1]


def test_a_hole_outside_of_its_outline_is_no_tissue(slide, tmp_path):
    square, hole = shapely.box(400, 50, 600, 250), shapely.box(700, 300, 800, 400)
    rings = [[*map(list, ring.exterior.coords)] for ring in (square, hole)]
    wrong = {**feature(square, "A"), "geometry": {"type": "Polygon", "coordinates": rings}}
    tissue = builder().look({"image": slide, "mask": write(tmp_path / "m.geojson", collection(wrong))}).tissue
    assert tissue.shapes.area.area == pytest.approx(square.area)


@pytest.mark.parametrize("overlap", [0.0, 0.4])
def test_patches_cover_exactly_what_is_drawn_of_them(slide, tmp_path, overlap):
    # Its borders lie between the pixels of any mask.
    drawn = shapely.union_all([shapely.box(371, 21, 383, 467), shapely.box(391.3, 33.7, 903.1, 301.9)])
    mask = write(tmp_path / "m.geojson", collection(feature(drawn, "A")))
    bag = builder(min_tissue=0.1, overlap=overlap).look({"image": slide, "mask": mask})
    corners, side = bag.grid.coords[1], bag.grid.scales[1].patch_level0
    covered = drawn.intersection(shapely.union_all(shapely.box(*corners.T, *(corners + side).T))).area
    assert bag.covered_mm2 == pytest.approx(covered * 0.5**2 * 1e-6, rel=1e-6)
    assert 0 < bag.covered_fraction <= 1


def test_tissue_that_is_found_beside_what_is_excluded_is_doubted_as_any(tmp_path):
    path = write_pyramid(tmp_path / "s.tif", with_tissue(512, 1024, [(0, 0, 1024, 512)]))
    excluded = write(tmp_path / "m.geojson", collection(feature(shapely.box(0, 0, 40, 40), "Pen")))
    entry = {"image": str(path), "slide": "s"}
    alone, beside = (
        [p.what for p in SlideChecker(bags, ["A"])(own).problems if p.check == "tissue"]
        for bags, own in ((builder(), entry), (builder(mask_excluded="Pen"), {**entry, "mask": str(excluded)}))
    )
    assert len(alone) == len(beside) == 1


@pytest.mark.slow
def test_a_hundred_thousand_annotations_are_united_once(slide, tmp_path, monkeypatch):
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(400) * 2.5 + 4, np.arange(250) * 2.0 + 4))
    squares = shapely.box(x, y, x + 1, y + 1)
    collected = json.loads(shapely.to_geojson(shapely.geometrycollections(squares)))
    united, union = [], shapely.disjoint_subset_union_all

    def counting(shapes):
        united.append(len(shapes))
        return union(shapes)

    monkeypatch.setattr(shapely, "disjoint_subset_union_all", counting)
    path = write(tmp_path / "m.geojson", collected)
    tissue = BagBuilder().tissue_of({"image": slide, "mask": path}, Slide(slide))
    assert united == [100_000]
    assert tissue.area_mm2 == pytest.approx(100_000 * 0.5**2 * 1e-6)


@pytest.mark.slow
def test_a_hundred_thousand_annotations_have_a_grid_of_their_own_and_their_exact_coverage(slide, tmp_path, monkeypatch):
    # With borders between pixels, and at most 2 x 1.5 px: a hundredth of a pixel of the mask.
    rng = np.random.default_rng(0)
    left, top = (axis.ravel() for axis in np.meshgrid(np.arange(400) * 2.5 + 4, np.arange(250) * 2.0 + 4))
    boxes = np.stack([left, top, left + rng.uniform(0.5, 2, 100_000), top + rng.uniform(0.5, 1.5, 100_000)])
    path = write(tmp_path / "m.geojson", collection(*(feature(box, "Tissue") for box in shapely.box(*boxes))))
    asked = Counter()

    def counting(kind, fraction):
        def counted(self, corners, side):
            asked[kind] += len(corners)
            return fraction(self, corners, side)

        return counted

    monkeypatch.setattr(AnnotatedTissue, "fraction", counting("exact", AnnotatedTissue.fraction))
    monkeypatch.setattr(TissueMask, "fraction", counting("by pixels", TissueMask.fraction))
    bag = builder(min_tissue=0.2, grid_origin="tissue").look({"image": slide, "mask": path})
    assert bag.grid.num_rows > 0
    # The one grid that is kept is laid by exact areas, and the 81 of which it is the best by pixels.
    assert asked["by pixels"] > 50 * asked["exact"] > 0

    # By pixels of a quarter of level 0's, which tell the areas of so many boxes to half a percent.
    drawn, covered = np.zeros((2, 512 * 4, 1024 * 4), bool)
    for x0, y0, x1, y1 in np.rint(boxes.T * 4).astype(int):
        drawn[y0:y1, x0:x1] = True
    side = bag.grid.scales[-1].patch_level0
    for (x0, y0), (x1, y1) in (
        np.rint(np.stack([corner, corner + side]) * 4).astype(int) for corner in bag.grid.coords[-1]
    ):
        covered[y0:y1, x0:x1] = True
    mm2 = (0.25 * 0.5e-3) ** 2
    assert bag.tissue.area_mm2 == pytest.approx(drawn.sum() * mm2, rel=0.005)
    assert bag.covered_mm2 == pytest.approx((drawn & covered).sum() * mm2, rel=0.005)


def test_what_crosses_itself_is_filled_and_what_has_no_area_is_counted(slide, tmp_path, caplog):
    ring = {"type": "Feature", "geometry": BOW_TIE, "properties": {"classification": {"name": "A"}}}
    drawn = write(tmp_path / "m.geojson", collection(ring, feature(shapely.LineString([(1, 1), (2, 2)]), "A")))
    with caplog.at_level(logging.WARNING, logger="scripts.bags.annotations"):
        tissue = builder().look({"image": slide, "mask": drawn}).tissue
    assert tissue.shapes.area.area == pytest.approx(500 * 400 / 2)  # two triangles
    assert any("1 annotations cross themselves, and were made valid, by which" in line for line in caplog.messages)
    facts = SlideChecker(builder(), ["A"])({"image": str(slide), "slide": "s", "mask": str(drawn)})
    warned = [p.what for p in facts.problems if (p.severity, p.check) == ("warns", "mask")]
    assert len(warned) == 2
    assert "1 annotations are LineString, which has no area" in warned[1]
