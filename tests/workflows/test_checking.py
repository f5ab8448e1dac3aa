"""`checking` as a user runs it: before a run, on a cohort that is good, and on one that is not."""

import csv
import json
import shutil

import pytest

from scripts.core.errors import mistake_in
from scripts.datalists.datalist import load_datalist
from tests.cohorts import draw_slide
from tests.workflows.test_errors import one_line

CLASSES = ["cancer", "hgd", "lgd", "hyperplastic", "normal"]


def lines_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_good_cohort_can_be_run_from_the_list_that_checking_writes(workflow, tmp_path, capsys):
    partitions = ("training", "validation", "testing")
    for i in range(3):
        draw_slide(tmp_path / f"s{i}.tif", seed=i)
    entries = {part: [{"image": f"s{i}.tif", "label": [i % 2, 0, 0, 0, 1]}] for i, part in enumerate(partitions)}
    (tmp_path / "datalist.json").write_text(json.dumps(entries))
    output = tmp_path / "output"
    workflow("checking", "check", dataset_dir=str(tmp_path), output_dir=str(output), patch_size=64, read_all=True)
    assert "patches/s, measured just now on 26 of s0.tif" in capsys.readouterr().out
    assert {p["severity"] for p in lines_of(output / "checking.csv")} == {"warns"}  # every slide has normal
    slides = lines_of(output / "slides.csv")
    assert [(line["slide"], line["problems"], line["rows"]) for line in slides] == [
        (f"s{i}", "0", "20") for i in range(3)
    ]

    again = load_datalist(output / "slides.csv", None, "multilabel", CLASSES)
    given = load_datalist(tmp_path / "datalist.json", tmp_path, "multilabel", CLASSES)
    assert [(part, e["image"], e["label"].tolist()) for part in again for e in again[part]] == [
        (part, e["image"], e["label"].tolist()) for part in given for e in given[part]
    ]
    workflow("extracting", "extract", datalist=str(output / "slides.csv"), output_dir=str(output), patch_size=64)
    for line in slides:
        size = (output / "features" / f"{line['slide']}.h5").stat().st_size
        assert 0 < size - int(line["bank_bytes"]) < 30_000  # the rest is HDF5's, and what made it


def test_a_bad_cohort_ends_with_one_line_and_exit_code_1(command, tmp_path):
    slide = draw_slide(tmp_path / "a.tif")
    shutil.copy(slide, tmp_path / "b.tif")
    (tmp_path / "c.tif").write_text("no slide")
    rows = ["a.tif,cancer,training", "b.tif,cancer,testing", "c.tif,normal,training", "d.tif,warts,validation"]
    (tmp_path / "datalist.csv").write_text("\n".join(["image,label,partition", *rows]))
    done = command("checking", "check", dataset_dir=tmp_path, output_dir=tmp_path / "out", patch_size=64)
    one_line(done, r"checking: 4 problems block a run\. .*checking\.csv lists each")
    blocking = [p for p in lines_of(tmp_path / "out" / "checking.csv") if p["severity"] == "blocks"]
    assert [(p["check"], p["slide"]) for p in blocking] == [
        ("label", "d"),
        ("file", "c"),
        ("file", "d"),
        ("duplicate", "b"),
    ]
    assert "unknown class 'warts'" in done.stdout
    assert "has the same content as" in done.stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"read_all": "yes"}, "read_all: got 'yes'. Give True or False."),
        ({"min_rows": -1}, "min_rows: got -1. Give a whole number from 0 up."),
        ({"dataset_dir": "/no/such/folder"}, "dataset_dir /no/such/folder: no such folder."),
        ({"task": "regression"}, "task: got 'regression'."),
        ({"magnifications": []}, "magnifications: got []."),
        ({"views": -1}, "views: got -1."),
    ],
)
def test_a_wrong_setting_is_refused_before_any_slide(workflow, tmp_path, settings, message):
    draw_slide(tmp_path / "a.tif")
    with pytest.raises(RuntimeError) as caught:
        workflow("checking", "check", **{"dataset_dir": str(tmp_path), "output_dir": str(tmp_path), **settings})
    assert message in str(mistake_in(caught.value))
    assert not (tmp_path / "checking.csv").exists()
