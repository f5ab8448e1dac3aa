"""All that is wrong with a datalist at once; of one that is right, the same as everybody else reads."""

import json
import re

import numpy as np
import pytest

from scripts.checking.datalist import check_datalist
from scripts.core.errors import DatalistError, SettingsError
from scripts.datalists.datalist import load_datalist
from scripts.datalists.units import bags_of, check_patients
from tests.datalists.test_datalist import many, touch, write

CLASSES = ("a", "b")


def check(path, task="multilabel", class_names=CLASSES, **settings):
    return check_datalist(path, path.parent, task, class_names, **settings)


def found(checked):
    """(severity, check, slide, where) of each problem."""
    return [(p.severity, p.check, p.slide, p.where) for p in checked.problems]


@pytest.mark.parametrize("task", ["multilabel", "binary"])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_good_datalist_is_read_as_everybody_reads_it(tmp_path, task, seed):
    path = write(tmp_path, many(tmp_path, 40))
    names = ("cancer", "hgd", "lgd", "hyperplastic", "normal")
    checked = check_datalist(path, tmp_path, task, names, seed=seed)
    assert not [p for p in checked.problems if p.blocks]
    loaded = load_datalist(path, tmp_path, task, names, seed=seed)
    by_name = {entry["slide"]: (part, entry) for part, entries in loaded.items() for entry in entries}
    assert len(checked.slides) == 40
    for slide, entry in zip(checked.slides, checked.entries(), strict=True):
        partition, expected = by_name[slide.name]
        assert slide.partition == partition
        assert np.array_equal(slide.label, expected.pop("label"))
        assert entry == expected
    assert checked.class_values == [[int(i // 2 % 5 == k) for k in range(5)] for i in range(40)]


def test_every_fault_of_a_csv_is_told_with_its_line(tmp_path):
    touch(tmp_path, *(f"s{i}.svs" for i in range(9)), "x/twin.svs", "y/twin.svs")
    lines = [
        "image,a,b,partition,patient,mpp",
        "s0.svs,1,0,training,P1,",  # line 2
        "s1.svs,1,0,testing,P1,",  # the same patient elsewhere
        "s2.svs,2,0,training,P2,",  # no such label
        "s3.svs,,1,training,P3,0.5",  # half a label
        "s4.svs,1,0,tune,P4,",  # no such partition
        "s5.svs,1,0,,P5,",  # no partition
        "s0.svs,0,1,training,P1,",  # listed twice
        "twin,0,1,training,P6,",  # two files
        "s6.svs,0,1,training,p 1,-3",  # another spelling, no mpp
        "s7.svs,0,1",  # too short
        "s8.svs,,,training,P8,",  # no label
        ",0,1,training,P9,",  # no slide
    ]
    path = write(tmp_path, "\n".join(lines))
    checked = check(path)
    assert found(checked) == [
        ("blocks", "datalist", "s3", "d.csv line 5, slide s3.svs"),
        ("blocks", "datalist", "s4", "d.csv line 6, slide s4.svs"),
        ("blocks", "datalist", "", "d.csv line 11"),
        ("blocks", "datalist", "", "d.csv line 13"),
        ("blocks", "datalist", "", "d.csv line 8, slide s0.svs"),
        ("blocks", "datalist", "", "slide twin"),
        ("blocks", "datalist", "s6", "d.csv line 10, slide s6.svs"),
        ("blocks", "label", "s2", "d.csv line 4, slide s2.svs"),
        ("blocks", "label", "s8", "d.csv line 12, slide s8.svs"),
        ("blocks", "partition", "s5", "d.csv line 7, slide s5.svs"),
        ("blocks", "patient", "", f"datalist {path}"),
        ("warns", "partition", "", f"datalist {path}, validation"),
        ("warns", "class", "", f"datalist {path}, testing"),
        ("warns", "patient", "", f"datalist {path}"),
    ]
    texts = [problem.what for problem in checked.problems]
    assert "has '2', not 0 or 1" in texts[7]
    assert texts[10] == "patient P1 is in training (s0) and in testing (s1)"
    assert texts[-2:] == [
        "no slide has b; every slide has a",
        "patients 'P1', 'p 1' differ only in spaces",
    ]
    # The files of faulty lines can be looked at all the same.
    assert [slide.name for slide in checked.slides] == ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s8"]
    assert [slide.mpp for slide in checked.slides][3] == 0.5
    assert checked.class_values[0] == [1, 0]
    assert [checked.class_values[i] for i in (2, 3, 7)] == [None] * 3
    # A run ends with the first of them.
    with pytest.raises(
        DatalistError, match=r"^d\.csv line 5, slide s3\.svs: no value for a\. .* lists 10 more problems"
    ):
        load_datalist(path, tmp_path, "multilabel", CLASSES)


def test_lists_and_columns_with_misspelled_names_block(tmp_path):
    touch(tmp_path, "s1.svs", "s2.svs")
    lists = {"training": [{"image": "s1.svs", "a": 1, "b": 0}], "validtaion": [{"image": "s2.svs", "a": 0, "b": 1}]}
    (problem,) = [p for p in check(write(tmp_path, lists)).problems if p.blocks]
    assert (problem.check, problem.what_to_do) == ("datalist", "Did you mean validation?")
    checked = check(write(tmp_path, "image,a,b,pateint\ns1.svs,1,0,P\ns2.svs,0,1,P\n"))
    (problem,) = [p for p in checked.problems if p.blocks]
    assert (problem.where, problem.what) == ("d.csv line 1", "the column 'pateint' is unknown")
    # The lines are good all the same.
    assert checked.class_values == [[1, 0], [0, 1]]


def test_a_patient_in_two_partitions_is_one_in_whatever_case_the_name_is(tmp_path):
    touch(tmp_path, "s1.svs", "s2.svs", "s3.svs")
    lines = [
        "image,a,b,partition,patient",
        "s1.svs,1,0,training,P1",
        "s2.svs,0,1,testing,p1 ",
        "s3.svs,0,1,testing,1.0",
    ]
    problems = [p for p in check(write(tmp_path, "\n".join(lines))).problems if p.check == "patient"]
    assert [(p.blocks, p.what) for p in problems] == [(True, "patient P1 = p1 is in training (s1) and in testing (s2)")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.json", '{"training": [', "not JSON"),
        ("d.json", '{"training": [], "training": [{"image": "s1.svs"}]}', "the key 'training' appears twice"),
        ("d.csv", "file,a\nx,1\n", "no header"),
        ("d.csv", "", "no slides in it"),
        ("d.json", '{"training": []}', "no slides in it"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_too(tmp_path, name, text, message):
    checked = check(write(tmp_path, text, name))
    assert [problem.blocks for problem in checked.problems] == [True]
    assert message in checked.problems[0].what
    assert checked.slides == []


def test_too_few_patients_for_a_split_block(tmp_path):
    touch(tmp_path, "s1.svs", "s2.svs")
    checked = check(write(tmp_path, "image,a,b,patient\ns1.svs,1,0,P\ns2.svs,0,1,Q\n"))
    assert found(checked) == [("blocks", "partition", "", f"datalist {tmp_path / 'd.csv'}")]
    assert "2 patients are too few for 3 partitions" in checked.problems[0].what


def test_no_split_is_drawn_of_a_part_of_the_slides(tmp_path):
    text = many(tmp_path, 40).splitlines()
    text[5] = text[5].rpartition(",")[0] + ",unheard of"
    names = ("cancer", "hgd", "lgd", "hyperplastic", "normal")
    checked = check(write(tmp_path, "\n".join(text)), class_names=names)
    assert [p.check for p in checked.problems] == ["label"]
    assert {slide.partition for slide in checked.slides} == {None}


def test_a_folder_and_a_list_of_names_need_no_labels(tmp_path):
    touch(tmp_path, "s1.svs", "in/s2.tif")
    folder = check_datalist(None, tmp_path, "multilabel", CLASSES)
    listed = check(write(tmp_path, "s1\ns2\n", "d.txt"))
    single = check_datalist(None, tmp_path / "s1.svs", "multilabel", CLASSES)
    assert sorted(slide.name for slide in folder.slides) == ["s1", "s2"]
    assert [slide.name for slide in listed.slides] == ["s1", "s2"]
    assert [slide.image for slide in single.slides] == [str(tmp_path / "s1.svs")]
    assert folder.problems == single.problems == []
    assert [p.severity for p in listed.problems] == ["warns"]


def test_a_list_without_any_label_is_for_prediction_alone(tmp_path):
    touch(tmp_path, "s1.svs", "s2.svs")
    checked = check(write(tmp_path, "image,mpp\ns1.svs,0.5\ns2.svs,0.25\n"))
    assert [(p.severity, p.what) for p in checked.problems] == [("warns", "no slide has a label or a partition")]


@pytest.mark.parametrize("positive", [["a"], None])
def test_one_0_or_1_is_no_label_of_the_classes(tmp_path, positive):
    touch(tmp_path, "s1.svs", "s2.svs", "s3.svs")
    partitions = ("training", "training", "validation")
    lists: dict[str, list] = {}
    for i, partition in enumerate(partitions):
        lists.setdefault(partition, []).append({"image": f"s{i + 1}.svs", "label": i % 2})
    checked = check(write(tmp_path, lists), task="binary", positive_classes=positive)
    assert [slide.label.tolist() for slide in checked.slides] == [[0], [1], [0]]
    assert checked.class_values is None
    assert not any(problem.blocks for problem in checked.problems)


def test_slides_that_are_left_out_have_no_problems(tmp_path):
    touch(tmp_path, *(f"s{i}.svs" for i in range(40)))
    text = many(tmp_path, 40)
    names = ("cancer", "hgd", "lgd", "hyperplastic", "normal")
    path = write(tmp_path, text)
    whole = check(path, class_names=names)
    less = check(path, class_names=names, leave_out=["s3", "s30"])
    assert {s.name: s.partition for s in less.slides} == {
        slide.name: slide.partition for slide in whole.slides if slide.name not in ("s3", "s30")
    }
    assert len(less.class_values) == 38
    # Where partitions are given, nobody needs the label of a slide that is left out.
    given = write(tmp_path, "image,label,partition\ns1.svs,warts,training\ns2.svs,hgd,training\n", "given.csv")
    assert "label" in [p.check for p in check(given, class_names=names).problems]
    assert "label" not in [p.check for p in check(given, class_names=names, leave_out=["s1"]).problems]


@pytest.mark.parametrize(("leave_out", "message"), [("s1", "got 's1'"), (["s9"], "names 's9', and datalist")])
def test_only_slides_that_are_there_can_be_left_out(tmp_path, leave_out, message):
    touch(tmp_path, "s1.svs")
    with pytest.raises(SettingsError, match=f"leave_out: {message}"):
        check(write(tmp_path, "image,a,b\ns1.svs,1,0\n"), leave_out=leave_out)


def test_a_wrong_setting_is_no_problem_of_the_cohort(tmp_path):
    path = write(tmp_path, json.dumps([]), "d.json")
    with pytest.raises(SettingsError, match="task: got 'regression'"):
        check(path, task="regression")


def test_what_a_folder_holds_besides_slides_is_a_warning(tmp_path):
    touch(tmp_path, "a.svs", "c.qptiff", "d.png")
    (problem,) = check_datalist(None, tmp_path, "multilabel", CLASSES).problems
    assert (problem.severity, problem.check) == ("warns", "file")
    assert problem.what.startswith("not all of it is looked at: 2 files do not end in")
    assert problem.what.endswith("(c.qptiff, d.png)")
    assert check_datalist(None, tmp_path / "a.svs", "multilabel", CLASSES).problems == []


@pytest.mark.parametrize(
    ("task", "unit", "severity", "what"),
    [
        ("multilabel", "slide", "warns", "slides of 1 of 4 patients have different labels (P0)"),
        ("multiclass", "slide", "warns", "slides of 1 of 4 patients have different labels (P0)"),
        (
            "multilabel", "patient", "warns",
            "slides of 1 of 4 patients have different labels (P0): each of these patients has every class that one of "
            "their slides has",
        ),
        ("multiclass", "patient", "blocks", "slides of 1 patients have different classes (P0)"),
    ],
)  # fmt: skip
def test_patients_whose_slides_have_different_labels_are_named_as_a_run_names_them(
    tmp_path, task, unit, severity, what
):
    touch(tmp_path, *(f"s{i}.svs" for i in range(6)))
    parts = ("training", "training", "validation", "validation", "testing", "testing")
    owners = ("P0", "p0", "P1", "P2", "P3", "P3")
    labels = ("1,0", "0,1", "1,0", "0,1", "0,1", "0,1")
    lines = [
        f"s{i}.svs,{label},{part},{p}" for i, (label, part, p) in enumerate(zip(labels, parts, owners, strict=True))
    ]
    path = write(tmp_path, "\n".join(["image,a,b,partition,patient", *lines]))
    (problem,) = [p for p in check(path, task, unit=unit).problems if p.check == "label"]
    assert (problem.severity, problem.what, problem.where) == (severity, what, f"datalist {path}")
    loaded = load_datalist(path, tmp_path, task, CLASSES)
    bags = bags_of([entry for entries in loaded.values() for entry in entries], unit)
    if severity == "blocks":
        with pytest.raises(DatalistError, match=re.escape(f"unit patient: {problem.what}. {problem.what_to_do}")):
            check_patients(bags, task)
    path.write_text(path.read_text().replace("s1.svs,0,1", "s1.svs,1,0"))
    assert not [p for p in check(path, task, unit=unit).problems if p.check == "label"]


def test_slides_that_are_left_out_or_have_no_label_differ_from_none(tmp_path):
    touch(tmp_path, *(f"s{i}.svs" for i in range(4)))
    lines = ["s0.svs,1,0,training,P0", "s1.svs,0,1,training,P0", "s2.svs,0,1,validation,P1", "s3.svs,,,validation,P1"]
    path = write(tmp_path, "\n".join(["image,a,b,partition,patient", *lines]))
    (problem,) = [p for p in check(path, leave_out=["s0"]).problems if p.check == "label"]
    assert (problem.blocks, problem.slide) == (True, "s3")
