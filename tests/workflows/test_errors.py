"""A user's mistake ends in one line that says what to do, whatever part of a workflow finds it."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.pyramids import noise, with_tissue, write_pyramid


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_pyramid(folder / "good.tif", with_tissue(1200, 1200, [(100, 100, 1100, 1100)]), mpp=1.0)
    write_pyramid(folder / "unknown.tif", noise(600, 600), mpp=None)
    write_pyramid(folder / "blank.tif", np.full((1200, 1200, 3), 244, dtype=np.uint8), mpp=1.0)
    write_pyramid(folder / "coarse.tif", noise(600, 600), mpp=4.0)
    (folder / "text.tif").write_text("no slide")
    return folder


def datalist(path, image="good.tif", label=(1, 0, 0, 0, 0), **more):
    entry = {"image": image, "label": list(label), **more}
    partitions = {"training": [entry], "validation": [{"image": "good.tif", "label": [0, 1, 0, 0, 0]}]}
    if image == "good.tif":
        partitions["validation"] = []
    path.write_text(json.dumps(partitions))
    return path


CASES = {
    "no such slide": ({"image": "absent.svs"}, r"absent\.svs"),
    "wrong label": ({"label": (1, 0, 0)}, r"good.*label"),
    "no validation": ({}, r"no slides for validation"),
}
FAILING = {
    "no slide at all": ({"image": "text.tif"}, r"text\.tif: cannot be read as a slide"),
    "no resolution": ({"image": "unknown.tif"}, r"unknown\.tif: the file carries no resolution.*Set `mpp`"),
    "no tissue": ({"image": "blank.tif"}, r"blank\.tif: no tissue was found.*Look at it with `inspecting`"),
    "too coarse": ({"image": "coarse.tif"}, r"coarse\.tif: has 4 um/px .* coarser than the 2 um/px asked for"),
}


@pytest.mark.parametrize("case", FAILING)
def test_training_on_a_slide_that_fails_says_why_and_at_its_end_that_it_failed(command, slides, tmp_path, case):
    entry, message = FAILING[case]
    done = command(
        "training", "train", dataset_dir=slides, datalist=datalist(tmp_path / "list.json", **entry), output_dir=tmp_path
    )
    slide = entry["image"].removesuffix(".tif")
    one_line(done, rf"extracting: 1 of 2 slides failed \({slide}\): see .*failed\.csv\. Mend or replace them")
    assert re.search(rf"warning: extracting: slide {slide} failed: .*{message}", done.stderr)
    assert sorted(path.stem for path in (tmp_path / "features").glob("[!.]*")) == ["good"]


@pytest.mark.parametrize("case", CASES)
def test_training_on_bad_input_says_so_in_one_line(command, slides, tmp_path, case):
    entry, message = CASES[case]
    done = command(
        "training", "train", dataset_dir=slides, datalist=datalist(tmp_path / "list.json", **entry), output_dir=tmp_path
    )
    one_line(done, message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"datalist": "/no/such/list.csv"}, r"/no/such/list\.csv"),
        ({"dataset_dir": "/no/such/folder"}, r"dataset_dir /no/such/folder: no such folder"),
        ({"magnifications": []}, r"magnifications: got \[\]"),
        ({"backbone": "resnet5"}, r"backbone: got 'resnet5'\. Did you mean resnet50 or resnet34\? `python -m"),
        ({"source": "png"}, r"source: got 'png'\. Choose one of bank, patches"),
        ({"task": "regression"}, r"task"),
        ({"min_tissue": 70}, r"min_tissue: got 70"),
        ({"epochs": 0}, r"epochs: got 0\. Give a whole number from 1 up"),
        ({"device": "cuda:7"}, r"device: got 'cuda:7', and torch sees \d+ GPUs"),
        ({"reader": "png"}, r"reader: got 'png'\. Choose one of auto, cucim, openslide"),
        ({"source": "patches", "amp": "yes"}, r"amp: got 'yes'\. Give True or False"),
    ],
)
def test_a_wrong_setting_says_so_in_one_line(command, slides, tmp_path, given, message):
    labels = tmp_path / "list.json"
    entries = {"training": "good.tif", "validation": "blank.tif"}
    labels.write_text(json.dumps({part: [{"image": i, "label": [1, 0, 0, 0, 0]}] for part, i in entries.items()}))
    settings = {"dataset_dir": slides, "datalist": labels, "output_dir": tmp_path} | given
    one_line(command("training", "train", **settings), message)


def test_prediction_without_weights_says_to_train_first(command, slides, tmp_path):
    done = command("inferring", "inference", dataset_dir=slides / "good.tif", ckpt_dir=tmp_path, output_dir=tmp_path)
    one_line(done, r"model\.pt: there is no such file\. Name the folder of the weights that training wrote: --ckpt_dir")


def test_evaluating_looks_for_the_weights_before_it_extracts(command, slides, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"testing": [{"image": "good.tif", "label": [1, 0, 0, 0, 0]}]}))
    places = {"dataset_dir": slides, "datalist": tmp_path / "list.json", "ckpt_dir": tmp_path}
    done = command("evaluating", "evaluate", **places, output_dir=tmp_path / "out")
    one_line(done, r"model\.pt: there is no such file\. Name the folder of the weights that training wrote: --ckpt_dir")
    assert not list(tmp_path.glob("out/features/*"))


def test_inspecting_nothing_says_what_to_give(command, tmp_path):
    one_line(command("inspecting", "inspect", output_dir=tmp_path), r"image: .*--image")


def one_line(done, message):
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    # What is written over a progress bar stands in one line with what it wipes out.
    errors = [line for line in re.split(r"[\r\n]", done.stderr) if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-2000:]
    assert re.search(message, errors[0]), errors[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stray"], r"init_id: got 'stray', in place of initialize, so that nothing was checked\. If it is a stray"),
        # A path that was cut off at its space; the rest of it is a part of the config.
        (["--dataset_dir=/no", "data"], r"dataset_dir /no: no such folder"),
        (["--output_dir=results", "-", "2"], r"-: what follows it would be lost"),
        (["--output_dir=results#2"], r"output_dir: got 'results#2', and MONAI writes :: for #\. Rename it"),
    ],
)
def test_what_the_command_line_would_lose_is_refused(command, words, message):
    one_line(command("inferring", "inference", *words, epoch=9), message)


def test_a_mistake_is_told_in_one_line_where_the_working_folder_has_another_copy_of_the_bundle(command, tmp_path):
    copy = tmp_path / "copy"
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, copy / name)
    one_line(command("inspecting", copy / "configs" / "inspect", output_dir=tmp_path), r"image: .*--image")


def test_a_copied_config_runs_by_bundle_root_from_a_folder_with_other_scripts(command, slides, elsewhere):
    copy = elsewhere / "copy"
    shutil.copy(ROOT / "configs" / "inspect.json", copy.with_suffix(".json"))
    settings = {"image": slides / "good.tif", "output_dir": "copied"}
    one_line(
        command("inspecting", copy, folder=elsewhere, **settings),
        r"error: \. contains no scripts\. Give --bundle",
    )
    done = command("inspecting", copy, folder=elsewhere, bundle_root=ROOT, **settings)
    assert done.returncode == 0, done.stderr
    assert any((elsewhere / "copied").iterdir())


def test_every_kind_of_folder_will_do_to_start_from(command, slides, elsewhere):
    done = command("inspecting", "inspect", folder=elsewhere, image=slides / "good.tif", output_dir="results/here")
    assert done.returncode == 0, done.stderr
    assert [path.suffix for path in (elsewhere / "results" / "here").iterdir()]
    one_line(
        command("inspecting", "inspect", folder=elsewhere, imag=slides),
        r"imag: .* no such option\. Did you mean image\?",
    )
