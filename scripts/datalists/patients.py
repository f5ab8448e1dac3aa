"""Patients by name: which names in a datalist are one patient's, and which are nobody's."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["is_unknown", "look_of", "one_spelling", "patients_known", "patients_of"]

# Words for a missing value of pandas, spreadsheets, GDC and cBioPortal.
UNKNOWN = {
    "", "-", "--", "'--", "?", "nan", "na", "n/a", "#n/a", "none", "null", "unknown", "missing", "not available",
    "not reported", "not applicable", "not collected", "not known", ".", "n.a.", "n.d.", "nd", "unk", "tbd",
    "anonymous", "anonymized", "anonymised",
}  # fmt: skip


def is_unknown(value: object) -> bool:
    """Whether a value says that the patient is not known: slides with it are not one patient's."""
    return str(value).strip().strip("[]<>()").casefold() in UNKNOWN


def one_spelling(patients: Sequence[str]) -> list[str]:
    """The patients, those whose names look alike under the first of their spellings, by sorting.

    Names look alike that differ in case, in how an accent or a full-width letter is encoded, or in signs without width.
    """
    spelled = {look_of(patient): patient for patient in sorted(patients, reverse=True)}
    return [spelled[look_of(patient)] for patient in patients]


def look_of(name: str) -> str:
    """A name as it looks, whatever its case and however its letters are encoded; to compare, not to show."""
    shown = "".join(sign for sign in name if unicodedata.category(sign) != "Cf")
    # Folding can take a name out of its normal form.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", shown).casefold())


def patients_known(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the entries of a datalist say whose slides they are."""
    return any("patient" in entry for entry in entries)


def patients_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The patient of each slide, by its name, in one spelling; a slide without one is a patient of its own."""
    names = [str(entry.get("patient", entry["slide"])) for entry in entries]
    return dict(zip((str(entry["slide"]) for entry in entries), one_spelling(names), strict=True))
