"""Patients in groups: as many as can be with every class in every group."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.errors import DatalistError
from tests.benchmarks.tissue.fields import Field, read_fields
from tests.benchmarks.tissue.groups import fields_of_groups, group_patients
from tests.drawn_fields import GLAS


def of_patients(patients: dict[str, str]) -> list[Field]:
    """Fields without a file, one for each letter, which is its class."""
    return [Field(Path("x"), patient, name, 0.5) for patient, names in patients.items() for name in names]


def test_there_are_as_many_groups_as_the_rarest_class_has_patients():
    fields = of_patients({"P1": "aab", "P2": "ab", "P3": "aab", "P4": "ab", "P5": "aaa", "P6": "a"})
    groups = group_patients(fields, "ab")
    assert sorted(groups) == ["P1", "P2", "P3", "P4", "P5", "P6"]
    assert len({groups[patient] for patient in ("P1", "P2", "P3", "P4")}) == 4 == len(set(groups.values()))


@settings(max_examples=6, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=3, max_size=8), st.integers(0, 9))
def test_every_class_is_in_every_group_or_the_groups_are_refused(patients, seed):
    fields = of_patients({f"P{i}": names for i, names in enumerate(patients)})
    classes = sorted({field.class_name for field in fields})
    of_class = [len({f.patient for f in fields if f.class_name == name}) for name in classes]
    if min(of_class) < 3:
        with pytest.raises(DatalistError, match="no division of the patients into 3 groups has every class in each"):
            group_patients(fields, classes, seed)
        return
    groups = group_patients(fields, classes, seed)
    number = len(set(groups.values()))
    assert 3 <= number <= min(of_class)
    for group in range(number):
        assert {field.class_name for field in fields if groups[field.patient] == group} == set(classes)
    assert groups == group_patients(fields, classes, seed)


def test_the_sixteen_patients_of_glas_are_in_four_groups_that_have_all_classes():
    if not GLAS.is_dir():
        pytest.skip(f"no {GLAS}")
    found = read_fields(GLAS, mpp=0.62)
    groups = group_patients(found.fields, found.class_names)
    assert len(found.fields) == 165
    assert len(groups) == 16
    in_groups = fields_of_groups(found.fields, found.class_names, groups)
    assert len(in_groups) == 4
    for fields in in_groups:
        assert len(fields) == 5
        assert all(fields.values())
    numbers = sorted(number for fields in in_groups for of_class in fields.values() for number in of_class)
    assert numbers == list(range(165))
