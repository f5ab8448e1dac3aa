"""Slides made of fields: the plan of their cells, and what is written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from scripts.bags.bag import BagBuilder
from scripts.core.errors import BundleError
from tests.benchmarks.tissue.fields import Field
from tests.benchmarks.tissue.mosaics import (
    BASE_MPP,
    CELL_PX,
    Cell,
    Mosaic,
    cell_image,
    plan_mosaics,
    write_mosaics,
)
from tests.drawn_fields import SYMMETRIES, picture, write_fields

FOUR_GROUPS = [
    {"benign": list(range(g * 10, g * 10 + 6)), "polyp": [g * 10 + 6], "tumour": [g * 10 + 7, g * 10 + 8]}
    for g in range(4)
]


@pytest.fixture(scope="module")
def plan() -> list[Mosaic]:
    return plan_mosaics(FOUR_GROUPS, ["benign", "polyp"], num_slides=40, num_cells=(9, 30), seed=3)


def test_a_slide_has_fields_of_its_group_alone(plan):
    assert Counter(mosaic.group for mosaic in plan) == dict.fromkeys(range(4), 40)
    for mosaic in plan:
        own = {number for numbers in FOUR_GROUPS[mosaic.group].values() for number in numbers}
        assert {cell.field for cell in mosaic.cells} <= own


def test_a_group_uses_the_fields_of_a_class_evenly(plan):
    for group, fields in enumerate(FOUR_GROUPS):
        used = Counter(cell.field for mosaic in plan if mosaic.group == group for cell in mosaic.cells)
        for numbers in fields.values():
            counts = [used[number] for number in numbers]
            assert max(counts) - min(counts) <= 1 <= min(counts)


def test_slides_have_one_class_or_several_and_some_classes_lie_in_one_cell(plan):
    name_of = {n: name for fields in FOUR_GROUPS for name, numbers in fields.items() for n in numbers}
    shown = [Counter(name_of[cell.field] for cell in mosaic.cells) for mosaic in plan]
    assert {len(mosaic.cells) for mosaic in plan} == set(range(9, 31))
    assert {len(classes) for classes in shown} == {1, 2, 3}
    alone = [count == 1 for classes in shown for name, count in classes.items() if name == "tumour"]
    assert 0.2 < np.mean(alone) < 0.8
    for classes in shown:  # half of each slide or more is its background
        assert max(classes["benign"], classes["polyp"]) * 2 >= classes.total()
    for group in range(4):
        own = [classes for mosaic, classes in zip(plan, shown, strict=True) if mosaic.group == group]
        assert sum("tumour" in classes for classes in own) == 10


def test_the_seed_decides_the_plan(plan):
    assert plan == plan_mosaics(FOUR_GROUPS, ["benign", "polyp"], 40, (9, 30), seed=3)
    assert plan != plan_mosaics(FOUR_GROUPS, ["benign", "polyp"], 40, (9, 30), seed=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"num_slides": 0}, "num_slides: got 0"), ({"num_cells": (3, 9)}, "num_cells: got 3 9. Give .* of 4 or more")],
)
def test_a_plan_without_room_is_refused(given, message):
    with pytest.raises(BundleError, match=message):
        plan_mosaics(FOUR_GROUPS, ["benign"], **given)


@pytest.mark.parametrize("turn", SYMMETRIES)
def test_a_field_of_a_cells_size_is_turned_and_nothing_else(turn):
    field = picture(0)
    image = Image.fromarray(field).rotate(90 * (turn % 4))  # PIL turns against the clock, as it is written
    if turn >= 4:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(cell_image(field, BASE_MPP, Cell(0, turn, (0.5, 0.5))), np.asarray(image))


def test_the_eight_turns_differ():
    field = picture(0)
    assert len({cell_image(field, BASE_MPP, Cell(0, turn, (0, 0))).tobytes() for turn in SYMMETRIES}) == 8


@pytest.mark.parametrize(("start", "left"), [(0.0, 0), (0.5, 50), (1.0, 100)])
def test_a_longer_side_is_cut_and_a_shorter_one_is_mirrored_at_both_ends(start, left):
    field = picture(1, (CELL_PX + 100, CELL_PX - 200))
    cell = cell_image(field, BASE_MPP, Cell(0, 0, (start, 0.3)))
    cut = field[:, left : left + CELL_PX]
    assert np.array_equal(cell[100:-100], cut)
    assert np.array_equal(cell[:100], cut[:100][::-1])
    assert np.array_equal(cell[-100:], cut[-100:][::-1])


def test_a_field_keeps_its_size_in_micrometres():
    """A square of 100 um in a field at 0.35 um/px is 100 um wide on the slide."""
    field = np.full((1400, 1400, 3), 200, np.uint8)
    side_px = round(100 / 0.35)
    field[500 : 500 + side_px, 500 : 500 + side_px] = 50
    cell = cell_image(field, 0.35, Cell(0, 0, (0.5, 0.5)))
    assert np.sqrt((cell[..., 0] < 125).sum()) * BASE_MPP == pytest.approx(100, abs=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list[Field], Mosaic]:
    """One slide of five cells, of fields that fit."""
    folder = tmp_path_factory.mktemp("written")
    fields = write_fields(folder / "fields", {f"P{i}": ["benign", "tumour"] for i in range(3)})
    cells = tuple(Cell(field, turn, (0.5, 0.5)) for field, turn in [(0, 0), (1, 3), (2, 5), (4, 1), (3, 6)])
    mosaic = Mosaic("s", 0, columns=3, cells=cells)
    write_mosaics(folder, [mosaic], fields, ["benign", "tumour"])
    return folder, fields, mosaic


def test_a_5x_patch_is_one_field_and_four_10x_patches_are_inside_it(written):
    folder, _, mosaic = written
    bag = BagBuilder().look({"image": str(folder / "slides" / "s.tiff")})
    low, high = bag.grid.coords
    assert (len(low), len(high), bag.grid.num_rows) == (5, 20, 20)
    places = [(column * CELL_PX, row * CELL_PX) for _, row, column in mosaic.places()]
    assert (
        low.tolist()
        == [list(place) for place in places]
        == [[640, 640], [1280, 640], [1920, 640], [640, 1280], [1280, 1280]]
    )
    for row in range(20):
        offset = high[row] - low[bag.grid.rows[row, 0]]
        assert offset.tolist() in [[0, 0], [320, 0], [0, 320], [320, 320]]


def test_what_openslide_reads_at_5x_is_the_field(written):
    folder, fields, mosaic = written
    with openslide.OpenSlide(folder / "slides" / "s.tiff") as slide:
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.7, rel=1e-4)
        assert [round(d, 3) for d in slide.level_downsamples] == [1, 2, 4]
        places = [(column * CELL_PX, row * CELL_PX) for _, row, column in mosaic.places()]
        regions = [slide.read_region(place, 1, (320, 320)).convert("RGB") for place in places]
    patches = [np.asarray(region.resize((224, 224), Image.Resampling.BOX)) for region in regions]
    for cell, patch in zip(mosaic.cells, patches, strict=True):
        turned = [
            np.asarray(Image.fromarray(np.rot90(field.read(), cell.turn % 4)).resize((224, 224), Image.Resampling.BOX))
            for field in fields
        ]
        turned = [image[:, ::-1] if cell.turn >= 4 else image for image in turned]
        differences = [np.abs(patch.astype(float) - image).mean() for image in turned]
        assert int(np.argmin(differences)) == cell.field
        assert differences[cell.field] < 2  # what JPEG loses


def test_the_regions_of_a_slide_are_its_cells(written):
    folder, fields, mosaic = written
    with openslide.OpenSlide(folder / "slides" / "s.tiff") as slide:
        size = slide.dimensions
    labels = np.asarray(Image.open(folder / "masks" / "s.png"))
    rows, columns = mosaic.size
    assert (columns * CELL_PX, rows * CELL_PX) == size
    wanted = np.zeros((rows, columns), int)
    for cell, row, column in mosaic.places():
        wanted[row, column] = ["benign", "tumour"].index(fields[cell.field].class_name) + 1
    side = labels.shape[1] // columns
    assert labels.shape == (rows * side, columns * side)
    assert np.array_equal(labels, np.kron(wanted, np.ones((side, side), int)))
