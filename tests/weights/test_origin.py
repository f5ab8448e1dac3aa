"""What tells the files of one training from those of another."""

from __future__ import annotations

from scripts.core.settings import with_role
from scripts.weights.origin import MAY_CHANGE, training_of


def test_a_training_is_told_by_what_stays_from_its_first_file_to_its_last() -> None:
    record = {"settings": {"method": "mustmil"}, "data": {"training_slides": 3}}
    made_by = {"seed": 0, "data": {"training": {"slides": 3}}, "git": None, "configuration": {"epochs": 5}}
    one = training_of(record, {"best_for": "global", "made_by": made_by})
    # Resumed for more epochs, with newer code.
    later = {**made_by, "git": {"revision": "a"}, "configuration": {"epochs": 9}}
    assert training_of(record, {"best_for": "5x", "made_by": later}) == one
    for change in ({"seed": 1}, {"data": {"training": {"slides": 4}}}, {"configuration": {"epochs": 5, "lr": 0.1}}):
        assert training_of(record, {"made_by": {**made_by, **change}}) != one
    assert training_of({**record, "data": {"training_slides": 4}}, {"made_by": made_by}) != one
    assert training_of(record, {}) == training_of(record, {"best_for": "5x"}) != one


def test_what_may_change_in_a_training_is_what_its_checkpoint_does_not_hold_fast() -> None:
    of_evaluating = {"partition"}
    assert set(MAY_CHANGE) == set(with_role("provenance")) - set(with_role("fixed")) - of_evaluating
