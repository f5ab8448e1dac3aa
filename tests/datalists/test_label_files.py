"""MONAI Label's training data: what it hands over becomes the entries of a datalist."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.core.errors import DatalistError
from scripts.datalists.label_files import as_entries, read_label_file
from tests.dicoms import write_dicom
from tests.pyramids import noise


def write(folder: Path, content: object, name: str = "s1.json") -> str:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    "content",
    [
        {"label": {"cancer": 1, "hgd": 0, "lgd": 1, "hyperplastic": 0, "normal": 0}},
        {"label": [1, 0, 1, 0, 0], "scores": {"global": {"cancer": 0.3}}},
        {"label": ["cancer", "lgd"]},
        {"cancer": 1, "hgd": 0, "lgd": 1, "hyperplastic": 0, "normal": 0},
        [1, 0, 1, 0, 0],
        "cancer;lgd",
    ],
)
def test_a_label_file_says_the_classes_in_any_form_of_a_datalist(tmp_path: Path, content: object) -> None:
    (entry,) = as_entries([{"image": "/slides/s1.svs", "label": write(tmp_path, content)}], "multilabel")
    assert entry["label"].tolist() == [1, 0, 1, 0, 0]
    assert entry["label"].dtype == np.float32
    assert (entry["image"], entry["slide"], entry["patient"]) == ("/slides/s1.svs", "s1", "s1")
    (binary,) = as_entries([{"image": "/slides/s1.svs", "label": write(tmp_path, content)}], "binary")
    assert binary["label"].tolist() == [1]


def test_the_resolution_of_a_slide_without_one_stands_beside_the_label(tmp_path: Path) -> None:
    path = write(tmp_path, {"label": [0, 0, 0, 0, 1], "mpp": 0.25})
    (entry,) = as_entries([{"image": "/slides/s1.tif", "label": path}], "multilabel")
    assert entry["mpp"] == 0.25
    assert read_label_file(path) == ([0, 0, 0, 0, 1], {"mpp": 0.25})


def test_slides_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    label = write(tmp_path, [0, 0, 0, 0, 1])
    data = [{"image": f"/slides/{folder}/s1.svs", "label": label} for folder in "ab"]
    assert [entry["slide"] for entry in as_entries(data, "multilabel")] == ["a__s1", "b__s1"]


def test_entries_of_a_datalist_stay_as_they_are() -> None:
    entry = {"image": "/s/s1.svs", "slide": "mine", "patient": "p", "label": np.ones(5, np.float32), "site": "X"}
    (same,) = as_entries([entry], "multilabel")
    assert same == entry


@pytest.mark.parametrize("data", [[], None])
def test_no_slides_say_what_to_do(data: list | None) -> None:
    with pytest.raises(DatalistError, match=r"no slide to train or validate on. Label more slides"):
        as_entries(data, "multilabel")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not JSON", r"label file .*s1.json: cannot be read as JSON"),
        (b"\xff\xfe", r"cannot be read as JSON"),
        (b'{"label": {"cancer": 1}}', r"slide s1: label has no hgd"),
        (b'{"prediction": [{"label": "cancer", "score": 0.9}]}', r"slide s1: label has no cancer"),
        (b"[" * 100_000, r"cannot be read as JSON"),
        (b'{"label": [1' + b"0" * 400 + b", 0, 0, 0, 0]}", r"slide s1: label .* not 0 or 1"),
        (b'{"label": [0.3, 0, 0, 0, 0]}', r"slide s1: label .* has 0.3, not 0 or 1"),
    ],
)
def test_a_label_file_that_says_no_label_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "s1.json").write_bytes(content)
    with pytest.raises(DatalistError, match=message):
        as_entries([{"image": "/slides/s1.svs", "label": str(tmp_path / "s1.json")}], "multilabel")


def test_two_instances_of_a_dicom_series_are_one_slide_in_a_list_and_across_lists(tmp_path: Path) -> None:
    label = write(tmp_path, [0, 0, 0, 0, 1])
    for case in ("case1", "case2"):
        write_dicom(tmp_path / case, noise(256, 256), downsamples=(1, 2))
    first, second, other = (
        {"image": str(tmp_path / name), "label": label}
        for name in ("case1/level_0.dcm", "case1/level_1.dcm", "case2/level_1.dcm")
    )
    entries = as_entries([second, other], "multilabel")
    # As a datalist has them.
    assert [(entry["slide"], entry["patient"]) for entry in entries] == [("case1", "case1"), ("case2", "case2")]
    assert [entry["image"] for entry in entries] == [str(tmp_path / f"case{n}" / "level_0.dcm") for n in (1, 2)]
    message = (
        r"level_1\.dcm: is of the same DICOM series as .*level_0\.dcm, which has a label, too\. Give each slide once"
    )
    with pytest.raises(DatalistError, match=message):
        as_entries([first, other, second], "multilabel")
    with pytest.raises(DatalistError, match=message):
        as_entries([second], "multilabel", apart_from=as_entries([other, first], "multilabel"))
    with pytest.raises(DatalistError, match=r"level_0\.dcm: is there twice"):
        as_entries([first], "multilabel", apart_from=as_entries([first], "multilabel"))
    assert len(as_entries([first], "multilabel", apart_from=as_entries([other], "multilabel"))) == 1


def test_a_slide_is_there_once_and_with_its_label(tmp_path: Path) -> None:
    item = {"image": "/slides/s1.svs", "label": write(tmp_path, [0, 0, 0, 0, 1])}
    with pytest.raises(DatalistError, match=r"/slides/s1.svs: is there twice"):
        as_entries([item, item], "multilabel")
    for lacking in ({"image": "/slides/s2.svs"}, {"label": [1, 0, 0, 0, 0]}, {**item, "image": None}):
        with pytest.raises(DatalistError, match="lacks image or label"):
            as_entries([item, lacking], "multilabel")
    with pytest.raises(DatalistError, match=r"label file .*gone.json: cannot be read"):
        as_entries([{**item, "label": str(tmp_path / "gone.json")}], "multilabel")
