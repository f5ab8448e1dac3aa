"""Datalists with addresses: what the slides are called, and what is refused without showing what is secret."""

import csv

import pytest

from scripts.core.errors import DatalistError
from scripts.datalists.cohort import choose_slides
from scripts.datalists.datalist import list_slides, load_partition

SECRET = "?sig=geheim"


def write(path, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "partition", "cancer", "mask"], *rows])
    return path


def test_slides_are_called_after_the_files_behind_their_addresses(tmp_path):
    datalist = write(
        tmp_path / "list.csv",
        ["https://user:geheim@host/a/s1.ome.tif" + SECRET, "training", 1, ""],
        ["s3://bucket/b/my slide.svs", "training", 0, ""],
        ["gs://bucket/x/s2.svs", "training", 0, ""],
        ["s3://bucket/y/s2.svs", "training", 0, ""],
    )
    entries = load_partition(datalist, tmp_path, "training", "multilabel", ["cancer"])
    assert [entry["slide"] for entry in entries] == ["s1", "my slide", "bucket__x__s2", "bucket__y__s2"]
    assert entries[0]["image"] == "https://host/a/s1.ome.tif"


def test_an_address_can_be_the_one_slide_to_predict():
    source = choose_slides("https://host/a/s1.svs" + SECRET, None, ".")
    assert list_slides(*source) == [{"image": "https://host/a/s1.svs", "slide": "s1"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["file:///etc/s1.svs" + SECRET, "training", 1, ""], "slides are not read from file://"),
        (["https://host/s1.mrxs" + SECRET, "training", 1, ""], "is one of several files"),
        (["https://host/s1.svs", "training", 1, "https://host/m.png" + SECRET], "its mask is an address"),
        (["https://host/s0.svs" + SECRET, "training", 1, ""], "also listed at"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, row, message):
    datalist = write(tmp_path / "list.csv", ["https://host/s0.svs", "training", 0, ""], row)
    with pytest.raises(DatalistError, match=message) as told:
        load_partition(datalist, tmp_path, "training", "multilabel", ["cancer"])
    assert str(told.value).startswith("list.csv line 3")
    assert "geheim" not in str(told.value)
