"""Columns whose meaning all slides of a datalist decide together: which names the patient, which the partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from scipy.cluster.hierarchy import DisjointSet

from scripts.core.errors import DatalistError
from scripts.datalists.keys import KEYS, MAYBE_PARTITION, word_of
from scripts.datalists.partitions import PARTITIONS, is_switch_of, looks_like, partition_or_none
from scripts.datalists.patients import look_of
from scripts.datalists.rows import Faults, Row

__all__ = ["by_columns", "own_columns", "settle_columns", "settle_patients"]

# A column that names the patient, and how a name in it looks.
Node = tuple[str, str]


def settle_columns(rows: Sequence[Row], faults: Faults) -> list[Row]:
    """Decide which column names the partition, and by what name each patient goes.

    A column whose values are all partitions is one, whatever it is called. Several columns that name the patient are
    used if they agree on whose the slides are. Of columns that contradict each other the first is kept, and ``faults``
    gets an error.

    Returns:
        All rows of the datalist, with ``partition``, ``partition_key`` and the field ``patient`` as decided.
    """
    return settle_patients(_settle_partitions(rows, faults), faults)


def by_columns(rows: Iterable[Row]) -> str:
    """``" (patients by 'case_id')"``: what names the patients, where it is called otherwise than ``patient``."""
    keys = dict.fromkeys(key for row in rows for key in row.patients if key.lower() != "patient")
    return f" (patients by {' and '.join(map(repr, keys))})" if keys else ""


def own_columns(rows: Iterable[Row]) -> list[str]:
    """The keys or columns of the user's own."""
    return list(dict.fromkeys(key for row in rows for key in row.fields if key not in KEYS))


def _settle_partitions(rows: Sequence[Row], faults: Faults) -> list[Row]:
    own = own_columns(rows)
    found = [key for key in own if all(partition_or_none(row.fields.get(key, "test")) for row in rows)]
    named = any(row.partition is not None for row in rows)
    if not named and not found:
        for key in own:
            _check_words(key, rows, faults)
    # The key `partition` comes before all others.
    first = None if named or not found else max(found, key=lambda key: sum(key in row.fields for row in rows))
    for key in found:
        if key != first:
            _check_same(first, key, rows, faults)
    if first is None:
        return list(rows)
    without = [{key: value for key, value in row.fields.items() if key != first} for row in rows]
    return [
        replace(row, partition=_partition_of(row, first), partition_key=first, fields=fields)
        for row, fields in zip(rows, without, strict=True)
    ]


def _partition_of(row: Row, key: str | None) -> str | None:
    return row.partition if key is None else partition_or_none(row.fields.get(key))


def _check_words(key: str, rows: Sequence[Row], faults: Faults) -> None:
    """Refuse a column that says something about partitions, and not in words that can be read as them."""
    row_of_word = {str(row.fields[key]).strip(): row for row in rows if key in row.fields}
    unless = "if it names no partitions, give the column another name or other values"
    if (partition := is_switch_of(key, list(row_of_word))) is not None:
        cause = f"the column {key!r} says which slides are for {partition}, and the slides would be split anew"
        remedy = f"Write one column `partition` with the words {', '.join(PARTITIONS)}; {unless}."
        faults.append(DatalistError(next(iter(row_of_word.values())).subject, cause, remedy))
        return
    looks = [looks_like(row.fields[key]) for row in rows if key in row.fields]
    # Under a name that says nothing, most values have to be such words: notes have a "test" among others.
    called_so = word_of(key) in MAYBE_PARTITION and any(looks)
    if called_so or (len({*looks} - {None}) > 1 and 2 * looks.count(None) < len(looks)):
        word, row = next((word, row) for word, row in row_of_word.items() if partition_or_none(word) is None)
        remedy = f"Use one of: {', '.join(PARTITIONS)}; {unless}."
        faults.append(DatalistError(row.subject, f"unknown partition {word!r} in {key!r}", remedy))


def _check_same(first: str | None, key: str, rows: Sequence[Row], faults: Faults) -> None:
    for row in rows:
        one, other = _partition_of(row, first), _partition_of(row, key)
        if None not in (one, other) and one != other:
            what = f"its partition is {one}" if first is None else f"{first!r} says {one}"
            remedy = "Take the columns out that do not name the partition, or give them other values."
            faults.append(DatalistError(row.subject, f"{what}, and {key!r} says {other}", remedy))
            return


def settle_patients(rows: Sequence[Row], faults: Faults) -> list[Row]:
    """Give each patient one name, where several columns name it and agree on whose the slides are.

    See :func:`settle_columns`.
    """
    if all(len(row.patients) < 2 for row in rows):
        return list(rows)
    # `patient` before all others; and the same one whatever the order of the slides.
    keys = sorted({key for row in rows for key in row.patients}, key=lambda key: (key.lower() != "patient", key))
    # Names in one row are one patient's; one look has several spellings, of which the first by sorting stays.
    groups: DisjointSet = DisjointSet()
    spelled: dict[Node, str] = {}
    for row in rows:
        nodes = _nodes(row)
        for node, value in zip(nodes, row.patients.values(), strict=True):
            groups.add(node)
            groups.merge(nodes[0], node)
            spelled[node] = min(value, spelled.get(node, value))
        group = groups.subset(nodes[0]) if nodes else set()
        count = Counter(key for key, _ in group)
        if (twice := next((key for key in keys if count[key] > 1), None)) is not None:
            others = " and ".join(repr(key) for key in keys if key != twice)
            one, another = sorted(spelled[node] for node in group if node[0] == twice)[:2]
            differ = f"{one!r} and {another!r} of {twice!r} have the same {others}"
            cause = f"{twice!r} and {others} name the patient, and do not agree: {differ}"
            remedy = "Keep the one that names the patient, and give the others another name."
            faults.append(DatalistError(row.subject, cause, remedy))
            return list(rows)

    def named(row: Row) -> Row:
        node = min(groups.subset(_nodes(row)[0]), key=lambda node: keys.index(node[0]))
        return replace(row, fields={**row.fields, "patient": spelled[node]})

    return [named(row) if row.patients else row for row in rows]


def _nodes(row: Row) -> list[Node]:
    return [(key, look_of(value)) for key, value in row.patients.items()]
