"""Every command on a DICOM slide: it comes to what the same pixels come to as a TIFF."""

from __future__ import annotations

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
import tifffile

from scripts.slides.checksums import content_sha256
from tests.dicoms import write_dicom
from tests.pyramids import write_pyramid


@pytest.fixture(scope="module")
def pair(cohort, tmp_path_factory):
    """A folder with a demonstration slide as ``t.tif`` and, in the folder ``d``, as DICOM; both with two levels."""
    folder = tmp_path_factory.mktemp("pair")
    whole = tifffile.imread(min((cohort / "slides").iterdir()), key=0)
    top, left = np.argwhere(whole.min(axis=-1) < 200).mean(axis=0).astype(int) - 600
    image = whole[max(top, 0) :, max(left, 0) :][:1200, :1200].copy()  # around the middle of its tissue
    write_pyramid(folder / "t.tif", image, downsamples=(1, 2))
    write_dicom(folder / "d", image, downsamples=(1, 2))
    label = [0, 0, 0, 0, 1]
    # A DICOM slide is listed by its folder here, and by its second level there.
    for name, image in (("folder.json", "d"), ("file.json", "d/level_1.dcm")):
        listed = [{"image": "t.tif", "label": label}, {"image": image, "label": label}]
        (folder / name).write_text(json.dumps({"testing": listed}))
    return folder


def scores(folder):
    with open(folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["head"] == "global"]
    return {
        row["slide"]: [float(row[name]) for name in ("cancer", "hgd", "lgd", "hyperplastic", "normal")] for row in rows
    }


@pytest.mark.slow
def test_checking_extracting_evaluating_and_inferring_take_it(workflow, trained, pair, tmp_path):
    workflow("checking", "check", dataset_dir=str(pair), datalist=str(pair / "folder.json"), output_dir=str(tmp_path))
    with open(tmp_path / "slides.csv", newline="") as file:
        listed = {row["slide"]: row for row in csv.DictReader(file)}
    assert listed["d"]["sha256"] == content_sha256(pair / "d" / "level_1.dcm")

    banks, written = {}, set()
    for name in ("folder", "file"):  # banks of the same slides: the second run makes none
        settings = {"datalist": str(pair / f"{name}.json"), "output_dir": str(tmp_path / "out")}
        workflow("extracting", "extract", **settings)
        written |= {(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out" / "features").glob("*.h5")}
    assert len(written) == 2
    for slide in ("t", "d"):
        with h5py.File(tmp_path / "out" / "features" / f"{slide}.h5") as bank:
            banks[slide] = bank["10x/features"][:], bank.attrs["reader"]
            sha256 = json.loads(bank.attrs["settings"])["slide_sha256"]
    assert sha256 == listed["d"]["sha256"]
    assert (banks["t"][1], banks["d"][1]) == ("cucim", "openslide")
    assert np.allclose(banks["t"][0], banks["d"][0], atol=1e-4)

    weights = {"ckpt_dir": str(trained / "models")}
    workflow("evaluating", "evaluate", report=False, **settings, **weights)
    out = tmp_path / "inferred"
    workflow("inferring", "inference", dataset_dir=str(pair / "d"), output_dir=str(out / "d"), **weights)
    shutil.copytree(pair / "d", tmp_path / "slides" / "renamed")
    shutil.copy(pair / "t.tif", tmp_path / "slides")
    workflow("inferring", "inference", dataset_dir=str(tmp_path / "slides"), output_dir=str(out / "both"), **weights)
    evaluated, both = scores(tmp_path / "out"), scores(out / "both")
    assert (set(evaluated), set(both), set(scores(out / "d"))) == ({"t", "d"}, {"t", "renamed"}, {"d"})
    for found in (*evaluated.values(), *both.values(), *scores(out / "d").values()):
        assert found == pytest.approx(both["t"], abs=1e-4)
    assert (out / "both" / "heatmaps" / "renamed").is_dir()
