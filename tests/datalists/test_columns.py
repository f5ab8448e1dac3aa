"""Columns that name a patient or a partition, whatever they are called: used, or refused, never ignored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from scripts.core.errors import DatalistError
from scripts.datalists.columns import settle_columns
from scripts.datalists.datalist import load_datalist
from scripts.datalists.keys import COLUMN_NAMES, MAYBE_PARTITION
from scripts.datalists.partitions import PARTITIONS
from scripts.datalists.rows import Row, row_of
from tests.datalists.test_datalist import touch, write

WORDS = {
    "training": ["training", "train", "Train"],
    "validation": ["validation", "valid", "VAL"],
    "testing": ["test", "Testing"],
}


def listed(root: Path, header: str, *lines: str, as_json: bool = False) -> Path:
    """A datalist whose slides are there, as CSV, or as JSON without partitions."""
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    touch(root, *(row["image"] for row in rows))
    return write(root, rows if as_json else "\n".join([header, *lines]))


def split_of(path: Path) -> dict[str, list[str]]:
    return {name: [entry["slide"] for entry in part] for name, part in load_datalist(path, None, "multilabel").items()}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", COLUMN_NAMES["patient"])
def test_no_patient_crosses_whatever_its_column_is_called(tmp_path: Path, name: str, as_json: bool) -> None:
    # TCGA's usual list: 20 patients, 7 of whom have two slides.
    patients = [f"TCGA-AA-{i:04}" for i in range(20)]
    lines = [f"s{i}.svs,{patient},lgd" for i, patient in enumerate([*patients, *patients[:7]])]
    path = listed(tmp_path, f"image,{name},label", *lines, as_json=as_json)
    of_partition = [{e["patient"] for e in part} for part in load_datalist(path, None, "multilabel").values()]
    assert sum(map(len, of_partition)) == len(set.union(*of_partition)) == 20


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", [*MAYBE_PARTITION, "split", "Set", "my_split", "which"])
def test_a_column_whose_values_are_all_partitions_is_one(tmp_path: Path, name: str, as_json: bool) -> None:
    words = [word for of_one in WORDS.values() for word in of_one]
    lines = [f"s{i}.svs,p{i},lgd,{word}" for i, word in enumerate(words)]
    path = listed(tmp_path, f"image,patient,label,{name}", *lines, as_json=as_json)
    number = iter(range(len(words)))
    assert split_of(path) == {name: [f"s{next(number)}" for _ in of_one] for name, of_one in WORDS.items()}
    assert name not in load_datalist(path, None, "multilabel")["training"][0]


@pytest.mark.parametrize(("name", "values"), [
    ("fold", ["0", "1", "2", "3", "4"]), ("phase", ["arterial", "venous", "late", "late", "late"]),
    ("set", ["testis", "value", "trainee", "a", "b"]), ("note", ["train", "blurred", "test", "x", "y"]),
    ("test_result", ["0", "1", "0", "1", "1"]), ("validated", ["1", "0", "0", "1", "1"]),
    ("is_valid", ["1", "0", "0", "1", "1"]),
])  # fmt: skip
def test_a_column_of_something_else_is_the_users_own(tmp_path: Path, name: str, values: list[str]) -> None:
    lines = [f"s{i}.svs,p{i},lgd,{value}" for i, value in enumerate(values)]
    path = listed(tmp_path, f"image,patient,label,{name}", *lines)
    entries = [entry for part in load_datalist(path, None, "multilabel").values() for entry in part]
    assert {entry["slide"]: entry[name] for entry in entries} == {f"s{i}": value for i, value in enumerate(values)}


def test_what_says_the_same_as_the_partitions_beside_it_is_the_users_own(tmp_path: Path) -> None:
    lines = ["a.svs,lgd,train,0", "b.svs,lgd,val,0", "c.svs,lgd,test,1"]
    path = listed(tmp_path, "image,label,data_split,is_test", *lines)
    assert split_of(path) == {"training": ["a"], "validation": ["b"], "testing": ["c"]}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("name", "words", "told"), [
    ("data_split", "train dev test", "dev"), ("role", "train val holdout", "holdout"), ("role", "trn val tst", "trn"),
    ("usage", "Train set,Val set,Test set", "Train set"), ("which", "train val exclude", "exclude"),
    ("usage", "trainset valset testset", "trainset"), ("usage", "set: train,set: val,in test", "set: train"),
    ("usage", "TrainSet ValSet TestSet", "TrainSet"),
])  # fmt: skip
def test_most_words_like_partitions_are_refused_whatever_the_column_is_called(
    tmp_path: Path, name: str, words: str, told: str, as_json: bool
) -> None:
    values = words.split("," if "," in words else None)
    path = listed(tmp_path, f"image,label,{name}", *(f"{v}.svs,lgd,{v}" for v in values), as_json=as_json)
    with pytest.raises(DatalistError, match=f"slide {told}.svs: unknown partition {told!r} in {name!r}. Use one of"):
        load_datalist(path, None, "multilabel")


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("train,val,test", "1,0,0 0,1,0 0,0,1"),
        ("is_test", "True False False"),
        ("tst", "1.0 0 0"),
        ("isTest", "False True False"),
        ("train,val,test", "x,, ,x, ,,x"),
    ],
)
def test_a_column_that_switches_a_partition_on_is_refused(tmp_path: Path, header: str, values: str) -> None:
    lines = [f"{i}.svs,lgd,{value}" for i, value in enumerate(values.split())]
    with pytest.raises(
        DatalistError, match="says which slides are for t.*ing, and the slides would be split anew. Write one column"
    ):
        load_datalist(listed(tmp_path, f"image,label,{header}", *lines), None, "multilabel")


@pytest.mark.parametrize("name", ["holdout", "hold_out", "dev", "tst", "Tuning"])
def test_a_list_of_ids_under_a_word_like_a_partition_is_not_dropped(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, {"training": [{"image": "a.svs", "label": "lgd"}], name: ["s2"]})
    with pytest.raises(DatalistError, match=f"{name!r} is no partition, and its slides would be ignored"):
        load_datalist(path, None, "multilabel")


@pytest.mark.parametrize("word", ["dev", "test set", "train_1", "holdout"])
def test_a_partition_column_with_a_word_that_is_none_is_refused(tmp_path: Path, word: str) -> None:
    path = listed(tmp_path, "image,label,set", "a.svs,lgd,train", f"b.svs,lgd,{word}")
    with pytest.raises(DatalistError, match=f"d.csv line 3, slide b.svs: unknown partition {word!r} in 'set'. Use one"):
        load_datalist(path, None, "multilabel")


def test_a_partition_column_that_is_empty_for_some_slides_is_refused(tmp_path: Path) -> None:
    path = listed(tmp_path, "image,label,my_split", "a.svs,lgd,train", "b.svs,lgd,")
    with pytest.raises(DatalistError, match="slide b.svs: no partition in 'my_split', though others have one"):
        load_datalist(path, None, "multilabel")


@pytest.mark.parametrize(("header", "cause"), [
    ("partition,my_split", "its partition is training, and 'my_split' says testing"),
    ("fold_1,fold_2", "'fold_1' says training, and 'fold_2' says testing"),
])  # fmt: skip
def test_columns_that_give_two_partitions_are_refused(tmp_path: Path, header: str, cause: str) -> None:
    path = listed(tmp_path, f"image,label,{header}", "a.svs,lgd,val,val", "b.svs,lgd,train,test")
    with pytest.raises(DatalistError, match=f"d.csv line 3, slide b.svs: {cause}") as caught:
        load_datalist(path, None, "multilabel")
    assert "\n" not in str(caught.value)
    agreeing = listed(tmp_path, f"image,label,{header}", "a.svs,lgd,val,VALID", "b.svs,lgd,train,training")
    assert split_of(agreeing) == {"training": ["b"], "validation": ["a"]}


def test_a_key_of_a_json_datalist_may_not_give_another_partition_than_its_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    path = write(tmp_path, {"training": [{"image": "a.svs", "label": "lgd", "fold": "test"}]})
    with pytest.raises(DatalistError, match="its partition is training, and 'fold' says testing"):
        load_datalist(path, None, "multilabel")


def test_columns_that_agree_on_patients_are_used(tmp_path: Path) -> None:
    lines = [f"s{i}.svs,lgd,c{i // 2 % 4},P{i // 2 % 4}" for i in range(16)]
    for header in ("case_id,patient_id", "patient,bcr_patient_barcode", "submitter_id,Case"):
        loaded = load_datalist(listed(tmp_path, f"image,label,{header}", *lines), None, "multilabel")
        of_partition = [{entry["patient"].lower() for entry in part} for part in loaded.values()]
        assert sum(map(len, of_partition)) == len(set.union(*of_partition)) == 4


def test_columns_that_do_not_agree_on_patients_are_refused_by_name(tmp_path: Path) -> None:
    lines = ["a.svs,lgd,train,C1,P1", "b.svs,lgd,train,C2,P1", "c.svs,lgd,test,C3,P2"]
    path = listed(tmp_path, "image,label,partition,case_id,patient_id", *lines)
    message = (
        "d.csv line 3, slide b.svs: 'case_id' and 'patient_id' name the patient, and do not agree: 'C1' and 'C2' of "
        "'case_id' have the same 'patient_id'. Keep the one that names the patient"
    )
    with pytest.raises(DatalistError) as caught:
        load_datalist(path, None, "multilabel")
    assert str(caught.value).startswith(message)


def test_the_column_that_names_patients_is_named_where_they_cross_or_are_too_few(tmp_path: Path) -> None:
    path = listed(tmp_path, "image,label,set,case", "a.svs,lgd,train,1", "b.svs,lgd,test,1")
    with pytest.raises(
        DatalistError, match=r"patient 1 \(patients by 'case'\) is in training \(a\) and in testing \(b\)"
    ):
        load_datalist(path, None, "multilabel")
    path = listed(tmp_path, "image,label,case", "a.svs,lgd,0", "b.svs,lgd,1")
    with pytest.raises(DatalistError, match=r"d.csv \(patients by 'case'\): 2 patients are too few"):
        load_datalist(path, None, "multilabel")


def rows_of(items: Sequence[dict[str, str]]) -> list[Row]:
    rows = [row_of({"image": f"{i}", **item}, "d", []) for i, item in enumerate(items)]
    return [row for row in rows if row is not None]


COLUMNS = ("case", "donor", "mrn")
VALUES = st.sampled_from(["", "1", "2", "3", "4"])


@settings(deadline=None)
@given(st.lists(st.tuples(*[VALUES] * len(COLUMNS)), min_size=1, max_size=10))
def test_columns_agree_just_where_no_patient_has_two_names_in_one(rows: list[tuple[str, ...]]) -> None:
    nodes = sorted({(column, value) for row in rows for column, value in zip(COLUMNS, row, strict=True) if value})
    place = {node: i for i, node in enumerate(nodes)}
    of_row = [[place[c, v] for c, v in zip(COLUMNS, row, strict=True) if v] for row in rows]
    edges = [pair for own in of_row for pair in pairwise(own)]
    joined = coo_array((np.ones(len(edges)), np.reshape(edges, (-1, 2)).T), shape=(len(nodes),) * 2) if edges else None
    group = connected_components(joined)[1] if joined is not None else np.arange(len(nodes))
    agree = all(a == b or group[place[a]] != group[place[b]] or a[0] != b[0] for a, b in product(nodes, repeat=2))
    faults: list[DatalistError] = []
    listed_rows = rows_of([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    settled = settle_columns(listed_rows, faults)
    assert (not faults) == agree
    if not agree:
        return
    for (one, a), (other, b) in product(zip(of_row, settled, strict=True), repeat=2):
        if one and other and group[one[0]] == group[other[0]]:
            assert a.fields["patient"] == b.fields["patient"]
    # The order of the slides plays no part.
    backwards = settle_columns(listed_rows[::-1], faults)[::-1]
    assert [row.fields for row in backwards] == [row.fields for row in settled]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["train", "val", "test", "", "7"]), min_size=1, max_size=8))
def test_a_column_is_one_of_partitions_just_where_all_its_values_are(values: list[str]) -> None:
    faults: list[DatalistError] = []
    partitions = [row.partition for row in settle_columns(rows_of([{"column": value} for value in values]), faults)]
    given_values = [value for value in values if value]
    if given_values and "7" not in given_values:
        meant = dict(zip(("train", "val", "test"), PARTITIONS, strict=True))
        assert partitions == [meant.get(value) for value in values]
    else:
        assert set(partitions) == {None}
    # Most of them, of two partitions: refused. A note with one such word in it is the user's own.
    of_seven = given_values.count("7")
    assert len(faults) == (0 < of_seven < len(given_values) / 2 and len({*given_values}) > 2)


def test_json_with_two_names_in_two_lists_is_one_patient(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    content = {
        "training": [{"image": "a.svs", "label": "lgd", "patient_id": "P1"}],
        "testing": [{"image": "b.svs", "label": "lgd", "case_id": "p1"}],
    }
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(
        DatalistError, match=r"patient P1 = p1 \(patients by .*\) is in training \(a\) and in testing \(b\)"
    ):
        load_datalist(tmp_path / "d.json", None, "multilabel")
