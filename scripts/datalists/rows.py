"""A row of a datalist: one slide as it is described there, its keys understood, its values not yet."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

from scripts.core.errors import DatalistError
from scripts.datalists.keys import IMAGE_KEYS, key_meant, nearest_key
from scripts.datalists.labels import label_remedy
from scripts.datalists.partitions import PARTITIONS, partition_or_none
from scripts.datalists.patients import is_unknown
from scripts.slides.remote import is_remote, known_as

__all__ = ["Faults", "Row", "row_of"]

Faults = list[DatalistError]
"""What is wrong with the rows that were read so far."""


@dataclass(frozen=True)
class Row:
    """One slide as its datalist describes it.

    Args:
        subject: the file, the place in it and the slide, to begin an error with.
        image: the path, the id or the address of the slide, see :func:`scripts.slides.remote.known_as`.
        partition: one of :data:`scripts.datalists.partitions.PARTITIONS`, or None where the datalist names none.
        label: the label as it is written (a mapping where each class has its column), or None.
        fields: everything else (``slide``, ``patient``, ``mpp``, ``mask``, ``mask_tissue``, ``regions``, ``sha256`` and
            the user's own columns), without empty values.
        faulty: whether something is wrong with it, so that neither label nor partition are to be expected.
        patients: by the name of its key or column, as it is written, each value that names the patient.
        partition_key: the key or column that names the partition, where it is called otherwise than ``partition``.
    """

    subject: str
    image: str
    partition: str | None
    label: object
    fields: dict[str, object]
    faulty: bool = False
    patients: dict[str, str] = field(default_factory=dict)
    partition_key: str = ""


def row_of(
    item: object,
    where: str,
    faults: Faults,
    class_names: Sequence[str] = (),
    partition: str | None = None,
    of_csv: bool = False,
) -> Row | None:
    """A row from a path or a mapping; ``None`` if it names no slide.

    Args:
        item: its known keys and classes may be in any case, and their words separated in any way.
        where: the place that it comes from, to begin an error with.
        faults: gets an error for each thing that is wrong with it.
        class_names: names of the columns that contain one 0 or 1 for each class.
        partition: the partition, where the place gives it.
        of_csv: whether a line break in a path is a quote that is never closed.
    """
    known = len(faults)
    if isinstance(item, str | Path):
        item = {"image": str(item)}
    if not isinstance(item, Mapping):
        faults.append(DatalistError(where, f"got {item!r}", 'Give a path, or {"image": PATH, "label": ...}.'))
        return None
    stripped = {str(key).strip(): value.strip() if isinstance(value, str) else value for key, value in item.items()}
    values = {key: value for key, value in stripped.items() if not isinstance(value, str | None) or value}
    meant = {key: key_meant(key, class_names) for key in values}
    fields = {meant[key]: value for key, value in values.items() if meant[key] != "patient"}
    image = next((fields.pop(key) for key in IMAGE_KEYS if key in fields), None)
    if not isinstance(image, str | Path) or (of_csv and len(str(image).splitlines()) > 1):
        cause = "no slide" if image is None else f"the slide is {image!r}"
        remedy = f"Give one path or id as {', '.join(IMAGE_KEYS)}; only a JSON datalist may have line breaks in it."
        faults.append(DatalistError(where, cause, remedy))
        return None
    try:
        image = known_as(str(image))
    except DatalistError as error:
        faults.append(DatalistError(f"{where}, {error.subject}", error.cause, error.remedy))
        return None
    subject = f"{where}, slide {image}"

    def fault(cause: str, remedy: str) -> None:
        faults.append(DatalistError(subject, cause, remedy))

    first: dict[str, str] = {}
    patients: dict[str, str] = {}
    for key, value in values.items():
        # Several keys may name the patient, if they agree.
        if meant[key] != "patient":
            if first.setdefault(meant[key], key) != key:
                fault(f"the keys {first[meant[key]]!r} and {key!r} mean the same", "Keep one of the two.")
        elif isinstance(value, bool) or not isinstance(value, str | Real):
            fault(f"{value!r} names no patient", "Give one text or one whole number.")
        elif not is_unknown(value):
            # The 12.0 that pandas makes of 12 in a column with gaps is the same.
            name = re.sub(r"^(\d+)\.0+$", r"\1", " ".join(str(value).split()))
            patients[key] = fields["patient"] = name
    for name in fields:
        if (nearest := nearest_key(name, class_names)) is not None:
            fault(f"the key {name!r} is unknown", f"Did you mean {nearest}? If not, rename it, or take it out.")
    for name in ("mask", "regions"):
        if is_remote(str(fields.get(name, ""))):
            fault(f"its {name} is an address, from which only slides are read", "Copy it, and give its path.")
            del fields[name]
    if (word := fields.pop("partition", None)) is not None:
        own = partition_or_none(word)
        if own is None:
            fault(f"unknown partition {word!r}", f"Use one of: {', '.join(PARTITIONS)}.")
        elif partition not in (None, own):
            fault(f"partition {own} in the list {partition}", "Keep one of the two.")
        partition = own
    label = _label(fields, class_names, fault)
    return Row(subject, str(image), partition, label, fields, len(faults) > known, patients)


def _label(fields: dict[str, object], class_names: Sequence[str], fault: Callable[[str, str], None]) -> object:
    """Take the label, or the columns of the classes, out of the fields."""
    columns = {name: fields.pop(name) for name in class_names if name in fields}
    label = fields.pop("label", None)
    if not columns:
        return label
    missing = [name for name in class_names if name not in columns]
    if label is not None:
        fault("a label and columns for the classes", "Keep one of the two.")
    elif missing:
        close = difflib.get_close_matches(missing[0], fields, n=1)
        hint = f"Is it what {close[0]!r} should be? " if close else ""
        fault(f"no value for {', '.join(missing)}", hint + label_remedy(class_names))
    return columns
