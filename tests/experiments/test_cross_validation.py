"""What a cross-validation hands to its folds, refuses before anything runs, and writes when they are done."""

from __future__ import annotations

import csv
import hashlib
import json
import logging

import h5py
import numpy as np
import pytest

import scripts.experiments.cross_validation
from scripts.core.errors import BundleError, DatalistError, SettingsError
from scripts.datalists.datalist import load_datalist
from scripts.datalists.folds import load_folds
from scripts.datalists.partitions import PARTITIONS
from scripts.experiments.cross_validation import CrossValidation
from scripts.features.augmentation import count_views
from tests.comparisons import CLASSES, write_run

SETTINGS = {
    "task": "multilabel", "class_names": CLASSES, "magnifications": [5, 10], "method": "mustmil", "seed": 0, "views": 0,
}  # fmt: skip
LABELS = np.random.default_rng([0, 99]).integers(0, 2, (12, len(CLASSES)))  # those of the runs


@pytest.fixture
def split(tmp_path):
    return load(tmp_path)


def load(folder, patients=True, **options):
    """Twelve slides of six patients in three folds."""
    for i in range(12):
        (folder / f"s{i:02d}.svs").touch()
    lines = [
        f"s{i:02d}.svs,{f'p{i // 2}' if patients else ''},{','.join(map(str, labels))}"
        for i, labels in enumerate(LABELS)
    ]
    (folder / "d.csv").write_text("\n".join([f"image,patient,{','.join(CLASSES)}", *lines]) + "\n")
    return load_folds(folder / "d.csv", None, 3, "multilabel", CLASSES, **options)


def validation(split, folder, **changes):
    settings = {**SETTINGS, **changes}
    return CrossValidation(split, settings, folder / "out", folder / "banks", made_by={"seed": 0})


def write_banks(split, folder, same=()):
    """Banks that store nothing but the checksums of their slides."""
    (folder / "banks").mkdir()
    for entry in split.entries:
        name = entry["slide"]
        with h5py.File(folder / "banks" / f"{name}.h5", "w") as bank:
            sha256 = hashlib.sha256(b"same" if name in same else name.encode()).hexdigest()
            bank.attrs["settings"] = json.dumps({"slide_sha256": sha256})


@pytest.fixture
def ran(monkeypatch):
    """Runs that take no time: of each what it was given, and the results of its test slides."""
    seen = []

    def run(experiments, *args, **kwargs):
        for one in experiments:
            seen.append(one)
            text = (one.folder / "datalist.json").read_text()
            assert hashlib.sha256(text.encode()).hexdigest() == one.settings["datalist_sha256"]
            write_run(one.folder, "mustmil", 0, regions=False)
            tested = {entry["slide"] for entry in json.loads(text)["testing"]}
            lines = (one.folder / "predictions.csv").read_text().splitlines()
            own = [line for line in lines[1:] if line.split(",")[0] in tested - set(one.settings.get("leave_out", ()))]
            (one.folder / "predictions.csv").write_text("\n".join([lines[0], *own]) + "\n")
        return {}

    monkeypatch.setattr(scripts.experiments.cross_validation, "run_experiments", run)
    return seen


def test_each_fold_is_a_run_on_a_datalist_of_its_own_with_what_the_user_set(split, tmp_path, ran):
    write_banks(split, tmp_path)
    validation(split, tmp_path, lr=0.5).run()
    assert [one.name for one in ran] == ["fold 1", "fold 2", "fold 3"]
    for fold, one in enumerate(ran):
        assert one.folder == tmp_path / "out" / f"fold_{fold + 1}"
        assert one.steps == ("training", "evaluating")
        given = one.settings_for("training", ".")
        assert given["lr"] == 0.5
        loaded = load_datalist(given["datalist"], tmp_path, "multilabel", CLASSES)
        for name in PARTITIONS:
            assert [e["slide"] for e in loaded[name]] == [e["slide"] for e in split.part(fold, name)]


def test_what_it_writes_is_of_every_slide_once_with_the_numbers_of_each_fold(split, tmp_path, ran, capsys):
    write_banks(split, tmp_path)
    text = validation(split, tmp_path).run()
    assert text.strip() in capsys.readouterr().out
    assert text == (tmp_path / "out" / "cross_validation.md").read_text()
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["head"] == "global"]
    assert [line["slide"] for line in lines] == [f"s{i:02d}" for i in range(12)]
    content = json.loads((tmp_path / "out" / "cross_validation.json").read_text())
    assert (content["slides"], content["patients"]) == (12, 6)
    assert content["made_by"]["data"]["tested"]["slides"] == 12
    for fold, of_fold in enumerate(content["folds"]):
        tested = [line["slide"] for line in lines if line["fold"] == str(fold + 1)]
        assert of_fold["slides"]["testing"] == len(tested)
        assert sum(of_fold["slides"].values()) == 12
        assert sum(of_fold["patients"].values()) == 6
        found = json.loads((tmp_path / "out" / f"fold_{fold + 1}" / "metrics.json").read_text())
        assert of_fold["scores"]["5x"]["micro_f1"] == found["5x"]["micro_f1"]["value"]
    assert list(content["heads"]) == ["global", "5x", "10x"]
    assert len(list((tmp_path / "out" / "tensorboard").glob("fold_*/events*"))) == 3


def test_where_patients_are_few_or_not_known_a_warning_says_so(tmp_path, ran, caplog):
    split = load(tmp_path, patients=False)
    write_banks(split, tmp_path)
    with caplog.at_level(logging.WARNING):
        validation(split, tmp_path).run()
    assert "cross_validation.json: no column names the patient" in caplog.text
    content = json.loads((tmp_path / "out" / "cross_validation.json").read_text())
    assert content["patients"] is content["folds"][0]["patients"] is None
    split = load(tmp_path)
    validation(split, tmp_path / "few").output_dir.mkdir(parents=True)
    (tmp_path / "banks").rename(tmp_path / "few" / "banks")
    validation(split, tmp_path / "few").run()
    assert "its intervals rest on 6 patients, fewer than 10" in caplog.text


def test_one_slide_under_two_names_stops_it_before_anything_is_trained(split, tmp_path, ran):
    write_banks(split, tmp_path, same=("s03", "s08"))
    with pytest.raises(DatalistError, match=r"^slide s08: is the same slide as s03 under another name .*Keep one of"):
        validation(split, tmp_path).run()
    assert not ran
    assert not (tmp_path / "out").exists()
    validation(split, tmp_path).run(["s08"])  # it has no features, and no fold has it


def test_slides_that_are_left_out_are_in_no_result_and_the_folds_stay_as_they_are(tmp_path, ran):
    split = load(tmp_path, leave_out=["s00"])
    write_banks(split, tmp_path)
    validation(split, tmp_path, leave_out=["s00"]).run(["s05"])
    assert [one.settings["leave_out"] for one in ran] == [["s00", "s05"]] * 3
    assert split.partitions == load(tmp_path).partitions
    content = json.loads((tmp_path / "out" / "cross_validation.json").read_text())
    assert content["slides"] == content["made_by"]["data"]["tested"]["slides"] == 10
    assert [sum(fold["slides"].values()) for fold in content["folds"]] == [10] * 3


def test_the_user_leaves_slides_out_by_any_spelling_with_a_label_or_without(tmp_path):
    path = tmp_path / "d.csv"
    load(tmp_path)
    (tmp_path / "\u00e9.svs").touch()
    text = path.read_text().replace("s07.svs,p3," + ",".join(map(str, LABELS[7])), "s07.svs,p3,,,")
    path.write_text(text.replace("s00.svs", "\u00e9.svs"), encoding="utf-8")
    names = ["s07", "e\u0301"]
    split = load_folds(path, None, 3, "multilabel", CLASSES, leave_out=names)
    for one in validation(split, tmp_path, leave_out=names).experiments():
        assert one.settings["leave_out"] == ["\u00e9"]


def test_other_folds_in_the_same_folder_are_refused_and_leave_its_datalists(split, tmp_path, ran):
    write_banks(split, tmp_path)
    validation(split, tmp_path).run()
    for one in ran:
        (one.folder / "settings.json").write_text(json.dumps(one.settings))
    before = {path: path.read_text() for path in (tmp_path / "out").glob("*/datalist.json")}
    other = load_folds(tmp_path / "d.csv", None, 2, "multilabel", CLASSES)
    with pytest.raises(SettingsError, match=r"fold_1: holds a run with other settings \(.*folds 3, now 2\)\. Choose"):
        validation(other, tmp_path).run()
    assert {path: path.read_text() for path in (tmp_path / "out").glob("*/datalist.json")} == before
    assert len(before) == 3


def test_a_fold_that_failed_is_named_when_the_others_are_through(split, tmp_path, monkeypatch):
    write_banks(split, tmp_path)
    said = SettingsError("lr", "the loss is nan", "Lower it.")
    monkeypatch.setattr(
        scripts.experiments.cross_validation, "run_experiments", lambda *args, **kwargs: {"fold 2": said}
    )
    with pytest.raises(BundleError, match=r"^fold 2: lr: the loss is nan\. Lower it\."):
        validation(split, tmp_path).run()


def test_a_slide_gets_the_views_that_any_fold_trains_with(split, tmp_path):
    needed = dict.fromkeys((entry["slide"] for entry in split.entries), 0)
    for fold in range(3):
        training = split.part(fold, "training")
        counts = count_views(np.stack([entry["label"] for entry in training]), 3)
        for entry, count in zip(training, counts, strict=True):
            needed[entry["slide"]] = max(needed[entry["slide"]], count)
    assert validation(split, tmp_path, views=3).views_to_extract == list(needed.values())
    assert len(set(needed.values())) > 1
    assert validation(split, tmp_path).views_to_extract == [0] * 12
