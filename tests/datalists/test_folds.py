"""Folds by patient: properties on random cohorts, and datalists as a user writes them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from scripts.core.errors import DatalistError, SettingsError
from scripts.datalists.datalist import load_datalist
from scripts.datalists.folds import Folds, load_folds, refuse_twice
from scripts.datalists.split import fold_patients
from tests.datalists.test_split import cohort

CLASSES = ["cancer", "hgd", "lgd"]
# Of the slides that a fold does not test.
INNER = (("training", 7 / 8), ("validation", 1 / 8))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(0, 30), st.integers(0, 1000), st.integers(0, 3))
def test_each_slide_is_tested_once_and_no_patient_is_in_two_partitions(
    folds: int, more_patients: int, cohort_seed: int, seed: int
) -> None:
    # With two folds a patient of most slides may fill one alone.
    patients, labels = cohort(folds + more_patients + 6 * (folds == 2), cohort_seed)
    split = fold_patients(patients, labels, folds, seed)
    assert len(split) == folds
    assert (np.sum(np.array(split) == "testing", axis=0) == 1).all()
    for fold in split:
        assert set(fold) == {"training", "validation", "testing"}
        assert len(set(zip(patients, fold, strict=True))) == len(set(patients))
    # The order of the slides plays no part, and the seed decides.
    order = np.random.default_rng(seed).permutation(len(patients))
    shuffled = fold_patients([patients[i] for i in order], labels[order], folds, seed)
    assert shuffled == [[fold[i] for i in order] for fold in split]


def test_another_seed_gives_other_folds() -> None:
    patients, labels = cohort(50)
    assert fold_patients(patients, labels, 5, 1) != fold_patients(patients, labels, 5, 2)


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_slides_and_classes_are_spread_evenly_over_what_each_fold_tests_trains_on_and_validates(folds: int) -> None:
    patients, labels = cohort(200)
    split = np.array(fold_patients(patients, labels, folds))
    for fold in split:
        for name, part in (("testing", 1 / folds), *((n, (1 - 1 / folds) * p) for n, p in INNER)):
            chosen = fold == name
            assert chosen.mean() == pytest.approx(part, abs=0.02)  # as of a single split
            np.testing.assert_allclose(labels[chosen].sum(axis=0) / labels.sum(axis=0), part, atol=0.08)


@pytest.mark.parametrize("seed", range(5))
def test_one_class_a_slide_is_spread_as_well_as_by_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), rng.integers(1, 5, 60))
    classes = rng.choice(4, len(groups), p=[0.6, 0.2, 0.1, 0.1])
    labels = np.eye(4)[classes]

    def unevenness(tested: Sequence[Any]) -> float:
        shares = np.array([labels[fold].sum(axis=0) / labels.sum(axis=0) for fold in tested])
        return float(np.abs(shares - 1 / 5).mean())

    own = [np.array(fold) == "testing" for fold in fold_patients([f"p{g}" for g in groups], labels, 5, seed)]
    of_sklearn = [
        test for _, test in StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(groups, classes, groups)
    ]
    assert unevenness(own) <= unevenness(of_sklearn) * 1.1


def test_too_few_patients_end_in_one_line_with_the_numbers() -> None:
    labels = np.ones((6, 1))
    with pytest.raises(DatalistError, match=r"^d\.csv: 3 patients are too few for 5 folds\. Add .*or lower `folds`\.$"):
        fold_patients(list("aabbcc"), labels, 5, subject="d.csv")
    with pytest.raises(
        DatalistError, match=r"2 patients are too few for 2 folds: where fold 1 is tested, 1 patient is"
    ):
        fold_patients(list("aaabbb"), labels, 2)


def write(root: Path, text: object) -> Path:
    path = root / ("d.csv" if isinstance(text, str) else "d.json")
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def listed(root: Path, header: str = "image,patient,label", count: int = 12, ends: Sequence[str] = ()) -> Path:
    """A CSV of slides, two a patient, one class each; ``ends`` are the first lines' other columns."""
    lines = [header]
    for i in range(count):
        (root / f"s{i}.svs").touch()
        line = {"image": f"s{i}.svs", "patient": f"p{i // 2}", "label": CLASSES[i // 2 % 3], "slide": f"name{i}"}
        lines.append(",".join(line.get(key, ends[i] if i < len(ends) else "") for key in header.split(",")))
    return write(root, "\n".join(lines))


def folds_of(path: Path, folds: int = 3, **options: Any) -> Folds:
    return load_folds(path, path.parent, folds, "multilabel", CLASSES, **options)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_datalist_of_a_fold_says_of_each_slide_what_the_users_says(tmp_path: Path, seed: int) -> None:
    (tmp_path / "m.png").touch()
    entries: list[dict[str, Any]] = []
    for i in range(12):
        (tmp_path / f"é{i}.svs").touch()
        entries.append({"image": f"é{i}.svs", "label": {"cancer": 1, "hgd": i % 2, "lgd": "0"}, "case_id": i // 2})
    entries[0] |= {"mpp": "0.25", "mask": "m.png", "mask_tissue": [1, 2], "sha256": "0" * 64, "notes": "large"}
    entries[3] |= {"slide": "other", "regions": "m.png"}
    folds = folds_of(write(tmp_path, entries), seed=seed)
    for fold in range(3):
        copy = tmp_path / f"fold_{fold}.json"
        copy.write_text(folds.datalist(fold), encoding="utf-8")
        loaded = load_datalist(copy, tmp_path, "multilabel", CLASSES)
        for name, part in loaded.items():
            wanted = [{k: v for k, v in e.items() if k != "notes"} for e in folds.part(fold, name)]
            assert [{**e, "label": e["label"].tolist()} for e in part] == [
                {**e, "label": e["label"].tolist()} for e in wanted
            ]
    assert {entry["slide"] for entry in folds.entries} == {f"é{i}" for i in range(12) if i != 3} | {"other"}
    assert folds.entries[0]["mask_tissue"] == [1, 2]


def test_partitions_that_a_datalist_gives_are_not_used_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = folds_of(listed(tmp_path))
    assert not any("its partitions" in message for message in caplog.messages)
    # They even contradict each other: a patient is in two.
    ends = ["training", "testing"] * 6
    given = folds_of(listed(tmp_path, "image,patient,label,partition,set", ends=ends))
    assert given.partitions == without.partitions
    (told,) = [message for message in caplog.messages if "its partitions" in message]
    assert told == f"{tmp_path / 'd.csv'}: its partitions are not used: in cross-validation each slide is tested once"
    loaded = load_datalist(write(tmp_path, json.loads(given.datalist(0))), tmp_path, "multilabel", CLASSES)
    assert [len(part) for part in loaded.values()] == [given.partitions[0].count(name) for name in loaded]


def test_slides_without_a_label_are_not_used_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = listed(tmp_path)
    path.write_text(path.read_text().replace("s7.svs,p3,cancer", "s7.svs,p3,"))
    folds = folds_of(path, leave_out=["s7", "s0"])
    assert "s7" not in {slide.name for slide in folds.slides}
    assert "1 slides have no label and are not used: s7" in caplog.text
    write(tmp_path, "image,patient,label\ns0.svs,p0,\n")
    with pytest.raises(DatalistError, match="no slide has a label"):
        folds_of(path)


def test_the_seed_is_that_of_the_folds(tmp_path: Path) -> None:
    path = listed(tmp_path)
    assert folds_of(path, seed=0).partitions == folds_of(path).partitions != folds_of(path, seed=1).partitions


def test_a_slide_that_is_left_out_is_in_no_part_and_leaves_the_folds_as_they_are(tmp_path: Path) -> None:
    path = listed(tmp_path)
    all_slides, fewer = folds_of(path), folds_of(path, leave_out=["s4"])
    assert fewer.partitions == all_slides.partitions
    for fold in range(3):
        for name in ("training", "validation", "testing"):
            of_all = [entry["slide"] for entry in all_slides.part(fold, name)]
            assert [entry["slide"] for entry in fewer.part(fold, name)] == [s for s in of_all if s != "s4"]


def test_slides_without_a_known_patient_are_patients_of_their_own_with_the_usual_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folds = folds_of(listed(tmp_path, "image,label"), 12)
    assert [fold.count("testing") for fold in folds.partitions] == [1] * 12
    assert "no column names the patient, so each slide counts as a patient of its own" in caplog.text
    assert "patient" not in folds.entries[0]
    caplog.clear()
    path = listed(tmp_path)
    path.write_text(path.read_text().replace("s7.svs,p3", "s7.svs,unknown"))
    folds_of(path, 7)
    assert "1 of 12 slides have no patient (s7.svs): each counts as a patient of its own" in caplog.text
    with pytest.raises(DatalistError, match="7 patients are too few for 8 folds"):
        folds_of(path, 8)


def test_spellings_of_one_patient_are_in_one_fold(tmp_path: Path) -> None:
    path = listed(tmp_path, count=6)
    path.write_text(path.read_text().replace("s1.svs,p0", "s1.svs,P0"))
    for fold in folds_of(path).partitions:
        assert fold[0] == fold[1]


def test_the_log_says_how_many_slides_each_fold_tests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        folds_of(listed(tmp_path))
    assert "12 slides of 6 patients in 3 folds with seed 0, of which each tests: 4, 4, 4" in caplog.text


@pytest.mark.parametrize("folds", [1, 0, 2.5, True, "5"])
def test_another_number_of_folds_is_refused(tmp_path: Path, folds: Any) -> None:
    with pytest.raises(SettingsError, match=r"^folds: got "):
        folds_of(listed(tmp_path), folds)


def test_a_slide_under_two_names_is_refused_in_one_line_with_both(tmp_path: Path) -> None:
    refuse_twice({"a": "1", "b": None, "c": None, "d": "2"})
    with pytest.raises(DatalistError, match=r"^slide d: is the same slide as a under another name .*Keep one of"):
        refuse_twice({"a": "1", "b": "2", "d": "1"})
    path = listed(tmp_path, "image,patient,label,sha256", ends=["A" * 64, "b" * 64, "c" * 64, "a" * 64])
    with pytest.raises(DatalistError, match=r"^slide s3: is the same slide as s0 under another name"):
        folds_of(path)
    folds_of(path, leave_out=["s3"])
