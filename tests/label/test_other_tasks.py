"""Bundles whose slides have exactly one class, whose bags are patients, or that are ensembles, in both apps."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from monailabel.utils.others.class_utils import get_class_of_subclass_from_file

from tests.label.fixtures import (
    DRAWN,
    GRADES,
    NAME,
    NUM_SLIDES,
    OTHERS,
    SCORE_ATOL,
    STEPS,
    assert_decisions,
    assert_is_map,
    assert_scores,
    prediction_of,
)

MULTICLASS, ORDINAL, PATIENT, ENSEMBLE = OTHERS
MAPS = {MULTICLASS: GRADES, ORDINAL: STEPS, PATIENT: STEPS, ENSEMBLE: GRADES}
ALONE = "These weights predict patients from all of their slides, and this is one slide alone."

each = pytest.mark.parametrize("name", OTHERS)


@each
def test_our_app_answers_with_the_scores_and_decisions_of_inferring(own, other_oracles, name):
    reply, oracle = own.infer(name, DRAWN), other_oracles[name]
    assert_scores(reply["scores"], oracle.scores[DRAWN])
    assert_decisions(reply["operating_point"], oracle.decisions[DRAWN])
    assert prediction_of(reply) == reply["scores"]["global"]
    assert list(reply["scores"]["global"]) == GRADES
    for of_head in reply["operating_point"].values():
        assert sum(of_class["decision"] for of_class in of_head.values()) == 1
        assert sum(of_class["calibrated"] for of_class in of_head.values()) == pytest.approx(1, abs=1e-5)
    assert reply["decision"] == [name for name, one in reply["operating_point"]["global"].items() if one["decision"]]
    assert "threshold" not in reply["prediction"][0]


@each
def test_the_stock_app_names_the_same_scores_by_the_same_classes(stock, other_oracles, name):
    reply, oracle = stock.infer(name, DRAWN), other_oracles[name]
    # It lower-cases names.
    wanted = {of_class.lower(): score for of_class, score in oracle.scores[DRAWN]["global"].items()}
    assert prediction_of(reply) == pytest.approx(wanted, abs=SCORE_ATOL)
    assert_decisions(reply["latencies"]["transform"]["operating_point"], oracle.decisions[DRAWN])
    assert stock.ok("GET", "/info/").json()["models"][name]["labels"] == {
        of_class.lower(): index for index, of_class in enumerate(GRADES)
    }


@each
def test_maps_are_those_of_inferring_of_what_the_logits_stand_for(own, other_oracles, name):
    reply = own.infer(name, DRAWN, head="5x", kind="contribution", classes="all", threshold=-1e9)
    elements = {element["label"]: element for element in reply["annotation"]["elements"]}
    assert list(elements) == MAPS[name]
    for of_map, element in elements.items():
        stem = f"5x_{of_map.replace(' ', '_')}_contribution"
        assert_is_map(element, other_oracles[name].features(DRAWN, stem))


@each
def test_the_plugins_show_one_class_that_is_decided_and_no_threshold(own, name):
    told = own.wsi(name, DRAWN).json()["description"].split("; ")[0]
    assert (told.count("yes"), told.count("no)")) == (1, 2)
    assert " at " not in told


def test_weights_of_patients_say_that_this_is_one_slide(own):
    assert ALONE in own.infer(PATIENT, DRAWN)["notice"]
    assert ALONE in own.wsi(PATIENT, DRAWN).json()["description"]
    assert ALONE not in own.infer(ORDINAL, DRAWN)["notice"]


def test_the_spread_of_an_ensemble_is_served(own, stock, other_oracles):
    with (other_oracles[ENSEMBLE].folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        wanted = {row["head"]: [float(row[f"{grade}_spread"]) for grade in GRADES] for row in csv.DictReader(file)}
    replies = [
        own.infer(ENSEMBLE, DRAWN)["operating_point"],
        stock.infer(ENSEMBLE, DRAWN)["latencies"]["transform"]["operating_point"],
    ]
    for reply in replies:
        for head, spreads in wanted.items():
            assert [reply[head][grade]["spread"] for grade in GRADES] == pytest.approx(spreads, abs=SCORE_ATOL)
    assert max(max(spreads) for spreads in wanted.values()) > 0
    assert "spread" in own.infer(ENSEMBLE, DRAWN)["prediction"][0]
    assert "spread" not in own.infer(MULTICLASS, DRAWN)["prediction"][0]


def app_with_slides(own_shell, cohort, folder, model):
    """Our app in this process, with the slides of a cohort."""
    studies, own = folder / "studies", Path(own_shell.names["APPS"], "mustmil")
    studies.mkdir()
    for path in (cohort / "slides").iterdir():
        shutil.copy(path, studies / f"{path.stem}.tif")
    make = get_class_of_subclass_from_file("main", str(own / "main.py"), "MONAILabelApp")
    return make(str(own), str(studies), {"models": model}), studies, own / "model" / model / "models"


def test_an_ensemble_is_not_trained(own_shell, cohort, tmp_path):
    app, _, models = app_with_slides(own_shell, cohort, tmp_path, ENSEMBLE)
    before = models.joinpath("model.pt").read_bytes()
    for pretrained in (True, False):
        with pytest.raises(Exception, match=r"model\.pt: is an ensemble: no training goes on from one"):
            app.train({"model": ENSEMBLE, "max_epochs": 1, "device": "cpu", "pretrained": pretrained})
    assert models.joinpath("model.pt").read_bytes() == before


def test_saved_predictions_of_one_class_are_labels_that_a_training_takes(own_shell, cohort, tmp_path):
    app, studies, models = app_with_slides(own_shell, cohort, tmp_path, PATIENT)
    before = models.joinpath("model.pt").read_bytes()
    for number in range(NUM_SLIDES):
        image = f"demo_{number:03}"
        app.infer({"model": PATIENT, "image": image, "save_label": True, "label_tag": "final"})
        (path,) = (studies / "labels" / "final").glob(f"{image}*")
        label = json.loads(path.read_text())["label"]
        assert list(label) == GRADES
        assert sum(label.values()) == 1
    app.train({"model": PATIENT, "max_epochs": 1, "val_split": 0.3, "device": "cpu"})
    assert models.joinpath("model.pt").read_bytes() != before
    assert app.infer({"model": PATIENT, "image": DRAWN})["params"]["weights"]["settings"]["unit"] == "patient"


def test_every_model_is_served_beside_the_others(own, stock):
    for server in (own, stock):
        assert {NAME, *OTHERS} <= server.ok("GET", "/info/").json()["models"].keys()
