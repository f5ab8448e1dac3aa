"""The bundle in our own app: every output's scores, heatmaps as plugins read them, labels, and reasons of failure."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import openslide
import pytest

from tests.hostile import RunsCode
from tests.label.fixtures import (
    CHANGED,
    DRAWN,
    EXITING,
    FORMLESS,
    MISRECORDED,
    MISSING,
    NAME,
    PICKLED,
    PREFIXED,
    REAL,
    REAL_SLIDE,
    SECOND,
    TEXT,
    TRUNCATED,
    UNRECORDED,
    WITHOUT,
    assert_decisions,
    assert_is_map,
    assert_scores,
    patches_of_geojson,
    prediction_of,
)
from tests.label.servers import ROOT

# As the plugins send them: QuPath's RequestInfer, and the body of DSA's MONAILabelAnnotation.
QUPATH = {
    "level": 0,
    "location": [0, 0],
    "size": [0, 0],
    "tile_size": [1024, 1024],
    "min_poly_area": 30,
    "params": {"foreground": [], "background": [], "max_workers": 1},
}
DSA = {
    "level": 0,
    "location": [-1.0, -1.0],
    "size": [-1.0, -1.0],
    "tile_size": [1024, 1024],
    "min_poly_area": 80.0,
    "output": "dsa",
    "girder_api_url": "http://127.0.0.1/api/v1",
    "girder_token": "",
    "client_id": None,
}


def test_the_server_lists_what_there_is_to_choose(own):
    models = own.ok("GET", "/info/").json()["models"]
    assert models[NAME]["heads"] == ["global", "5x", "10x"]
    assert models[NAME]["config"]["head"] == ["global", "5x", "10x"]
    assert models[NAME]["config"]["kind"] == ["attention", "contribution"]
    assert models[NAME]["config"]["model_filename"][0] == "model.pt"
    assert models[SECOND]["version"] == "99.0.0"
    # One that cannot be served is in nobody's way.
    assert WITHOUT not in models


def test_every_outputs_scores_are_those_of_inferring(own, oracle, slide):
    reply = own.infer(NAME, slide)
    assert_scores(reply["scores"], oracle.scores[slide])
    assert prediction_of(reply) == reply["scores"]["global"]
    assert reply["model"] == NAME
    assert reply["notice"].startswith("Demonstration weights: synthetic slides were among those")
    assert "not for diagnosis" in reply["notice"]


@pytest.mark.parametrize("kind", ["attention", "contribution"])
@pytest.mark.parametrize("head", ["global", "5x", "10x"])
def test_a_map_has_the_tiles_and_values_of_inferrings_heatmap(own, oracle, slide, head, kind):
    least = -1e9
    reply = own.infer(NAME, slide, head=head, kind=kind, classes=["cancer", "normal"], threshold=least)
    stem = "" if kind == "attention" else "_contribution"
    elements = {element["label"]: element for element in reply["annotation"]["elements"]}
    assert list(elements) == ["cancer", "normal"]
    for name, element in elements.items():
        assert_is_map(element, oracle.features(slide, f"{head}_{name}{stem}"))
    assert reply["heatmap"]["patches"] == reply["heatmap"]["drawn"] / 2
    assert reply["annotation"]["labels"]["cancer"] == [214, 39, 40]


@pytest.mark.skipif(not REAL_SLIDE.is_file(), reason=f"no file {REAL_SLIDE}")
@pytest.mark.parametrize(("head", "mpp"), [("5x", 2.0), ("10x", 1.0)])
def test_patches_lie_on_the_grid_of_their_magnification_in_pixels_of_the_file(own, head, mpp):
    with openslide.OpenSlide(str(REAL_SLIDE)) as file:
        side = 224 * mpp / float(file.properties[openslide.PROPERTY_NAME_MPP_X])
        width, height = file.dimensions
    reply = own.infer(NAME, REAL, head=head, classes="cancer", share=1)
    contours = np.array(reply["annotation"]["elements"][0]["contours"])  # [n, 4, 2]
    np.testing.assert_allclose(contours / side, np.round(contours / side), atol=1e-4)
    np.testing.assert_allclose(contours[:, 2] - contours[:, 0], side, atol=2e-3)
    assert (contours[:, 0] >= 0).all()
    assert (contours[:, 0] < (width, height)).all()


def test_qupaths_request_gets_the_hottest_patches_as_asaps_xml(own, oracle, slide):
    answer = own.ok("POST", f"/infer/wsi/{NAME}?output=asap&image={slide}", json=QUPATH)
    root = ET.fromstring(answer.text)
    predicted = max(oracle.scores[slide]["global"], key=oracle.scores[slide]["global"].get)
    contours = {}
    for annotation in root.iter("Annotation"):
        # What RunInference.java reads.
        assert int(annotation.attrib["Color"].removeprefix("#"), 16) >= 0
        points = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in annotation.iter("Coordinate")]
        contours.setdefault(annotation.attrib["Name"], []).append(points)
    assert predicted in contours
    if predicted == "cancer":
        patches = patches_of_geojson(oracle.features(slide, "global_cancer"))
        hottest = max(patches, key=lambda corner: patches[corner][1])
        assert hottest in [points[0] for points in contours["cancer"]]
        assert len(contours["cancer"]) >= np.ceil(0.1 * len(patches))
    assert "5x: cancer" in root.find("Annotations").attrib["Description"]


def test_dsas_request_gets_the_same_polygons_as_its_json(own):
    body = {**DSA, "params": {"wsi_tiles": [], "head": "5x", "classes": "all", "share": 0.5}}
    answer = own.ok("POST", f"/infer/wsi/{NAME}?image={DRAWN}&output=dsa", json=body)
    document = answer.json()
    reply = own.infer(NAME, DRAWN, head="5x", classes="all", share=0.5)
    wanted = [
        (element["label"], [[*point, 0] for point in contour])
        for element in reply["annotation"]["elements"]
        for contour in element["contours"]
    ]
    assert [(element["group"], element["points"]) for element in document["elements"]] == wanted
    assert {element["lineColor"] for element in document["elements"] if element["group"] == "cancer"} == {
        "rgb(214,39,40)"
    }
    assert all(element["closed"] for element in document["elements"])
    description = json.loads(document["description"])
    assert description["count"] == len(wanted)
    assert "global: cancer" in description["desc"]


def test_a_plain_whole_slide_request_runs_once_and_draws_the_whole_slide(own, oracle):
    # Without a size MONAI Label fills in 2048 x 2048 pixels, and the stock app cuts and repeats.
    reply = own.wsi(NAME, DRAWN).json()
    (annotation,) = reply["annotations"]
    assert_scores(annotation["scores"], oracle.scores[DRAWN])
    tiled = own.wsi(NAME, DRAWN, size=[0, 0], tile_size=[64, 64], params={"multi_gpu": True, "device": "cuda"}).json()
    assert tiled["annotations"][0]["annotation"] == annotation["annotation"]
    everywhere = np.array(own.infer(NAME, DRAWN, share=1)["annotation"]["elements"][0]["contours"])
    assert everywhere.max() > 2048 + 448


def test_a_rectangle_decides_what_is_drawn_and_not_the_scores(own, oracle):
    whole = own.infer(NAME, DRAWN, classes="cancer", share=1)["annotation"]["elements"][0]["contours"]
    left, top = whole[0][0]
    side = whole[0][1][0] - left
    wsi = {"location": [int(left), int(top)], "size": [int(side), int(side)]}
    reply = own.wsi(NAME, DRAWN, **wsi, params={"classes": "cancer", "share": 1}).json()["annotations"][0]
    assert reply["annotation"]["elements"][0]["contours"] == [whole[0]]
    assert_scores(reply["scores"], oracle.scores[DRAWN])


def test_the_decisions_are_those_of_inferring_in_the_reply_and_in_the_words_of_the_plugins(own, oracle, slide):
    reply = own.infer(NAME, slide)
    assert_decisions(reply["operating_point"], oracle.decisions[slide])
    assert "operating_point" not in reply["latencies"]["transform"]
    for entry in reply["prediction"]:
        of_class = reply["operating_point"]["global"][entry["label"]]
        assert {key: entry[key] for key in of_class} == of_class
        assert of_class["decision"] == (of_class["calibrated"] >= of_class["threshold"])
    told = own.wsi(NAME, slide).json()["description"]
    for head, of_head in reply["operating_point"].items():
        for name, one in of_head.items():
            decision = f"calibrated {one['calibrated']:.2f}, {'yes' if one['decision'] else 'no'} at 0.50"
            assert f"{name} {reply['scores'][head][name]:.2f} ({decision})" in told


def test_weights_without_an_operating_point_have_scores_alone(own, oracle):
    reply = own.infer(UNRECORDED, DRAWN)
    assert_scores(reply["scores"], oracle.scores[DRAWN])
    assert reply["operating_point"] is None
    assert all(entry.keys() == {"idx", "label", "score"} for entry in reply["prediction"])
    assert "calibrated" not in own.wsi(UNRECORDED, DRAWN).json()["description"]


def test_two_versions_answer_in_turn_each_with_its_own_code_and_weights(own, oracles):
    for name in (SECOND, NAME, SECOND, NAME):
        assert_scores(own.infer(name, DRAWN)["scores"], oracles[name].scores[DRAWN])
    assert oracles[SECOND].scores[DRAWN] != oracles[NAME].scores[DRAWN]


def test_a_chosen_file_of_weights_is_the_one_that_answers(own, own_shell):
    # Files out of one zip have one time of writing, by which MONAI Label tells them apart.
    models = Path(own_shell.names["APPS"], "mustmil", "model", SECOND, "models")
    assert models.joinpath("model_5x.pt").is_file()
    second, first = (own.infer(SECOND, DRAWN, model_filename=name) for name in ("model_5x.pt", "model.pt"))
    assert first["scores"] != second["scores"]
    assert own.infer(SECOND, DRAWN)["scores"] == first["scores"]


def test_a_result_is_saved_as_the_label_of_its_slide(own, own_shell):
    saved = json.loads(own_shell.run("save").split("}{", 1)[1].join(["{", ""]))
    reply = own.infer(NAME, DRAWN)
    decided = reply["operating_point"]["global"]
    assert saved["label"] == {name: int(of_class["decision"]) for name, of_class in decided.items()}
    assert saved["operating_point"] == reply["operating_point"]
    assert_scores(saved["scores"], reply["scores"])
    assert saved["slide"] == DRAWN
    assert saved["model"] == {"name": NAME, "version": reply["version"], "weights": reply["weights"]}
    assert own.ok("GET", "/datastore/?output=all").json()["objects"][DRAWN]["labels"].keys() >= {"original"}


REFUSALS = [
    (NAME, "no_slide", {}, 404, "no_slide: there is no such slide. GET /datastore/"),
    ("no_model", DRAWN, {}, 404, "no_model: there is no such model. Give one of"),
    (NAME, "glass", {}, 422, "glass.tiff: no tissue was found."),
    (NAME, "unscaled", {}, 422, "unscaled.tiff: the file carries no resolution"),
    (NAME, "broken", {}, 422, "broken.svs: cannot be read as a slide"),
    (NAME, DRAWN, {"head": "20x"}, 400, "head: got '20x'. Give one of global, 5x, 10x."),
    (NAME, DRAWN, {"classes": "tumour"}, 400, "classes: got ['tumour']. Give one or more of cancer, hgd,"),
    (NAME, DRAWN, {"kind": "gradient"}, 400, "kind: got 'gradient'. Give one of attention, contribution."),
    (NAME, DRAWN, {"share": 5}, 400, "share: got 5. Give the share of the patches to draw, in 0..1"),
    (NAME, DRAWN, {"device": "tpu"}, 400, "device: got 'tpu'. Give one of cpu"),
    (NAME, DRAWN, {"model_filename": "../x.pt"}, 400, "model_filename: got '../x.pt'. Give one of model.pt"),
    (NAME, DRAWN, {"save_label": True, "label_tag": "../x"}, 400, "label_tag: got '../x'."),
    (NAME, DRAWN, {"mpp": -1}, 400, "mpp: got -1. Give the micrometres per pixel of the slide"),
    (NAME, DRAWN, {"threshold": 10**400}, 400, "threshold: got 1000"),
    (NAME, DRAWN, {"device": 3}, 400, "device: got 3. Give one of cpu"),
    (NAME, DRAWN, {"device": "meta"}, 400, "device: got 'meta'. Give one of cpu"),
    (NAME, DRAWN, {"device": "cpu:7"}, 400, "device: got 'cpu:7'. Give one of cpu"),
    (NAME, DRAWN, {"logging": "x"}, 400, "logging: got 'x'. Give one of CRITICAL"),
    (NAME, DRAWN, {"mask": 3}, 400, "mask: got 3. Give the path of a file in the server's folder"),
    (NAME, DRAWN, {"mask": "/etc/hostname"}, 400, "mask: /etc/hostname is not in the server's folder of slides."),
    # The server runs in the repository's root: what lies there is no slide.
    (NAME, "README.md", {}, 404, "README.md: there is no such slide."),
    (NAME, "/etc/hostname", {}, 404, "/etc/hostname: there is no such slide."),
    (MISSING, DRAWN, {}, 500, "model.pt: the weights do not load"),
    (PREFIXED, DRAWN, {}, 500, "model.pt: the weights do not load"),
    (TRUNCATED, DRAWN, {}, 500, "model.pt: the weights do not load"),
    (TEXT, DRAWN, {}, 500, f"{TEXT}/models/model.pt: the weights do not load"),
    (MISRECORDED, DRAWN, {}, 500, f"{MISRECORDED}/models/model.pt: "),
    (CHANGED, DRAWN, {}, 500, f"{CHANGED}/models/model.pt: its SHA-256 begins with "),
    (
        PICKLED,
        DRAWN,
        {},
        500,
        f"{PICKLED}/models/model.pt: the weights do not load (UnpicklingError: Unsupported global: GLOBAL io.open",
    ),
    (WITHOUT, DRAWN, {}, 500, "weightless_classification: it is not served."),
    (EXITING, DRAWN, {}, 500, f"/{EXITING}: unexpected SystemExit (3)."),
    (FORMLESS, DRAWN, {}, 500, f"{FORMLESS}/configs/metadata.json: has no network_data_format with inputs."),
]


@pytest.mark.parametrize(("model", "image", "params", "status", "text"), REFUSALS)
def test_a_client_is_told_why_a_request_failed(own, model, image, params, status, text):
    path = f"{model}?image={image}&output=json"
    plain = own.refusal("POST", f"/infer/{path}", data={"params": json.dumps(params)})
    assert plain[0] == status, plain
    assert text in plain[1]
    assert "\n" not in plain[1]
    assert own.refusal("POST", f"/infer/wsi_v2/{path}", data={"wsi": json.dumps({"params": params})}) == plain


def test_weights_that_hold_code_do_not_run_it(own, own_shell):
    folder = Path(own_shell.names["APPS"], "mustmil", "model", PICKLED)
    own.refusal("POST", f"/infer/{PICKLED}?image={DRAWN}&output=json", data={"params": "{}"})
    assert not (folder / "ran").exists()
    RunsCode(folder / "ran").run()
    assert (folder / "ran").exists(), "the code does nothing, so that this test says nothing"


def test_a_resolution_from_the_client_or_kept_with_the_slide_is_used(own):
    given, coarser = (own.infer(NAME, "unscaled", mpp=mpp)["heatmap"]["patches"] for mpp in (0.5, 1.0))
    # 2000 px have room for 4 x 4 patches of 448 px, or 8 x 8 of 224.
    assert 1 <= given <= 16
    assert given < coarser <= 64
    own.ok("PUT", "/datastore/image/info?image=unscaled", data={"info": json.dumps({"mpp": 0.5})})
    assert own.infer(NAME, "unscaled")["heatmap"]["patches"] == given


def test_the_slide_that_was_scored_is_told_whatever_the_address_said(own, oracle, studies):
    # MONAI Label lets parameters replace the address before any app sees them.
    for image in ("demo_001", str(studies / "demo_001.tiff")):
        params = {"params": json.dumps({"image": DRAWN})}
        reply = own.ok("POST", f"/infer/{NAME}?image={image}&output=json", data=params).json()
        assert reply["slide"] == DRAWN
        assert_scores(reply["scores"], oracle.scores[DRAWN])
    assert own.infer(NAME, str(studies / f"{DRAWN}.tiff"))["slide"] == f"{DRAWN}.tiff"


def test_a_file_where_the_server_runs_does_not_take_the_place_of_a_slide(own, oracle):
    decoy = ROOT / DRAWN
    decoy.write_text("no slide", encoding="utf-8")
    try:
        assert_scores(own.infer(NAME, DRAWN)["scores"], oracle.scores[DRAWN])
    finally:
        decoy.unlink()


def test_null_leaves_a_parameter_out(own, oracle):
    reply = own.infer(NAME, DRAWN, model_filename=None, logging=None, mask=None, device=None)
    assert_scores(reply["scores"], oracle.scores[DRAWN])


def test_weights_without_a_record_say_so(own):
    reply = own.infer(UNRECORDED, DRAWN)
    assert reply["weights"].keys() == {"sha256"}
    assert reply["notice"].startswith("These weights tell nothing of their training")
    assert "not for diagnosis" in reply["notice"]


def test_an_upload_cannot_leave_the_folder_of_slides(own, studies):
    label = {"label": ("label.json", b"{}")}
    status, reason = own.refusal("PUT", f"/datastore/label?image={DRAWN}&tag=../../evil", files=label)
    assert (status, reason.startswith("tag: got '../../evil'.")) == (400, True)
    slide = {"file": ("x.tiff", b"")}
    status, reason = own.refusal("PUT", "/datastore/?image=../evil", files=slide)
    assert (status, reason.startswith("image: got '../evil'.")) == (400, True)
    assert not list(studies.parent.rglob("evil*"))


def test_a_training_that_would_not_use_the_labels_is_refused_in_its_details(own):
    own.ok("POST", f"/train/{NAME}", json={"val_split": -1})
    end = time.monotonic() + 120
    while (task := own.ok("GET", "/train/").json())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < end
        time.sleep(0.5)
    assert task["status"] == "ERROR"
    assert "val_split: got -1. Give the share of the labelled slides" in task["details"][-1]


def test_an_unknown_model_is_not_trained(own):
    status, reason = own.refusal("POST", "/train/no_model", json={})
    assert (status, "there is no such model" in reason) == (404, True)


def test_a_slide_that_the_server_has_not_is_predicted_from_an_upload(own, cohort, oracle):
    with (cohort / "slides" / f"{DRAWN}.tiff").open("rb") as file:
        path = f"/infer/wsi_v2/{NAME}?output=json"
        reply = own.ok("POST", path, files={"file": ("elsewhere.tiff", file)}).json()
        assert_scores(reply["annotations"][0]["scores"], oracle.scores[DRAWN])
        file.seek(0)
        saving = {"wsi": json.dumps({"params": {"save_label": True}})}
        status, reason = own.refusal("POST", path, files={"file": ("elsewhere.tiff", file)}, data=saving)
    assert status == 422
    assert "is no slide of the datastore" in reason


def test_training_without_labels_tells_what_is_missing(trainings):
    task = trainings["mustmil"].unlabelled
    assert task["status"] == "ERROR"
    assert re.search(r"train: 0 of \d slides have a final label. Label 2 or more", task["details"][-1])


def test_training_from_uploaded_labels_gives_weights_that_answer(trainings):
    training = trainings["mustmil"]
    assert training.task["status"] == "DONE", "\n".join(training.task["details"])
    assert training.after["scores"]["global"] != pytest.approx(training.before["scores"]["global"], abs=0.01)
    assert_scores(training.after["scores"], training.wanted)
