"""Classes of which nothing can be learned are told of."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from scripts.datalists.classes import ONE_SIDED_REMEDY, one_sided, warn_of_one_sided

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("labels", "names", "told"),
    [
        ([[0], [0]], ["x"], "no slide has x"),
        ([[1], [1]], ["x"], "every slide has x"),
        ([[0], [1]], ["x"], ""),
        ([[1, 0, 0], [0, 1, 0]], NAMES, "no slide has c"),
        ([[1, 0, 0], [1, 0, 1]], NAMES, "no slide has b; every slide has a"),
        ([[0, 0, 0]], NAMES, "no slide has a, b, c"),
        ([], NAMES, ""),
    ],
)
def test_one_sided(labels, names, told):
    assert one_sided([np.array(label, np.float32) for label in labels], names) == told


def entries(*labels):
    return [{"label": np.array(label, np.float32)} for label in labels]


def test_the_warning_is_one_line_for_all_partitions(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_one_sided(
            NAMES, {"training": entries([1, 0, 0], [0, 1, 0]), "validation": entries([1, 0, 1], [1, 1, 0])}
        )
    (record,) = caplog.records
    assert record.getMessage() == f"training: no slide has c; validation: every slide has a. {ONE_SIDED_REMEDY}"


def test_without_such_classes_nothing_is_said_nor_on_other_ranks(caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        warn_of_one_sided(["x"], {"training": entries([0], [1]), "validation": entries([1], [0])})
        monkeypatch.setattr("scripts.datalists.classes.is_first_rank", lambda: False)
        warn_of_one_sided(["x"], {"training": entries([0], [0]), "validation": entries([1], [0])})
    assert not caplog.records


def test_with_patients_as_bags_it_is_of_patients(caplog):
    of_slides = [("p", [1, 0, 0]), ("p", [0, 1, 0]), ("q", [1, 1, 0])]
    data = [
        {"slide": f"s{i}", "patient": patient, "label": np.array(label, np.float32)}
        for i, (patient, label) in enumerate(of_slides)
    ]
    with caplog.at_level(logging.WARNING):
        warn_of_one_sided(NAMES, {"training": data}, unit="patient")
    # No class is in every slide.
    assert caplog.messages == [f"training: no patient has c; every patient has a, b. {ONE_SIDED_REMEDY}"]
