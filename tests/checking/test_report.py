"""What is written can be read again: by csv, and as a datalist by the bundle."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from scripts.checking.datalist import check_datalist
from scripts.checking.problems import BLOCKS, WARNS, Problem, Problems
from scripts.checking.report import (
    SHOWN_PROBLEMS,
    shown_duration,
    shown_problems,
    shown_size,
    write_problems,
    write_slides,
)
from scripts.checking.slides import SlideFacts
from scripts.datalists.datalist import load_datalist
from scripts.slides.resolution import Resolution
from tests.datalists.test_datalist import plain, touch, write

TORN = Problem(BLOCKS, "file", "/data/s 1.svs", 'it is "torn", and\nodd', "Copy it again.", "s 1")
SMALL = Problem(WARNS, "tissue", "/data/s2.svs", "almost no tissue", "Look at it.", "s2")


def lines_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def known(name):
    resolution = Resolution(0.25, "datalist: mpp")
    return SlideFacts(Problems(name, name), 1234, "ab" * 32, resolution, (900, 600), 3, 20, (6, 20), 0.123456, 0.1)


def test_the_csv_has_a_line_for_each_problem(tmp_path):
    write_problems(tmp_path / "out" / "checking.csv", [TORN, SMALL])
    assert lines_of(tmp_path / "out" / "checking.csv") == [
        {
            "severity": "blocks",
            "check": "file",
            "slide": "s 1",
            "where": "/data/s 1.svs",
            "what": 'it is "torn", and odd',
            "what_to_do": "Copy it again.",
        },
        {
            "severity": "warns",
            "check": "tissue",
            "slide": "s2",
            "where": "/data/s2.svs",
            "what": "almost no tissue",
            "what_to_do": "Look at it.",
        },
    ]


def test_one_line_of_the_file_is_one_problem(tmp_path):
    write_problems(tmp_path / "checking.csv", [TORN, SMALL])
    assert len((tmp_path / "checking.csv").read_text().splitlines()) == 3


def test_names_that_are_no_text_can_be_written_and_shown(tmp_path):
    name = b"s\xff.svs".decode(errors="surrogateescape")
    problem = Problem(BLOCKS, "file", name, "\x1b[31mred", "Copy it again.")
    write_problems(tmp_path / "checking.csv", [problem])
    assert lines_of(tmp_path / "checking.csv")[0]["where"] == "s\\udcff.svs"
    shown = shown_problems([problem], "checking.csv")
    assert shown.encode()
    assert "\x1b" not in shown


def cohort(root, task="multilabel"):
    touch(root, *(f"in/s{i}.svs" for i in range(3)), "m.png", "r.png")
    labels = ([1, 0], [0, 0], [0, 1]) if task == "multilabel" else (1, 0, 1)
    entries = [{"image": f"in/s{i}.svs", "label": label, "patient": f"P {i}"} for i, label in enumerate(labels)]
    entries[0] |= {"mpp": 0.25, "mask": "m.png", "mask_tissue": [2, 1]}
    entries[1] |= {"regions": "r.png", "stain": "H&E, x"}
    path = write(root, {"training": entries[:2], "testing": entries[2:]})
    return path, check_datalist(path, root, task, ("a", "b"))


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_the_list_of_slides_is_a_datalist_that_says_the_same(tmp_path, task):
    path, checked = cohort(tmp_path, task)
    written = tmp_path / "output" / "slides.csv"
    facts = [known(slide.name) for slide in checked.slides]
    write_slides(written, checked, facts, [], (5, 10), ("a", "b"), 48)

    before = load_datalist(path, tmp_path, task, ("a", "b"))
    after = load_datalist(written, None, task, ("a", "b"))
    assert list(after) == list(before) == ["training", "testing"]
    for part in before:
        for old, new in zip(plain(before[part]), plain(after[part]), strict=True):
            assert {key: new[key] for key in old} == old
            assert new["sha256"] == "ab" * 32
    # Written again from itself, it stays as it is.
    again = check_datalist(written, written.parent, task, ("a", "b"))
    write_slides(tmp_path / "again.csv", again, facts, [], (5, 10), ("a", "b"), 48)
    assert (tmp_path / "again.csv").read_bytes() == written.read_bytes()


def test_what_was_found_stands_beside_what_was_given(tmp_path):
    _, checked = cohort(tmp_path)
    facts = [known("s0"), SlideFacts(Problems("s1", "s1")), known("s2")]
    facts[2].resolution = Resolution(0.5, "file: objective power 20")
    problems = [Problem(WARNS, "x", "", "", "", "s1"), Problem(BLOCKS, "y", "", "", "", "s1"), SMALL]
    write_slides(tmp_path / "slides.csv", checked, facts, problems, (5, 10), ("a", "b"), 48)
    first, second, third = lines_of(tmp_path / "slides.csv")
    wanted = {
        "slide": "s0", "image": str(tmp_path / "in" / "s0.svs"), "patient": "P 0", "partition": "training",
        "a": "1", "b": "0", "mpp": "0.25", "mask": str(tmp_path / "m.png"), "mask_tissue": "1;2",
            "mask_excluded": "",
        "sha256": "ab" * 32, "problems": "0",
        "mpp_used": "0.25", "mpp_source": "datalist: mpp", "width_px": "900", "height_px": "600", "levels": "3",
        "rows": "20", "patches_5x": "6", "patches_10x": "20", "tissue_mm2": "0.1235", "covered_mm2": "0.1",
        "bytes": "1234", "bank_bytes": str(26 * (12 * 4 + 16) + 20 * 2 * 8), "regions": "", "stain": "",
    }  # fmt: skip
    assert first == wanted
    assert (second["problems"], second["rows"], second["stain"]) == ("2", "", "H&E, x")
    # A resolution that nobody gave is told, and not given.
    assert (third["mpp"], third["mpp_used"], third["problems"]) == ("", "0.5", "1")


def test_a_label_that_is_wrong_is_left_empty(tmp_path):
    touch(tmp_path, "s0.svs", "s1.svs")
    path = write(tmp_path, "image,label,partition\ns0.svs,a,training\ns1.svs,c,training\n")
    checked = check_datalist(path, tmp_path, "multilabel", ("a", "b"))
    write_slides(tmp_path / "s.csv", checked, [known("s0"), known("s1")], [], (5, 10), ("a", "b"), None)
    lines = lines_of(tmp_path / "s.csv")
    assert [(line["a"], line["b"], line["bank_bytes"]) for line in lines] == [("1", "0", ""), ("", "", "")]


def test_the_screen_shows_a_table_and_how_many_of_each():
    shown = shown_problems([TORN, SMALL], "out/checking.csv", width=60).splitlines()
    assert shown[0].startswith('blocks  file    /data/s 1.svs: it is "torn",')
    assert all(len(line) <= 60 for line in shown[:-1])
    assert any(line.startswith("warns   tissue  ") for line in shown)
    assert shown[-1] == "1 block, 1 warn (file 1, tissue 1): out/checking.csv"


def test_the_screen_does_not_show_thousands():
    problems = [replace(SMALL, what="x" * i) for i in range(1000)]
    shown = shown_problems(problems, "checking.csv", width=2000).splitlines()
    assert len(shown) == SHOWN_PROBLEMS + 2
    assert shown[-2:] == ["... and 950 more in checking.csv", "0 block, 1000 warn (tissue 1000): checking.csv"]


def test_the_same_problem_of_many_slides_is_one_line_with_a_count_and_the_first_names():
    slides = [(f"s{i}", f"/my data/s{i}.svs") for i in range(165)]
    problems = [
        *(Problem(WARNS, "tissue", path, f"almost no tissue: {i % 7} rows", "Look.", s)
          for i, (s, path) in enumerate(slides)),
        *(Problem(BLOCKS, "file", f"d.csv line {i}, slide {s}.svs", f"no file {path}", "Check the name.", s)
          for i, (s, path) in enumerate(slides[:2])),
        *(Problem(WARNS, "duplicate", path, f"has the same content as {slides[0][1]}", "Keep one.", s)
          for s, path in slides[1:]),
        Problem(WARNS, "tissue", "/my data/t.svs", "no mask", "Look.", "t"),
        *(Problem(BLOCKS, "patient", "d.csv", f"patient P{s} is in training ({s}) and in testing ({s}b)", "Keep.",
                  names=(f"P{s}", s, f"{s}b")) for s, _ in slides[:7]),
    ]  # fmt: skip
    assert shown_problems(problems, "checking.csv", width=500).splitlines() == [
        "warns   tissue     165 slides (s0, s1, s2, s3, s4, ...): the first: almost no tissue: 0 rows. Look.",
        "blocks  file       2 slides (s0, s1): the first: no file /my data/s0.svs. Check the name.",
        "warns   duplicate  164 slides (s1, s2, s3, s4, s5, ...): has the same content as /my data/s0.svs. Keep one.",
        "warns   tissue     /my data/t.svs: no mask. Look.",
        "blocks  patient    7 times (Ps0, Ps1, Ps2, Ps3, Ps4, ...): the first: patient Ps0 is in training (s0) and in "
        "testing (s0b). Keep.",
        "9 block, 330 warn (duplicate 164, file 2, patient 7, tissue 166): checking.csv",
    ]
    alone = shown_problems(problems[:1], "checking.csv", width=500).splitlines()
    assert alone[0] == "warns  tissue  /my data/s0.svs: almost no tissue: 0 rows. Look."


def test_durations_and_sizes_are_for_people():
    durations = [shown_duration(seconds) for seconds in (0.4, 48, 90, 720, 3 * 3600 + 1800, 3 * 86_400)]
    assert durations == ["0 s", "48 s", "2 min", "12 min", "3.5 h", "3.0 days"]
    assert [shown_size(n) for n in (0, 999, 1234, 17.4e6, 5e11, 2e12)] == [
        "0 bytes", "999 bytes", "1.23 kB", "17.4 MB", "500 GB", "2 TB",
    ]  # fmt: skip
    assert np.all([shown_size(10**k) for k in range(15)])
