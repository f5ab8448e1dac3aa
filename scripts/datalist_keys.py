"""The keys of a datalist's entries and columns: which ones are known, under what names, and which are misspelled."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from scripts.errors import DatalistError

__all__ = ["IMAGE_KEYS", "key_meant", "misspelled_keys"]

IMAGE_KEYS = ("image", "slide", "id")

# Beside the slide and its label.
OPTIONAL_KEYS = ("partition", "patient", "mpp", "mask", "mask_tissue", "regions", "sha256")
KEYS = (*IMAGE_KEYS, "label", *OPTIONAL_KEYS)
# What CLAM and other tools call these columns, without what separates words. A patient column that is not recognised as
# one would let a patient cross partitions without a word.
ALIASES = {
    **dict.fromkeys(("patientid", "patientno", "patientnumber", "caseid", "subjectid"), "patient"),
    "slideid": "slide",
    "split": "partition",
    "sha256sum": "sha256",
    "masktissue": "mask_tissue",
}
# Two digits of sha256 that changed places are nearer; PatientAge and patient_sex, columns of their own, are farther.
NEAR = 0.83


def key_meant(key: object, class_names: Sequence[str] = ()) -> str:
    """The class or the known key that a key means, in whatever case; itself, if it is one of the user's own."""
    name = str(key).strip()
    known = {known.casefold(): known for known in (*KEYS, *class_names)}
    if name.casefold() in known:
        return known[name.casefold()]
    word = re.sub("(?<=[a-z])[ _-]+(?=[a-z0-9])", "", name.casefold())
    return ALIASES.get(word, word if word in KEYS else name)


def misspelled_keys(
    names: Iterable[str], class_names: Sequence[str], subject: str, kind: str = "key"
) -> Iterator[tuple[str, DatalistError]]:
    """The names that are nearly an optional key, and would be taken for the user's own.

    Args:
        names: as :func:`key_meant` gives them.
        class_names: the classes, whose columns may be called what they like.
        subject: the place, to begin an error with.
        kind: what a name is there: ``"key"`` or ``"column"``.

    Yields:
        Each such name, and the error that tells of it.
    """
    for name in names:
        key = None if name in KEYS or name in class_names else _nearest(name.casefold())
        if key is not None:
            remedy = f"Did you mean {key}? If not, give it another name, or take it out."
            yield name, DatalistError(subject, f"the {kind} {name!r} is unknown", remedy)


@cache
def _nearest(word: str) -> str | None:
    close = difflib.get_close_matches(word, OPTIONAL_KEYS, n=1, cutoff=NEAR)
    # Of the aliases only that of patient with an id is common enough to be misspelled.
    close += difflib.get_close_matches(word.removesuffix("id").rstrip(" _-"), ["patient"], n=1, cutoff=NEAR)
    return close[0] if close else None
