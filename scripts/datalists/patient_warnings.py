"""What a datalist leaves open about patients, so that slides of one may lie in several partitions."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from scripts.core.repeats import first_names
from scripts.datalists.columns import by_columns
from scripts.datalists.formats import Row
from scripts.datalists.keys import KEYS, PERSONS
from scripts.datalists.patients import is_unknown, look_of

__all__ = ["offered_patients", "patient_warnings", "patients_in_names"]

# What names and patients of public collections begin with: the patient.
COLLECTIONS = {
    "TCGA barcodes": re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])"),
    "CPTAC case ids": re.compile(r"C3[LN]-\d{5}(?!\d)"),
    "GTEx donor ids": re.compile(r"GTEX-[A-Z0-9]{4,5}(?![A-Z0-9])"),
    "CAMELYON17 patients": re.compile(r"PATIENT_\d{3}(?=_NODE)"),
}
# Words in the name of a column that may name patients.
ID_WORDS = {*PERSONS, "id", "ids", "uid", "barcode", "accession", "code", "name", "number", "no", "nr", "pat", "pt"}
# Words in the name of a column that names patients, and no samples, sites or scanners.
PERSON_WORDS = {*PERSONS, "person", "pat", "pt", "mrn"}
# Of what has several patients.
OTHER_WORDS = {"site", "group", "arm", "cohort", "centre", "center", "batch"}
SHOWN_COLUMNS = 3


def patient_warnings(rows: Sequence[Row], is_split: bool = True) -> list[tuple[str, str]]:
    """What is wrong where slides have no patient, or other patients than names of known collections say.

    Args:
        rows: all rows of a datalist.
        is_split: whether slides without a patient matter, as to a split; else what crosses the given partitions does.

    Returns:
        For each warning the cause and the next step.
    """
    unknown = [row for row in rows if "patient" not in row.fields]
    warnings = _padded_patients(rows)
    if not is_split and not _num_crossing(rows):
        return warnings
    if rows and len(unknown) == len(rows):
        what = "no column names the patient, so each slide counts as a patient of its own"
        remedy = "Add a column `patient`, or slides of one patient may be in several partitions."
        if columns := _columns_like_patients(rows):
            what += f" ({' and '.join(map(repr, columns))} may be one)"
            remedy = (
                "Call the patient's column `patient`, or add one: slides of a patient may be in several partitions."
            )
        if in_names := _told_by_names(rows):
            what += f"; the names of {in_names}"
            remedy = f"Give these as `patient` ({next(filter(None, patients_in_names(rows)))}, ...)"
            remedy += "; `checking` writes slides.csv with them." if any(offered_patients(rows)) else "."
        return [(what, remedy)]
    if (column := _coarser_column(rows)) is not None:
        what = f"{column!r} has fewer values than there are patients{by_columns(rows)}, and each holds whole patients"
        warnings.append((what, f"If {column!r} names the patient, call it `patient` and leave the other out."))
    if unknown:
        names = first_names([row.image for row in unknown])
        what = f"{len(unknown)} of {len(rows)} slides have no patient ({names}): each counts as a patient of its own"
        warnings.append((what, "Give the patient of every slide, or slides of one may be in several partitions."))
    pairs = {
        (patient, look_of(str(row.fields.get("patient", row.image))))
        for row, patient in zip(rows, patients_in_names(rows), strict=True)
        if patient is not None
    }
    if len(pairs) > len({patient for patient, _ in pairs}):
        found = [(kind, patient) for kind, patient in map(_in_name, rows) if patient is not None]
        kinds = " and ".join(dict.fromkeys(kind for kind, _ in found))
        what = f"{len(found)} slides carry {kinds} of {len(set(found))} patients, but count as {len(pairs)} patients"
        if crossing := _num_crossing(rows):
            what += f", {crossing} of the {len(set(found))} in several partitions"
        warnings.append((what, f"If the {kinds} are right, give them as `patient` ({min(pairs)[0]}, ...)."))
    return warnings


def _padded_patients(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The warning that two patients differ in leading zeros alone, as :func:`patient_warnings` gives it; or none."""
    spelled: dict[str, str] = {}
    for row in rows:
        name = str(row.fields.get("patient", ""))
        other = spelled.setdefault(re.sub(r"(?<![\d.,])0+(?=\d)", "", look_of(name)), name)
        if look_of(other) != look_of(name):
            what = f"the patients {other!r} and {name!r} count as two, and differ in leading zeros alone"
            return [(what, "If they are one, write them alike: spreadsheets drop leading zeros.")]
    return []


def patients_in_names(rows: Sequence[Row]) -> list[str | None]:
    """The patient that each slide's `patient` or file name begins with, if it is of a known collection."""
    return [patient for _, patient in map(_in_name, rows)]


def offered_patients(rows: Sequence[Row]) -> list[str | None]:
    """The patients to put into a datalist that names none: those of its names, unless they cross its partitions."""
    patients = patients_in_names(rows)
    if any("patient" in row.fields for row in rows) or _num_crossing(rows):
        return [None] * len(rows)
    return patients


def _in_name(row: Row) -> tuple[str, str | None]:
    """The collection and the patient; of a sample's or slide's barcode in the place of the patient, too."""
    for text in (str(row.fields.get("patient", "")), os.path.basename(row.image)):
        for kind, pattern in COLLECTIONS.items():
            if match := pattern.match(text.upper()):
                return kind, match.group()
    return "", None


def _told_by_names(rows: Sequence[Row]) -> str:
    """What the names say, in words; empty if none is of a known collection."""
    found = [(kind, patient) for kind, patient in map(_in_name, rows) if patient is not None]
    if not found:
        return ""
    kinds = " and ".join(dict.fromkeys(kind for kind, _ in found))
    crossing = f", {number} of them in several partitions" if (number := _num_crossing(rows)) else ""
    return f"{len(found)} of {len(rows)} slides begin with {kinds} of {len(set(found))} patients{crossing}"


def _num_crossing(rows: Sequence[Row]) -> int:
    partitions: dict[str, set[str | None]] = {}
    for row, patient in zip(rows, patients_in_names(rows), strict=True):
        if patient is not None:
            partitions.setdefault(patient, set()).add(row.partition)
    return sum(len(of_patient) > 1 for of_patient in partitions.values())


def _columns_like_patients(rows: Sequence[Row]) -> list[str]:
    """The user's own columns whose names or values look like those of patients, the likeliest first."""
    own = dict.fromkeys(key for row in rows for key in row.fields if key not in KEYS)
    named, others = [], []
    for key in own:
        values = [str(row.fields[key]) for row in rows if key in row.fields and not is_unknown(row.fields[key])]
        different = len(set(values))
        if ID_WORDS.intersection(_words_of(key)) and different > 1:
            named.append(key)
        # Numbers that repeat are measurements, and few values for many slides those of a site or stain.
        elif len(rows) / 10 <= different < len(values) and different > 1 and not all(map(_is_number, values)):
            others.append(key)
    return [*named, *others][:SHOWN_COLUMNS]


def _coarser_column(rows: Sequence[Row]) -> str | None:
    """A column of the user's own that is called as one of patients, and joins some of those that count as patients."""
    patients = [look_of(str(row.fields.get("patient", row.image))) for row in rows]
    for key in dict.fromkeys(key for row in rows for key in row.fields if key not in KEYS):
        values = [row.fields.get(key) for row in rows]
        words = _words_of(key)
        # A patient's age and sex are coarser too.
        named = words[-1] in ID_WORDS | PERSON_WORDS and PERSON_WORDS & {*words} and not OTHER_WORDS & {*words}
        if not named or any(map(is_unknown, values)):
            continue
        different = {look_of(str(value)) for value in values}
        of_patient = {(patient, look_of(str(value))) for patient, value in zip(patients, values, strict=True)}
        if 1 < len(different) < len({*patients}) == len(of_patient):
            return key
    return None


def _words_of(key: str) -> list[str]:
    return re.split(r"[\W_]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", key).casefold())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
