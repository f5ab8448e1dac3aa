"""Regions annotated in QuPath: against label images of the same shapes, and shapely."""

import json
import logging

import cv2
import numpy as np
import pytest
import shapely

from scripts.checking.slides import SlideChecker
from scripts.core.errors import SlideError
from scripts.core.repeats import Repeats
from scripts.evaluation.localisation import patch_truth, read_regions
from scripts.slides.frames import Rectangle
from tests.annotations import asap
from tests.cohorts import builder, draw_slide

CLASSES = ["cancer", "hgd", "normal"]
SIZE = (400, 200)
CANCER, NORMAL = shapely.box(40, 20, 200, 120), shapely.box(240, 0, 400, 200)


def write(path, *named):
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(shape)),
            "properties": {"objectType": "annotation", "classification": {"name": name, "color": [1, 2, 3]}},
        }
        for name, shape in named
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


def read(path, size=SIZE, bounds=None):
    return read_regions(path, "s", size, CLASSES, bounds)


def test_a_label_image_and_annotations_of_the_same_shapes_say_the_same(tmp_path):
    labels = np.zeros((20, 40), np.uint8)
    labels[2:12, 4:20], labels[:, 24:] = 1, 3
    cv2.imwrite(str(tmp_path / "r.png"), labels)
    image = read_regions(tmp_path / "r.png", "s", SIZE, CLASSES)
    drawn = read_regions(write(tmp_path / "r.geojson", ("Cancer", CANCER), ("normal ", NORMAL)), "s", SIZE, CLASSES)
    corners = np.random.default_rng(0).uniform(-30, 400, (50, 2))
    values = [(1,), (2,), (3,), (1, 3)]
    assert patch_truth(corners, 37.0, drawn, values) == pytest.approx(patch_truth(corners, 37.0, image, values))
    assert np.array_equal(drawn.over_slide(SIZE)[5::10, 5::10], labels)


def test_classes_that_overlap_count_once_in_the_binary_task(tmp_path):
    drawn = read_regions(write(tmp_path / "r.geojson", ("cancer", CANCER), ("hgd", CANCER)), "s", SIZE, CLASSES)
    assert patch_truth(np.array([[0.0, 20.0]]), 80.0, drawn, [(1,), (2,), (1, 2)]).tolist() == [[0.5, 0.5, 0.5]]


def test_positions_are_counted_from_the_bounds(tmp_path):
    path = write(tmp_path / "r.geojson", ("cancer", CANCER))
    drawn = read_regions(path, "s", (2000, 2000), CLASSES, Rectangle(1000, 500, *SIZE))
    assert patch_truth(np.array([[1040.0, 520.0], [40.0, 20.0]]), 100.0, drawn, [(1,)]).tolist() == [[1.0], [0.0]]


def test_groups_of_asap_are_classes_and_its_positions_those_of_level_0(tmp_path):
    shapes = {"Cancer": CANCER, "normal": NORMAL}
    drawn = write(tmp_path / "r.geojson", *((name, shape) for name, shape in shapes.items()))
    xml = tmp_path / "r.xml"
    xml.write_text(asap(*(("Polygon", name, list(shape.exterior.coords)[:-1]) for name, shape in shapes.items())))
    corners = np.random.default_rng(0).uniform(-30, 400, (50, 2))
    values = [(1,), (2,), (3,), (1, 3)]
    by_qupath, by_asap = (patch_truth(corners, 37.0, read(path), values) for path in (drawn, xml))
    assert by_asap == pytest.approx(by_qupath)
    assert by_asap[:, [0, 2]].any(axis=0).all()
    # With bounds, QuPath counts from them, and ASAP does not.
    bounds, size = Rectangle(1000, 500, *SIZE), (2000, 2000)
    places = np.array([[40.0, 20.0], [1040.0, 520.0]])
    for path, found in ((xml, [[1.0], [0.0]]), (drawn, [[0.0], [1.0]])):
        assert patch_truth(places, 100.0, read(path, size, bounds), [(1,)]).tolist() == found


def test_a_multipolygon_is_the_polygons_that_it_is_made_of(tmp_path):
    holed = shapely.Polygon(CANCER.exterior, [shapely.box(60, 40, 100, 80).exterior])
    many = read(write(tmp_path / "m.geojson", ("cancer", shapely.MultiPolygon([holed, NORMAL]))))
    two = read(write(tmp_path / "n.geojson", ("cancer", holed), ("cancer", NORMAL)))
    corners = np.random.default_rng(0).uniform(-30, 400, (50, 2))
    assert patch_truth(corners, 37.0, many, [(1,)]) == pytest.approx(patch_truth(corners, 37.0, two, [(1,)]))
    # 160 x 100 px without 40 x 40, and 160 x 200.
    assert patch_truth(np.array([[0.0, 0.0]]), 400.0, many, [(1,)]) == pytest.approx((16_000 - 1600 + 32_000) / 400**2)


def test_other_classes_are_named_and_ignored_ones_logged(tmp_path, caplog):
    path = write(tmp_path / "r.geojson", ("cancer", CANCER), ("stroma", NORMAL), ("Ignore*", NORMAL))
    with pytest.raises(SlideError, match=r"has 'stroma', no classes of the task \(cancer, hgd, normal\)"):
        read_regions(path, "s", SIZE, CLASSES)
    path = write(tmp_path / "i.geojson", ("cancer", CANCER), ("Ignore*", NORMAL))
    with caplog.at_level(logging.INFO, logger="scripts.bags.annotations"):
        assert set(read_regions(path, "s", SIZE, CLASSES).classes) == {1}
    assert any("Ignore* is left out" in line for line in caplog.messages)


def test_a_slide_with_nothing_to_annotate_may_have_an_empty_file_of_which_one_line_is_logged(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("scripts.evaluation.annotated_regions._repeats", Repeats())
    path = write(tmp_path / "r.geojson")
    with caplog.at_level(logging.INFO):
        empty, again = (read_regions(path, "s", SIZE, CLASSES) for _ in range(2))
    assert not again.values
    line = f"slide s: its `regions` {path} has no annotation: nothing counts as a region"
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.INFO, line)]
    assert not empty.values
    assert patch_truth(np.array([[40.0, 20.0]]), 100.0, empty, [(1,), (2, 3)]).tolist() == [[0.0, 0.0]]
    assert not empty.over_slide(SIZE).any()


def test_of_many_slides_with_empty_files_the_first_few_are_logged(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("scripts.evaluation.annotated_regions._repeats", Repeats())
    with caplog.at_level(logging.INFO, logger="scripts.evaluation.annotated_regions"):
        for i in range(50):
            read_regions(write(tmp_path / f"{i}.geojson"), f"s{i}", SIZE, CLASSES)
        read_regions(write(tmp_path / "r.geojson", ("cancer", CANCER)), "s", SIZE, CLASSES)
    *lines, last = caplog.messages
    assert [line.partition(":")[0] for line in lines] == ["slide s0", "slide s1", "slide s2"]
    assert last.startswith("more slides have `regions` without an annotation")


def test_checking_blocks_regions_of_another_slide(tmp_path):
    slide = draw_slide(tmp_path / "s.tif")
    entry = {"image": str(slide), "slide": "s"}
    for shape, found in ((CANCER, []), (shapely.box(5000, 0, 5100, 90), [("blocks", "regions")])):
        facts = SlideChecker(builder(), CLASSES)(
            entry | {"regions": str(write(tmp_path / "r.geojson", ("hgd", shape)))}
        )
        assert [(p.severity, p.check) for p in facts.problems if p.check == "regions"] == found
