"""The fields of the benchmark: lists and folders of pictures, and what of them is refused."""

from __future__ import annotations

import pytest
from PIL import Image

from scripts.core.errors import BundleError, DatalistError
from tests.benchmarks.tissue.fields import Fields, read_fields
from tests.benchmarks.tissue.mosaics import (
    BASE_MPP,
)
from tests.drawn_fields import write_fields, write_list


def test_a_list_and_folders_describe_the_same_fields(tmp_path):
    fields = write_fields(tmp_path / "listed", {"P1": ["benign", "tumour"], "P2": ["tumour"]}, mpp=0.5)
    malignant = [str(int(field.class_name == "tumour")) for field in fields]
    listed = read_fields(write_list(tmp_path / "listed", fields, malignant=malignant, mpp=["0.5"] * 3))
    for field in fields:
        place = tmp_path / "tree" / field.class_name / field.patient
        place.mkdir(parents=True)
        field.image.rename(place / field.image.name)
    in_folders = read_fields(tmp_path / "tree", mpp=0.5, positive_classes=["tumour"])

    def known(fields: Fields) -> set[tuple[str, str, str, float]]:
        return {(field.image.name, field.patient, field.class_name, field.mpp) for field in fields.fields}

    assert known(listed) == known(in_folders) == known(Fields(tuple(fields), (), ()))
    assert (listed.class_names, listed.positive_classes) == (("benign", "tumour"), ("tumour",))
    assert in_folders.sha256() == read_fields(tmp_path / "tree", 0.5, ["tumour"]).sha256()


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({}, {"positive_classes": ["tumour"]}, "mpp: the resolution of .* is not known. .* as --mpp"),
        ({"mpp": ["0.5", "4"]}, {"positive_classes": ["tumour"]}, "mpp: .* has '4', no number up to 1"),
        ({}, {"mpp": 0.5}, "positive_classes: which classes are malignant is not known. Name some"),
        ({"malignant": ["1", "1"]}, {"mpp": 0.5}, "positive_classes: every class is malignant"),
        ({"malignant": ["", "1"]}, {"mpp": 0.5}, "class benign has '' as `malignant`"),
        ({}, {"mpp": 0.5, "positive_classes": ["cancer"]}, "positive_classes: 'cancer' is no class"),
        (
            {},
            {"mpp": 0.3, "positive_classes": ["tumour"], "least_um": 224},
            "covers 192 x 192 um, and 224 um are needed",
        ),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_in_one_line(tmp_path, columns, given, message):
    write_list(tmp_path, write_fields(tmp_path, {"P1": ["benign", "tumour"]}), **columns)
    with pytest.raises(BundleError, match=message) as error:
        read_fields(tmp_path, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,patient\na.png,P1\n", "has no column class"),
        ("image,patient,class\na.png,,tumour\n", "line 2: has no patient"),
        ("image,patient,class\nb.png,P1,tumour\n", "b.png: no such file"),
        ("image,patient,class\na.png,P1,tumour\n", "a.png: cannot be read as a picture"),
        ("image,patient,class\n", "has no fields"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, text, message):
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "fields.csv").write_text(text)
    with pytest.raises(BundleError, match=message):
        read_fields(tmp_path, 0.5, ["tumour"], least_um=1)


def test_one_picture_of_two_patients_is_refused(tmp_path):
    first, second = write_fields(tmp_path, {"P1": ["benign"], "P2": ["tumour"]})
    second.image.write_bytes(first.image.read_bytes())
    with pytest.raises(DatalistError, match=f"has the same content as {first.image.name}"):
        Fields((first, second), ("benign", "tumour"), ("tumour",)).sha256()


def test_a_picture_that_is_too_large_and_a_quotation_mark_left_open_are_refused(tmp_path, monkeypatch):
    fields = write_fields(tmp_path, {"P1": ["cancer", "normal"]})
    write_list(tmp_path, fields)
    with monkeypatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(DatalistError, match="cannot be read as a picture"):
            read_fields(tmp_path, BASE_MPP, ["cancer"], 1.0)
    (tmp_path / "fields.csv").write_text('image,patient,class\n"a,b,c\n' + "x,y,z\n" * 30_000)
    with pytest.raises(DatalistError, match=r"is no CSV \(field larger .*Is a quotation mark left open"):
        read_fields(tmp_path, BASE_MPP, ["cancer"], 1.0)


def test_a_picture_that_is_cut_off_is_found_before_slides_are_made(tmp_path):
    fields = write_fields(tmp_path, {"P1": ["cancer", "normal"]})
    fields[0].image.write_bytes(fields[0].image.read_bytes()[:2000])
    write_list(tmp_path, fields)
    with pytest.raises(DatalistError, match="cannot be read as a picture"):
        read_fields(tmp_path, BASE_MPP, ["cancer"], 1.0)
