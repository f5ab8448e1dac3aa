"""A cohort with every kind of fault, checked in one go; and a good one."""

import csv
import logging
import shutil
import threading

import numpy as np
import pytest

from scripts.checking.cohort import CheckingError, CohortChecker, choose_source
from scripts.core.errors import DatalistError, SettingsError, SlideError
from scripts.core.files import file_sha256
from scripts.features.bank import bank_path
from scripts.features.extraction import Extractor
from tests.cohorts import builder, draw_slide, tiny_encoder
from tests.pyramids import noise, write_pyramid

CLASSES = ("a", "b")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for i in range(6):
        draw_slide(folder / f"s{i}.tif", seed=i)
    shutil.copy(folder / "s0.tif", folder / "copy.tif")
    write_pyramid(folder / "blank.tif", np.full((512, 1024, 3), 244, dtype=np.uint8))
    write_pyramid(folder / "bare.tif", noise(600, 600), mpp=None)
    write_pyramid(folder / "coarse.tif", noise(600, 600), mpp=4.0)
    (folder / "text.tif").write_text("no slide")
    return folder


def listed(path, lines, more=""):
    path.write_text("\n".join([f"image,a,b,partition,patient,mask{more}", *lines]))
    return path


@pytest.fixture
def good(slides, tmp_path):
    parts = ("training",) * 2 + ("validation",) * 2 + ("testing",) * 2
    sums = [file_sha256(slides / f"s{i}.tif") for i in range(6)]
    lines = [f"s{i}.tif,{i % 2},{1 - i % 2},{p},P{i},,{sums[i]}" for i, p in enumerate(parts)]
    return listed(tmp_path / "good.csv", lines, more=",sha256")


def checker(slides, datalist, tmp_path, make_encoder=tiny_encoder, num_workers=2, **settings):
    return CohortChecker(
        (slides, datalist),
        builder(),
        make_encoder,
        tmp_path / "out",
        tmp_path / "out" / "features",
        class_names=CLASSES,
        num_workers=num_workers,
        **settings,
    )


def lines_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_same_warning_of_many_slides_is_printed_once_and_written_for_each(slides, tmp_path, capsys):
    for i in range(12):
        (tmp_path / f"t{i}.tif").hardlink_to(slides / "s0.tif")
    datalist = listed(
        tmp_path / "d.csv", [f"{tmp_path}/t{i}.tif,{i % 2},{1 - i % 2},training,P{i}," for i in range(12)]
    )
    checker(slides, datalist, tmp_path, min_rows=1000).run()
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("almost no tissue") == printed.count("has the same content") == 1
    assert "12 slides (t0, t1, t2, t3, t4, ...): almost no tissue: 20 rows" in printed
    assert "11 slides (t1, t2, t3, t4, t5, ...): has the same content as" in printed
    checks = [problem["check"] for problem in lines_of(tmp_path / "out" / "checking.csv")]
    assert (checks.count("tissue"), checks.count("duplicate")) == (12, 11)


def test_every_problem_of_a_bad_cohort_is_told_at_once(slides, tmp_path, capsys):
    datalist = listed(
        tmp_path / "bad.csv",
        [
            "s0.tif,1,0,training,P0,",
            "s1.tif,0,1,training,P1,",
            "copy.tif,1,0,testing,P2,",
            "blank.tif,0,1,training,P3,",
            "bare.tif,0,1,training,P4,",
            "coarse.tif,0,1,training,P5,",
            "text.tif,0,1,training,P6,",
            "gone.tif,0,1,training,P7,",
            "s2.tif,3,1,training,P8,",
            "s3.tif,1,0,testing,P1,",
            "s4.tif,1,0,training,P9,absent.png",
        ],
    )
    with pytest.raises(CheckingError) as caught:
        checker(slides, datalist, tmp_path).run()
    assert str(caught.value) == (
        f"checking: 10 problems block a run. {tmp_path}/out/checking.csv lists each with what to do about it."
    )
    problems = lines_of(tmp_path / "out" / "checking.csv")
    assert [(p["severity"], p["check"], p["slide"]) for p in problems] == [
        ("blocks", "label", "s2"),
        ("blocks", "patient", ""),
        ("blocks", "tissue", "blank"),
        ("blocks", "resolution", "bare"),
        ("blocks", "magnification", "coarse"),
        ("blocks", "magnification", "coarse"),
        ("blocks", "file", "text"),
        ("blocks", "file", "gone"),
        ("blocks", "mask", "s4"),
        ("blocks", "duplicate", "copy"),
        ("warns", "partition", ""),
        ("warns", "class", ""),
        ("warns", "label", ""),
        ("warns", "sha256", ""),
    ]
    assert problems[-2]["what"] == "slides of 1 of 9 patients have different labels (P1)"
    assert problems[-1]["what"].startswith("11 of 11 slides have no `sha256`")
    assert all(problem["what"] and problem["what_to_do"].endswith(".") for problem in problems)
    counts = {line["slide"]: line["problems"] for line in lines_of(tmp_path / "out" / "slides.csv")}
    assert counts == {
        "s0": "0", "s1": "0", "copy": "1", "blank": "1", "bare": "1", "coarse": "2", "text": "1", "gone": "1",
        "s2": "1", "s3": "0", "s4": "1",
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "11 slides (training 9, testing 2)" in shown
    # The label of s2 cannot be read.
    assert "4 can be used: 80 rows, patches 5x 24, 10x 80" in shown
    assert "10 block, 4 warn (class 1, duplicate 1, file 2, label 2, magnification 2, mask 1, " in shown
    for problem in problems:
        assert problem["what"][:20] in " ".join(shown.split())


def test_a_good_cohort_has_no_problem_and_its_cost_is_told(slides, good, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scripts.checking.cohort.measure_rate", lambda encoder, bag: RATE)
    assert checker(slides, good, tmp_path).run() == []
    assert (tmp_path / "out" / "checking.csv").read_text() == "severity,check,slide,where,what,what_to_do\n"
    shown = capsys.readouterr().out
    assert "6 slides (training 2, validation 2, testing 2)" in shown
    assert "6 can be used: 120 rows, patches 5x 36, 10x 120" in shown
    # 156 patches of 12 float32 and a corner of 16 bytes, 240 links of 8 bytes; 156 patches at 0.1 a second.
    assert (
        "about 26 min for 156 patches (0.1 patches/s, measured just now on 10 of s0.tif; "
        "slower if the machine is busy); 11.9 kB in" in shown
    )
    assert "no problems: " in shown


class RATE:
    slide, patches, seconds, per_second = "s0.tif", 10, 100.0, 0.1


def test_views_are_paid_for(slides, good, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scripts.checking.cohort.measure_rate", lambda encoder, bag: RATE)
    checker(slides, good, tmp_path, views=2).run()
    # Two training slides of 26 patches, both of classes that one slide has: 2 views each.
    assert f"for {156 + 2 * 2 * 26} patches" in capsys.readouterr().out


def test_reckoned_banks_are_as_large_as_those_that_are_written(slides, good, tmp_path):
    checker(slides, good, tmp_path).run()
    entries = [{"image": str(slides / f"s{i}.tif"), "slide": f"s{i}"} for i in range(6)]
    Extractor(entries, builder(), tiny_encoder(), tmp_path / "banks").run()
    for line in lines_of(tmp_path / "out" / "slides.csv"):
        size = bank_path(tmp_path / "banks", line["slide"]).stat().st_size
        assert 0 < size - int(line["bank_bytes"]) < 20_000


def test_threads_change_nothing(slides, good, tmp_path):
    results = []
    for num_workers in (0, 3):
        checker(slides, good, tmp_path, num_workers=num_workers).run()
        results.append([(tmp_path / "out" / name).read_bytes() for name in ("checking.csv", "slides.csv")])
    assert results[0] == results[1]


def test_as_many_slides_are_looked_at_at_once_as_asked(slides, good, tmp_path, monkeypatch):
    check = checker(slides, good, tmp_path, num_workers=3)
    together = threading.Barrier(3, timeout=60)
    look = check.check_slide

    def waits(entry, where):
        together.wait()
        return look(entry, where)

    check.check_slide = waits
    check.run()


def test_an_encoder_that_cannot_be_had_is_one_more_problem(slides, good, tmp_path, capsys):
    def make():
        raise SettingsError("backbone_weights", "there is no such file", "Give another.")

    with pytest.raises(CheckingError, match=r"checking: 1 problem blocks a run"):
        checker(slides, good, tmp_path, make_encoder=make).run()
    assert [p["check"] for p in lines_of(tmp_path / "out" / "checking.csv")] == ["backbone"]
    assert lines_of(tmp_path / "out" / "slides.csv")[0]["rows"] == "20"
    assert "extracting:" not in capsys.readouterr().out


def test_a_slide_that_cannot_be_encoded_gives_way_to_the_next(slides, good, tmp_path, monkeypatch):
    measured = []

    def measure(encoder, bag):
        measured.append(bag.slide.path.name)
        if len(measured) == 1:
            raise SlideError(bag.slide.path, "a tile is damaged", "Copy it again.")
        return RATE

    monkeypatch.setattr("scripts.checking.cohort.measure_rate", measure)
    with pytest.raises(CheckingError):
        checker(slides, good, tmp_path).run()
    assert measured == ["s0.tif", "s1.tif"]
    assert [(p["check"], p["slide"]) for p in lines_of(tmp_path / "out" / "checking.csv")] == [("tiles", "s0")]


def test_too_little_room_is_a_warning(slides, good, tmp_path, monkeypatch):
    class Usage:
        free = 10_000

    monkeypatch.setattr("scripts.checking.cohort.shutil.disk_usage", lambda path: Usage)
    problems = checker(slides, good, tmp_path).run()
    assert [(p.severity, p.check) for p in problems] == [("warns", "disk")]
    assert problems[0].what == "the feature banks need about 11.9 kB, and 10 kB are free"


def test_few_rows_warn_and_do_not_block(slides, good, tmp_path):
    problems = checker(slides, good, tmp_path, min_rows=21).run()
    assert [(p.severity, p.check) for p in problems] == [("warns", "tissue")] * 6


def test_an_interrupt_leaves_the_slides_that_nobody_has_begun_with(slides, good, tmp_path):
    check, begun = checker(slides, good, tmp_path, num_workers=1), []

    def interrupted(entry, where):
        begun.append(entry["slide"])
        raise KeyboardInterrupt

    check.check_slide = interrupted
    with pytest.raises(KeyboardInterrupt):
        check.run()
    assert len(begun) < 6


def test_an_output_folder_that_cannot_be_written_to_stops_before_the_slides(slides, good, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("a file")
    check = checker(slides, good, tmp_path)
    monkeypatch.setattr(check, "check_slide", pytest.fail)
    with pytest.raises(SettingsError, match="out: cannot be made"):
        check.run()


def test_a_folder_is_checked_without_a_datalist(slides, tmp_path, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(CheckingError, match="5 problems block a run"):
        checker(slides, None, tmp_path).run()
    checks = [p["check"] for p in lines_of(tmp_path / "out" / "checking.csv")]
    assert sorted(checks) == sorted(
        ["tissue", "resolution", "magnification", "magnification", "file", "duplicate", "sha256"]
    )
    assert "measuring how fast copy is encoded" in caplog.text


def test_what_is_checked(tmp_path):
    (tmp_path / "s.svs").touch()
    (tmp_path / "labels.csv").touch()
    assert choose_source(tmp_path, None, ".") == (tmp_path, None)
    assert choose_source(tmp_path / "s.svs", None, ".") == (tmp_path / "s.svs", None)
    assert choose_source(tmp_path, tmp_path / "labels.csv", ".") == (tmp_path, tmp_path / "labels.csv")
    assert choose_source(None, tmp_path / "labels.csv", ".") == (tmp_path, tmp_path / "labels.csv")
    (tmp_path / "datalist.csv").touch()
    assert choose_source(tmp_path, None, ".") == (tmp_path, tmp_path / "datalist.csv")
    with pytest.raises(DatalistError, match="dataset_dir .*nowhere: no such folder"):
        choose_source(tmp_path / "nowhere", None, ".")
