"""Every command on a real scanner's slide."""

import csv
import json

import h5py
import itk
import numpy as np
import pytest


def test_inspecting_shows_resolution_levels_tissue_and_grids(workflow, real_slide, tmp_path, capsys):
    workflow("inspecting", "inspect", image=str(real_slide), output_dir=str(tmp_path))
    told = capsys.readouterr().out
    assert "0.499 um/px (20.04x), from file: openslide.mpp-x, openslide.mpp-y" in told
    assert "level 0      2220 x 2967 px" in told
    assert "10x          9 patches of 224 px = 224 um, read as 449 px from level 0" in told
    picture = itk.array_from_image(itk.imread(str(tmp_path / "CMU-1-Small-Region.png")))
    assert picture.std() > 20
    mask = itk.imread(str(tmp_path / "CMU-1-Small-Region_tissue.mha"))
    extent_mm = np.multiply(mask.GetSpacing(), mask.GetLargestPossibleRegion().GetSize())
    assert extent_mm == pytest.approx([2220 * 0.499e-3, 2967 * 0.499e-3], abs=0.008)


@pytest.mark.slow
def test_extraction_and_inference_agree_on_it(workflow, real_slide, trained, tmp_path):
    # Any label will do: features need none, and nothing is said about accuracy.
    (tmp_path / "list.json").write_text(json.dumps({"testing": [{"image": str(real_slide), "label": [0, 0, 0, 0, 1]}]}))
    weights = {"ckpt_dir": str(trained / "models")}
    tables = {}
    for reader in ("cucim", "openslide"):
        out = tmp_path / reader
        settings = {"datalist": str(tmp_path / "list.json"), "output_dir": str(out), "reader": reader}
        workflow("extracting", "extract", **settings)
        with h5py.File(out / "features" / "CMU-1-Small-Region.h5") as bank:
            assert (bank.attrs["reader"], bank.attrs["mpp"], len(bank["rows"])) == (reader, 0.499, 9)
        # What is drawn does not depend on what reads.
        drawn = reader == "cucim"
        workflow("evaluating", "evaluate", report=drawn, **settings, **weights)
        places = {"dataset_dir": str(real_slide), "output_dir": str(out / "i"), "reader": reader}
        workflow("inferring", "inference", heatmaps=drawn, report=drawn, **places, **weights)
        for folder in (out, out / "i"):
            with open(folder / "predictions.csv", newline="") as file:
                row = next(row for row in csv.DictReader(file) if row["head"] == "global")
            tables[folder] = [float(row[name]) for name in ("cancer", "hgd", "lgd", "hyperplastic", "normal")]
    first, *others = tables.values()
    assert all(0 < p < 1 for p in first)
    for other in others:
        assert other == pytest.approx(first, abs=1e-4)
