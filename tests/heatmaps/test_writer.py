"""The handler, run by MONAI's evaluator on bags whose attention follows a colour."""

import csv
import json
from itertools import product

import cv2
import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SettingsError, SlideError
from scripts.datalists.failures import FailedSlides
from scripts.heatmaps.attention_maps import gather_rows
from scripts.heatmaps.images import read_thumbnail
from scripts.heatmaps.legend import Title, legend
from scripts.heatmaps.mapped_slides import MappedSlides
from scripts.heatmaps.writer import FORMATS, HeatmapWriter, class_file_names
from scripts.inference.transforms import EncodeSlided
from scripts.networks.methods import attention_maps, get_network
from scripts.networks.mustmil import MuSTMIL
from scripts.slides.frames import Rectangle
from scripts.slides.slide import Slide
from tests.cohorts import NUM_TINY_FEATURES, tiny_encoder
from tests.heatmaps.test_geojson import hottest_um_of_geojson, read
from tests.heatmaps.test_images import (
    BASE_MPP,
    COLD_BOX,
    HOT_BOX,
    PATCH_PX,
    SIZE,
    corner_image,
    hottest_um_of_mha,
    hottest_um_of_png,
    is_in,
    read_png,
    write_corner_slide,
)

HEADS = ["global", "5x", "10x"]
CLASSES = ["dark", "pink"]


KNOWN_KINDS = ("attention", "contribution")
# Pictures take most of the time.
WITHOUT_PICTURES = {"heatmap_formats": ("geojson", "mha"), "top_patches": 0}


def colour_network(probability_of=(0.9, 0.2), crossed=False):
    """Attends to dark patches for the first class and to pink ones for the second; says the given probabilities.

    Crossed, what it concludes is the opposite of where it looks: the attention for pink speaks for dark, and the
    other way round.
    """
    network = MuSTMIL(num_classes=2, num_scales=2, num_features=NUM_TINY_FEATURES, num_nodes=4).eval()
    red, green = slice(0, 4), slice(4, 8)  # of the four quarters of a patch
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for il in network.embed:
            il.weight[0] = -1 / NUM_TINY_FEATURES
            il.weight[1, red], il.weight[1, green] = 0.25, -0.25
        for scoring in network.attention:
            for h in (0, 1):
                scoring[0].weight[h, h::4] = 0.3
                scoring[2].weight[h, h] = 8.0
        for classify in network.myfc:
            classify.bias[:] = torch.logit(torch.tensor(probability_of))
            if crossed:
                weight = classify.weight.unflatten(1, (2, -1))  # [class, attention, node]
                weight[0, 1, 1::4], weight[1, 0, 0::4] = 1, -1  # the first node is below 0, all the more on light
    return network


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """A slide that does not say its resolution: whoever opens it must take the datalist's."""
    path = write_corner_slide(tmp_path_factory.mktemp("slide") / "corner.tif", mpp=None)
    return {"image": str(path), "slide": "corner", "mpp": BASE_MPP}


def file_names(classes, kinds, suffixes=(".png", ".geojson", ".mha"), galleries=CLASSES):
    """The files of every map for these classes and kinds, and the galleries of theirs, sorted."""
    files = [
        f"{head}_{name}{ending}{suffix}"
        for head in HEADS
        for name in classes
        for ending in ["" if kind == "attention" else f"_{kind}" for kind in kinds]
        for suffix in suffixes
    ]
    files += [f"{head}_{name}_top.png" for head in HEADS for name in galleries]
    return sorted([*files, "patches.csv"])


def predict(output, entry, network=None, overlap=0.0, **given):
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4, overlap=overlap)
    network = network or colour_network()
    writer = HeatmapWriter(
        output,
        mapped=MappedSlides(network, attention_maps("mustmil", [5, 10]), builder, [entry]),
        heads=HEADS,
        class_names=CLASSES,
        **given,
    )
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset([entry], EncodeSlided("image", builder, tiny_encoder())), batch_size=1),
        network=network,
        postprocessing=Activationsd(keys="pred", sigmoid=True),
        val_handlers=[writer],
    ).run()
    folder = output / "heatmaps" / "corner"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


LEVEL0_COLUMNS = ("x_level0", "y_level0")


def patches_of(output):
    """The lines of the table of patches."""
    with (output / "heatmaps" / "corner" / "patches.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def hottest_of(table, column):
    """The lines with the highest value of a column."""
    filled = [line for line in table if line[column]]
    most = max(float(line[column]) for line in filled)
    return [line for line in filled if float(line[column]) == most]


BOUNDS = Rectangle(300, 200, 1000, 900)


@pytest.mark.parametrize("bounds", [None, BOUNDS])
def test_every_format_has_the_tissue_of_a_class_at_the_same_micrometres(entry, tmp_path, monkeypatch, bounds):
    if bounds is not None:
        monkeypatch.setattr("scripts.slides.slide.find_bounds", lambda *_: bounds)
    given = {"heatmap_classes": CLASSES, "heatmap_kinds": "attention", "heatmap_formats": list(FORMATS)}
    predict(tmp_path, entry, top_patches=0, **given)
    folder, table = tmp_path / "heatmaps" / "corner", patches_of(tmp_path)
    plain = cv2.resize(corner_image(), (2000, 1275), interpolation=cv2.INTER_AREA)
    origin_um = np.multiply((0, 0) if bounds is None else bounds[:2], BASE_MPP)
    for map_name, name in product(HEADS, CLASSES):
        stem, patch_um = f"{map_name}_{name}", PATCH_PX * (2.0 if map_name == "5x" else 1.0)
        # Of patches with the same attention any may be the hottest.
        hottest_um = {
            columns: [[(float(line[v]) + float(line["side_level0"]) / 2) * BASE_MPP for v in columns] for line in lines]
            for lines in [hottest_of(table, f"{stem}_attention")]
            for columns in (LEVEL0_COLUMNS, ("x", "y"))
        }
        found = {
            "png": hottest_um_of_png(folder / f"{stem}.png", plain, patch_um),
            "plain": hottest_um_of_png(folder / f"{stem}_plain.png", plain, patch_um),
            "mha": hottest_um_of_mha(folder / f"{stem}.mha"),
            "geojson": np.add(hottest_um_of_geojson(folder / f"{stem}.geojson", BASE_MPP), origin_um),
            "csv": hottest_um[LEVEL0_COLUMNS][0],
            "csv, in the frame": np.add(hottest_um["x", "y"][0], origin_um),
        }
        assert stem == "5x_pink" or len(hottest_um[LEVEL0_COLUMNS]) == 1
        for form, place in found.items():
            assert is_in({"dark": HOT_BOX, "pink": COLD_BOX}[name], place), (stem, form)
            # Pictures have whole pixels and 256 colours.
            error_um = 6 if form in ("png", "plain") else 0.01
            assert any(place == pytest.approx(one, abs=error_um) for one in hottest_um[LEVEL0_COLUMNS]), (stem, form)


def test_a_png_is_the_plain_picture_with_its_legend_below(entry, tmp_path):
    network = colour_network(crossed=True)
    predict(tmp_path, entry, network, heatmap_classes="pink", heatmap_formats=("png", "plain"), top_patches=0)
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    item, specs = EncodeSlided("image", builder, tiny_encoder())(entry), attention_maps("mustmil", [5, 10])
    shown = MappedSlides(network, specs, builder, [entry])(item)
    thumbnail = read_thumbnail(shown.opened)
    image = item["image"].as_tensor()[None]
    with torch.no_grad():
        probabilities = torch.sigmoid(network(image[..., :-1], image[..., -1]))[0]
    for (m, spec), kind in product(enumerate(specs), KNOWN_KINDS):
        stem = tmp_path / "heatmaps" / "corner" / f"{spec.name}_pink{'' if kind == 'attention' else '_contribution'}"
        stored, mpp = read_png(stem.with_suffix(".png"))
        plain, mpp_of_plain = read_png(stem.with_name(f"{stem.name}_plain.png"))
        assert mpp == mpp_of_plain
        height, width = plain.shape[:2]
        title = Title("corner", spec.name, spec.head, "pink", float(probabilities[HEADS.index(spec.head), 1]))
        expected = legend(shown.maps(m, 1, kind), title, width, thumbnail.mpp)
        assert len(stored) == height + len(expected) > height
        # The palette has few greys for the edges of letters; another letter changes pixels by 255.
        assert np.abs(stored[height:].astype(int) - expected).max() < 64


@pytest.mark.parametrize("bounds", [None, BOUNDS])
def test_a_gallery_starts_with_the_hottest_patch_of_the_table(entry, tmp_path, monkeypatch, bounds):
    if bounds is not None:
        monkeypatch.setattr("scripts.slides.slide.find_bounds", lambda *_: bounds)
    # A patch is of the colour of its scale and place.
    monkeypatch.setattr(Slide, "read_patch", lambda self, scale, corner: np.tile(
        (np.array([RED_OF[scale.name], 10, 20]) + [0, 15, 25] * place_in_grid(scale, corner)).astype(np.uint8),
        (scale.patch_size_px, scale.patch_size_px, 1),
    ))  # fmt: skip
    predict(tmp_path, entry, colour_network(crossed=True), heatmap_classes=CLASSES, heatmap_formats="mha")
    table = patches_of(tmp_path)
    for map_name, name in product(HEADS, CLASSES):
        gallery = cv2.imread(str(tmp_path / "heatmaps" / "corner" / f"{map_name}_{name}_top.png"))[..., ::-1]
        halves = dict(zip(KNOWN_KINDS, np.array_split(gallery.astype(int), 2, axis=1), strict=True))
        scale = "5x" if map_name == "5x" else "10x"
        side = PATCH_PX * (2.0 if scale == "5x" else 1.0) / BASE_MPP
        found = {}
        for kind, half in halves.items():
            _, green, blue = first_patch(half, RED_OF[scale])
            found[kind] = np.round([(green - 10) / 15, (blue - 20) / 25]) * side
            hottest = [
                [float(line[v]) for v in LEVEL0_COLUMNS] for line in hottest_of(table, f"{map_name}_{name}_{kind}")
            ]
            assert any(found[kind] == pytest.approx(place, abs=0.01) for place in hottest), (map_name, name, kind)
        # Where it looks for a class is not where it concludes it.
        assert np.abs(found["attention"] - found["contribution"]).max() > side


RED_OF = {"5x": 60, "10x": 180}


def place_in_grid(scale, corner):
    """Column and row of a patch, for the green and the blue of its colour, behind a nought for the red."""
    return np.array([0, *np.round(np.divide(corner, scale.patch_level0))]).astype(int)


def first_patch(picture, red):
    """The colour of the uppermost large area with this red and with other green and blue than a grey has."""
    mask = (np.abs(picture[..., 0] - red) < 4) & (np.ptp(picture, axis=-1) > 8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    large = [i for i in range(1, len(stats)) if stats[i, cv2.CC_STAT_AREA] > 500]
    first = min(large, key=lambda i: stats[i, cv2.CC_STAT_TOP])
    return np.median(picture[parts == first], axis=0)


def test_every_head_and_class_that_is_asked_for_has_a_gallery_of_its_own(entry, tmp_path):
    found = predict(tmp_path, entry, heatmap_classes=CLASSES, heatmap_formats="mha", heatmap_kinds="contribution")
    galleries = [name for name in found if name.endswith("_top.png")]
    assert galleries == sorted(f"{head}_{name}_top.png" for head, name in product(HEADS, CLASSES))
    folder = tmp_path / "heatmaps" / "corner"
    assert all(cv2.imread(str(folder / name)).std() > 10 for name in galleries)
    assert len({(folder / name).read_bytes() for name in galleries}) == len(galleries)


def test_the_files_of_a_small_slide_take_less_than_two_and_a_half_megabytes(entry, tmp_path):
    predict(tmp_path, entry, heatmap_classes="dark")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "heatmaps" / "corner").iterdir()}
    assert len(sizes) == 3 * 2 * 3 + 3 + 1  # of three maps two kinds in three formats, galleries, and the table
    assert sum(sizes.values()) < 2_500_000


def test_overlapping_patches_are_overlapping_polygons_and_the_hottest_lies_where_it_did(entry, tmp_path):
    predict(tmp_path, entry, overlap=0.5, heatmap_kinds="attention", **WITHOUT_PICTURES)
    folder = tmp_path / "heatmaps" / "corner"
    with open(folder / "patches.csv", newline="", encoding="utf-8") as file:
        patches = [line for line in csv.DictReader(file) if line["scale"] == "10x"]
    rings = [feature["geometry"]["coordinates"][0] for feature in read(folder / "10x_dark.geojson")["features"]]
    side = PATCH_PX * 1.0 / BASE_MPP  # a patch at 10x is of 1 um/px
    corners = [min(ring) for ring in rings]
    written = np.array(sorted((float(p["x"]), float(p["y"])) for p in patches))
    assert np.array(sorted(corners)) == pytest.approx(written, abs=0.1)
    assert all(
        max(ring) == pytest.approx([x + side, y + side], abs=0.2) for ring, (x, y) in zip(rings, corners, strict=True)
    )
    assert min(np.diff(np.unique([x for x, _ in corners]))) == pytest.approx(side / 2, abs=0.2)
    for found in (
        hottest_um_of_geojson(folder / "10x_dark.geojson", BASE_MPP),
        hottest_um_of_mha(folder / "10x_dark.mha"),
    ):
        assert is_in(HOT_BOX, found, slack_um=PATCH_PX / 2)


@pytest.mark.parametrize("coordinates", ["qupath", "level0"])
def test_geojson_and_the_table_start_where_qupath_does_and_mha_at_level_0(entry, tmp_path, monkeypatch, coordinates):
    monkeypatch.setattr("scripts.slides.slide.find_bounds", lambda *_: Rectangle(300, 200, 1000, 900))
    predict(
        tmp_path, entry, heatmap_classes="dark", heatmap_kinds="attention", coordinates=coordinates, **WITHOUT_PICTURES
    )
    folder, origin = tmp_path / "heatmaps" / "corner", (300, 200) if coordinates == "qupath" else (0, 0)
    assert read(folder / "10x_dark.geojson")["frame"] == {"coordinates": coordinates, "origin_level0": list(origin)}
    found = np.add(hottest_um_of_geojson(folder / "10x_dark.geojson", BASE_MPP), np.multiply(origin, BASE_MPP))
    assert found == pytest.approx(hottest_um_of_mha(folder / "10x_dark.mha"), abs=0.01)
    assert is_in(HOT_BOX, found, slack_um=PATCH_PX / 2)
    with (folder / "patches.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["scale"] == "10x"]
    hottest = max(lines, key=lambda line: float(line["10x_dark_attention"]))
    centre = [
        (float(hottest[axis]) + float(hottest["side_level0"]) / 2) * BASE_MPP for axis in ("x_level0", "y_level0")
    ]
    assert centre == pytest.approx(hottest_um_of_mha(folder / "10x_dark.mha"), abs=0.01)
    for axis, start in zip("xy", origin, strict=True):
        assert all(
            float(line[f"{axis}_level0"]) - float(line[axis]) == pytest.approx(start, abs=0.011) for line in lines
        )


def test_a_frame_that_there_is_not_is_refused(entry, tmp_path):
    with pytest.raises(SettingsError, match=r"coordinates: got 'image'\. Give qupath"):
        predict(tmp_path, entry, coordinates="image")


def test_a_contribution_is_hottest_where_the_class_is_concluded_from(entry, tmp_path):
    predict(tmp_path, entry, colour_network(crossed=True), heatmap_classes=CLASSES, **WITHOUT_PICTURES)
    folder = tmp_path / "heatmaps" / "corner"
    boxes = {"dark": HOT_BOX, "dark_contribution": COLD_BOX, "pink": COLD_BOX, "pink_contribution": HOT_BOX}
    for map_name in HEADS:
        patch_um = PATCH_PX * (2.0 if map_name == "5x" else 1.0)
        for name, box in boxes.items():
            stem = f"{map_name}_{name}"
            for found in (
                hottest_um_of_mha(folder / f"{stem}.mha"),
                hottest_um_of_geojson(folder / f"{stem}.geojson", BASE_MPP),
            ):
                assert is_in(box, found, slack_um=patch_um / 2), stem


@pytest.mark.parametrize("kind", KNOWN_KINDS)
def test_the_values_in_the_files_are_the_networks(entry, tmp_path, kind):
    network = colour_network(crossed=True)
    predict(tmp_path, entry, network, heatmap_classes="dark", **WITHOUT_PICTURES)
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    item = EncodeSlided("image", builder, tiny_encoder())(entry)
    x = item["image"].as_tensor()[None]
    maps = dict(zip(KNOWN_KINDS, network.explain(x[..., :-1], x[..., -1])[1:], strict=True))
    grid = builder(entry).grid
    for m, (name, s) in enumerate((("global", 1), ("5x", 0), ("10x", 1))):
        side = grid.scales[s].patch_level0
        rows = maps[kind][0, :, m, 0].detach().numpy()
        expected = gather_rows(rows, grid.coords[s][grid.rows[:, s]], side, BASE_MPP, kind)
        ending = "" if kind == "attention" else "_contribution"
        collection = json.loads((tmp_path / "heatmaps" / "corner" / f"{name}_dark{ending}.geojson").read_text())
        names = (f"{kind} percentile ({name}, dark)", f"{kind} ({name}, dark)")
        found = [[feature["properties"]["measurements"][n] for n in names] for feature in collection["features"]]
        assert len(found) == len(grid.coords[s])
        percentile, value = np.transpose(found)
        assert percentile == pytest.approx(expected.percentile, abs=0.05 + 1e-9)
        assert value == pytest.approx(expected.values, rel=5.1e-4)


@pytest.mark.parametrize(
    ("probabilities", "given", "classes"),
    [
        ((0.9, 0.2), {}, ["dark"]),
        ((0.5, 0.5), {}, ["dark", "pink"]),
        ((0.1, 0.3), {}, ["pink"]),
        ((0.9, 0.9), {"heatmap_classes": ["pink"]}, ["pink"]),
        ((0.9, 0.9), {"heatmap_classes": "pink"}, ["pink"]),
        ((0.1, 0.1), {"heatmap_classes": ("pink", "dark")}, ["dark", "pink"]),
        ((0.9, 0.9), {"heatmaps": False}, []),
    ],
)
def test_heatmaps_are_those_of_the_predicted_classes_or_of_those_asked_for(
    entry, tmp_path, probabilities, given, classes
):
    found = predict(tmp_path, entry, colour_network(probabilities), **given, **WITHOUT_PICTURES)
    assert found == (file_names(classes, KNOWN_KINDS, (".geojson", ".mha"), galleries=()) if classes else [])


@pytest.mark.parametrize(
    ("wanted", "kinds"),
    [
        (["attention"], ["attention"]),
        ("contribution", ["contribution"]),
        (("contribution", "attention", "contribution"), KNOWN_KINDS),
    ],
)
def test_heatmaps_are_of_the_kinds_asked_for(entry, tmp_path, wanted, kinds):
    predict(tmp_path, entry)  # what this leaves of another kind goes
    assert predict(tmp_path, entry, heatmap_kinds=wanted) == file_names(["dark"], kinds)


def test_formats_are_those_asked_for_and_zero_top_patches_draw_no_gallery(entry, tmp_path):
    predict(tmp_path, entry)
    found = predict(tmp_path, entry, heatmap_formats=("geojson", "plain"), top_patches=0)
    assert found == file_names(["dark"], KNOWN_KINDS, ("_plain.png", ".geojson"), galleries=())
    plain, mpp = read_png(tmp_path / "heatmaps" / "corner" / "5x_dark_plain.png")
    assert plain.shape == (1275, 2000, 3)
    assert mpp == pytest.approx((SIZE[0] * BASE_MPP / 2000,) * 2, rel=1e-3)


@pytest.mark.parametrize(("given", "classes"), [({}, CLASSES), ({"heatmap_classes": "pink"}, ["pink"])])
def test_top_patches_are_those_of_every_class_whatever_is_predicted_or_of_the_classes_asked_for(
    entry, tmp_path, given, classes
):
    found = predict(tmp_path, entry, colour_network((0.9, 0.1)), heatmap_formats="geojson", **given)
    assert [name for name in found if "_top" in name] == sorted(
        f"{head}_{name}_top.png" for head in HEADS for name in classes
    )


def test_what_an_earlier_run_left_goes_and_what_is_not_ours_stays(entry, tmp_path):
    predict(tmp_path, entry, heatmap_classes=CLASSES)
    (tmp_path / "heatmaps" / "corner" / "notes.txt").write_text("mine")
    files = predict(tmp_path, entry, colour_network((0.9, 0.1)), top_patches=0)
    assert "notes.txt" in files
    assert not any("pink" in name for name in files)
    assert set(predict(tmp_path, entry, heatmaps=False)) == {"notes.txt"}


@pytest.mark.parametrize("factor", [0.5, 1.1])
def test_positions_of_another_resolution_of_level_0_are_not_put_on_the_slide(entry, factor):
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    item = EncodeSlided("image", builder, tiny_encoder())(entry)
    mapped = MappedSlides(colour_network(), attention_maps("mustmil", [5, 10]), builder, [entry])
    mapped({**item, "base_mpp": 1.02 * BASE_MPP})  # magnifications of objectives are rounded
    with pytest.raises(SlideError, match=r"um/px at level 0, and its features were imported with .*Import them again"):
        mapped({**item, "base_mpp": factor * BASE_MPP})


def test_maps_are_not_put_on_a_slide_that_is_too_small_for_their_patches(entry):
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    item = EncodeSlided("image", builder, tiny_encoder())(entry)
    mapped = MappedSlides(colour_network(), attention_maps("mustmil", [5, 10]), builder, [entry])
    moved = {**item, "corners": item["corners"] + 10**5}
    with pytest.raises(SlideError, match=r"has \d+ x \d+ px, and its features are of a patch at \(1\d+, 1\d+\)\. Give"):
        mapped(moved)


def test_features_of_a_slide_of_another_size_are_not_predicted(entry, tmp_path):
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    encode = EncodeSlided("image", builder, tiny_encoder(), feature_dir=tmp_path)
    encode(entry)
    with h5py.File(next(tmp_path.glob("*.h5")), "r+") as bank:
        bank.attrs["size_level0"] = bank.attrs["size_level0"] + 1
    with pytest.raises(SlideError, match=r"px at level 0, and its features are of a slide of \d+ x \d+ px"):
        encode(entry)


def test_a_slide_of_which_nobody_says_the_resolution_is_shown_at_that_of_its_features(entry):
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    item = EncodeSlided("image", builder, tiny_encoder())(entry)
    unknown = {key: value for key, value in entry.items() if key != "mpp"}
    mapped = MappedSlides(colour_network(), attention_maps("mustmil", [5, 10]), builder, [unknown])
    assert mapped(item).opened.base_mpp == pytest.approx(BASE_MPP)


def test_a_slide_is_read_and_explained_once_for_all_its_maps(entry, tmp_path, monkeypatch):
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    item = EncodeSlided("image", builder, tiny_encoder())(entry)
    reads = []
    read = Slide.read_overview
    monkeypatch.setattr(Slide, "read_overview", lambda self, mpp: reads.append(mpp) or read(self, mpp))
    network, passes = colour_network(), []
    explain = network.explain
    monkeypatch.setattr(network, "explain", lambda *inputs: passes.append(inputs) or explain(*inputs))
    mapped = MappedSlides(network, attention_maps("mustmil", [5, 10]), builder, [entry])
    writer = HeatmapWriter(tmp_path, mapped, HEADS, CLASSES, heatmap_classes=CLASSES)
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset([item]), batch_size=1),
        network=network,
        postprocessing=Activationsd(keys="pred", sigmoid=True),
        val_handlers=[writer],
    ).run()
    assert len(list((tmp_path / "heatmaps" / "corner").iterdir())) == 3 * 2 * 2 * 3 + 3 * 2 + 1
    assert len(reads) == len(passes) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heatmap_classes": ["cancer"]}, "heatmap_classes: there is no class 'cancer'. Give a list of dark, pink"),
        ({"heatmap_classes": []}, "heatmap_classes: got []"),
        ({"heatmap_classes": {"dark": 1}}, "heatmap_classes: got {'dark': 1}"),
        ({"heatmaps": "yes"}, "heatmaps: got 'yes'. Give True or False"),
        ({"heatmap_kinds": ["gradient"]}, "heatmap_kinds: got ['gradient']. Give attention or contribution, or a list"),
        ({"heatmap_kinds": "both"}, "heatmap_kinds: got 'both'. Give attention or contribution"),
        ({"heatmap_kinds": []}, "heatmap_kinds: got []. Give attention or contribution"),
        ({"heatmap_formats": ["svg"]}, "heatmap_formats: got ['svg']. Give png or plain or geojson or mha, or a list"),
        ({"heatmap_formats": []}, "heatmap_formats: got []. Give png"),
        ({"top_patches": -1}, "top_patches: got -1. Give a whole number from 0 to 100"),
        ({"top_patches": True}, "top_patches: got True. Give a whole number"),
        ({"heatmap_kinds": None}, "heatmap_kinds: got None. Give attention or contribution"),
    ],
)
def test_a_wrong_setting_is_told_before_any_slide_is_read(entry, tmp_path, given, message):
    with pytest.raises(SettingsError) as error:
        predict(tmp_path, {**entry, "image": "/no/such/slide"}, **given)
    assert str(error.value).startswith(message)


def test_classes_become_file_names_that_stay_in_their_folder_and_differ():
    awkward = ["../../etc/passwd", "a/b", "a b", "A:B", "", ".", "bösartig", "x" * 300, "x" * 300 + "y", "tab\there"]
    names = class_file_names(awkward)
    assert len({name.casefold() for name in names}) == len(awkward)
    for name in names:
        assert name
        assert not set(name) & set('/\\:.*?"<>|\t \0')
        assert len(name.encode()) < 200
    assert names[6] == "bösartig"
    assert class_file_names(["cancer", "hgd"]) == ["cancer", "hgd"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "A", "b"]), st.sampled_from(["_contribution", "_plain", "_top"]), st.integers(0, 2)
        ),
        max_size=6,
    )
)
def test_no_class_takes_the_files_of_another(spelled):
    class_names = [letter + ending * times for letter, ending, times in spelled]
    names = [name.casefold() for name in class_file_names(class_names)]
    stems = [f"{name}{kind}" for name in names for kind in ("", "_contribution", "_top")]
    files = stems + [f"{stem}_plain" for stem in stems]
    assert len(set(files)) == 6 * len(class_names)


def test_maps_that_are_not_the_networks_are_refused(entry, tmp_path):
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    network = colour_network()
    mapped = MappedSlides(network, attention_maps("ssmil", [5, 10]), builder, [entry])
    writer = HeatmapWriter(tmp_path, mapped, HEADS, CLASSES)
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset([entry], EncodeSlided("image", builder, tiny_encoder())), batch_size=1),
        network=network,
        postprocessing=Activationsd(keys="pred", sigmoid=True),
        val_handlers=[writer],
    )
    with pytest.raises(ValueError, match="the network has 3 attention maps, and 2 were named"):
        evaluator.run()
    assert not (tmp_path / "heatmaps").exists()


def test_of_a_method_without_maps_nothing_is_written_and_the_log_says_so(entry, tmp_path, caplog):
    (tmp_path / "heatmaps" / "corner").mkdir(parents=True)
    (tmp_path / "heatmaps" / "corner" / "patches.csv").touch()  # of an earlier run
    builder = BagBuilder((5, 10), patch_size=PATCH_PX, min_tissue=0.4)
    network = get_network("transmil", num_classes=2, num_features=NUM_TINY_FEATURES, num_nodes=8).eval()
    mapped = MappedSlides(network, attention_maps("transmil", [5, 10]), builder, [entry])
    with caplog.at_level("INFO"):
        SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(Dataset([entry], EncodeSlided("image", builder, tiny_encoder())), batch_size=1),
            network=network,
            postprocessing=Activationsd(keys="pred", sigmoid=True),
            val_handlers=[HeatmapWriter(tmp_path, mapped, ["10x"], CLASSES)],
        ).run()
    assert not (tmp_path / "heatmaps" / "corner").exists()
    assert "no heatmaps are written: the method has no maps" in caplog.text


def test_a_slide_that_cannot_be_read_again_is_written_down_or_ends_the_run(entry, tmp_path, monkeypatch):
    def unreadable(slide):
        raise SlideError(slide.path, "cannot be read", "Copy it again.")

    monkeypatch.setattr("scripts.heatmaps.writer.read_thumbnail", unreadable)
    with pytest.raises(SlideError, match=r"corner\.tif: cannot be read"):
        predict(tmp_path, entry)
    failures = FailedSlides(tmp_path, "inferring")
    failures.start()
    assert predict(tmp_path, entry, failures=failures) == []
    assert failures.names() == ["corner"]
