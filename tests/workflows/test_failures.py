"""Slides that fail in ``extracting``, ``training``, ``evaluating``, ``comparing`` and ``inferring``, as shipped."""

import csv
import json

import monai.bundle
import numpy as np
import pytest
import torch

from scripts.core.errors import SettingsError, SlideError, mistake_in
from scripts.datalists.failures import FailedSlidesError
from scripts.weights.record import read_record
from tests.conftest import ROOT
from tests.pyramids import noise, with_tissue, write_pyramid

# In each partition one that fails, for a reason of its own.
GOOD = {"training": ["t1", "t2"], "validation": ["v1"], "testing": ["e1", "e2"]}
BAD = {"training": "text", "validation": "blank", "testing": "unknown"}
LABELS = {"t1": [1, 0, 0, 0, 0], "t2": [0, 1, 0, 0, 0], "v1": [1, 0, 0, 0, 0], "e1": [0, 1, 0, 0, 0]}
REASONS = {
    "text": "text.tif: cannot be read as a slide",
    "blank": "blank.tif: no tissue was found",
    "unknown": "unknown.tif: the file carries no resolution",
}
TRAINING = {"epochs": 2, "seed": 3}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failing")
    for number, name in enumerate(name for names in GOOD.values() for name in names):
        write_pyramid(folder / f"{name}.tif", with_tissue(700, 700, [(20 * number, 0, 700, 700)]), mpp=1.0)
    (folder / "text.tif").write_text("no slide")
    write_pyramid(folder / "blank.tif", np.full((700, 700, 3), 244, dtype=np.uint8), mpp=1.0)
    write_pyramid(folder / "unknown.tif", noise(600, 600), mpp=None)
    datalist = {
        part: [{"image": f"{name}.tif", "label": LABELS.get(name, [0, 0, 0, 0, 1])} for name in (BAD[part], *names)]
        for part, names in GOOD.items()
    }
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder


@pytest.fixture(scope="module")
def extracted(slides, tmp_path_factory):
    """The output folder of ``extracting``, which is filled by the first test that needs it."""
    return tmp_path_factory.mktemp("extracted")


def base_settings(slides, extracted, output, models=None):
    models = models or output / "models"
    places = {"dataset_dir": slides, "feature_dir": extracted / "features", "output_dir": output, "ckpt_dir": models}
    return {key: str(value) for key, value in places.items()}


def failed(folder):
    with open(folder / "failed.csv", newline="", encoding="utf-8") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def predicted(folder):
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return sorted({row["slide"] for row in csv.DictReader(file)})


def one_error(done):
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return error


@pytest.fixture(scope="module")
def trained(slides, extracted, tmp_path_factory):
    """The output folder of a training that went on without the slides that fail, and what it warned of."""
    output = tmp_path_factory.mktemp("trained_without")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        monai.bundle.run(
            run_id="training", config_file="configs/train.json", allow_missing=True,
            **TRAINING, **base_settings(slides, extracted, output),
        )  # fmt: skip
    return output


def test_extracting_does_all_it_can_and_ends_with_status_1(command, slides, extracted):
    done = command("extracting", "extract", dataset_dir=slides, output_dir=extracted)
    assert one_error(done) == (
        f"error: extracting: 3 of 8 slides failed (text, blank, unknown): see {extracted}/failed.csv. "
        "Mend or replace them, or name them in `leave_out`; the same command goes on from here."
    )
    banks = sorted(path.stem for path in (extracted / "features").iterdir())
    assert banks == sorted(name for names in GOOD.values() for name in names)
    for name, row in failed(extracted).items():
        assert row["image"] == str(slides / f"{name}.tif")
        assert row["step"] == "extracting"
        assert REASONS[name] in row["reason"]
    assert sorted(failed(extracted)) == sorted(REASONS)


def test_training_lists_what_is_missing_and_trains_on_nothing_less(workflow, slides, extracted, tmp_path):
    with pytest.raises(RuntimeError) as raised:
        workflow("training", "train", **TRAINING, **base_settings(slides, extracted, tmp_path))
    told = mistake_in(raised.value)
    assert isinstance(told, FailedSlidesError)
    assert "2 of 5 slides failed (text, blank)" in str(told)
    assert "go on without them with `allow_missing`" in str(told)
    assert not (tmp_path / "models").exists()


def test_training_that_may_goes_on_as_if_they_were_not_listed(workflow, slides, extracted, trained, tmp_path):
    assert sorted(failed(trained)) == ["blank", "text"]
    settings = {**TRAINING, **base_settings(slides, extracted, tmp_path), "leave_out": ["text", "blank"]}
    workflow("training", "train", **settings)
    assert not (tmp_path / "failed.csv").exists()
    for name in ("model.pt", "model_5x.pt", "model_10x.pt"):
        here, there = (torch.load(folder / "models" / name, weights_only=True) for folder in (trained, tmp_path))
        tensors = [key for key, value in here.items() if isinstance(value, torch.Tensor)]
        assert len(tensors) > 10
        assert all(torch.equal(here[key], there[key]) for key in tensors)
        data = read_record(trained / "models" / name)["data"]
        assert (data["training_slides"], data["validation_slides"]) == (2, 1)
    assert json.loads((trained / "training.json").read_text())["leave_out"] == ["blank", "text"]


def test_evaluating_stops_or_goes_on_in_the_same_way(workflow, slides, extracted, trained, tmp_path):
    settings = base_settings(slides, extracted, tmp_path, trained / "models")
    with pytest.raises(RuntimeError) as raised:
        workflow("evaluating", "evaluate", **settings)
    assert "1 of 3 slides failed (unknown)" in str(mistake_in(raised.value))
    assert not (tmp_path / "predictions.csv").exists()
    workflow("evaluating", "evaluate", allow_missing=True, board="$None", **settings)
    assert predicted(tmp_path) == ["e1", "e2"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    _, _, shown = page.partition("Slides that failed")
    assert "unknown" in shown
    assert REASONS["unknown"] in shown


def test_a_partition_of_which_nothing_is_left_is_an_error(workflow, slides, extracted, tmp_path):
    datalist = json.loads((slides / "datalist.json").read_text())
    datalist["validation"] = datalist["validation"][:1]
    (tmp_path / "datalist.json").write_text(json.dumps(datalist))
    settings = {**TRAINING, **base_settings(slides, extracted, tmp_path), "datalist": str(tmp_path / "datalist.json")}
    with pytest.raises(RuntimeError) as raised:
        workflow("training", "train", allow_missing=True, **settings)
    assert "no slide of a partition is left, of blank" in str(mistake_in(raised.value))


@pytest.mark.parametrize(
    ("run_id", "config", "left_out"),
    [
        ("comparing", "compare", ["blank", "text", "unknown"]),
        ("searching", "search", ["blank", "text"]),
        ("cross_validating", "cross_validate", ["blank", "text", "unknown"]),
    ],
)
def test_every_run_is_without_the_same_slides(
    workflow, slides, extracted, tmp_path, monkeypatch, run_id, config, left_out
):
    begun = []

    def run_experiments(experiments, *args, **kwargs):
        begun.extend(experiments)
        return {one.name: SettingsError("this test", "needs no training", "Go on.") for one in experiments}

    for module in ("comparison", "search", "cross_validation"):
        monkeypatch.setattr(f"scripts.experiments.{module}.run_experiments", run_experiments)
    settings = {key: value for key, value in base_settings(slides, extracted, tmp_path).items() if key != "ckpt_dir"}
    with pytest.raises(RuntimeError) as raised:
        workflow(run_id, config, **settings)
    assert isinstance(mistake_in(raised.value), FailedSlidesError)
    assert not begun
    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        workflow(run_id, config, allow_missing=True, **settings)
    assert len(begun) > 1
    # A training with these settings is that of the test above.
    assert [run.settings["leave_out"] for run in begun] == [left_out] * len(begun)
    assert {"strict", "allow_missing"}.isdisjoint(begun[0].settings)


def test_inferring_predicts_every_other_slide_and_ends_with_status_1(command, slides, trained, tmp_path):
    settings = {"dataset_dir": slides, "output_dir": tmp_path, "ckpt_dir": trained / "models"}
    done = command("inferring", "inference", **settings, heatmap_kinds="attention", top_patches=1, report=False)
    assert one_error(done) == (
        f"error: inferring: 3 of 8 slides failed (blank, text, unknown): see {tmp_path}/failed.csv. "
        "Mend or replace them, and run the same command again; the results of the others are there."
    )
    good = sorted(name for names in GOOD.values() for name in names)
    assert predicted(tmp_path) == good
    assert sorted(path.name for path in (tmp_path / "heatmaps").iterdir()) == good
    assert {name: row["step"] for name, row in failed(tmp_path).items()} == dict.fromkeys(REASONS, "inferring")


def test_inferring_where_all_slides_fail_ends_in_the_same_way(workflow, trained, tmp_path):
    (tmp_path / "text.tif").write_text("no slide")
    settings = {"dataset_dir": tmp_path, "output_dir": tmp_path / "out", "ckpt_dir": trained / "models"}
    with pytest.raises(RuntimeError) as raised:
        workflow("inferring", "inference", **{key: str(value) for key, value in settings.items()})
    assert str(mistake_in(raised.value)).startswith("inferring: 1 of 1 slides failed (text): see ")
    assert predicted(tmp_path / "out") == []


def test_strict_inferring_stops_at_once_and_keeps_what_it_has(workflow, slides, trained, tmp_path):
    listed = tmp_path / "slides.txt"
    listed.write_text("e1\ntext\ne2\n")
    with pytest.raises(RuntimeError) as raised:
        workflow(
            "inferring", "inference", dataset_dir=str(slides), datalist=str(listed), output_dir=str(tmp_path),
            ckpt_dir=str(trained / "models"), strict=True, heatmaps=False,
        )  # fmt: skip
    told = mistake_in(raised.value)
    assert isinstance(told, SlideError)
    assert REASONS["text"] in str(told)
    assert predicted(tmp_path) == ["e1"]
    assert list(failed(tmp_path)) == ["text"]
