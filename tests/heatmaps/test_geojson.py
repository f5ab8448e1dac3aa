"""GeoJSON for QuPath: the form that QuPath's own source reads, and the places of the patches."""

import json
import uuid
from decimal import Context, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.bags.grid import link_grids
from scripts.bags.tissue import TissueMask
from scripts.core.magnification import Scale
from scripts.heatmaps.attention_maps import KINDS, PatchMap, gather_rows
from scripts.heatmaps.geojson import feature_collection, measurement_names, write_geojson
from scripts.heatmaps.images import shade_colours
from tests.heatmaps.test_images import BASE_MPP, COLD_BOX, HOT_BOX, PATCH_PX, SIZE, is_in
from tests.pyramids import with_tissue

RED = (214, 39, 40)

coordinates = st.floats(-1e3, 2e5)
maps = st.builds(
    lambda corners, values, side, kind: PatchMap(
        np.array(sorted(corners)), side, 0.2523, np.array(values[: len(corners)]) - (kind == "contribution") / 2, kind
    ),
    corners=st.sets(st.tuples(coordinates, coordinates), min_size=1, max_size=12),
    values=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    side=st.floats(1, 3000),
    kind=st.sampled_from(KINDS),
)


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def hottest_um_of_geojson(path, base_mpp):
    """(x, y) in micrometres of the middle of the hottest tile, as QuPath's measurement map would show it."""
    features = read(path)["features"]

    def percentile(feature):
        return next(v for name, v in feature["properties"]["measurements"].items() if "percentile" in name)

    ring = np.array(max(features, key=percentile)["geometry"]["coordinates"][0][:-1])
    return tuple(ring.mean(axis=0) * base_mpp)


@settings(max_examples=60, deadline=None)
@given(maps)
def test_every_patch_survives_the_round_trip(tmp_path_factory, heat):
    path = tmp_path_factory.getbasetemp() / "map.geojson"
    write_geojson(path, feature_collection(heat, "slide", "10x", "cancer", RED))
    collection = read(path)
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(heat.values)
    for patch, feature in enumerate(collection["features"]):
        (ring,) = feature["geometry"]["coordinates"]
        x, y = heat.corners[patch]
        assert np.min(ring, axis=0) == pytest.approx([x, y], abs=1e-3)
        assert np.max(ring, axis=0) == pytest.approx([x + heat.patch_level0, y + heat.patch_level0], abs=1e-3)
        measured = feature["properties"]["measurements"]
        percentile_name, value_name = measurement_names("10x", "cancer", heat.kind)
        assert measured == {
            percentile_name: pytest.approx(heat.percentile[patch], abs=0.05 + 1e-9),
            value_name: pytest.approx(heat.values[patch], rel=5.1e-4),
        }


def rounded(number, digits=None, significant=None):
    """A binary number in decimal digits, by Python's decimal arithmetic."""
    if significant is not None:
        return Context(prec=significant).create_decimal(Decimal(float(number)))
    return Decimal(float(number)).quantize(Decimal(1).scaleb(-digits))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-5, 1.0, 1e4])
def test_the_file_has_no_more_digits_than_matter_and_those_are_right(tmp_path, kind, size):
    rng = np.random.default_rng(4)
    # Of 41 patches, so that percentiles have no end, and no number lies in the middle between two that it may become.
    values = size * (rng.random(41) - (kind == "contribution") / 2)
    heat = PatchMap(rng.uniform(-1e3, 1e5, (41, 2)), 253.66629, 0.2523, values, kind)
    write_geojson(tmp_path / "map.geojson", feature_collection(heat, "slide", "10x", "cancer", RED))
    text = (tmp_path / "map.geojson").read_text(encoding="utf-8")
    features = json.loads(text, parse_float=Decimal, parse_int=Decimal)["features"]
    percentile_name, value_name = measurement_names("10x", "cancer", kind)
    for patch, feature in enumerate(features):
        measured = feature["properties"]["measurements"]
        value, percentile = measured[value_name], measured[percentile_name]
        assert len(value.normalize().as_tuple().digits) <= 4
        assert value == rounded(values[patch], significant=4)
        assert percentile.normalize().as_tuple().exponent >= -1
        assert percentile == rounded(heat.percentile[patch], digits=1)
        (ring,) = feature["geometry"]["coordinates"]
        left, top = heat.corners[patch]
        expected = [[rounded(v, digits=3) for v in ends] for ends in ((left, left + 253.66629), (top, top + 253.66629))]
        assert all(v.normalize().as_tuple().exponent >= -3 for point in ring for v in point)
        assert [sorted(set(axis)) for axis in zip(*ring, strict=True)] == expected


@settings(max_examples=60, deadline=None)
@given(maps)
def test_rings_are_closed_squares_that_run_counterclockwise_in_their_numbers(heat):
    for feature in feature_collection(heat, "slide", "10x", "cancer", RED)["features"]:
        (ring,) = feature["geometry"]["coordinates"]
        assert len(ring) == 5
        assert ring[0] == ring[-1]
        x, y = (np.subtract(axis, ring[0][i]) for i, axis in enumerate(zip(*ring, strict=True)))
        signed_area = np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2
        assert signed_area == pytest.approx(heat.patch_level0**2, rel=5e-3)


@pytest.mark.parametrize("magnification", [5, 10])
def test_attention_in_one_corner_of_a_slide_is_found_there(tmp_path, magnification):
    scale = Scale(magnification, PATCH_PX, BASE_MPP)
    tissue = with_tissue(SIZE[1], SIZE[0], [HOT_BOX, COLD_BOX])[..., 1] < 255
    grid = link_grids([scale], SIZE, TissueMask(tissue, (1.0, 1.0), BASE_MPP).fraction, min_tissue=0.4)
    left, top, right, bottom = HOT_BOX
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    attention = np.exp(-((grid.coords[0] + scale.patch_level0 / 2 - middle) ** 2).sum(axis=1) / 500**2)
    heat = gather_rows(attention, grid.coords[0], scale.patch_level0, BASE_MPP)
    write_geojson(tmp_path / "map.geojson", feature_collection(heat, "slide", scale.name, "cancer", RED))
    found = hottest_um_of_geojson(tmp_path / "map.geojson", BASE_MPP)
    assert is_in(HOT_BOX, found)
    assert found == pytest.approx(middle * BASE_MPP, abs=heat.patch_um)


def a_map(n=4, kind="attention"):
    corners = np.stack([np.arange(n) % 3, np.arange(n) // 3], axis=1) * 253.6663
    return PatchMap(corners, 253.6663, 0.2523, np.linspace(0.1, 0.4, n), kind)


def test_a_feature_has_what_qupath_reads():
    # qupath-core/src/main/java/qupath/lib/io/PathObjectTypeAdapters.java, since 0.4: objectType, color as three
    # numbers, classification with name and color, and measurements as one object.
    feature = feature_collection(a_map(), "slide", "10x", "cancer", RED)["features"][3]
    properties = feature.pop("properties")
    assert list(feature) == ["type", "id", "geometry"]
    assert feature["type"] == "Feature"
    assert feature["geometry"]["type"] == "Polygon"
    assert list(properties) == ["objectType", "color", "classification", "measurements"]
    assert properties["objectType"] == "tile"
    assert properties["color"] == shade_colours(np.array([100.0]), "attention")[0].tolist()
    assert properties["classification"] == {"name": "cancer", "color": [214, 39, 40]}
    assert properties["measurements"] == {
        "attention percentile (10x, cancer)": 100.0,
        "attention (10x, cancer)": pytest.approx(0.4),
    }


def test_a_contribution_is_measured_under_its_own_name_with_its_sign():
    heat = PatchMap(np.array([[0.0, 0.0], [10.0, 0.0]]), 10.0, 0.5, np.array([-1.5, 0.25]), "contribution")
    measured = [f["properties"]["measurements"] for f in feature_collection(heat, "s", "5x", "hgd", RED)["features"]]
    assert measured == [
        {"contribution percentile (5x, hgd)": 50.0, "contribution (5x, hgd)": -1.5},
        {"contribution percentile (5x, hgd)": 100.0, "contribution (5x, hgd)": 0.25},
    ]


def test_ids_are_uuids_that_stay_the_same_and_differ_between_patches_maps_kinds_classes_and_slides():
    names = [(s, m, c) for s in ("a", "b") for m in ("5x", "10x") for c in ("cancer", "normal")]

    def ids():
        return [f["id"] for n in names for k in KINDS for f in feature_collection(a_map(4, k), *n, RED)["features"]]

    assert len(set(ids())) == len(names) * 2 * 4
    assert ids() == ids()
    assert {uuid.UUID(one).version for one in ids()} == {5}


def test_the_same_map_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        collection = feature_collection(a_map(), "slide", "5x", 'Krebs, "bösartig"', RED)
        write_geojson(tmp_path / f"{name}.geojson", collection)
    assert (tmp_path / "one.geojson").read_bytes() == (tmp_path / "two.geojson").read_bytes()
    assert read(tmp_path / "one.geojson")["features"][0]["properties"]["classification"]["name"] == 'Krebs, "bösartig"'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.geojson", "two.geojson"]


def test_a_patch_at_the_slides_corner_has_no_negative_zero():
    heat = PatchMap(np.array([[-0.0, -1e-9]]), 10.0, 0.5, np.ones(1))
    assert "-0" not in json.dumps(feature_collection(heat, "s", "5x", "c", RED)["features"][0]["geometry"])
