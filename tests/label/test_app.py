"""Our app in this process: the server's own defaults, what stops its start, and slides of a remote datastore."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from fastapi import HTTPException
from monailabel.utils.others.class_utils import get_class_of_subclass_from_file

from tests.label.fixtures import DRAWN, MISSING, NAME, WITHOUT, assert_scores
from tests.pyramids import BOUNDS_SLIDE


@pytest.fixture(scope="module")
def start(own_shell):
    """Make the app as a server does, from its main.py."""
    folder = Path(own_shell.names["APPS"], "mustmil")
    app = get_class_of_subclass_from_file("main", str(folder / "main.py"), "MONAILabelApp")

    def make(studies, **conf):
        return app(str(folder), str(studies), conf)

    return make


@pytest.fixture
def folder(slides, tmp_path):
    """A folder with the drawn slide alone."""
    shutil.copy(slides / f"{DRAWN}.tiff", tmp_path / f"{DRAWN}.tif")
    return tmp_path


def test_a_servers_defaults_hold_for_clients_that_cannot_send_parameters(start, folder, oracle):
    wishes = {"kind": "contribution", "head": "5x", "share": "0.25", "classes": "cancer,normal"}
    app = start(folder, models=NAME, preload="true", **wishes)
    reply = app.infer_wsi({"model": NAME, "image": DRAWN, "output": "asap"})["params"]["annotations"][0]
    assert_scores(reply["scores"], oracle.scores[DRAWN])
    shown = reply["heatmap"]
    assert (shown["kind"], shown["map"], shown["share"]) == ("contribution", "5x", [0.25])
    assert shown["classes"] == ["cancer", "normal"]


def test_a_coded_mask_is_used_once_its_values_of_tissue_are_named(start, folder):
    with openslide.OpenSlide(str(folder / f"{DRAWN}.tif")) as slide:
        width, height = (round(side / 16) for side in slide.dimensions)
    codes = np.full((height, width), 7, np.uint8)
    codes[:, : width // 2] = 1
    cv2.imwrite(str(folder / "grandqc.png"), codes)
    app, request = start(folder, models=NAME), {"model": NAME, "image": DRAWN, "mask": "grandqc.png"}

    def patches(**more):
        return app.infer({**request, **more})["params"]["heatmap"]["patches"]

    for more, says in (({}, "has the values 1, 7 beside 0"), ({"mask_tissue": -1}, "mask_tissue is -1")):
        with pytest.raises(HTTPException, match=says) as refused:
            patches(**more)
        assert refused.value.status_code == 422
    with pytest.raises(HTTPException, match="mask_tissues: there is no such parameter. Write mask_tissue"):
        patches(mask_tissues=[1])
    assert patches(mask_tissue=[1]) == patches(mask_tissue="1") < patches(mask_tissue=[1, 7])


@pytest.mark.skipif(not BOUNDS_SLIDE.is_file(), reason=f"no file {BOUNDS_SLIDE}")
def test_qupath_gets_and_sends_positions_from_its_bounds_on(start, tmp_path):
    slide, app = shutil.copy(BOUNDS_SLIDE, tmp_path), start(tmp_path, models=NAME, classes="cancer", share="1")

    def drawn(**request):
        params = app.infer_wsi({"model": NAME, "image": slide, "output": "asap", **request})["params"]
        (reply,) = params["annotations"]
        elements = reply["annotation"]["elements"]
        return np.array(elements[0]["contours"]), reply["heatmap"], params["description"]

    clicks = {"foreground": [], "background": []}
    of_asap, of_qupath = drawn(), drawn(**clicks)
    assert len(of_asap[0]) > 2
    assert of_qupath[0] == pytest.approx(of_asap[0] - (4000, 5000), abs=2e-3)
    assert (of_qupath[1]["coordinates"], of_qupath[1]["origin_level0"]) == ("qupath", [4000, 5000])
    assert "Coordinates: qupath, from (4000, 5000) of level 0." in of_qupath[2]
    assert "Coordinates: level0, from (0, 0) of level 0." in of_asap[2]
    half = drawn(**clicks, location=[0, 0], size=[1536, 3584])[0]
    assert 0 < len(half) < len(of_asap[0])
    assert half == pytest.approx(drawn(location=[4000, 5000], size=[1536, 3584])[0] - (4000, 5000), abs=2e-3)


@pytest.mark.skipif(not BOUNDS_SLIDE.is_file(), reason=f"no file {BOUNDS_SLIDE}")
def test_the_digital_slide_archive_gets_positions_from_the_corner_of_level_0(start, tmp_path):
    slide, app = shutil.copy(BOUNDS_SLIDE, tmp_path), start(tmp_path, models=NAME, classes="cancer", share="1")

    def drawn(**request):
        # As its plugin asks: the rectangle is that of the viewer, in level 0.
        answer = app.infer_wsi({"model": NAME, "image": slide, "output": "dsa", **request})
        document = json.loads(Path(answer["file"]).read_text())
        points = np.array([element["points"] for element in document["elements"]])
        assert not points[..., 2].any()
        return points[..., :2], json.loads(document["description"])

    squares, description = drawn(location=[-1.0, -1.0], size=[-1.0, -1.0])
    assert description["count"] == len(squares) > 2
    assert "Coordinates: level0, from (0, 0) of level 0." in description["desc"]
    with openslide.OpenSlide(slide) as opened:
        x, y, width, height = (int(opened.properties[f"openslide.bounds-{n}"]) for n in ("x", "y", "width", "height"))
        assert (x, y) != (0, 0)
        for square in squares:
            left, top, right, bottom = np.rint([*square.min(axis=0), *square.max(axis=0)]).astype(int)
            pixels = np.asarray(opened.read_region((left, top), 0, (right - left, bottom - top)))
            # Scanned, and stained.
            assert (pixels[..., 3] > 0).mean() > 0.5
            assert np.ptp(pixels[..., :3], axis=-1)[pixels[..., 3] > 0].mean() > 12
    middles = squares.mean(axis=1)
    assert (middles > (x, y)).all()
    assert (middles < (x + width, y + height)).all()
    # Of a rectangle, also in level 0, those whose middles lie in it.
    half = drawn(location=[x, y], size=[width // 2, height])[0]
    inside = middles[:, 0] < x + width // 2
    assert 0 < inside.sum() < len(squares)
    assert sorted(half.tolist()) == sorted(squares[inside].tolist())


@pytest.mark.parametrize(
    ("conf", "text"),
    [
        ({"models": "spleen"}, "models: there is no 'spleen'."),
        ({"models": NAME, "share": "7"}, "models: none can be served. share: got '7'."),
        ({"models": NAME, "head": "40x"}, "models: none can be served. head: got '40x'. Give one of global, 5x, 10x."),
        ({"models": MISSING, "preload": "true"}, "models: none can be served. "),
        ({"models": WITHOUT}, "lacks configs/inference.json and models/model.pt."),
    ],
)
def test_a_server_that_could_not_answer_does_not_start(start, folder, conf, text):
    with pytest.raises(Exception, match="models") as refusal:
        start(folder, **conf)
    assert text in str(refusal.value)


class RemoteDatastore:
    """What the Digital Slide Archive's datastore does where a slide is not cached: an address, then a download."""

    def __init__(self, folder):
        self.folder = folder

    def list_images(self):
        return [DRAWN]

    def get_image_uri(self, image_id):
        return f"http://archive/item/{image_id}"

    def get_image(self, image_id, params):
        assert params == {"location": [0, 0], "size": [0, 0]}, "a region, not the slide, would be fetched"
        return str(self.folder / f"{image_id}.tif")

    def save_label(self, *_):
        raise NotImplementedError


def test_a_remote_slide_is_fetched_whole_and_a_label_that_cannot_be_kept_is_told(start, folder, oracle):
    app = start(folder, models=NAME)
    app.studies = "http://archive/api/v1"
    request = {"model": NAME, "image": DRAWN, "location": [10, 10], "size": [500, 500]}
    reply = app.infer_wsi(request, RemoteDatastore(folder))["params"]["annotations"][0]
    assert_scores(reply["scores"], oracle.scores[DRAWN])
    with pytest.raises(HTTPException) as refusal:
        app.infer({**request, "save_label": True}, RemoteDatastore(folder))
    assert refusal.value.status_code == 501
    assert refusal.value.detail.startswith("save_label: RemoteDatastore cannot save labels.")
    with pytest.raises(HTTPException) as refusal:
        app.infer({**request, "image": "gone"}, RemoteDatastore(folder))
    assert refusal.value.status_code == 404


def test_annotations_are_a_mask_of_which_classes_can_be_cut_out(start, folder):
    with openslide.OpenSlide(str(folder / f"{DRAWN}.tif")) as slide:
        width, height = slide.dimensions
    features = [annotation("Tissue", 0, 0, width, height), annotation("Pen", width // 2, 0, width, height)]
    (folder / "drawn.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    app, request = start(folder, models=NAME), {"model": NAME, "image": DRAWN, "mask": "drawn.geojson"}

    def heatmap(**more):
        return app.infer({**request, **more})["params"]

    with pytest.raises(HTTPException, match="'Tissue', 'Pen', and not all of them need be tissue") as refused:
        heatmap()
    assert refused.value.status_code == 422
    cut, whole = heatmap(mask_excluded=["Pen"]), heatmap(mask_tissue=["Tissue", "Pen"])
    assert 0 < cut["heatmap"]["patches"] < whole["heatmap"]["patches"]
    assert cut["annotation"]["elements"]
    for element in cut["annotation"]["elements"]:
        # At least half of a patch is tissue, and with that its centre.
        centres = np.array(element["contours"])[:, :4, 0].mean(axis=1)
        assert (centres <= width / 2).all()


def annotation(name, left, top, right, bottom):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": name}},
    }
