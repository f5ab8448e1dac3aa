"""Patients that a datalist leaves open: told in `checking`, and by every run that splits."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from scripts.checking.datalist import check_datalist
from scripts.checking.report import write_slides
from scripts.checking.slides import SlideFacts
from scripts.core.errors import DatalistError
from scripts.datalists.datalist import load_datalist, load_partition
from scripts.datalists.patient_warnings import patient_warnings, patients_in_names
from scripts.datalists.rows import Faults, Row, row_of
from tests.conftest import ROOT
from tests.datalists.test_datalist import touch, write

# TCGA's usual names: 13 patients, 7 of whom have two slides.
TCGA = [f"TCGA-AA-{i % 13:04}-01Z-00-DX{1 + i // 13}.{i:08}-0000.svs" for i in range(20)]
OWN = "no column names the patient, so each slide counts as a patient of its own"


def rows_of(images: list[str], **columns: list[object]) -> list[Row]:
    faults: Faults = []
    items = [{"image": image, **{key: values[i] for key, values in columns.items()}} for i, image in enumerate(images)]
    rows = [row_of(item, f"line {i}", faults) for i, item in enumerate(items)]
    if faults:
        raise faults[0]
    return [row for row in rows if row is not None]


def listed(root: Path, images: list[str], header: str = "", cells: list[str] | None = None) -> Path:
    touch(root, *images)
    lines = [f"{image},{i % 2},{1 - i % 2}{f',{cells[i]}' if cells else ''}" for i, image in enumerate(images)]
    return write(root, "\n".join([f"image,a,b{f',{header}' if header else ''}", *lines]))


def warnings_of(path: Path) -> list[str]:
    checked = check_datalist(path, path.parent, "multilabel", ("a", "b"))
    return [f"{p.what}. {p.what_to_do}" for p in checked.problems if p.check == "patient" and not p.blocks]


def test_without_patients_every_run_that_splits_warns_once_and_so_does_checking(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = listed(tmp_path, [f"s{i}.svs" for i in range(20)])
    caplog.set_level(logging.INFO, logger="scripts.datalists.datalist")
    for partition in ("training", "validation", "testing"):
        load_partition(path, None, partition, "multilabel", ("a", "b"))
    assert f"{path} names no partitions; split by slide with seed 0: training 14 slides, " in caplog.text
    text = f"{OWN}. Add a column `patient`, or slides of one patient may be in several partitions."
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [f"{path}: {text}"]
    assert warnings_of(path) == [text]


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("train", "train#dataset#data"), ("evaluate", "listed_data"), ("extract", "partitions"),
        ("compare", "slides"), ("search", "slides#others"), ("cross_validate", "split"),
    ],
)  # fmt: skip
def test_every_workflow_that_splits_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, config: str, part: str
) -> None:
    path = listed(tmp_path, [f"s{i}.svs" for i in range(20)])
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / f"{config}.json"))
    parser.update({"dataset_dir": str(tmp_path), "datalist": str(path), "class_names": ["a", "b"]})
    parser.get_parsed_content(part)
    assert [r.getMessage() for r in caplog.records if OWN in r.getMessage() and r.levelno == logging.WARNING]


def test_with_patients_nobody_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = listed(tmp_path, [f"s{i}.svs" for i in range(20)], "mrn", [str(i // 2) for i in range(20)])
    load_datalist(path, None, "multilabel", ("a", "b"))
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings_of(path) == []


def test_partitions_of_a_list_without_patients_are_warned_of_by_checking_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = listed(tmp_path, ["s0.svs", "s1.svs"], "partition", ["train", "test"])
    load_datalist(path, None, "multilabel", ("a", "b"))
    assert not caplog.records
    assert [text.startswith(OWN) for text in warnings_of(path)] == [True]


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"pat_nb": ["a", "a", "b", "c"]}, "'pat_nb'"),
        ({"biopsy": ["x1", "x2", "x2", "x3"]}, "'biopsy'"),
        ({"accessionNumber": [1, 1, 2, 3], "site": ["A", "A", "B", "B"]}, "'accessionNumber' and 'site'"),
        ({"batch": ["x", "x", "x", "x"]}, None),
        ({"age": [61, 61, 72, 70], "mm2": [1.5, 1.5, 2.5, 1]}, None),
        ({"stain": ["H&E"] * 4, "note": ["a", "b", "c", "d"]}, None),
    ],
)
def test_columns_that_look_like_patients_are_named(columns: dict[str, list[object]], named: str | None) -> None:
    ((what, remedy),) = patient_warnings(rows_of([f"s{i}.svs" for i in range(4)], **columns))
    assert what == OWN + (f" ({named} may be one)" if named else "")
    assert remedy.startswith("Call the patient's column `patient`" if named else "Add a column `patient`")


def test_slides_without_a_patient_among_others_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = [f"p{i // 2}" if i < 10 else ["", "NA", "nan", "[Not Available]", "'--"][i % 5] for i in range(20)]
    path = listed(tmp_path, [f"s{i}.svs" for i in range(20)], "case_id", cells)
    text = (
        "10 of 20 slides have no patient (s10.svs, s11.svs, s12.svs, s13.svs, s14.svs, ...): each counts as a patient "
        "of its own. Give the patient of every slide, or slides of one may be in several partitions."
    )
    assert warnings_of(path) == [text]
    loaded = load_datalist(path, None, "multilabel", ("a", "b"))
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [f"{path}: {text}"]
    patients = {entry["slide"]: entry["patient"] for part in loaded.values() for entry in part}
    assert [patients[f"s{i}"] for i in range(20)] == [f"p{i // 2}" for i in range(10)] + [
        f"s{i}" for i in range(10, 20)
    ]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        (TCGA[0], "TCGA-AA-0000"),
        ("in/folder/tcga-3c-aalk-01Z-00-DX1.svs", "TCGA-3C-AALK"),
        ("TCGA-3C-AALK.svs", "TCGA-3C-AALK"),
        ("TCGA-3C-AALK", "TCGA-3C-AALK"),
        ("C3L-00004-21.svs", "C3L-00004"),
        ("GTEX-1117F-0126.svs", "GTEX-1117F"),
        ("patient_017_node_2.tif", "PATIENT_017"),
        ("TCGA-3C-AALKX-01.svs", None),
        ("TCGA_3C_AALK.svs", None),
        ("slide of TCGA-3C-AALK.svs", None),
        ("TCGA-AA-0000/other.svs", None),
        ("s1.svs", None),
    ],
)
def test_names_of_known_collections_begin_with_the_patient(name: str, patient: str | None) -> None:
    assert patients_in_names(rows_of([name])) == [patient]


def test_tcga_barcodes_are_offered_and_never_used_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = listed(tmp_path, TCGA)
    (text,) = warnings_of(path)
    assert text == (
        f"{OWN}; the names of 20 of 20 slides begin with TCGA barcodes of 13 patients. Give these as `patient` "
        "(TCGA-AA-0000, ...); `checking` writes slides.csv with them."
    )
    loaded = load_datalist(path, None, "multilabel", ("a", "b"))
    assert not any("patient" in entry for part in loaded.values() for entry in part)
    assert f"{path}: {text}" in caplog.messages

    # The list that checking writes is split by them.
    checked = check_datalist(path, tmp_path, "multilabel", ("a", "b"))
    written = tmp_path / "out" / "slides.csv"
    write_slides(written, checked, [SlideFacts() for _ in TCGA], [], (5, 10), ("a", "b"), None)
    of_partition = [
        {e["patient"] for e in part} for part in load_datalist(written, None, "multilabel", ("a", "b")).values()
    ]
    assert sum(map(len, of_partition)) == len(set.union(*of_partition)) == 13
    assert warnings_of(written) == []


def test_tcga_patients_that_cross_the_partitions_of_a_list_are_counted_and_not_offered(tmp_path: Path) -> None:
    path = listed(tmp_path, TCGA, "set", ["train"] * 13 + ["test"] * 7)
    (text,) = warnings_of(path)
    assert "TCGA barcodes of 13 patients, 7 of them in several partitions. Give these as `patient` (TCGA-" in text
    checked = check_datalist(path, tmp_path, "multilabel", ("a", "b"))
    write_slides(tmp_path / "slides.csv", checked, [SlideFacts() for _ in TCGA], [], (5, 10), ("a", "b"), None)
    with open(tmp_path / "slides.csv", newline="", encoding="utf-8") as file:
        assert [(line["patient"], line["partition"]) for line in csv.DictReader(file)] == [
            ("", "training" if i < 13 else "testing") for i in range(20)
        ]
    # Who gives them is told which.
    with_patients = listed(tmp_path, TCGA, "set,patient", [
        f"{'train' if i < 13 else 'test'},{name[:12]}" for i, name in enumerate(TCGA)
    ])  # fmt: skip
    with pytest.raises(DatalistError, match="patient TCGA-AA-0000 is in training .*`checking` lists 6 more problems"):
        load_datalist(with_patients, None, "multilabel", ("a", "b"))


def test_barcodes_of_slides_or_samples_in_the_place_of_patients_are_told(tmp_path: Path) -> None:
    samples = [name[:19] + str(i // 13) for i, name in enumerate(TCGA)]
    path = listed(tmp_path, [f"s{i}.svs" for i in range(20)], "case_id", samples)
    assert warnings_of(path) == [
        "20 slides have TCGA barcodes of 13 patients, but count as 20 patients. "
        "If the TCGA barcodes are right, give them as `patient` (TCGA-AA-0000, ...)."
    ]
    assert warnings_of(listed(tmp_path, TCGA, "case_id", [name[:12] for name in TCGA])) == []


def test_a_folder_and_an_unlabelled_list_are_split_by_nobody(tmp_path: Path) -> None:
    touch(tmp_path, *TCGA)
    folder = check_datalist(None, tmp_path, "multilabel", ("a", "b"))
    unlabelled = write(tmp_path, "\n".join(TCGA), "d.txt")
    assert folder.problems == []
    assert not any(folder.offered)
    assert warnings_of(unlabelled) == []


@pytest.mark.parametrize("same", [["12", 12, 12.0, "12.0", "12 "], ["P 1", "P  1", "p 1"]])
def test_spellings_of_one_patient_are_one(same: list[object]) -> None:
    names = [row.fields["patient"] for row in rows_of([f"{i}.svs" for i in range(len(same))], patient=same)]
    assert len({str(name).casefold() for name in names}) == 1


@pytest.mark.parametrize("value", [[12], {"id": 12}, True])
def test_what_names_no_patient_is_refused(value: object) -> None:
    with pytest.raises(DatalistError, match=r"slide a.svs: .* names no patient. Give one text or one whole number"):
        rows_of(["a.svs"], patient=[value])


@pytest.mark.parametrize(("one", "other"), [("007", "7"), ("P01", "P1"), ("TCGA-AA-0012", "TCGA-AA-12")])
@pytest.mark.parametrize("partitions", [["", "", "", ""], ["train", "val", "test", "train"]])
def test_patients_that_differ_in_leading_zeros_alone_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, one: str, other: str, partitions: list[str]
) -> None:
    cells = [f"{patient},{word}" for patient, word in zip([one, other, "107", "70"], partitions, strict=True)]
    path = listed(tmp_path, [f"{i}.svs" for i in range(4)], "patient,partition", cells)
    load_datalist(path, None, "multilabel", ("a", "b"))
    assert f"the patients '{one}' and '{other}' count as two" in caplog.text


def test_the_column_that_names_the_patients_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = listed(tmp_path, [f"{i}.svs" for i in range(8)], "case", [f"c{i}" for i in range(8)])
    load_datalist(path, None, "multilabel", ("a", "b"))
    assert "each slide's patient is known (patients by 'case')" in caplog.text


@pytest.mark.parametrize("cells", [["", "P1"], ["TCGA-AA-0000", "TCGA-AA-0000-01A"]])
def test_patients_that_names_show_in_several_given_partitions_are_told_by_every_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str]
) -> None:
    images = ["TCGA-AA-0000-01Z-00-DX1.svs", "TCGA-AA-0000-01Z-00-DX2.svs"]
    given_cells = [f"{cell},{word}" for cell, word in zip(cells, ["train", "test"], strict=True)]
    load_datalist(listed(tmp_path, images, "patient,partition", given_cells), None, "multilabel", ("a", "b"))
    assert "TCGA barcodes of 1 patients, but count as 2 patients, 1 of the 1 in several partitions" in caplog.text


@pytest.mark.parametrize(("one", "other"), [("A-1.05", "A-1.5"), ("P10", "P1")])
def test_other_zeros_are_no_padding(one: str, other: str) -> None:
    assert not any("zeros" in what for what, _ in patient_warnings(rows_of(["a.svs", "b.svs"], patient=[one, other])))
