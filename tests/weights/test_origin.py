"""Which output a file of weights is best for, as it tells itself."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import pytest

from scripts.networks.state_record import origin_in, plain_metadata
from scripts.weights.origin import MAY_CHANGE, misplaced, training_of
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("path", "written_as", "told"),
    [
        ("models/model.pt", "model.pt", None),
        ("models/model_12.5x.pt", "model_12.5x.pt", None),
        ("models/model.pt", "model_5x.pt", "has the name of the best weights for global"),
        ("models/model_10x.pt", "model_5x.pt", "has the name of the best weights for 10x"),
        ("models/model_10x.pt", "model.pt", "has the name of the best weights for 10x"),
        # Names that training does not give: somebody's own.
        ("models/mine.pt", "model.pt", None),
        ("models/last.ckpt", "model_5x.pt", None),
        ("models/model_old.pt", "model_5x.pt", None),
        ("models/model.pt", None, None),  # an older file
    ],
)
def test_a_file_may_not_have_the_name_of_another_outputs_weights(
    path: str, written_as: str | None, told: str | None
) -> None:
    fault = misplaced(path, {} if written_as is None else {"file": written_as, "best_for": "5x"})
    if told is None:
        assert fault is None
        return
    assert fault is not None
    cause, remedy = fault
    assert cause == f"{told}, and holds those that are best for 5x"
    assert remedy.startswith(f"Call it {written_as}, as training did")


@pytest.mark.parametrize(
    "damaged",
    [
        "{",
        "[]",
        "null",
        '{"file": 5}',
        '{"best_for": ["5x"]}',
        5,
        None,
        '{"made_by": 3}',
        '{"made_by": {"configuration": null}}',
    ],
)
def test_an_origin_of_another_form_is_damaged(damaged: object) -> None:
    assert origin_in({"origin": damaged}) is None


def test_an_origin_is_read_from_what_pytorch_keeps_beside_the_tensors() -> None:
    origin = {"best_for": "5x", "file": "model_5x.pt", "made_by": {"seed": 0}}
    state: Any = OrderedDict()
    state._metadata = {"": {"version": 1, "origin": json.dumps(origin)}}
    assert origin_in(plain_metadata(state)) == origin
    assert origin_in(plain_metadata({})) == {}
    state._metadata = "no mapping"
    assert plain_metadata(state) == {}


def test_a_training_is_told_by_what_stays_from_its_first_file_to_its_last() -> None:
    record = {"settings": {"method": "mustmil"}, "data": {"training_slides": 3}}
    made_by = {"seed": 0, "data": {"training": {"slides": 3}}, "git": None, "configuration": {"epochs": 5}}
    one = training_of(record, {"file": "model.pt", "made_by": made_by})
    # Resumed for more epochs, with newer code.
    later = {**made_by, "git": {"revision": "a"}, "configuration": {"epochs": 9}}
    assert training_of(record, {"file": "model_5x.pt", "made_by": later}) == one
    for change in ({"seed": 1}, {"data": {"training": {"slides": 4}}}, {"configuration": {"epochs": 5, "lr": 0.1}}):
        assert training_of(record, {"made_by": {**made_by, **change}}) != one
    assert training_of({**record, "data": {"training_slides": 4}}, {"made_by": made_by}) != one
    assert training_of(record, {}) == training_of(record, {"file": "model_5x.pt"}) != one


def test_what_may_change_in_a_training_is_what_its_checkpoint_does_not_hold_fast() -> None:
    config = json.loads((ROOT / "configs" / "train.json").read_text())
    assert set(MAY_CHANGE) == set(config["made_by"]["configuration"]) - set(config["same_settings"]["settings"])
