"""Reading datalist files: each format, and each way that a file can be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from monai.data import load_decathlon_datalist

from scripts.core.errors import DatalistError
from scripts.datalists.formats import read_rows
from scripts.datalists.partitions import partition_or_none
from scripts.datalists.rows import Faults, Row, row_of

CLASSES = ("a", "b")


def read(tmp_path: Path, name: str, text: str | bytes, labelled: bool = True) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return first_fault(path, CLASSES if labelled else (), labelled)


def first_fault(path: Path, class_names: Sequence[str] = CLASSES, labelled: bool = True) -> list[Row]:
    """The rows of a file; raises the first fault, as a run does."""
    faults: Faults = []
    rows = read_rows(path, class_names, faults, labelled)
    if faults:
        raise faults[0]
    return rows


def test_json(tmp_path: Path) -> None:
    text = """{"name": "demo", "numTraining": 2, "labels": {"0": "a"},
        "training": [{"image": "s1.svs", "label": [1, 0], "patient": 7, "note": null, "more": {"x": 1}},
                     {"image": "s2.svs", "label": 1, "fold": 0}],
        "test": ["s3.svs"]}"""
    rows = read(tmp_path, "d.json", text)
    assert rows == [
        Row(
            "d.json training[0], slide s1.svs",
            "s1.svs",
            "training",
            [1, 0],
            {"patient": "7", "more": {"x": 1}},
            patients={"patient": "7"},
        ),
        Row("d.json training[1], slide s2.svs", "s2.svs", "training", 1, {"fold": 0}),
        Row("d.json test[0], slide s3.svs", "s3.svs", "testing", None, {}),
    ]


def test_json_is_read_like_monai(tmp_path: Path) -> None:
    entries = [{"image": f"s{i}.svs", "label": [i % 2, 1], "patient": f"p{i}"} for i in range(3)]
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"training": entries, "validation": entries[:1]}))
    for name in ("training", "validation"):
        expected = load_decathlon_datalist(path, is_segmentation=False, data_list_key=name)
        rows = [row for row in first_fault(path) if row.partition == name]
        found = [{"image": str(tmp_path / row.image), "label": row.label, **row.fields} for row in rows]
        assert [{**item, "image": str(tmp_path / item["image"])} for item in expected] == found


def test_json_without_partitions(tmp_path: Path) -> None:
    rows = read(tmp_path, "d.json", '["s1.svs", {"image": "s2.svs", "partition": "val"}]')
    assert [row.partition for row in rows] == [None, "validation"]


def test_csv_with_class_columns(tmp_path: Path) -> None:
    rows = read(tmp_path, "d.csv", ',Image,A,b,Split,mpp,note\n0,"s, 1.svs",1,0,train,0.25,\n1,s2.svs,0,1,TEST,,x\n')
    assert rows == [
        Row("d.csv line 2, slide s, 1.svs", "s, 1.svs", "training", {"a": "1", "b": "0"}, {"mpp": "0.25"}),
        Row("d.csv line 3, slide s2.svs", "s2.svs", "testing", {"a": "0", "b": "1"}, {"note": "x"}),
    ]


def test_csv_with_label_column(tmp_path: Path) -> None:
    rows = read(tmp_path, "d.csv", 'case_id,slide_id,label\n007,s1,a;b\n008,s2,"[1, 0]"\n')
    assert [(row.image, row.label, row.fields) for row in rows] == [
        ("s1", "a;b", {"patient": "007"}),
        ("s2", "[1, 0]", {"patient": "008"}),
    ]


def test_csv_image_and_slide(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "d.csv", "slide,image,id,label\nmy name,s1.svs,5,a\n")
    assert (row.image, row.fields) == ("s1.svs", {"slide": "my name", "id": "5"})


def test_csv_of_the_reference_code(tmp_path: Path) -> None:
    rows = read(tmp_path, "d.csv", "s1,1,0\ns2, 0.0, 1.0\n")
    assert [(row.subject, row.label) for row in rows] == [
        ("d.csv line 1, slide s1", ["1", "0"]),
        ("d.csv line 2, slide s2", ["0.0", "1.0"]),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "image,label\r\nProbe ü 1.svs,a\r\n\r\n",
        b"\xef\xbb\xbfimage,label\nProbe \xc3\xbc 1.svs,a\n",
        "image;label\nProbe ü 1.svs;a\n",
        "image\tlabel\nProbe ü 1.svs\ta",
        '"image" , "label"\n"Probe ü 1.svs", "a"\n'.replace(" ,", ","),
        "\n\n  \nIMAGE,Label\nProbe ü 1.svs  ,  a\n,\n",
    ],
    ids=["crlf", "bom", "semicolon", "tab", "quotes", "blank lines"],
)
def test_csv_dialects(tmp_path: Path, text: str | bytes) -> None:
    (row,) = read(tmp_path, "d.csv", text)
    assert (row.image, row.label) == ("Probe ü 1.svs", "a")


def test_json_with_bom(tmp_path: Path) -> None:
    assert len(read(tmp_path, "d.JSON", b'\xef\xbb\xbf["s1.svs"]')) == 1


def test_lists_without_labels(tmp_path: Path) -> None:
    expected = ["s 1, x.svs", "s2"]
    for name, text in {
        "d.txt": "s 1, x.svs\n\n s2 \r\n",
        "d.csv": '"s 1, x.svs"\ns2\n',
        "e.csv": 'id,a,b\n"s 1, x.svs",1,0\ns2,0,7\n',
        "d.json": '["s 1, x.svs", "s2"]',
    }.items():
        assert [row.image for row in read(tmp_path, name, text, labelled=False)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "s1.tiff,0.3\ns2.tiff,0.3\n",
            r"d\.csv line 1: no header .* explains '0\.3'\. Name the columns .* image,mpp",
        ),
        ("s1.tiff,1\n", r"line 1: no header with a column image, slide or id explains '1'"),
        ("s1.tiff;0.25;7\n", r"line 1: no header .* explains '0\.25', '7'"),
        ("file,mpp\ns1.tiff,0.3\n", r"line 1: no header .* explains 'mpp'"),
        ("s 1, x.svs\n", r"line 1: .* quote a name that contains the separator"),
        ("s1.tiff\ns2.tiff,0.3\n", r"line 2: no header .* explains '0\.3'\. Name the columns"),
        ("s1,1,0\ns2,1\n", r"line 2: no header .* explains '1'"),
        ("s1,1,0\ns2,0.25,1\n", r"line 2: no header .* explains '0\.25', '1'"),
    ],
)
def test_without_a_header_nothing_beside_slides_and_labels_is_dropped(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatalistError, match=message):
        read(tmp_path, "d.csv", text, labelled=False)


def test_without_a_header_labels_and_empty_values_may_follow_a_slide(tmp_path: Path) -> None:
    for text in ("s1,1,0\ns2,0.0,1\n", "s1,\ns2,,\n"):
        assert [row.image for row in read(tmp_path, "d.csv", text, labelled=False)] == ["s1", "s2"]


def test_a_line_with_too_much_need_not_end_the_reading(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("s1\ns2,0.3\ns3\n")
    faults: list[DatalistError] = []
    rows = read_rows(tmp_path / "d.csv", (), faults, labelled=False)
    assert ([row.image for row in rows], len(faults)) == (["s1", "s3"], 1)


def test_empty(tmp_path: Path) -> None:
    for name, text in {
        "d.csv": "",
        "e.csv": "image,label\n",
        "d.json": '{"training": []}',
        "e.json": "[]",
    }.items():
        assert read(tmp_path, name, text) == []


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DatalistError, match=r"datalist .*d\.csv: no such file\. Give the path"):
        first_fault(tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.json", '{"training": [\n{"image" "s"}]}', r"datalist .*d\.json: not JSON \(Expecting ':' .*line 2"),
        ("d.json", "", r"not JSON \(Expecting value: line 1"),
        ("d.json", '"s1.svs"', "contains str, no list of slides"),
        ("d.json", '{"train_x": [], "name": "x"}', r"no list of slides \(keys: 'train_x', 'name'\)"),
        ("d.json", '{"training": [3]}', r"d\.json training\[0\]: got 3\. Give a path"),
        ("d.json", '{"val": [{"label": 1}]}', r"d\.json val\[0\]: no slide\. Give one path or id as image"),
        ("d.json", '[{"image": ["a", "b"]}]', r"d\.json \[0\]: the slide is \['a', 'b'\]\. Give one"),
        (
            "d.json",
            '{"val": [{"image": "s", "partition": "test"}]}',
            "partition testing in the list validation",
        ),
        ("d.csv", b"image,label\n\xff\xfe,1", r"d\.csv: not UTF-8 text \(byte 12\)\. Save a list"),
        ("d.csv", 'image,label\n"s1.svs,a\n', r"d\.csv line 2: not CSV"),
        ("d.csv", "image,label\ns1,a\ns,2,a\n", r"d\.csv line 3: 3 values for 2 columns\. Put quotes"),
        ("d.csv", "image,a,b\ns1,1\n", r"d\.csv line 2: 2 values for 3 columns\. Where a value is unknown, leave its"),
        ("d.csv", "image,a,A\n", r"d\.csv line 1: column 'a' twice"),
        (
            "d.csv",
            "file,a,b\ns1,1,0\n",
            r"d\.csv line 1: no header with a column image, slide or id: \['file', 'a', 'b'\]",
        ),
        ("d.csv", "only\n", r"d\.csv line 1: no header"),
        (
            "d.csv",
            "image,a\ns1,1\n",
            r"d\.csv line 2, slide s1: no value for b\. Give 0 or 1 for each of: a, b ",
        ),
        ("d.csv", "image,a,b\ns1,,1\n", r"slide s1: no value for a"),
        ("d.csv", "image,a,b,label\ns1,0,1,a\n", "slide s1: a label and columns for the classes"),
        (
            "d.csv",
            "image,label,partition\ns1,a,tune\n",
            r"slide s1: unknown partition 'tune'\. Use one of: tr",
        ),
        ("d.csv", "image,label\n,a\n", r"d\.csv line 2: no slide"),
        (
            "d.csv",
            'image,label\n"s\n1",a\n',
            r"d\.csv line 3: the slide is 's\\n1'\. .* only a JSON datalist may have line breaks",
        ),
        (
            "d.csv",
            '"s\n1",1,0\n',
            r"d\.csv line 2: the slide is 's\\n1'\. .* only a JSON datalist may have line breaks",
        ),
        pytest.param("d.json", "[" * 100_000, r"datalist .*d\.json: not JSON \(", id="100000 deep"),
        pytest.param("d.json", f'[{{"image": "s", "x": {"9" * 5000}}}]', r"not JSON \(Exceeds", id="long number"),
    ],
)
def test_errors(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(DatalistError, match=message) as caught:
        read(tmp_path, name, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        ("training", "training train Train TRAINING"),
        ("validation", "validation val valid"),
        ("testing", "testing test"),
    ],
)
def test_words_for_partitions(partition: str, words: str) -> None:
    assert {partition_or_none(word) for word in words.split()} == {partition}


def test_row_of_a_path() -> None:
    assert row_of(Path("/d/s.svs"), "slides[0]", []) == Row("slides[0], slide /d/s.svs", "/d/s.svs", None, None, {})


def test_a_line_break_in_a_name_is_one_where_no_lost_quote_can_make_it(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "d.json", '["s\\n1.svs"]')
    assert row.image == "s\n1.svs"
    of_path = row_of("s\n1.svs", "slides[0]", [])
    assert of_path is not None
    assert of_path.image == "s\n1.svs"


def test_what_is_no_file_is_no_datalist(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.json", "folder.csv"):
        with pytest.raises(DatalistError, match=f"{name}: is a folder, a pipe or a device, not a file. Give the path"):
            first_fault(tmp_path / name)
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(DatalistError, match=r"no such file"):
            first_fault(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "d.csv",
            "id,a,b,mpp,partition\ns1,1,0,,test\ns2,,1,0.5,test\ns3,1\n,1,0,,test\ns4,0,1,,never\ns5,0,1,,test\n",
        ),
        (
            "d.json",
            '{"test": [{"ID": "s1", "a": 1, "b": 0}, {"ID": "s2", "b": 1, "MPP": "0.5"}, 3, {"a": 1},'
            ' {"id": "s4", "a": 0, "b": 1, "split": "never"}, {"id": "s5", "a": 0, "b": 1}]}',
        ),
    ],
)
def test_faults_need_not_end_the_reading(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    faults: list[DatalistError] = []
    rows = read_rows(path, CLASSES, faults)
    assert [(row.image, row.faulty, row.partition) for row in rows] == [
        ("s1", False, "testing"),
        ("s2", True, "testing"),
        ("s4", True, None),
        ("s5", False, "testing"),
    ]
    # Of a line with a fault the rest is known.
    assert [row.fields for row in rows if row.faulty] == [{"mpp": "0.5"}, {}]
    assert len(faults) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"val": [], "val": []}', r"d\.json: not JSON \(the key 'val' appears twice in the object that begins"),
        (
            '[{"image": "s3", "label": {"a": 1, "b": 0, "b": 1}}]',
            r"the key 'b' appears twice in the object that begins with {'a': 1}\)\. Expected",
        ),
        (
            '[{"image": "s1", "a": 1, "A": 0, "b": 0}]',
            r"\[0\], slide s1: the keys 'a' and 'A' mean the same\. Keep one",
        ),
        ('[{"image": "s2", "sha256": "p", "SHA-256": "p"}]', "the keys 'sha256' and 'SHA-256' mean the same"),
    ],
)
def test_keys_that_appear_twice_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatalistError, match=message):
        read(tmp_path, "d.json", text)


def test_keys_that_only_look_alike_are_the_users_own(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "d.json", '{"train": [{"image": "s1", "label": "a", "own": 1, "Own": 2}], "training": []}')
    assert row.fields == {"own": 1, "Own": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"validtaion": [{"image": "s2.svs"}]},
            r"'validtaion' is no partition, .* ignored\. Did you mean validation\?",
        ),
        ({"testng": ["s2", "s3"]}, r"'testng' is no partition, .*\. Did you mean testing\?"),
        ({"traning ": [{"id": "s2"}]}, r"'traning ' is no partition, .*\. Did you mean training\?"),
        (
            {"holdout": [{"image": "s2.svs"}]},
            r"'holdout' is no partition, .*\. Use one of: training, validation, testing",
        ),
        ({"holdout": ["s2.svs"]}, "'holdout' is no partition"),
        (
            {"testing": {"0": {"image": "s2.svs"}}},
            r"the partition 'testing' is dict, not a list\. Write \"testing\": \[\{",
        ),
        ({"test": "s2.svs"}, "the partition 'test' is str, not a list"),
    ],
)
def test_a_list_of_slides_under_another_name_than_a_partitions_is_not_dropped(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    text = json.dumps({"training": [{"image": "s1.svs", "label": [1, 0]}], **content})
    with pytest.raises(DatalistError, match=message) as caught:
        read(tmp_path, "d.json", text)
    assert "\n" not in str(caught.value)


def test_what_else_a_decathlon_datalist_says_is_left_alone(tmp_path: Path) -> None:
    content = {
        "name": "x", "description": "y", "reference": ["A", "B"], "licence": "CC", "release": "1.0", "relase": [],
        "tensorImageSize": "3D", "modality": {"0": "H&E"}, "labels": {"0": "a", "1": "b"}, "numTest": 0,
        "training": [{"image": "s1.svs", "label": [1, 0]}],
    }  # fmt: skip
    assert [row.image for row in read(tmp_path, "d.json", json.dumps(content))] == ["s1.svs"]


def test_a_misspelled_column_is_told_once_and_a_misspelled_key_in_each_entry(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("image,label,sha265,note\ns1,a,00,x\ns2,b,11,y\n")
    (tmp_path / "d.json").write_text('["s1", {"image": "s2", "regoins": "r.png"}]')
    expected = {
        "d.csv": "d.csv line 1: the column 'sha265' is unknown. Did you mean sha256? If not, rename it,",
        "d.json": "d.json [1], slide s2: the key 'regoins' is unknown. Did you mean regions? If not, rename it,",
    }
    for name, message in expected.items():
        faults: list[DatalistError] = []
        rows = read_rows(tmp_path / name, CLASSES, faults)
        assert [row.image for row in rows] == ["s1", "s2"]
        (fault,) = faults
        assert str(fault).startswith(message)
        with pytest.raises(DatalistError, match="Did you mean"):
            first_fault(tmp_path / name)


def test_optional_keys_are_known_in_any_case(tmp_path: Path) -> None:
    expected = {"slide": "n", "patient": "p", "mpp": "0.5", "mask": "m", "regions": "r", "sha256": "0"}
    csv = "Image,LABEL,Split,Slide,Patient ID,Mpp,MASK,Regions,SHA256\ns1,a,test,n,p,0.5,m,r,0\n"
    entry = {"IMAGE": "s1", "Label": "a", "Slide_ID": "n", "PatientID": "p", "MPP": "0.5", "Mask": "m", "REGIONS": "r"}
    for row in (
        *read(tmp_path, "d.csv", csv),
        *read(tmp_path, "d.json", json.dumps({"test": [{**entry, "SHA-256": "0"}]})),
    ):
        assert (row.image, row.label, row.partition, row.fields) == ("s1", "a", "testing", expected)
