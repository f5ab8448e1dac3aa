"""Whatever a datalist holds, it is read or refused in one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.core.errors import BundleError
from scripts.datalists.datalist import list_slides, load_datalist

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
