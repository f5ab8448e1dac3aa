"""Datalists as a user meets them: files in, entries out, or one line that says what to mend."""

from __future__ import annotations

import csv
import json
import logging
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.checking.datalist import check_datalist
from scripts.core.errors import DatalistError, SettingsError
from scripts.datalists.datalist import list_labels, list_slides, load_datalist, load_partition
from scripts.datalists.labels import CLASS_NAMES, output_names
from scripts.datalists.partitions import PARTITIONS


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(root: Path, text: object, name: str = "") -> Path:
    path = root / (name or ("d.csv" if isinstance(text, str) else "d.json"))
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def plain(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries with labels that ``==`` compares."""
    for entry in entries:
        assert entry["label"].dtype == np.float32
    return [{**entry, "label": entry["label"].tolist()} for entry in entries]


def many(root: Path, count: int) -> str:
    """A CSV without partitions: slides of one class each, two slides a patient."""
    touch(root, *(f"s{i}.svs" for i in range(count)))
    lines = [f"s{i}.svs,p{i // 2},{CLASS_NAMES[i // 2 % 5]}" for i in range(count)]
    return "\n".join(["image,patient,label", *lines])


def test_json(tmp_path: Path) -> None:
    touch(tmp_path, "slides/s1.svs", "slides/s2.tif", "masks/s1.png")
    datalist = {
        "training": [
            {
                "image": "slides/s1.svs",
                "label": [1, 0, 0, 0, 1],
                "patient": 12,
                "mpp": 0.25,
                "mask": "masks/s1.png",
                "regions": "masks/s1.png",
                "source": "Padova",
            }
        ],
        "testing": [{"image": str(tmp_path / "slides" / "s2.tif"), "label": [0, 0, 1, 0, 0]}],
    }
    loaded = load_datalist(write(tmp_path, datalist), None, "multilabel")
    assert list(loaded) == ["training", "testing"]
    assert plain(loaded["training"]) == [
        {
            "image": str(tmp_path / "slides/s1.svs"),
            "label": [1, 0, 0, 0, 1],
            "slide": "s1",
            "patient": "12",
            "mpp": 0.25,
            "mask": str(tmp_path / "masks/s1.png"),
            "regions": str(tmp_path / "masks/s1.png"),
            "source": "Padova",
        }
    ]
    assert plain(loaded["testing"]) == [
        {"image": str(tmp_path / "slides/s2.tif"), "label": [0, 0, 1, 0, 0], "slide": "s2", "patient": "s2"}
    ]


@pytest.mark.parametrize(("given", "kept"), [((), []), ((1,), ["s0", "P"])])
def test_a_list_that_names_no_patient_gives_none(tmp_path: Path, given: tuple[int, ...], kept: list[str]) -> None:
    touch(tmp_path, "s0.svs", "s1.svs")
    entries = [
        {"image": f"s{i}.svs", "label": [1, 0, 0, 0, 0], **({"patient": "P"} if i in given else {})} for i in (0, 1)
    ]
    datalist = {"training": entries[:1], "testing": entries[1:]}
    loaded = load_datalist(write(tmp_path, datalist), None, "multilabel")
    assert [entry["patient"] for part in loaded.values() for entry in part if "patient" in entry] == kept


def test_binary(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs", "c.svs")
    path = write(
        tmp_path,
        {
            "val": [
                {"image": "a", "label": [0, 1, 0, 0, 1]},
                {"image": "b", "label": 0},
                {"image": "c", "label": "lgd"},
            ]
        },
    )
    entries = load_partition(path, None, "validation", "binary")
    assert [entry["label"].tolist() for entry in entries] == [[1], [0], [0]]
    entries = load_partition(path, None, "val", "binary", positive_classes=["lgd"])
    assert [entry["label"].tolist() for entry in entries] == [[0], [0], [1]]


def test_the_reference_codes_csv(tmp_path: Path) -> None:
    data = tmp_path / "data"
    touch(data, "s1.svs", "deep/TCGA-1.8F2B.mrxs", "s3.ndpi")
    rows = ["s1,1,0,0,0,0", "TCGA-1.8F2B,0,1,1,0,0", "s3,0,0,0,0,1"]
    path = write(tmp_path, "\n".join(rows))
    loaded = load_datalist(path, data, "multilabel")
    entries = {entry["slide"]: entry for part in loaded.values() for entry in part}
    assert sorted(entries) == ["TCGA-1.8F2B", "s1", "s3"]
    assert entries["TCGA-1.8F2B"]["image"] == str(data / "deep/TCGA-1.8F2B.mrxs")
    assert entries["TCGA-1.8F2B"]["label"].tolist() == [0, 1, 1, 0, 0]


def test_class_indices(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    path = write(tmp_path, "image,label,partition\na,0,train\nb,3,train\n")
    labels = [entry["label"].tolist() for entry in load_partition(path, None, "training", "multilabel")]
    assert labels == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]


def test_own_classes(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    path = write(tmp_path, "image,tumour,stroma,partition\na,1,0,train\n")
    (entry,) = load_partition(path, None, "training", "multilabel", ("stroma", "tumour"))
    assert entry["label"].tolist() == [0, 1]


# Any text in one line, spaces and commas and quotes within it.
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="/"))
texts = texts.map(lambda text: f"x{text}x")
slides = st.fixed_dictionaries(
    {
        "image": texts.map(lambda text: f"{text}.svs"),
        "label": st.lists(st.integers(0, 1), min_size=5, max_size=5),
        "partition": st.sampled_from(PARTITIONS),
    },
    optional={"mpp": st.floats(0.01, 10), "source": texts},
)


@settings(max_examples=60, deadline=None)
@given(st.lists(slides, min_size=1, max_size=6, unique_by=lambda slide: slide["image"]), st.booleans())
def test_json_and_csv_give_the_same(rows: list[dict[str, Any]], with_patients: bool) -> None:
    for row in rows:
        if with_patients:
            row["patient"] = f"patient of {row['partition']}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for row in rows:
            # Longer names than the file system allows are another test's subject.
            row["image"] = row["image"].encode()[-200:].decode(errors="ignore")
        touch(root, *(row["image"] for row in rows))
        as_json: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            as_json.setdefault(row["partition"], []).append({k: v for k, v in row.items() if k != "partition"})
        keys = ["image", "partition", "patient", "mpp", "source", *CLASS_NAMES]
        with (root / "d.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            for row in rows:
                cells = {key: value for key, value in row.items() if key != "label"}
                writer.writerow({**cells, **dict(zip(CLASS_NAMES, row["label"], strict=True))})
        from_json = load_datalist(write(root, as_json), None, "multilabel")
        from_csv = load_datalist(root / "d.csv", None, "multilabel")
        assert {name: plain(part) for name, part in from_json.items()} == {
            name: plain(part) for name, part in from_csv.items()
        }
        assert sum(map(len, from_csv.values())) == len(rows)


def test_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, many(tmp_path, 100))
    with caplog.at_level(logging.INFO, logger="scripts.datalists.datalist"):
        loaded = load_datalist(path, None, "multilabel", seed=3)
        parts = {name: load_partition(path, None, name, "multilabel", seed=3) for name in PARTITIONS}
    assert {name: plain(part) for name, part in parts.items()} == {n: plain(p) for n, p in loaded.items()}
    assert {name: len(part) for name, part in loaded.items()} == {
        "training": 70,
        "validation": 10,
        "testing": 20,
    }
    patients = [{entry["patient"] for entry in part} for part in loaded.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 50
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        f"{path} names no partitions; split by patient with seed 3: training 70 slides of 35 patients, "
        "validation 10 slides of 5 patients, testing 20 slides of 10 patients"
    )


def test_a_patients_slides_stay_together_in_whatever_case_the_name_is(tmp_path: Path) -> None:
    head, *lines = many(tmp_path, 100).splitlines()
    mixed = [line.replace(",p", ",P") if i % 2 else line for i, line in enumerate(lines)]
    loaded = load_datalist(write(tmp_path, "\n".join([head, *mixed])), None, "multilabel", seed=3)
    patients = [{entry["patient"].casefold() for entry in part} for part in loaded.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 50
    # Other spellings apart, it is the split of the same list.
    plainly = load_datalist(write(tmp_path, "\n".join([head, *lines]), "p.csv"), None, "multilabel", seed=3)
    assert {n: len(part) for n, part in loaded.items()} == {n: len(part) for n, part in plainly.items()}


@pytest.mark.parametrize("other", ["m\u00fcller", "Mu\u0308ller", "M\u00fcl\u200bler", "\uff2d\u00fcller"])
def test_names_that_look_alike_are_one_patient(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    path = write(tmp_path, f"image,label,patient,partition\na,lgd,M\u00fcller,train\nb,lgd,{other},test\n")
    with pytest.raises(DatalistError, match="patient .* = .* is in training \\(a\\) and in testing \\(b\\)"):
        load_datalist(path, None, "multilabel")


def test_a_whole_number_is_one_patient_however_pandas_wrote_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    path = write(tmp_path, "image,label,patient,partition\na,lgd,1,train\nb,lgd,1.0,test\n")
    with pytest.raises(DatalistError, match="patient 1 is in training"):
        load_datalist(path, None, "multilabel")


def test_regions_that_are_not_there_stop_no_prediction(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    assert list_slides(write(tmp_path, "image,regions\na,x.png\n")) == [{"image": f"{tmp_path}/a.svs", "slide": "a"}]


def test_split_does_not_depend_on_the_order(tmp_path: Path) -> None:
    head, *lines = many(tmp_path, 60).splitlines()

    def split(order: list[str], seed: int) -> dict[str, set[str]]:
        path = write(tmp_path, "\n".join([head, *order]))
        loaded = load_datalist(path, None, "binary", seed=seed)
        return {name: {entry["slide"] for entry in part} for name, part in loaded.items()}

    assert split(lines, 0) == split(lines[::-1], 0)
    assert split(lines, 0) != split(lines, 1)
    assert len(split(lines, 0)["training"]) == 42


def test_other_partitions_need_neither_files_nor_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    path = write(
        tmp_path,
        {"training": [{"image": "gone.svs", "label": [1]}], "test": [{"image": "a.svs", "label": "lgd"}]},
    )
    assert len(load_partition(path, None, "testing", "multilabel")) == 1
    with pytest.raises(DatalistError, match="label .* has 1 value"):
        load_datalist(path, None, "multilabel")
    with pytest.raises(DatalistError, match="no file"):
        load_datalist(path, None, "binary")


def test_same_stem(tmp_path: Path) -> None:
    touch(tmp_path, "one/s.svs", "two/s.svs", "t.svs")
    path = write(tmp_path, "image,label,partition\none/s.svs,1,train\ntwo/s.svs,0,test\nt,0,test\n")
    loaded = load_datalist(path, None, "binary")
    assert [entry["slide"] for part in loaded.values() for entry in part] == ["one__s", "two__s", "t"]
    # A name does not depend on the partition that is loaded.
    assert load_partition(path, None, "training", "binary")[0]["slide"] == "one__s"


def test_names_cannot_lead_out(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.svs", "b.svs")
    path = write(tmp_path, "image,slide,label,partition\na.svs,../../x,1,train\n../b.svs,,0,train\n")
    names = [entry["slide"] for entry in load_partition(path, tmp_path / "data", "training", "binary")]
    assert names == ["x", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"datalist .*d\.csv: no slides in it"),
        ({"training": []}, r"datalist .*d\.json: no slides in it"),
        (
            "image,label,partition\na,lgd,test\n",
            r"no slides for training \(it has: testing\)\. Add slides to",
        ),
        (
            {"training": [], "val": [{"image": "a", "label": "lgd"}]},
            r"no slides for training \(it has: validation\)",
        ),
        (
            "image,label,partition\na,lgd,train\nb,lgd,\n",
            r"line 3, slide b: no partition, though others have one",
        ),
        (
            "image,label,partition\na,lgd,train\nx.svs,lgd,train\ny.svs,lgd,train\nz.svs,lgd,train\n",
            r"line 3, slide x\.svs: no file .*/x\.svs\. Check the name.* `checking` lists 2 more problems\.$",
        ),
        ("image,label,partition\nx,lgd,train\n", r"slide x: no file .*/x with a suffix like \.svs, \.ome\.tif"),
        ("image,label,mask,partition\na,lgd,x.png,train\n", r"slide a: no mask '.*/x\.png'\. Check"),
        ("image,label,regions,partition\na,lgd,x.png,train\n", r"slide a: no regions '.*/x\.png'\. Check"),
        (
            {"training": [{"image": "a", "label": [1, 0]}]},
            r"training\[0\], slide a: label \[1, 0\] has 2 values",
        ),
        ({"training": [{"image": "a"}]}, r"slide a: no label\. Give 0 or 1 for each of: cancer, hgd, lgd"),
        (
            "image,label,partition\na,polyp,train\n",
            r"slide a: unknown class 'polyp'\. The classes are: cancer",
        ),
        ("a,1,0,0,0,2\n", r"line 1, slide a: label \['1', '0', '0', '0', '2'\] has '2', not 0 or 1"),
        ("image,label,mpp,partition\na,lgd,0,train\n", r"slide a: mpp is '0', not a positive number\. Give"),
        ("image,label,mpp,partition\na,lgd,x,train\n", r"slide a: mpp is 'x', not a positive number"),
        ("image,label,mpp,partition\na,lgd,0_5,train\n", r"slide a: mpp is '0_5', not a positive number"),
        pytest.param(
            f"image,label,mpp,partition\na,lgd,{'9' * 400},train\n", r"slide a: mpp is '9+', not a positive", id="long"
        ),
        ({"training": [{"image": "a", "label": "lgd", "mpp": True}]}, "mpp is True"),
        ({"training": [{"image": "a", "label": "lgd", "mpp": float("nan")}]}, "mpp is nan"),
        ({"training": [{"image": "a", "label": "lgd", "mpp": [0.5, 0.5]}]}, r"mpp is \[0\.5, 0\.5\]"),
        (
            "image,label,patient,partition\na,lgd,p1,train\nb,lgd,p1,test\nc,lgd,p2,train\n",
            r"d\.csv: patient p1 is in training \(a\) and in testing \(b\)\. Keep all slides",
        ),
        (
            "image,label,patient,partition\na,lgd,P1,train\nb,lgd,p1 ,test\nc,lgd,p2,train\n",
            r"patient P1 = p1 is in training \(a\) and in testing \(b\)\. Keep all slides",
        ),
        (
            "image,label,partition\na,lgd,train\na.svs,lgd,test\n",
            r"line 3, slide a\.svs: also listed at d\.csv line 2,",
        ),
        ("image,label\na,lgd\nb,lgd\n", r"datalist .*d\.csv: 2 patients are too few for 3 partitions\. Add"),
        ("image,label,partition\ns,lgd,train\n", r"slide s: could be .*1/s\.svs or .*2/s\.svs\. Write"),
    ],
)
def test_errors(tmp_path: Path, content: object, message: str) -> None:
    touch(tmp_path, "a.svs", "b.svs", "c.svs", "1/s.svs", "2/s.svs")
    with pytest.raises(DatalistError, match=message) as caught:
        load_partition(write(tmp_path, content), None, "training", "multilabel")
    assert "\n" not in str(caught.value)


def test_many_patients_cross(tmp_path: Path) -> None:
    lines = [f"{part}{i}.svs,lgd,p{i},{part}" for i in range(5) for part in ("train", "test")]
    path = write(tmp_path, "\n".join(["image,label,patient,partition", *lines]))
    with pytest.raises(
        DatalistError, match=r"patient p0 is in training .* Keep all .* `checking` lists 4 more problems"
    ):
        load_partition(path, None, "training", "multilabel")


def test_slides_of_unknown_patients_do_not_cross(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    path = write(tmp_path, "image,label,patient,partition\na,lgd,,train\nb,lgd,,test\n")
    assert "patient" not in load_partition(path, None, "training", "multilabel")[0]


def test_files_and_settings(tmp_path: Path) -> None:
    path = write(tmp_path, "image,label\na,lgd\n")
    with pytest.raises(DatalistError, match=r"datalist .*gone\.csv: no such file"):
        load_datalist(tmp_path / "gone.csv", None, "multilabel")
    with pytest.raises(DatalistError, match=r"dataset_dir .*gone: no such folder"):
        load_datalist(path, tmp_path / "gone", "multilabel")
    with pytest.raises(DatalistError, match="partition: unknown partition 'tuning'"):
        load_partition(write(tmp_path, many(tmp_path, 6)), None, "tuning", "multilabel")
    with pytest.raises(SettingsError, match="task: got 'multi-label'"):
        load_datalist(path, None, "multi-label")
    with pytest.raises(SettingsError, match="class_names: '1' is a number"):
        load_datalist(path, None, "multilabel", ["1", "2", "3"])


def test_outputs() -> None:
    assert output_names("multilabel") == list(CLASS_NAMES)
    assert output_names("binary") == ["high_risk"]
    with pytest.raises(SettingsError, match="task"):
        output_names("regression")


def test_list_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "a.tif", "x/b.svs", "notes.txt")
    assert list_slides(tmp_path) == [
        {"image": str(tmp_path / "a.tif"), "slide": "a"},
        {"image": str(tmp_path / "b.svs"), "slide": "b"},
        {"image": str(tmp_path / "x/b.svs"), "slide": "x__b"},
    ]


def test_list_one_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "b.svs")
    monkeypatch.chdir(tmp_path)
    assert list_slides("b.svs") == [{"image": str(tmp_path / "b.svs"), "slide": "b"}]


def test_what_a_folder_holds_besides_slides_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.svs", "c.qptiff", "d.png")
    assert [entry["slide"] for entry in list_slides(tmp_path)] == ["a"]
    (message,) = caplog.messages
    assert re.search(r"folder .*: not all of it is looked at: 2 files do not end in .*\(c\.qptiff, d\.png\)", message)
    assert message.endswith("give it as `dataset_dir` or name it in a datalist.")


@pytest.mark.parametrize("name", ["c.qptiff", "d.png", "no_suffix"])
def test_a_file_that_is_no_text_is_a_slide_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"II*\0")
    assert list_slides(tmp_path / name) == [{"image": str(tmp_path / name), "slide": name}]
    assert list_slides(write(tmp_path, f"image\n{name}\n")) == [{"image": str(tmp_path / name), "slide": name}]


def test_a_list_without_a_suffix_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    assert list_slides(write(tmp_path, "image\na\n", "slides")) == [{"image": f"{tmp_path}/a.svs", "slide": "a"}]


def test_list_files(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.svs", "data/b.svs", "data/m.png")
    expected = [{"image": str(tmp_path / f"data/{name}.svs"), "slide": name} for name in "ab"]
    for name, text in {
        "d.txt": "a.svs\nb\n",
        "d.csv": "a,0,1\nb,1,1\n",
        "e.csv": "id,label,partition\na,unknown,train\nb,,\n",
        "d.json": '{"testing": ["a.svs", {"image": "b", "label": [3]}]}',
    }.items():
        assert list_slides(write(tmp_path, text, name), tmp_path / "data") == expected
    (entry,) = list_slides(write(tmp_path, "image,mpp,mask,note\na,0.5,m.png,x\n"), tmp_path / "data")
    assert entry == {**expected[0], "mpp": 0.5, "mask": str(tmp_path / "data/m.png")}


def test_list_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    expected = [
        {"image": str(tmp_path / "a.svs"), "slide": "a"},
        {"image": str(tmp_path / "b.svs"), "slide": "b", "mpp": 1.0},
    ]
    items: list[Any] = [tmp_path / "a.svs", {"image": "b", "mpp": 1, "label": "?"}]
    assert list_slides(items, tmp_path) == expected
    monkeypatch.chdir(tmp_path)
    assert list_slides(items) == expected


def test_what_is_loaded_can_be_listed(tmp_path: Path) -> None:
    path = write(tmp_path, many(tmp_path, 10))
    entries = load_partition(path, None, "training", "multilabel")
    assert list_slides(entries) == [{"image": entry["image"], "slide": entry["slide"]} for entry in entries]


def test_list_errors(tmp_path: Path) -> None:
    for source, message in [
        (tmp_path, r"folder .*: no slides\. Known are: \.svs \.ome\.tif"),
        ([], r"the list of slides: no slides"),
        (tmp_path / "gone.svs", r"slide .*gone\.svs: no file .*gone\.svs\. Check"),
        (tmp_path / "gone", r"datalist .*gone: no such file"),
        ([tmp_path / "gone.svs"], r"slides\[0\], slide .*gone\.svs: no file"),
        ([7], r"slides\[0\]: got 7"),
    ]:
        with pytest.raises(DatalistError, match=message):
            list_slides(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["NFC", "NFD"])
@pytest.mark.parametrize("given", ["NFC", "NFD"])
def test_a_slide_is_left_out_however_accents_are_encoded(tmp_path: Path, file: str, given: str) -> None:
    image, name = (unicodedata.normalize(form, "größe") for form in (file, given))
    (tmp_path / f"{image}.svs").touch()
    (tmp_path / "other.svs").touch()
    rows = [{"image": f"{image}.svs", "label": [1, 0, 0, 0, 0]}, {"image": "other.svs", "label": [0, 1, 0, 0, 0]}]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": rows}), encoding="utf-8")
    kept = load_partition(path, None, "training", "multilabel", leave_out=[name])
    assert [entry["slide"] for entry in kept] == ["other"]
    checked = check_datalist(path, tmp_path, "multilabel", CLASS_NAMES, leave_out=[name])
    assert [slide.name for slide in checked.slides] == ["other"]


def test_slides_that_are_left_out_change_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, many(tmp_path, 10))
    loaded = load_datalist(path, None, "multilabel")
    all_of = {name: [entry["slide"] for entry in found] for name, found in loaded.items()}
    gone = [all_of["training"][0], all_of["testing"][0]]
    for name, slides in all_of.items():
        left = load_partition(path, None, name, "multilabel", leave_out=gone)
        assert [entry["slide"] for entry in left] == [slide for slide in slides if slide not in gone]
    with pytest.raises(DatalistError, match="no slides for validation"):
        load_partition(path, None, "validation", "multilabel", leave_out=all_of["validation"])
    with pytest.raises(
        SettingsError, match=r"leave_out: names 'nobody', and datalist .* has no such slide\. Name slides as"
    ):
        load_datalist(path, None, "multilabel", leave_out=["nobody"])
    with pytest.raises(SettingsError, match=r"leave_out: got 's1'\. Give a list"):
        load_datalist(path, None, "multilabel", leave_out="s1")


def test_a_checksum_comes_with_its_slide(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    path = write(tmp_path, "image,partition,sha256,cancer,hgd,lgd,hyperplastic,normal\na,training,00ff,1,0,0,0,0\n")
    (entry,) = load_partition(path, None, "training", "multilabel")
    assert entry["sha256"] == "00ff"
    assert list_slides(path) == [{"image": str(tmp_path / "a.svs"), "slide": "a", "sha256": "00ff"}]


def test_labels_are_listed_without_files(tmp_path: Path) -> None:
    path = write(
        tmp_path, "image,partition,cancer,hgd,lgd,hyperplastic,normal\na,training,1,0,0,0,0\ng.svs,training,0,0,0,0,1\n"
    )
    (tmp_path / "a.svs").touch()
    assert [(e["slide"], e["label"].tolist()) for e in list_labels(path, None, "training", "multilabel")] == [
        ("a", [1, 0, 0, 0, 0]),
        ("g", [0, 0, 0, 0, 1]),
    ]
    assert [e["label"].tolist() for e in list_labels(path, None, "training", "binary", leave_out=["a"])] == [[0]]
    assert list_labels(path, None, "testing", "multilabel") == []


def test_labels_of_a_split_are_those_of_its_partitions(tmp_path: Path) -> None:
    lines = [f"s{i}.svs,{i % 2},0,0,0,{1 - i % 2}" for i in range(20)]
    path = write(tmp_path, "\n".join(["image,cancer,hgd,lgd,hyperplastic,normal", *lines]))
    for i in range(20):
        (tmp_path / f"s{i}.svs").touch()
    for seed in (0, 1):
        for partition, entries in load_datalist(path, None, "multilabel", seed=seed).items():
            listed = list_labels(path, None, partition, "multilabel", seed=seed)
            assert [(e["slide"], e["label"].tolist()) for e in listed] == [
                (e["slide"], e["label"].tolist()) for e in entries
            ]


@pytest.mark.parametrize("name", ["linked.svs", "folder/a.svs"])
def test_a_slide_that_is_listed_again_by_a_link_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "slides", "a.svs")
    (tmp_path / "linked.svs").symlink_to(tmp_path / "slides" / "a.svs")
    (tmp_path / "folder").symlink_to(tmp_path / "slides")
    path = write(tmp_path, f"image,label,partition\nslides/a.svs,lgd,train\n{tmp_path}/{name},lgd,test\n")
    with pytest.raises(DatalistError, match="is the same file as .*slides/a.svs, by a link. List each slide once"):
        load_datalist(path, None, "multilabel")


def test_a_link_in_a_folder_to_a_slide_of_it_is_no_slide_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs")
    (tmp_path / "a.svs").symlink_to(tmp_path / "b.svs")
    assert [entry["slide"] for entry in list_slides(tmp_path)] == ["b"]
