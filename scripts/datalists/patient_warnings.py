"""What a datalist leaves open about patients, so that slides of one may be in several partitions."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from scripts.core.repeats import first_names
from scripts.datalists.columns import own_columns
from scripts.datalists.keys import PERSONS
from scripts.datalists.patients import is_unknown, look_of
from scripts.datalists.rows import Row
from scripts.datalists.values import number_in

__all__ = ["offered_patients", "patient_warnings", "patients_in_names"]

# Patients, with which the names of slides of public collections begin.
COLLECTIONS = {
    "TCGA barcodes": re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])"),
    "CPTAC case ids": re.compile(r"C3[LN]-\d{5}(?!\d)"),
    "GTEx donor ids": re.compile(r"GTEX-[A-Z0-9]{4,5}(?![A-Z0-9])"),
    "CAMELYON17 patients": re.compile(r"PATIENT_\d{3}(?=_NODE)"),
}
# Words in the name of a column that may name patients.
ID_WORDS = {*PERSONS, "id", "ids", "uid", "barcode", "accession", "code", "name", "number", "no", "nr", "pat", "pt"}
SHOWN_COLUMNS = 3


def patient_warnings(rows: Sequence[Row], is_split: bool = True) -> list[tuple[str, str]]:
    """What is wrong where slides have no patient, or other patients than names of known collections contain.

    Args:
        is_split: whether slides without a patient matter, as to a split; else what crosses the given partitions does.

    Returns:
        For each warning the cause and the next step.
    """
    warnings = _padded_patients(rows)
    crossing = _num_crossing(rows)
    if not is_split and not crossing:
        return warnings
    unknown = [row for row in rows if "patient" not in row.fields]
    if rows and len(unknown) == len(rows):
        return [_no_patients(rows)]
    if unknown:
        names = first_names([row.image for row in unknown])
        what = f"{len(unknown)} of {len(rows)} slides have no patient ({names}): each counts as a patient of its own"
        warnings.append((what, "Give the patient of every slide, or slides of one may be in several partitions."))
    found = [(row, *_in_name(row)) for row in rows]
    pairs = {(own, look_of(str(row.fields.get("patient", row.image)))) for row, _, own in found if own}
    patients = {own for own, _ in pairs}
    if len(pairs) > len(patients):
        kinds = " and ".join(dict.fromkeys(kind for _, kind, own in found if own))
        number = sum(own is not None for *_, own in found)
        what = f"{number} slides have {kinds} of {len(patients)} patients, but count as {len(pairs)} patients"
        if crossing:
            what += f", {crossing} of the {len(patients)} in several partitions"
        warnings.append((what, f"If the {kinds} are right, give them as `patient` ({min(patients)}, ...)."))
    return warnings


def patients_in_names(rows: Sequence[Row]) -> list[str | None]:
    """The patient that each slide's `patient` or file name begins with, if it is of a known collection."""
    return [_in_name(row)[1] for row in rows]


def offered_patients(rows: Sequence[Row]) -> list[str | None]:
    """The patients to put into a datalist that names none: those of its names, unless they cross its partitions."""
    if any("patient" in row.fields for row in rows) or _num_crossing(rows):
        return [None] * len(rows)
    return patients_in_names(rows)


def _no_patients(rows: Sequence[Row]) -> tuple[str, str]:
    """The warning of a datalist that names no patient, with the columns or names that may contain one."""
    what = "no column names the patient, so each slide counts as a patient of its own"
    remedy = "Add a column `patient`, or slides of one patient may be in several partitions."
    if columns := _columns_like_patients(rows):
        what += f" ({' and '.join(map(repr, columns))} may be one)"
        remedy = "Call the patient's column `patient`, or add one: slides of a patient may be in several partitions."
    if found := [(kind, patient) for kind, patient in map(_in_name, rows) if patient is not None]:
        kinds = " and ".join(dict.fromkeys(kind for kind, _ in found))
        what += f"; the names of {len(found)} of {len(rows)} slides begin with {kinds} of {len(set(found))} patients"
        if crossing := _num_crossing(rows):
            what += f", {crossing} of them in several partitions"
        remedy = f"Give these as `patient` ({found[0][1]}, ...)"
        remedy += "; `checking` writes slides.csv with them." if any(offered_patients(rows)) else "."
    return what, remedy


def _padded_patients(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The warning that two patients differ only in leading zeros, if there is one."""
    spelled: dict[str, str] = {}
    for row in rows:
        name = str(row.fields.get("patient", ""))
        other = spelled.setdefault(re.sub(r"(?<![\d.,])0+(?=\d)", "", look_of(name)), name)
        if look_of(other) != look_of(name):
            what = f"the patients {other!r} and {name!r} count as two, and differ only in leading zeros"
            return [(what, "If they are one, write them alike: spreadsheets drop leading zeros.")]
    return []


def _in_name(row: Row) -> tuple[str, str | None]:
    """The collection and the patient; also of a sample's or slide's barcode in the place of the patient."""
    for text in (str(row.fields.get("patient", "")), os.path.basename(row.image)):
        for kind, pattern in COLLECTIONS.items():
            if match := pattern.match(text.upper()):
                return kind, match.group()
    return "", None


def _num_crossing(rows: Sequence[Row]) -> int:
    partitions: dict[str, set[str | None]] = {}
    for row, patient in zip(rows, patients_in_names(rows), strict=True):
        if patient is not None:
            partitions.setdefault(patient, set()).add(row.partition)
    return sum(len(of_patient) > 1 for of_patient in partitions.values())


def _columns_like_patients(rows: Sequence[Row]) -> list[str]:
    """The user's own columns whose names or values look like those of patients, the likeliest first."""
    named, others = [], []
    for key in own_columns(rows):
        values = [str(row.fields[key]) for row in rows if key in row.fields and not is_unknown(row.fields[key])]
        different = len(set(values))
        words = re.split(r"[\W_]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", key).casefold())
        if ID_WORDS.intersection(words) and different > 1:
            named.append(key)
        # Numbers that repeat are measurements, and few values for many slides those of a site or stain.
        elif max(2, len(rows) / 10) <= different < len(values) and any(number_in(value) is None for value in values):
            others.append(key)
    return [*named, *others][:SHOWN_COLUMNS]
