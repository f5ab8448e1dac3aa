"""The bundle in MONAI Label's stock app: the whole chain of packing, serving, downloading, predicting and training."""

from __future__ import annotations

import json

import pytest

from tests.label.fixtures import (
    DRAWN,
    MISSING,
    NAME,
    PREFIXED,
    SCORE_ATOL,
    SECOND,
    assert_decisions,
    prediction_of,
)


def test_the_server_lists_the_bundle_with_its_classes_and_version(stock, packed):
    info = stock.ok("GET", "/info/").json()
    model = info["models"][NAME]
    assert model["type"] == "classification"
    assert model["labels"] == {"cancer": 0, "hgd": 1, "lgd": 2, "hyperplastic": 3, "normal": 4}
    assert packed.name == f"{NAME}_v{model['version']}.zip"
    assert info["models"][SECOND]["version"] == "99.0.0"
    assert NAME in info["trainers"]


def test_scores_are_those_of_inferring(stock, oracle, slide):
    assert prediction_of(stock.infer(NAME, slide)) == pytest.approx(oracle.scores[slide]["global"], abs=SCORE_ATOL)


def test_the_decisions_are_those_of_inferring_with_the_weights_that_answered(stock, oracles, slide):
    for name in (NAME, SECOND):
        told = stock.infer(name, slide)["latencies"]["transform"]["operating_point"]
        assert_decisions(told, oracles[name].decisions[slide])


def test_the_guides_commands_answer_the_same(stock, stock_shell, oracle):
    wanted = pytest.approx(oracle.scores[DRAWN]["global"], abs=SCORE_ATOL)
    assert prediction_of(json.loads(stock_shell.run("stock-predict"))) == wanted
    (annotation,) = json.loads(stock_shell.run("stock-wsi"))["annotations"]
    assert prediction_of(annotation) == wanted


def test_two_versions_answer_in_turn_each_with_its_own_code_and_weights(stock, oracles):
    for name in (SECOND, NAME, SECOND, NAME):
        wanted = oracles[name].scores[DRAWN]["global"]
        assert prediction_of(stock.infer(name, DRAWN)) == pytest.approx(wanted, abs=SCORE_ATOL), name
    assert max(oracles[SECOND].scores[DRAWN]["global"].values()) <= 0.5


@pytest.mark.parametrize("name", [MISSING, PREFIXED])
def test_weights_that_do_not_load_give_no_scores(stock, name):
    # The stock app itself loads what fits, and would answer with the scores of a random network.
    answer = stock.request("POST", f"/infer/{name}?image={DRAWN}&output=json")
    assert answer.status_code == 500
    assert stock.logs("SettingsError: weights: the file lacks")


def test_training_from_uploaded_labels_gives_weights_that_answer(trainings, oracle):
    training = trainings["monaibundle"]
    assert training.task["status"] == "DONE", "\n".join(training.task["details"])
    before, after = prediction_of(training.before), prediction_of(training.after)
    assert before == pytest.approx(oracle.scores[DRAWN]["global"], abs=SCORE_ATOL)
    assert after != pytest.approx(before, abs=0.01)
    assert after == pytest.approx(training.wanted["global"], abs=SCORE_ATOL)
    # Of all files in `models` the stock app takes the one with the shortest name.
    assert min(training.files, key=len) == "model.pt"
