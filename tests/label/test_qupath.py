"""QuPath's script against a real server: the request is taken from the script's own text, so the two cannot drift."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote_plus

import numpy as np
import openslide
import pytest
import requests

from tests.label.fixtures import DRAWN, SCORE_ATOL, assert_scores
from tests.label.servers import REQUEST_S, ROOT
from tests.pyramids import BOUNDS_SLIDE

SCRIPT = (ROOT / "bundle" / "qupath" / "predict.groovy").read_text(encoding="utf-8")
SETTINGS = {name: json.loads(value) for name, value in re.findall(r'(?m)^def ([A-Z_]+) = ("[^"]*"|[\d.]+)', SCRIPT)}


def only(pattern):
    (found,) = re.findall(pattern, SCRIPT)
    return found


def slide_id(name):
    """What the script calls a slide of that file."""
    return re.sub(only(r"replaceFirst\(/(.+?)/, \"\"\)"), "", name)


def ask(server, image, **settings):
    """Send the script's request."""
    values = {**SETTINGS, "SERVER": server.url, **settings}
    address = only(r'URI\.create\("(.+?)"\)').replace("${encode(image)}", quote_plus(image))
    address = re.sub(r"\$\{(\w+)\}", lambda name: str(values[name[1]]), address)
    choices = {key: values[name] for key, name in re.findall(r"(\w+): (\w+)", only(r"def choices = \[(.+)\]"))}
    body = only(r'def body = "(\w+=)" \+ encode\(.*toJson\(choices\)\)') + quote_plus(json.dumps(choices))
    headers = dict([only(r'\.header\("(.+?)", "(.+?)"\)')])
    return requests.request(only(r"\.(GET|POST|PUT)\("), address, data=body, headers=headers, timeout=REQUEST_S)


def drawn(server, image, **settings):
    answer = ask(server, image, **settings)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_answer_has_what_the_script_reads(own, oracle):
    reply = drawn(own, DRAWN)
    assert set(re.findall(r"reply\.(\w+)", SCRIPT)) - {"detail"} <= reply.keys()
    assert set(re.findall(r"shown\.(\w+)", SCRIPT)) <= reply["heatmap"].keys()
    assert reply["annotation"]["elements"]
    for element in reply["annotation"]["elements"]:
        assert set(re.findall(r"element\.(\w+)", SCRIPT)) <= element.keys()
        assert len(element["contours"]) == len(element["values"]) == len(element["percentiles"]) > 0
        assert len(reply["annotation"]["labels"][element["label"]]) == 3
    assert reply["slide"] == DRAWN
    assert_scores(reply["scores"], oracle.scores[DRAWN])


@pytest.mark.parametrize("kind", ["attention", "contribution"])
def test_tiles_are_those_of_inferrings_geojson_with_the_same_measurements(own, oracle, kind):
    # Of contributions those that count for a class alone are shown, and one of the two may have none.
    reply = drawn(own, DRAWN, CLASSES="cancer,normal", KIND=kind)
    assert reply["annotation"]["elements"]
    for element in reply["annotation"]["elements"]:
        label = element["label"]
        names = {"shown.map": reply["heatmap"]["map"], "shown.kind": reply["heatmap"]["kind"], "element.label": label}
        of_script = [
            re.sub(r"\$\{([\w.]+)\}", lambda name, names=names: names[name[1]], template)
            for template in re.findall(r'put\("(\$\{shown\.kind\}.+?)"', SCRIPT)
        ]
        features = {
            tuple(feature["geometry"]["coordinates"][0][0]): feature["properties"]["measurements"]
            for feature in oracle.features(DRAWN, f"global_{label}" + ("" if kind == "attention" else f"_{kind}"))
        }
        of_reply = (element["contours"], element["percentiles"], element["values"])
        # The file's percentiles have one decimal.
        close = (0.05 + SCORE_ATOL, SCORE_ATOL)
        for contour, *found in zip(*of_reply, strict=True):
            wanted = [pytest.approx(one, abs=near) for one, near in zip(found, close, strict=True)]
            assert features[tuple(contour[0])] == dict(zip(of_script, wanted, strict=True))


@pytest.mark.skipif(not BOUNDS_SLIDE.is_file(), reason=f"no file {BOUNDS_SLIDE}")
def test_positions_are_counted_from_the_bounds_to_which_qupath_crops_a_slide(own):
    with openslide.OpenSlide(str(BOUNDS_SLIDE)) as slide:
        x, y, width, height = (int(slide.properties[f"openslide.bounds-{n}"]) for n in ("x", "y", "width", "height"))
    assert SETTINGS["COORDINATES"] == "qupath"
    found, level0 = (
        drawn(own, slide_id(BOUNDS_SLIDE.name), KIND="attention", CLASSES="cancer", **frame)
        for frame in ({}, {"COORDINATES": "level0"})
    )
    assert found["heatmap"]["origin_level0"] == [x, y] != [0, 0]
    squares, moved = (np.array(reply["annotation"]["elements"][0]["contours"]) for reply in (found, level0))
    assert len(squares) > 2
    assert squares == pytest.approx(moved - (x, y), abs=2e-3)
    # The script refuses tiles that lie outside of the image.
    assert (squares.max(axis=1) > 0).all()
    assert (squares.min(axis=1) < (width, height)).all()


def test_a_slide_is_called_as_the_server_calls_it(own, own_shell):
    there = own.ok("GET", "/datastore/?output=all").json()["objects"]
    slides = [path.name for path in Path(own_shell.names["STUDIES"]).iterdir() if path.suffix in (".svs", ".tiff")]
    assert {slide_id(name) for name in slides} <= there.keys()
    assert slide_id("case 1.ome.tif") == "case 1.ome"


@pytest.mark.parametrize(
    ("image", "settings", "status", "reason"),
    [
        ("slide_9", {}, 404, "slide_9: there is no such slide."),
        ("glass", {}, 422, "no tissue was found"),
        (DRAWN, {"MODEL": "mustmil"}, 404, "mustmil: there is no such model."),
        (DRAWN, {"HEAD": "20x"}, 400, "head: got '20x'. Give one of global, 5x, 10x."),
    ],
)
def test_a_refusal_has_the_reason_that_the_script_shows(own, image, settings, status, reason):
    answer = ask(own, image, **settings)
    assert answer.status_code == status
    assert "reply.detail" in SCRIPT
    assert reason in answer.json()["detail"]
