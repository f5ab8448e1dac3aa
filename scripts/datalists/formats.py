"""Datalist files as rows: MONAI's JSON, CSV with a header, the reference code's CSV without one, plain text.

MONAI's ``load_decathlon_datalist`` is not used: it reads with the locale's encoding (a byte order mark stops it), knows
no CSV, and its errors name neither a line nor the file. The JSON that it reads is read here with the same result, which
a test checks.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.core.errors import DatalistError
from scripts.datalists.keys import IMAGE_KEYS, key_meant, nearest_key
from scripts.datalists.partitions import PARTITION_WORDS, PARTITIONS, looks_like, partition_or_none
from scripts.datalists.rows import Faults, Row, row_of
from scripts.datalists.slide_files import as_on_disk, without_suffix
from scripts.datalists.values import number_in

__all__ = ["read_rows"]

NAMES = f"{', '.join(IMAGE_KEYS[:-1])} or {IMAGE_KEYS[-1]}"


def read_rows(path: str | Path, class_names: Sequence[str], faults: Faults, labelled: bool = True) -> list[Row]:
    """Read a datalist file.

    Args:
        path: a ``.json`` file, or a text file with columns. ``.txt`` without labels is one slide a line.
        class_names: names of the columns that contain one 0 or 1 for each class.
        faults: gets the error of each line or entry that cannot be used, and of each list or column that would be
            ignored for its misspelled name.
        labelled: whether labels are expected. Without, a CSV needs no header if it has one column, the slides, or
            also one 0 or 1 for each of several classes, which are not used.

    Raises:
        DatalistError: if the file does not exist or cannot be understood at all.
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
        remedy = 'Save a list again as UTF-8, in Excel as "CSV UTF-8"; give a slide as `dataset_dir`.'
        raise DatalistError(f"datalist {path}", f"not UTF-8 text (byte {error.start})", remedy) from error
    if path.suffix.lower() == ".json":
        rows = _json_rows(path, text, class_names, faults)
    elif path.suffix.lower() == ".txt" and not labelled:
        lines = enumerate(text.splitlines(), start=1)
        rows = (row_of(line.strip(), f"{path.name} line {i}", faults) for i, line in lines if line.strip())
    else:
        rows = _csv_rows(path, text, class_names, labelled, faults)
    return [row for row in rows if row is not None]


def _json_rows(path: Path, text: str, class_names: Sequence[str], faults: Faults) -> Iterator[Row | None]:
    remedy = 'Expected {"training": [{"image": PATH, "label": [...]}, ...], "validation": [...], ...}.'
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DatalistError(f"datalist {path}", f"not JSON ({error})", remedy) from error
    lists = {"": content} if isinstance(content, list) else content
    if not isinstance(lists, dict):
        raise DatalistError(f"datalist {path}", f"contains {type(content).__name__}, no list of slides", remedy)
    known, found = len(faults), False
    for key, items in lists.items():
        partition = partition_or_none(key)
        if isinstance(items, list) and (partition or not key):
            found = True
            for i, item in enumerate(items):
                yield row_of(item, f"{path.name} {key}[{i}]", faults, class_names, partition)
        elif partition:
            cause = f"the partition {key!r} is {type(items).__name__}, not a list"
            write = f'Write "{key}": [{{"image": PATH, "label": ...}}, ...].'
            faults.append(DatalistError(f"datalist {path}", cause, write))
        elif _are_slides(key, items):
            near = difflib.get_close_matches(key.strip().casefold(), PARTITION_WORDS, n=1)
            hint = f"Did you mean {PARTITION_WORDS[near[0]]}?" if near else f"Use one of: {', '.join(PARTITIONS)}."
            cause = f"{key!r} is no partition, and its slides would be ignored"
            faults.append(DatalistError(f"datalist {path}", cause, hint))
    if not found and len(faults) == known:
        keys = ", ".join(map(repr, lists)) or "none"
        raise DatalistError(f"datalist {path}", f"no list of slides (keys: {keys})", remedy)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each of whose keys appears once: Python keeps the last of several, and says nothing."""
    content = dict(pairs)
    if len(content) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {key!r} appears twice in the object that begins with {str(dict(pairs[:1]))[:60]}")
    return content


def _are_slides(key: str, content: object) -> bool:
    """Whether a key that is no partition has slides, by its name or by what they are."""
    if not isinstance(content, list) or not content:
        return False
    word = key.strip().casefold()
    return bool(looks_like(word) or difflib.get_close_matches(word, PARTITION_WORDS, n=1, cutoff=0.8)) or any(
        isinstance(item, dict) or (isinstance(item, str) and item != without_suffix(item)) for item in content
    )


def _csv_rows(
    path: Path, text: str, class_names: Sequence[str], labelled: bool, faults: Faults
) -> Iterator[Row | None]:
    lines = list(_csv_lines(path, text))
    if not lines:
        return
    first = f"{path.name} line {lines[0][0]}"
    meant = [key_meant(cell, class_names) for cell in lines[0][1]]
    if not any(name in IMAGE_KEYS for name in meant):
        yield from _rows_without_header(path, lines, class_names, labelled, faults)
        return
    # Several columns may name the patient, if they agree.
    header = [cell if name == "patient" else name for cell, name in zip(lines[0][1], meant, strict=True)]
    if twice := [name for name, count in Counter(map(str.casefold, header)).items() if name and count > 1]:
        raise DatalistError(first, f"column {twice[0]!r} twice", "Keep one of them.")
    # A column without a name is the row number that pandas writes.
    used = [bool(name) for name in header]
    for i, name in enumerate(meant):
        if (nearest := nearest_key(name, class_names)) is not None:
            remedy = f"Did you mean {nearest}? If not, rename it, or take it out."
            faults.append(DatalistError(first, f"the column {name!r} is unknown", remedy))
            used[i] = False
    for number, cells in lines[1:]:
        where = f"{path.name} line {number}"
        if len(cells) != len(header):
            remedy = "Put quotes around a value that contains the separator."
            if len(cells) < len(header):
                remedy = "Where a value is unknown, leave its place empty between two separators."
            faults.append(DatalistError(where, f"{len(cells)} values for {len(header)} columns", remedy))
        else:
            item = {name: cell for name, cell, is_used in zip(header, cells, used, strict=True) if is_used}
            yield row_of(item, where, faults, class_names, of_csv=True)


def _rows_without_header(
    path: Path, lines: Sequence[tuple[int, list[str]]], class_names: Sequence[str], labelled: bool, faults: Faults
) -> Iterator[Row | None]:
    """A slide a line, with one 0 or 1 for each class. Without labels nothing besides them may be ignored."""
    for i, (number, (image, *values)) in enumerate(lines):
        where = f"{path.name} line {number}"
        if labelled:
            remedy = "Name the columns in the first line, or give a slide id and one 0 or 1 for each class."
            cause = f"no header with a column {NAMES}: {[image, *values]!r}"
            is_known = i > 0 or (bool(values) and all(number_in(value) is not None for value in values))
        else:
            values = [value for value in values if value]
            remedy = "Name the columns in the first line, as in image,mpp; quote a name that contains the separator."
            cause = f"no header with a column {NAMES} explains {', '.join(map(repr, values))}"
            # One value alone could be a resolution.
            is_known = len(values) != 1 and all(number_in(value) in (0, 1) for value in values)
        if is_known:
            item = {"image": image, "label": values if labelled else None}
            yield row_of(item, where, faults, class_names, of_csv=True)
            continue
        faults.append(DatalistError(where, cause, remedy))
        if i == 0:
            return


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
