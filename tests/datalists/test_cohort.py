import logging

import pytest

from scripts.core.errors import DatalistError
from scripts.datalists.cohort import Cohort, choose_cohort, choose_slides


@pytest.fixture
def no_demo(monkeypatch):
    """Fails the test if the demonstration's slides are drawn."""

    def draw(folder):
        raise AssertionError(f"drew the demonstration into {folder}")

    monkeypatch.setattr("scripts.datalists.cohort.ensure_cohort", draw)


def test_without_slides_the_demonstration_is_drawn_and_the_user_is_told(tmp_path, monkeypatch, caplog):
    drawn = []

    def draw(folder):
        drawn.append(folder)
        return folder / "datalist.json"

    monkeypatch.setattr("scripts.datalists.cohort.ensure_cohort", draw)
    with caplog.at_level(logging.WARNING):
        folder, datalist = choose_cohort(None, None, tmp_path)
    assert drawn == [folder] == [tmp_path / "data" / "demo"]
    assert datalist == tmp_path / "data" / "demo" / "datalist.json"
    told = "no `dataset_dir` and no `datalist`: using the demonstration's synthetic slides in"
    assert caplog.messages == [f"{told} {tmp_path / 'data' / 'demo'}"]


@pytest.mark.usefixtures("no_demo")
def test_both_are_taken_as_given_and_nothing_is_said(tmp_path, caplog):
    slides, labels = tmp_path / "slides", tmp_path / "elsewhere" / "labels.csv"
    slides.mkdir()
    assert choose_cohort(slides, labels, tmp_path) == (slides, labels)
    assert choose_cohort(str(slides), str(labels), str(tmp_path)) == (slides, labels)
    assert caplog.messages == []


@pytest.mark.usefixtures("no_demo")
def test_a_datalist_alone_has_its_slides_beside_it(tmp_path):
    assert choose_cohort(None, tmp_path / "x" / "labels.csv", ".") == (tmp_path / "x", tmp_path / "x" / "labels.csv")


@pytest.mark.usefixtures("no_demo")
def test_a_folder_alone_has_its_datalist_inside_json_before_csv(tmp_path):
    (tmp_path / "datalist.csv").touch()
    assert choose_cohort(tmp_path, None, ".") == (tmp_path, tmp_path / "datalist.csv")
    (tmp_path / "datalist.json").touch()
    assert choose_cohort(tmp_path, None, ".") == (tmp_path, tmp_path / "datalist.json")


@pytest.mark.usefixtures("no_demo")
def test_a_folder_without_a_datalist_is_never_replaced_by_the_demonstration(tmp_path):
    with pytest.raises(
        DatalistError,
        match=r"dataset_dir .*: contains neither datalist\.json nor datalist\.csv\. Give the file .* as `datalist`",
    ):
        choose_cohort(tmp_path, None, ".")


@pytest.mark.usefixtures("no_demo")
@pytest.mark.parametrize("datalist", [None, "labels.csv"])
def test_a_folder_that_is_not_there_is_named(tmp_path, datalist):
    with pytest.raises(DatalistError, match=r"dataset_dir .*missing: no such folder\. Give the folder of the slides"):
        choose_cohort(tmp_path / "missing", datalist, ".")


@pytest.mark.usefixtures("no_demo")
def test_slides_to_predict_come_from_a_list_or_a_folder(tmp_path):
    assert choose_slides(tmp_path, "list.csv", ".") == ("list.csv", tmp_path)
    assert choose_slides(None, "list.csv", ".") == ("list.csv", None)
    assert choose_slides(tmp_path, None, ".") == (tmp_path, None)
    with pytest.raises(
        DatalistError, match=r"dataset_dir .*gone: no such folder\. Give a folder of slides, or a slide"
    ):
        choose_slides(tmp_path / "gone", None, ".")


def test_without_slides_to_predict_those_of_the_demonstration_are(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("scripts.datalists.cohort.ensure_cohort", lambda folder: folder / "datalist.json")
    assert choose_slides(None, None, tmp_path) == (tmp_path / "data" / "demo" / "slides", None)
    assert "demonstration's synthetic slides" in caplog.text


def test_classes_on_one_side_of_folds_are_answered_by_another_seed_and_those_of_a_split_by_other_partitions(
    tmp_path, caplog
):
    lines = [f"s{i}.svs,{int(i == 0)},{i % 2},P{i},{'testing' if i < 2 else 'training'}" for i in range(9)]
    for i in range(9):
        (tmp_path / f"s{i}.svs").touch()
    (tmp_path / "datalist.csv").write_text("\n".join(["image,a,b,patient,partition", *lines]))
    cohort = Cohort(tmp_path, None, ".", "multilabel", ["a", "b"])
    split = cohort.folds(3)
    caplog.clear()
    cohort.warn_of_one_sided_folds(split)
    cohort.warn_of_one_sided("training")
    of_folds, of_split = caplog.messages
    # The one slide with the class is tested in one fold, and in the others in one of two partitions.
    assert of_folds.count("no slide has a") >= 4
    assert of_folds.startswith("fold 1 training: ") or of_folds.startswith("fold 1 validation: ")
    assert of_folds.endswith("add slides, or choose another `split_seed`.")
    assert of_split == (
        "training: no slide has a. Such a class cannot be learned or measured there: add slides, or choose other "
        "partitions."
    )
