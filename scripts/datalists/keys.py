"""The keys of a datalist's entries and columns: which are known, under what names, and which are misspelled."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from functools import cache

__all__ = [
    "COLUMN_NAMES",
    "IMAGE_KEYS",
    "KEYS",
    "MAYBE_PARTITION",
    "composed",
    "key_meant",
    "nearest_key",
    "spelling",
    "word_of",
]

IMAGE_KEYS = ("image", "slide", "id")
# Besides the slide and its label.
OPTIONAL_KEYS = ("partition", "patient", "mpp", "mask", "mask_tissue", "regions", "sha256")
KEYS = (*IMAGE_KEYS, "label", *OPTIONAL_KEYS)
# Words for a patient, each known alone and followed by each of the words for an id.
PERSONS = ("patient", "case", "subject", "participant", "donor", "individual")
IDS = ("id", "identifier", "no", "nr", "number", "code", "barcode", "uuid")
# Other names of a patient at GDC, ICGC, dbGaP, hospitals and screening studies. `sample` is not one: a patient has
# several. A patient's column that is not recognised lets patients cross partitions.
OTHER_PATIENTS = (
    "submitter_id", "case_submitter_id", "cases_submitter_id", "cases_0_submitter_id", "cases_case_id",
    "cases_0_case_id", "bcr_patient_barcode", "bcr_patient_uuid", "dbgap_subject_id", "icgc_donor_id",
    "submitted_donor_id", "medical_record_number", "medical_record_no", "mrn", "person_id", "pat_id", "pt_id", "pid",
)  # fmt: skip
# Every other name of a known key. Case, and what separates words, do not matter.
COLUMN_NAMES = {
    "patient": (*PERSONS, *(f"{person}_{word}" for person in PERSONS for word in IDS), *OTHER_PATIENTS),
    "slide": ("slide_id",),
    "partition": ("split",),
    "sha256": ("sha256sum",),
}
# Names of a partition's column and of others: the values decide.
MAYBE_PARTITION = ("set", "subset", "fold", "phase", "part", "group", "cohort", "dataset")
# Two digits of sha256 that changed places are nearer; PatientAge and patient_sex, columns of their own, are farther.
NEAR = 0.83


def composed(name: str) -> str:
    """A name with each accent in one character with its letter, as most programs but macOS's write it."""
    return unicodedata.normalize("NFC", name)


def spelling(name: str) -> str:
    """What a name is compared by: equal in any case, with outer spaces, and however its accents are encoded."""
    return composed(unicodedata.normalize("NFD", name).strip().casefold())


def word_of(name: str) -> str:
    """A name in lower case without what separates its words or follows them: ``"caseid"`` for ``"Case-ID."``."""
    return re.sub(r"(?<=[^\W_])[\W_]+(?=[^\W_]|$)", "", name.casefold())


ALIASES = {word_of(name): key for key in KEYS for name in (key, *COLUMN_NAMES.get(key, ()))}


def key_meant(key: object, class_names: Sequence[str] = ()) -> str:
    """The class or the known key that a key means, in whatever case; itself, if it is one of the user's own."""
    name = str(key).strip()
    known = {spelling(known): known for known in (*KEYS, *class_names)}
    return known.get(spelling(name)) or ALIASES.get(word_of(name), name)


def nearest_key(name: str, class_names: Sequence[str] = ()) -> str | None:
    """The optional key that a name is probably meant to be, which would be taken for the user's own; or ``None``.

    Args:
        name: as :func:`key_meant` gives it.
        class_names: the classes, whose columns may be called what they like.
    """
    return None if name in KEYS or name in class_names else _nearest(name.casefold())


@cache
def _nearest(word: str) -> str | None:
    close = difflib.get_close_matches(word, OPTIONAL_KEYS, n=1, cutoff=NEAR)
    # Of the aliases, only a word for patient with an id is common enough to be misspelled.
    close += difflib.get_close_matches(word.removesuffix("id").rstrip(" _-"), ["patient"], n=1, cutoff=NEAR)
    return close[0] if close else None
