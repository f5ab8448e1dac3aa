"""Which slides are one bag: each alone, or all of a patient."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.errors import DatalistError, SettingsError
from scripts.datalists.datalist import list_slides
from scripts.datalists.units import bags_of, check_patients, slides_in, united_label, warn_of_patients


def entry(slide, patient=None, label=(1, 0)):
    owner = {} if patient is None else {"patient": patient}
    return {"image": f"/{slide}.svs", "slide": slide, "label": np.array(label, np.float32), **owner}


COHORT = [entry("a", "P1"), entry("b", "P2", (0, 1)), entry("c", "p1", (0, 1)), entry("d")]


def names(bags):
    return {bag["slide"]: [slide["slide"] for slide in slides_in(bag)] for bag in bags}


def test_a_bag_of_a_slide_is_its_entry():
    bags = bags_of(COHORT)
    assert all(bag is slide for bag, slide in zip(bags, COHORT, strict=True))
    assert names(bags) == {"a": ["a"], "b": ["b"], "c": ["c"], "d": ["d"]}


def test_a_bag_of_a_patient_has_all_of_their_slides_however_the_name_is_spelled():
    bags = bags_of(COHORT, "patient")
    assert names(bags) == {"P1": ["a", "c"], "P2": ["b"], "d": ["d"]}
    assert [bag["patient"] for bag in bags] == ["P1", "P2", "d"]
    assert slides_in(bags[0]) == [COHORT[0], COHORT[2]]


def test_a_patient_has_every_class_that_a_slide_has():
    assert [bag["label"].tolist() for bag in bags_of(COHORT, "patient")] == [[1, 1], [0, 1], [1, 0]]
    unlabelled = [{"image": "/a.svs", "slide": "a", "patient": "P1"}]
    assert "label" not in bags_of(unlabelled, "patient")[0]


@given(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_label_of_a_patient_is_the_union(labels):
    expected = [int(any(label[k] for label in labels)) for k in range(3)]
    assert united_label([np.array(label, np.float32) for label in labels]).tolist() == expected


def test_what_is_left_out_changes_neither_order_nor_names_of_the_others():
    assert names(bags_of(COHORT, "patient", ["a"])) == {"P1": ["c"], "P2": ["b"], "d": ["d"]}
    assert names(bags_of(COHORT, "patient", ["a", "c"])) == {"P2": ["b"], "d": ["d"]}
    assert bags_of(COHORT, "patient", ["a"])[0]["label"].tolist() == [0, 1]
    with pytest.raises(DatalistError, match="no slide of a partition is left"):
        bags_of(COHORT, "patient", ["a", "b", "c", "d"])


def test_another_unit_is_refused():
    with pytest.raises(SettingsError, match=r"unit: got 'block'\. Set it to slide or patient|unit: got 'block'"):
        bags_of(COHORT, "block")


def told(bags, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_patients(bags)
    return [record.getMessage() for record in caplog.records]


def test_patients_whose_slides_differ_are_named(caplog):
    (text,) = told(bags_of(COHORT, "patient"), caplog)
    assert text.startswith("slides of 1 of 3 patients have different labels (P1): each of these patients has every")
    alike = [entry("a", "P1"), entry("b", "P1")]
    assert told(bags_of(alike, "patient"), caplog) == []
    assert told(bags_of(COHORT), caplog) == []


@pytest.mark.parametrize("task", ["multiclass", "ordinal"])
def test_a_patient_of_two_classes_is_refused_where_a_slide_has_one(task):
    with pytest.raises(DatalistError, match=r"1 patients have different classes \(P1\)\. .* one class: `task` is"):
        check_patients(bags_of(COHORT, "patient"), task)
    check_patients(bags_of(COHORT, "patient"), "multilabel")
    check_patients(bags_of(COHORT), task)


def test_slides_without_any_patient_are_warned_of(caplog):
    (text,) = told(bags_of([entry("a"), entry("b")], "patient"), caplog)
    assert text.startswith("`unit` is patient, and no slide has a patient: each of the 2 slides is a bag of its own.")


def test_slides_to_predict_have_their_patient_where_it_is_asked_for(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.svs").touch()
    (tmp_path / "list.csv").write_text("image,Case ID\na.svs,P1\nb.svs,\nc.svs,P1\n")
    listed = list_slides(tmp_path / "list.csv", unit="patient")
    assert names(bags_of(listed, "patient")) == {"P1": ["a", "c"], "b": ["b"]}
    assert all("patient" not in slide for slide in list_slides(tmp_path / "list.csv"))
    assert all("patient" not in slide for slide in list_slides(tmp_path, unit="patient"))


def test_columns_that_disagree_on_patients_matter_only_to_patients(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.svs").touch()
    (tmp_path / "list.csv").write_text("image,patient,case\na.svs,P1,C1\nb.svs,P1,C2\n")
    assert len(list_slides(tmp_path / "list.csv")) == 2
    with pytest.raises(DatalistError, match="name the patient, and do not agree"):
        list_slides(tmp_path / "list.csv", unit="patient")
