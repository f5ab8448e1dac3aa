"""Keys as users write them: known under common names, their own left alone, slips told."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.datalists.keys import COLUMN_NAMES, IDS, KEYS, OTHER_PATIENTS, PERSONS, key_meant, nearest_key
from tests.conftest import ROOT

NAMES = [(key, name) for key in KEYS for name in (key, *COLUMN_NAMES.get(key, ()))]


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


@given(st.sampled_from(NAMES), st.data())
def test_every_name_is_known_however_it_is_written(known: tuple[str, str], data: st.DataObject) -> None:
    key, name = known
    separators = st.sampled_from(["", "_", "-", " ", ".", " - ", "\u00a0"])
    written = "".join(
        data.draw(separators) if sign == "_" else data.draw(st.sampled_from([sign, sign.upper()])) for sign in name
    )
    assert key_meant(written + data.draw(st.sampled_from(["", ".", ":", " "]))) == key


@pytest.mark.parametrize(
    "name",
    [
        "bcr_patient_barcode", "case_submitter_id", "submitter_id", "patient_barcode", "case", "subject",
        "participant_id", "mrn", "cases.submitter_id", "cases.0.submitter_id", "participant", "subject_id",
        "medical_record_number", "donor", "individual", "Case No.", "Patient #", "Patient Id", "PATIENT",
        "pat_id", "pid",
    ],
)  # fmt: skip
def test_what_public_cohorts_and_hospitals_call_a_patient(name: str) -> None:
    assert key_meant(name) == "patient"


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("known", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["größe", "Übergang é", "ΐ"])
def test_the_column_of_a_class_is_known_however_accents_are_encoded(name: str, known: str, written: str) -> None:
    name, column = unicodedata.normalize(known, name), unicodedata.normalize(written, name)
    assert {key_meant(column, [name]), key_meant(f" {column.upper()}", [name])} == {name}


def test_a_patient_has_several_samples_slides_and_ages() -> None:
    for name in ("sample", "sample_id", "specimen", "slide_barcode", "bcr_sample_barcode", "aliquot_id", "block",
                 "age", "sex", "patient_age", "case_status", "subject_sex", "slides_submitter_id"):  # fmt: skip
        assert key_meant(name) != "patient"


def test_the_guide_names_every_name() -> None:
    guide = (ROOT / "docs" / "datalists.md").read_text(encoding="utf-8")
    words = [*PERSONS, *IDS, *OTHER_PATIENTS, *(name for key, name in NAMES if key != "patient")]
    assert [word for word in words if f"`{word}`" not in guide] == []


@pytest.mark.parametrize("name", ["Note", "fold", "_id", "mpp_x", "PatientAge", "mask_path", "set", "Patient Name"])
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
    assert nearest_key(name) == key


def test_other_columns_are_no_slips() -> None:
    names = [
        "PatientAge", "patient_sex", "PatientName", "mpp_x", "mpp_used", "mask_path", "side", "site", "slice", "task",
        "id", "label", "fold", "sha1", "sha512", "stain", "position", "rows", "bytes", "problems", "tissue_mm2", "",
    ]  # fmt: skip
    assert [name for name in names if nearest_key(name)] == []
    assert nearest_key("masks", ["masks", "none"]) is None
