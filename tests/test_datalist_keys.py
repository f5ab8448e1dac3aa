"""Keys as users write them: known under common names, their own left alone, slips told."""

from __future__ import annotations

import pytest

from scripts.datalist_keys import key_meant, misspelled_keys


@pytest.mark.parametrize(
    ("key", "names"),
    [
        (
            "patient",
            ["Patient", "PatientID", "patient id", "patient_id", "PATIENT-ID", "case_id", "Case ID", "subject_id"],
        ),
        ("slide", ["Slide", "slide_id", "SlideID"]),
        ("sha256", ["SHA256", "SHA-256", "sha_256", "sha256sum"]),
        ("partition", ["Partition", "split", "Split"]),
        ("regions", ["Regions", " REGIONS "]),
        ("mpp", ["MPP"]),
        ("mask", ["Mask"]),
    ],
)
def test_a_key_has_common_names_in_any_case(key: str, names: list[str]) -> None:
    assert {key_meant(name) for name in names} == {key}


@pytest.mark.parametrize("name", ["Note", "fold", "_id", "mpp_x", "PatientAge", "mask_path"])
def test_a_key_of_the_users_own_stays_as_it_is(name: str) -> None:
    assert key_meant(name) == name


def test_a_class_is_meant_before_a_key_of_its_name() -> None:
    assert key_meant("split", ["Split", "whole"]) == "Split"
    assert key_meant("case_id", ["case id"]) == "patient"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sha265", "sha256"),
        ("regoins", "regions"),
        ("Region", "regions"),
        ("pateint", "patient"),
        ("Pateint_ID", "patient"),
        ("patients", "patient"),
        ("masks", "mask"),
        ("mppp", "mpp"),
        ("parition", "partition"),
    ],
)
def test_a_slip_is_told_with_the_nearest_key(name: str, key: str) -> None:
    ((found, error),) = misspelled_keys(["image", "note", name], (), "d.csv line 1", "column")
    assert found == name
    message = (
        f"d.csv line 1: the column {name!r} is unknown. Did you mean {key}? If not, give it another name, or take it"
    )
    assert str(error).startswith(message)


def test_other_columns_are_no_slips() -> None:
    names = [
        "PatientAge", "patient_sex", "PatientName", "mpp_x", "mpp_used", "mask_path", "side", "site", "slice", "task",
        "id", "label", "fold", "sha1", "sha512", "stain", "position", "rows", "bytes", "problems", "tissue_mm2", "",
    ]  # fmt: skip
    assert list(misspelled_keys(names, (), "d.csv line 1")) == []
    assert list(misspelled_keys(["masks"], ["masks", "none"], "d.csv line 1")) == []
