"""Datalist files as rows: MONAI's JSON, CSV with a header, the reference code's CSV without one, plain text.

MONAI's ``load_decathlon_datalist`` is not used: it reads with the locale's encoding (a byte order mark stops
it), knows no CSV, and its errors name neither a line nor the file. The JSON that it reads is read here with
the same result, which a test checks.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.core.errors import DatalistError
from scripts.datalists.keys import IMAGE_KEYS, key_meant, misspelled_keys
from scripts.datalists.labels import label_remedy
from scripts.datalists.partitions import PARTITION_WORDS, PARTITIONS, looks_like, partition_named
from scripts.datalists.patients import is_unknown, patient_name
from scripts.datalists.slide_files import as_on_disk, without_suffix

__all__ = ["Fault", "Row", "raised", "read_rows", "row_of"]

# What deals with a user's own keys later on, such as a printed error, must not go deeper than Python can.
MOST_LEVELS = 20
# What tells of the slide alone.
_SLIDE_KEYS = (*IMAGE_KEYS, "mpp", "mask", "mask_tissue", "sha256")


# What is done about a line that cannot be used.
Fault = Callable[[DatalistError], None]


@dataclass(frozen=True)
class Row:
    """One slide as its datalist describes it, nothing checked but its shape.

    Args:
        subject: the file, the place in it and the slide, to begin an error with.
        image: the path or the id of the slide.
        partition: one of :data:`PARTITIONS`, or None where the datalist names none.
        label: the label as it is written (a mapping where each class has its column), or None.
        fields: everything else (``slide``, ``patient``, ``mpp``, ``mask``, ``mask_tissue``, ``regions``, ``sha256`` and
            columns of the user's own), without empty values.
        faulty: whether its line has a fault beside the slide, of which nothing but the slide was then kept.
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


def raised(error: DatalistError) -> None:
    """Let a fault end the reading: the first one is all that a run needs to know."""
    raise error


def read_rows(path: Path, class_names: Sequence[str], labelled: bool = True, fault: Fault = raised) -> list[Row]:
    """Read a datalist file.

    Args:
        path: a ``.json`` file, or a text file with columns. ``.txt`` without labels is one slide a line.
        class_names: names of the columns that hold one 0 or 1 for each class.
        labelled: whether labels are expected. Without, a CSV needs no header if it has one column, the slides, or
            beside them one 0 or 1 for each of several classes, which are not used.
        fault: called with the error of each line or entry that cannot be used, of each key that a JSON datalist has
            twice in one place, and of each list or column that would be dropped for its misspelled name. If it returns,
            a line that names a slide gives a row all the same, which is marked as ``faulty``.

    Returns:
        The rows in the order of the file; from JSON, partition by partition.

    Raises:
        DatalistError: if the file does not exist or cannot be understood.
    """
    path = Path(as_on_disk(str(path)))
    # Unlike the method of a path, this also takes a name that is too long for one of a file that is not there.
    if not os.path.isfile(path):
        cause = "is a folder, a pipe or a device, not a file" if os.path.exists(path) else "no such file"
        raise DatalistError(f"datalist {path}", cause, "Give the path of a JSON or CSV file.")
    try:
        # Excel begins the files that it calls "CSV UTF-8" with a byte order mark.
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatalistError(f"datalist {path}", f"cannot be read ({error.strerror})", "Check its rights.") from error
    except UnicodeDecodeError as error:
        raise DatalistError(
            f"datalist {path}",
            f"not UTF-8 text (byte {error.start})",
            'Save a list again as UTF-8, in Excel as "CSV UTF-8"; give a slide as `dataset_dir`.',
        ) from error
    if path.suffix.lower() == ".json":
        return list(_json_rows(path, text, class_names, fault))
    if path.suffix.lower() == ".txt" and not labelled:
        lines = enumerate(text.splitlines(), start=1)
        return [row_of(line.strip(), f"{path.name} line {i}", ()) for i, line in lines if line.strip()]
    return list(_csv_rows(path, text, class_names, labelled, fault))


def row_of(
    item: object, where: str, class_names: Sequence[str], partition: str | None = None, of_csv: bool = False
) -> Row:
    """A row from a path, or from a mapping with the keys of a datalist entry.

    Args:
        item: a path, or a mapping. The names of its known keys and of classes may be in any case, and words in them be
            separated in any way.
        where: the place that it comes from, to begin an error with.
        class_names: see :func:`read_rows`.
        partition: the partition, where the place says it.
        of_csv: whether the place is a line of a CSV, where a line break in a path is a quote that is never closed.

    Raises:
        DatalistError: if it names no slide, an unknown partition, its label twice or in part, or has a key that is
            nearly one of the known ones.
    """
    if isinstance(item, str | Path):
        item = {"image": str(item)}
    if not isinstance(item, Mapping):
        raise DatalistError(where, f"got {item!r}", 'Give a path, or {"image": PATH, "label": ...}.')
    fields: dict[str, object] = {}
    patients: dict[str, str] = {}
    for key, value in item.items():
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        meant = key_meant(key, class_names)
        if meant != "patient":
            fields[meant] = value.strip() if isinstance(value, str) else value
        elif not is_unknown(value):
            patients[str(key).strip()] = fields["patient"] = patient_name(value, f"{where}, key {key!r}")
    image_key = next((key for key in IMAGE_KEYS if key in fields), None)
    image = fields.pop(image_key) if image_key else None
    if not isinstance(image, str | Path) or not str(image) or (of_csv and len(str(image).splitlines()) > 1):
        found = "no slide" if image is None else f"the slide is {image!r}"
        remedy = f"Give one path or id as {', '.join(IMAGE_KEYS)}, without line breaks, which a JSON datalist can hold."
        raise DatalistError(where, found, remedy)
    subject = f"{where}, slide {image}"
    for _, error in misspelled_keys(fields, class_names, subject):
        raise error
    if "partition" in fields:
        own = partition_named(fields.pop("partition"), subject)
        if partition not in (None, own):
            raise DatalistError(subject, f"partition {own} in the list {partition}", "Keep one of the two.")
        partition = own
    label = _class_columns(fields, class_names, subject)
    return Row(subject, str(image), partition, label, fields, patients=patients)


def _repeated_keys(path: Path, text: str, class_names: Sequence[str]) -> list[DatalistError]:
    """The keys that a JSON datalist has twice in one place, of which a parser keeps the last without a word.

    They are partitions, and keys of an entry or its label that mean the same (``mask``, ``Mask``). Several that name
    the patient may agree.
    """
    content = json.loads(text, object_pairs_hook=_Pairs)
    errors, lists = [], [("", content)]
    if isinstance(content, _Pairs):
        words = {word: name for name, words in PARTITION_WORDS.items() for word in words}
        lists = [(key, items) for key, items in content if key.casefold() in words]
        errors += _repeats([key for key, _ in lists], f"datalist {path}", "Put the slides of both into one list.")
    for name, items in lists:
        for i, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, _Pairs):
                where = f"{path.name} {name}[{i}]"
                labels = [value for key, value in item if key_meant(key) == "label" and isinstance(value, _Pairs)]
                for pairs in (item, *labels):
                    keys = [_column(key, class_names) for key, _ in pairs]
                    errors += _repeats(keys, where, "Keep one of them.")
    return errors


def _column(name: str, class_names: Sequence[str]) -> str:
    """The key that a name means; of a patient's the name, since several may agree."""
    meant = key_meant(name, class_names)
    return name.strip() if meant == "patient" else meant


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all that it has."""


def _repeats(keys: Sequence[str], where: str, remedy: str) -> list[DatalistError]:
    return [
        DatalistError(where, f"the key {key!r} stands there {count} times", remedy)
        for key, count in Counter(keys).items()
        if count > 1
    ]


def _class_columns(fields: dict[str, object], class_names: Sequence[str], subject: str) -> object:
    columns = {name: fields.pop(name) for name in class_names if name in fields}
    if not columns:
        return fields.pop("label", None)
    if "label" in fields:
        raise DatalistError(subject, "a label and columns for the classes", "Keep one of the two.")
    missing = [name for name in class_names if name not in columns]
    if missing:
        remedy = label_remedy(class_names)
        close = difflib.get_close_matches(missing[0], fields, n=1)
        if close:
            remedy = f"Is it what {close[0]!r} should be? {remedy}"
        raise DatalistError(subject, f"no value for {', '.join(missing)}", remedy)
    return columns


def _json_rows(path: Path, text: str, class_names: Sequence[str], fault: Fault) -> Iterator[Row]:
    remedy = 'Expected {"training": [{"image": PATH, "label": [...]}, ...], "validation": [...], ...}.'
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatalistError(f"datalist {path} line {error.lineno}", f"not JSON ({error.msg})", remedy) from error
    except ValueError as error:  # Python reads no whole number of more than 4300 digits
        raise DatalistError(f"datalist {path}", f"holds a number that is too long ({error})", remedy) from error
    except RecursionError as error:
        raise _too_deep(path) from error
    if _levels(content) > MOST_LEVELS:
        raise _too_deep(path)
    for repeat in _repeated_keys(path, text, class_names):
        fault(repeat)
    if isinstance(content, list):
        content = {"": content}
    elif not isinstance(content, dict):
        raise DatalistError(f"datalist {path}", f"holds {type(content).__name__}, no list of slides", remedy)
    words = ("", *(word for words in PARTITION_WORDS.values() for word in words))
    lists = {key: items for key, items in content.items() if key.casefold() in words and isinstance(items, list)}
    dropped = [slip for key, items in content.items() if key not in lists for slip in _dropped(path, key, items)]
    for slip in dropped:
        fault(slip)
    if not lists and not dropped:
        keys = ", ".join(map(repr, content)) or "none"
        raise DatalistError(f"datalist {path}", f"no list of slides (keys: {keys})", remedy)
    for key, items in lists.items():
        for i, item in enumerate(items):
            where = f"{path.name} {key}[{i}]"
            yield from _usable(item, where, class_names, fault, partition_named(key, where) if key else None)


def _dropped(path: Path, key: str, content: object) -> Iterator[DatalistError]:
    """What is wrong with a key that is no partition with a list, if it holds slides."""
    words = {word: name for name, words in PARTITION_WORDS.items() for word in words}
    word = key.strip().casefold()
    if key.casefold() in words:
        found = f"the partition {key!r} is {type(content).__name__}, not a list"
        yield DatalistError(f"datalist {path}", found, f'Write "{key}": [{{"image": PATH, "label": ...}}, ...].')
        return
    if isinstance(content, list):
        near = bool(content) and bool(looks_like(word) or difflib.get_close_matches(word, words, n=1, cutoff=0.8))
        holds = near or any(
            isinstance(item, dict) or (isinstance(item, str) and item != without_suffix(item)) for item in content
        )
    else:
        values = list(content.values()) if isinstance(content, dict) else []
        holds = bool(values) and all(isinstance(value, dict) for value in values)
    if holds:
        nearest = difflib.get_close_matches(word, words, n=1)
        hint = f"Did you mean {words[nearest[0]]}?" if nearest else f"Use one of: {', '.join(PARTITIONS)}."
        yield DatalistError(f"datalist {path}", f"{key!r} is no partition, and its entries would be dropped", hint)


def _usable(
    item: object,
    where: str,
    class_names: Sequence[str],
    fault: Fault,
    partition: str | None = None,
    of_csv: bool = False,
) -> Iterator[Row]:
    try:
        row = row_of(item, where, class_names, partition, of_csv)
    except DatalistError as error:
        fault(error)
        kept = {k: v for k, v in item.items() if key_meant(k) in _SLIDE_KEYS} if isinstance(item, Mapping) else {}
        if any(key_meant(key) in IMAGE_KEYS and value for key, value in kept.items()):
            with suppress(DatalistError):  # told above: a name that is none
                yield replace(row_of(kept, where, (), of_csv=of_csv), faulty=True)
    else:
        yield row


def _levels(content: object) -> int:
    """How deep lists and objects are nested, without going deep itself."""
    levels, within = 0, [content]
    while within := [
        item
        for one in within
        if isinstance(one, dict | list)
        for item in (one.values() if isinstance(one, dict) else one)
    ]:
        levels += 1
    return levels


def _too_deep(path: Path) -> DatalistError:
    cause = f"lists and objects lie in each other, more than {MOST_LEVELS} deep"
    return DatalistError(f"datalist {path}", cause, "Keep the keys of a slide plain.")


def _csv_rows(path: Path, text: str, class_names: Sequence[str], labelled: bool, fault: Fault) -> Iterator[Row]:
    lines = _csv_lines(path, text)
    first = next(lines, None)
    if first is None:
        return
    number, cells = first
    header = [_column(cell, class_names) for cell in cells]
    if any(name in IMAGE_KEYS for name in header):
        twice = [name for name, count in Counter(map(str.casefold, header)).items() if name and count > 1]
        if twice:
            raise DatalistError(f"{path.name} line {number}", f"column {twice[0]!r} twice", "Keep one of them.")
        meant = [key_meant(name, class_names) for name in header]
        misspelled = dict(misspelled_keys(meant, class_names, f"{path.name} line {number}", "column"))
        for error in misspelled.values():
            fault(error)
        for number, cells in lines:
            where = f"{path.name} line {number}"
            if len(cells) != len(header):
                remedy = "Put quotes around a value that holds the separator."
                if len(cells) < len(header):
                    remedy = "Where a value is unknown, leave its place empty between two separators."
                fault(DatalistError(where, f"{len(cells)} values for {len(header)} columns", remedy))
                continue
            # A column without a name is the row number that pandas writes.
            item = {name: cell for name, cell in zip(header, cells, strict=True) if name and name not in misspelled}
            yield from _usable(item, where, class_names, fault, of_csv=True)
        return
    if labelled and not (len(cells) > 1 and all(_is_number(cell) for cell in cells[1:])):
        raise DatalistError(
            f"{path.name} line {number}",
            f"no header with a column {', '.join(IMAGE_KEYS[:-1])} or {IMAGE_KEYS[-1]}: {cells!r}",
            "Name the columns in the first line, or give a slide id and one 0 or 1 for each class.",
        )
    if not labelled:
        yield from _slides_alone(path, [first, *lines], fault)
        return
    for number, cells in (first, *lines):
        row = {"image": cells[0], "label": cells[1:]}
        yield from _usable(row, f"{path.name} line {number}", class_names, fault, of_csv=True)


def _slides_alone(path: Path, lines: Sequence[tuple[int, list[str]]], fault: Fault) -> Iterator[Row]:
    """The slides of a CSV without a header, of which nothing but labels may be dropped."""
    lines = [(number, [cells[0], *filter(None, cells[1:])]) for number, cells in lines]
    remedy = "Name the columns in the first line, as in image,mpp; put quotes around a name that holds the separator."
    first, (_, *others) = lines[0]
    # One value alone could be a resolution.
    if len(others) == 1 or not _are_labels(others):
        found = ", ".join(map(repr, others))
        cause = f"no header with a column {', '.join(IMAGE_KEYS[:-1])} or {IMAGE_KEYS[-1]} says what {found} is"
        raise DatalistError(f"{path.name} line {first}", cause, remedy)
    for number, cells in lines:
        where = f"{path.name} line {number}"
        if len(cells) != 1 + len(others):
            fault(DatalistError(where, f"{len(cells)} values, and line {first} has {1 + len(others)}", remedy))
            continue
        if not _are_labels(cells[1:]):
            fault(DatalistError(where, f"{', '.join(map(repr, cells[1:]))} are not a 0 or 1 for each class", remedy))
            continue
        yield from _usable(cells[0], where, (), fault, of_csv=True)


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    head = text.lstrip().partition("\n")[0]
    # Excel separates by semicolon where the comma is the decimal sign.
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        remedy = "Check the quotes in this line; a datalist is a JSON or CSV file."
        raise DatalistError(f"datalist {path} line {reader.line_num}", f"not CSV ({error})", remedy) from error


def _are_labels(cells: Sequence[str]) -> bool:
    return all(_is_number(cell) and float(cell) in (0, 1) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
