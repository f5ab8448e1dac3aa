"""Whatever a datalist holds, it is read or refused in one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from scripts.core.errors import BundleError
from scripts.datalists.datalist import list_slides, load_datalist
from scripts.datalists.folds import load_folds
from scripts.datalists.labels import CLASS_NAMES

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
KEYS = st.sampled_from(["training", "validation", "testing", "image", "label", "patient", "mpp", "mask", "slide"])
VALUES = st.recursive(
    PLAIN | st.sampled_from(["a.tif", "b.tif", "../a.tif", "training", "test"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)
LABELS = st.lists(st.sampled_from([0, 1, 2, -1, 0.5, "1", "cancer", None, True]), max_size=6) | PLAIN
ENTRIES = st.fixed_dictionaries(
    {"image": st.sampled_from(["a.tif", "b.tif", "c.tif", "", ".", 3, None]) | st.text(max_size=4)},
    optional={"label": LABELS, "patient": PLAIN, "mpp": PLAIN, "mask": PLAIN, "slide": PLAIN, "sha256": PLAIN},
)
LISTS = st.fixed_dictionaries(
    {}, optional={name: st.lists(ENTRIES, max_size=4) for name in ("training", "validation", "testing", "test")}
)
CELLS = st.sampled_from(
    ["image", "label", "a.tif", "b.tif", "cancer", "0", "1", "", "training", "mpp", "0.5", '"', "\n"]
)

whatever = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tmp_path):
    for name in ("a.tif", "b.tif", "c.tif"):
        (tmp_path / name).touch()
    return tmp_path


def problem_with(use):
    try:
        use()
    except BundleError as error:
        return str(error)
    return ""


def read(path, folder):
    for task in ("multilabel", "binary"):
        assert "\n" not in problem_with(lambda task=task: load_datalist(path, folder, task))
    assert "\n" not in problem_with(lambda: list_slides(path, folder))


@whatever
@given(content=VALUES | LISTS)
def test_any_json(folder, content):
    (folder / "list.json").write_text(json.dumps(content))
    read(folder / "list.json", folder)


@whatever
@given(
    rows=st.lists(st.lists(CELLS | st.text(max_size=3), max_size=7), max_size=5),
    comma=st.sampled_from([",", ";", "\t"]),
)
def test_any_csv(folder, rows, comma):
    text = "\n".join(comma.join(row) for row in rows)
    (folder / "list.csv").write_text(text, encoding="utf-8", errors="surrogatepass")
    read(folder / "list.csv", folder)


@whatever
@given(content=st.binary(max_size=60), suffix=st.sampled_from(["json", "csv", "txt"]))
def test_any_bytes(folder, content, suffix):
    (folder / f"list.{suffix}").write_bytes(content)
    read(folder / f"list.{suffix}", folder)


NAMES = ["a.tif", "b.tif", "c.tif", "sub/a.tif", "\u00e9.svs", "=x.tif"]
OWN = st.sampled_from(["P1", "p1", "0.25", 1, "01", "\ud800", "$x", "1;2", None])
WORDS = st.sampled_from(["train", "val", "test"])
USABLE = st.fixed_dictionaries(
    {"label": st.lists(st.sampled_from([0, 1]), min_size=5, max_size=5) | st.sampled_from(["cancer", "lgd|hgd", "3"])},
    optional={
        "case_id": OWN, "slide": OWN, "notes": OWN, "phase": WORDS, "mpp": st.sampled_from([0.25, "0.5"]),
        "mask_tissue": st.sampled_from([1, [1, 2], "1;2"]), "sha256": st.sampled_from([c * 64 for c in "0123456789Ab"]),
    },
)  # fmt: skip


@whatever
@given(entries=st.lists(USABLE, min_size=len(NAMES), max_size=len(NAMES)), folds=st.integers(2, 3))
def test_the_datalists_of_folds_are_read_as_the_one_that_they_are_made_from(tmp_path, entries, folds):
    (tmp_path / "sub").mkdir(exist_ok=True)
    for name, entry in zip(NAMES, entries, strict=True):
        (tmp_path / name).touch()
        entry["image"] = name
    (tmp_path / "list.json").write_text(json.dumps(entries))

    try:
        made = load_folds(tmp_path / "list.json", tmp_path, folds, "multilabel", CLASS_NAMES)
    except BundleError:
        event("refused")
        return
    known = ("image", "slide", "patient", "label", "mpp", "mask_tissue", "sha256")
    for fold in range(folds):
        (tmp_path / "fold.json").write_text(made.datalist(fold), encoding="utf-8")
        loaded = load_datalist(tmp_path / "fold.json", tmp_path, "multilabel")
        for name, part in loaded.items():
            wanted = [{key: str(entry[key]) for key in known if key in entry} for entry in made.part(fold, name)]
            assert [{key: str(value) for key, value in entry.items()} for entry in part] == wanted
