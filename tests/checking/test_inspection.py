import subprocess
import sys
from dataclasses import replace

import itk
import numpy as np
import openslide
import pytest
import shapely
from PIL import Image

from scripts.bags.linked_patches import linked_rows
from scripts.checking.inspection import (
    EXCLUSION_COLOURS,
    GRID_COLOURS,
    OTHER_EXCLUSIONS,
    TISSUE_COLOUR,
    describe,
    draw,
    inspect_slide,
)
from scripts.core.errors import SettingsError, SlideError
from scripts.slides.frames import Rectangle
from tests.annotations import collection, feature, write
from tests.cohorts import builder, draw_slide
from tests.conftest import ROOT
from tests.dicoms import write_dicom
from tests.pyramids import with_tissue, write_pyramid


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """1024 x 512 px at 0.5 um/px with a second level of 256 x 128 px; tissue from (368, 16) to (1008, 496)."""
    return draw_slide(tmp_path_factory.mktemp("inspection") / "s.tif")


@pytest.fixture(scope="module")
def bag(slide):
    return builder()({"image": slide})


def test_the_description_names_resolution_levels_tissue_patches_and_rows(bag, slide):
    tissue, covered = bag.tissue.area_mm2, bag.covered_mm2
    assert tissue == pytest.approx(0.64 * 0.48 / 4, rel=0.05)  # (640 x 480 px) of (0.5 um)^2
    assert describe(bag).splitlines() == [
        f"slide        {slide}",
        "reader       cucim",
        f"resolution   0.5 um/px (20x), from {bag.slide.resolution.source}",
        "size         1024 x 512 px, 0.51 x 0.26 mm",
        "level 0      1024 x 512 px, 0.5 um/px (20x)",
        "level 1      256 x 128 px, 2 um/px (5x)",
        f"tissue       {tissue:.3g} mm2",
        "5x           6 patches of 64 px = 128 um, read as 64 px from level 1",
        "10x          20 patches of 64 px = 64 um, read as 128 px from level 0",
        f"covered      {covered:.3g} of {tissue:.3g} mm2 ({covered / tissue:.0%}), by the patches of 10x",
        "rows         20 (0 patches left out without an ancestor)",
    ]


def test_the_description_says_who_gave_the_resolution(tmp_path):
    path = draw_slide(tmp_path / "bare.tif", mpp=None)
    given = describe(builder(min_tissue=0.2, reader="openslide")({"image": path, "mpp": 0.25}))
    assert "resolution   0.25 um/px (40x), from datalist: mpp" in given
    assert "reader       openslide" in given


def test_patches_without_an_ancestor_are_counted(slide):
    text = describe(builder(min_tissue=[0.6, 0.7])({"image": slide}))
    assert "rows         16 (4 patches left out without an ancestor)" in text
    assert "5x           4 patches" in text


def test_the_picture_has_the_tissues_outline_and_the_grids_frames(bag, slide):
    shown = np.asarray(draw(bag).axes[0].images[0].get_array())
    with openslide.OpenSlide(slide) as oracle:
        original = np.asarray(oracle.read_region((0, 0), 0, oracle.dimensions).convert("RGB"))
    assert shown.shape == original.shape  # smaller than the overview's limit: shown as it is
    low, high = GRID_COLOURS[:2]

    # That of 10x lies inside of that of 5x: where both have a border, both are seen. What neighbours share lies in the
    # right or the lower one of them, and other borders in their patch.
    corners = {tuple(corner) for corner in bag.grid.coords[1].astype(int).tolist()}
    for x, y in corners:
        across, down = shown[y + 64], shown[:, x + 64]
        for line, start, neighbour in ((across, x, (x + 128, y)), (down, y, (x, y + 128))):
            stop = start + 128 if neighbour in corners else start + 128 - 9
            assert (line[start + 3 : start + 6] == high).all(), (x, y)
            assert (line[stop + 3 : stop + 6] == high).all(), (x, y)
            if start % 256 == 0:
                assert (line[start : start + 3] == low).all(), (x, y)
            elif neighbour in corners:
                assert (line[stop : stop + 3] == low).all(), (x, y)
            else:
                assert (line[start + 125 : start + 128] == low).all(), (x, y)
        assert np.array_equal(shown[y + 56 : y + 72, x + 56 : x + 72], original[y + 56 : y + 72, x + 56 : x + 72])
    # The coarse grid's left column starts in the glass, where no fine patch is.
    assert bag.grid.coords[0][:, 0].min() == 256
    for y in (64, 180, 320, 450):
        assert tuple(shown[y, 256]) == low
        assert tuple(shown[y, 320]) == (255, 255, 255)
        assert tuple(shown[y, 200]) == (255, 255, 255)

    # The tissue's left border is at x = 368, its outline runs through the centres of the mask's pixels (16 px).
    columns = np.flatnonzero((shown[60] == TISSUE_COLOUR).all(axis=-1))
    assert columns.size > 0
    assert np.abs(columns - 376).min() <= 2
    assert (np.minimum(np.abs(columns - 376), np.abs(columns - 1000)) <= 20).all()


def runs(line, colour):
    """Of each time that a line of pixels ``[n, 3]`` meets a colour the number of pixels."""
    is_colour = np.pad((line == colour).all(axis=-1).astype(int), 1)
    return (np.flatnonzero(np.diff(is_colour) == -1) - np.flatnonzero(np.diff(is_colour) == 1)).tolist()


@pytest.mark.parametrize(
    ("overview_px", "settings"),
    [
        (1600, {}),
        (1600, {"overlap": 0.5}),
        (1600, {"grid_origin": "tissue"}),
        (700, {}),
        (333, {"magnifications": [10]}),
    ],
)
def test_a_line_across_a_shared_edge_meets_one_line_of_the_grid(slide, monkeypatch, overview_px, settings):
    monkeypatch.setattr("scripts.checking.inspection.OVERVIEW_PX", overview_px)
    bag = builder(**settings)({"image": slide})
    shown = np.asarray(draw(bag).axes[0].images[0].get_array())
    pixel = 1024 / shown.shape[1]
    for scale, coords, colour in zip(bag.grid.scales, bag.grid.coords, GRID_COLOURS, strict=False):
        side, step = scale.patch_level0 / pixel, scale.patch_level0 * (1 - settings.get("overlap", 0.0)) / pixel
        corners = {tuple(corner) for corner in np.round(coords, 3).tolist()}
        widths = {True: set(), False: set()}
        for x, y in corners:
            for axis, neighbour in ((0, (x - scale.patch_level0, y)), (1, (x, y - scale.patch_level0))):
                edge, along = (x, y)[axis] / pixel, (y, x)[axis] / pixel + 0.4 * step
                line = (shown, shown.transpose(1, 0, 2))[axis][int(along)]
                # From an eighth of a side before the edge to as far behind it, away from all other edges.
                met = runs(line[max(0, int(edge - side / 8)) : int(edge + side / 8) + 1], colour)
                assert len(met) == 1, (scale.name, x, y)
                widths[neighbour in corners].update(met)
        # No wider than where there is no neighbour.
        assert len(widths[True]) == len(widths[False]) == 1
        assert widths[True] == widths[False]


def test_bounds_move_nothing_in_the_picture_which_shows_all_of_level_0(bag, slide, monkeypatch):
    without = np.asarray(draw(bag).axes[0].images[0].get_array())
    monkeypatch.setattr("scripts.slides.slide.find_bounds", lambda *_: Rectangle(300, 40, 700, 400))
    within = builder()({"image": slide})
    assert within.slide.bounds_level0 == (300, 40, 700, 400)
    axes = draw(within).axes[0]
    assert np.array_equal(np.asarray(axes.images[0].get_array()), without)
    assert axes.images[0].get_extent() == pytest.approx([0, 0.512, 0.256, 0])
    assert "bounds       700 x 400 px at (300, 40): the part that QuPath shows" in describe(within)


def test_a_large_slide_is_drawn_small_and_its_grid_with_it(bag, monkeypatch):
    monkeypatch.setattr("scripts.checking.inspection.OVERVIEW_PX", 256)
    image = draw(bag).axes[0].images[0]
    shown = np.asarray(image.get_array())
    assert shown.shape == (128, 256, 3)
    assert image.get_extent() == pytest.approx([0, 0.512, 0.256, 0])  # in mm, whatever the picture's size
    for x, y in bag.grid.coords[1].astype(int) // 4:
        # Lines are thinner, 2 px.
        assert tuple(shown[y + 16, x + 2]) == tuple(shown[y + 3, x + 16]) == GRID_COLOURS[1]


def legend_of(figure):
    """The texts of the legend below the slide."""
    (legend,) = figure.subfigs[0].legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_figure_counts_patches_and_tissue_and_shows_rows_under_their_magnifications(bag):
    figure = draw(bag)
    left, *patches = figure.axes
    assert left.get_title() == "s.tif"
    tissue = f"{bag.covered_mm2:.3g} of {bag.tissue.area_mm2:.3g} mm2 ({bag.covered_fraction:.0%}) covered"
    assert legend_of(figure) == ["5x: 6 patches", "10x: 20 patches", f"tissue: {tissue}"]
    assert [ax.get_title() for ax in patches] == ["5x, 128 um", "10x, 64 um", *[""] * 6]
    for ax, patch in zip(patches, (patch for row in linked_rows(bag, 4) for patch in row), strict=True):
        assert np.array_equal(ax.images[0].get_array(), patch)


def test_the_legend_lies_below_the_slide(bag):
    figure = draw(bag)
    figure.canvas.draw()
    legend, slide = (one.get_window_extent() for one in (figure.subfigs[0].legends[0], figure.axes[0]))
    assert legend.y1 < slide.y0


def test_what_was_left_out_is_outlined_in_a_colour_of_its_own(bag):
    ink, fold = np.zeros((2, *bag.tissue.tissue.shape), bool)
    ink[4:9, 4:9] = fold[20:25, 4:9] = True
    marked = replace(bag, tissue=replace(bag.tissue, exclusions={"ink": ink, "folds": fold}))
    figure = draw(marked)
    left = figure.axes[0]
    assert legend_of(figure)[3:] == [
        "ink: 0.0016 mm2, not tissue",
        "folds: 0.0016 mm2, not tissue",
    ]  # 5 x 5 pixels of 8 um
    shown = np.asarray(left.images[0].get_array())
    assert tuple(shown[104, 72]) == EXCLUSION_COLOURS["ink"]  # the centre of the ink's first column, at 8 um = 16 px
    assert tuple(shown[360, 72]) == OTHER_EXCLUSIONS[1]


def test_other_values_of_a_mask_are_outlined_and_counted(slide, tmp_path):
    codes = np.full((64, 128), 1, np.uint8)
    codes[:16, 64:96], codes[48:, 64:80] = 4, 7
    Image.fromarray(codes).save(tmp_path / "codes.png")
    coded = builder(mask_tissue=[1]).look({"image": slide, "mask": tmp_path / "codes.png"})
    mm2 = (8 * 0.5e-3) ** 2  # of a mask pixel
    assert [f"excluded     value {v}, {n * mm2:.3g} mm2" in describe(coded) for v, n in ((4, 512), (7, 256))] == [
        True
    ] * 2
    figure = draw(coded)
    left = figure.axes[0]
    assert legend_of(figure)[3:] == [
        f"value 4: {512 * mm2:.3g} mm2, not tissue",
        f"value 7: {256 * mm2:.3g} mm2, not tissue",
    ]
    shown = np.asarray(left.images[0].get_array())
    # Through the centres of their first columns, pixels of 8 x 8 px.
    assert tuple(shown[64, 64 * 8 + 4]) == OTHER_EXCLUSIONS[0]
    assert tuple(shown[440, 64 * 8 + 4]) == OTHER_EXCLUSIONS[1]


def test_classes_that_annotations_exclude_are_outlined_and_counted(slide, tmp_path):
    # On the mask's pixels of 16 x 16 px.
    tissue, pen, fold = shapely.box(368, 16, 1008, 496), shapely.box(848, 16, 1008, 96), shapely.box(448, 304, 480, 464)
    drawn = write(
        tmp_path / "m.geojson", collection(feature(tissue, "Tissue"), feature(pen, "Pen"), feature(fold, "Fold"))
    )
    bag = builder(mask_excluded=["Pen", "Fold"]).look({"image": slide, "mask": drawn})
    areas = {"Pen": 160 * 80 * 0.25e-6, "Fold": 32 * 160 * 0.25e-6}
    lines = describe(bag).splitlines()
    for name, mm2 in areas.items():
        assert f"excluded     {name}, {mm2:.3g} mm2" in lines
    assert f"tissue       {640 * 480 * 0.25e-6 - sum(areas.values()):.3g} mm2" in lines

    figure = draw(bag)
    left, labels = figure.axes[0], legend_of(figure)
    colours = [tuple(np.rint(np.multiply(line.get_color(), 255)).astype(int).tolist()) for line in left.lines]
    legend = dict(zip(labels, colours, strict=True))
    shown = np.asarray(left.images[0].get_array())
    # Through the centres of their last columns, clear of the grid's lines.
    for (name, mm2), x, y in zip(areas.items(), (1000, 472), (56, 360), strict=True):
        assert tuple(shown[y, x]) == legend[f"{name}: {mm2:.3g} mm2, not tissue"]
    assert len(set(colours)) == len(colours) == 5


def test_five_magnifications_have_a_colour_each_as_far_as_colours_go(slide):
    figure = draw(builder([4, 5, 8, 10, 20])({"image": slide}))
    colours = [tuple(line.get_color()) for line in figure.axes[0].lines]
    assert len(colours) == 6
    assert len(set(colours[:4])) == 4
    assert colours[4] == colours[0]


def test_inspecting_writes_a_picture_and_the_mask_and_says_where(slide, bag, tmp_path, capsys):
    picture = inspect_slide({"image": str(slide)}, builder(), tmp_path / "out")
    assert picture == tmp_path / "out" / "s.png"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["s.png", "s_tissue.mha"]
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
        pixels = np.asarray(opened.convert("RGB")).reshape(-1, 3)
        assert (pixels == GRID_COLOURS[1]).all(axis=1).sum() > 100
    mask = itk.imread(str(tmp_path / "out" / "s_tissue.mha"))
    assert np.array_equal(itk.array_from_image(mask).astype(bool), bag.tissue.tissue)
    assert list(mask.GetSpacing()) == pytest.approx([0.008, 0.008])  # 8 um
    said = capsys.readouterr().out
    assert describe(bag) in said
    assert f"picture      {picture}" in said
    assert f"tissue mask  {tmp_path / 'out' / 's_tissue.mha'}" in said


def test_a_slide_waits_for_nothing_that_takes_long_to_load_or_that_showing_it_does_not_need(slide, tmp_path):
    code = (
        "import sys\nfrom scripts.bags.bag import BagBuilder\nfrom scripts.checking.inspection import inspect_slide\n"
        "inspect_slide({'image': sys.argv[1]}, BagBuilder(patch_size=64), sys.argv[2])\n"
        "print('loaded:', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, slide, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "scripts.checking.inspection" in loaded
    rooms = {f"scripts.{room}" for room in ("encoders", "networks", "weights", "training", "evaluation", "experiments")}
    libraries = {"itk", "albumentations", "openvino", "timm", "torch._inductor", "tensorboard", "sklearn", "h5py"}
    assert loaded.isdisjoint(rooms | libraries)
    assert (tmp_path / "s_tissue.mha").exists()


def test_a_slide_without_tissue_is_drawn_before_it_is_refused(tmp_path):
    path = write_pyramid(tmp_path / "blank.tif", with_tissue(600, 600, []), mpp=1.0)
    with pytest.raises(SlideError, match=r"blank\.tif: no tissue was found"):
        inspect_slide({"image": path}, builder(), tmp_path / "out")
    assert (tmp_path / "out" / "blank.png").stat().st_size > 1000
    assert not itk.array_from_image(itk.imread(str(tmp_path / "out" / "blank_tissue.mha"))).any()


def test_a_slide_coarser_than_the_magnifications_is_an_error_and_writes_nothing(slide, tmp_path):
    with pytest.raises(
        SlideError, match=r"s\.tif: has 0\.5 um/px \(20x\), coarser than the 0\.25 um/px asked for \(40x"
    ):
        inspect_slide({"image": slide}, builder([10, 40]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_slide_must_be_named(tmp_path):
    with pytest.raises(SettingsError, match=r"image: got none\. Name the slide: --image PATH"):
        inspect_slide({"image": None}, builder(), tmp_path)


@pytest.mark.parametrize("key", ["image", "mask"])
def test_a_path_that_is_wrong_is_named_by_its_option(slide, key, tmp_path):
    entry = {"image": slide} | {key: "gone.tif"}
    with pytest.raises(SettingsError, match=rf"{key}: no such file gone\.tif\. Check the path: --{key} PATH"):
        inspect_slide(entry, builder(), tmp_path)


def test_the_pictures_of_a_dicom_slide_are_named_after_its_folder(tmp_path):
    image = with_tissue(512, 1024, [(368, 16, 1008, 496)])
    write_dicom(tmp_path / "case.1", image, downsamples=(1, 2))
    for named in ("", "level_1.dcm"):
        picture = inspect_slide({"image": tmp_path / "case.1" / named}, builder(), tmp_path / "out")
        assert picture.name == "case.1.png"
