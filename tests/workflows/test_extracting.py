"""``extracting``, as shipped."""

import json
from pathlib import Path

import h5py
import numpy as np


def test_every_slide_of_the_datalist_gets_its_bank_which_a_second_run_keeps_and_others_can_read(
    workflow, cohort, tmp_path
):
    partitions = json.loads((cohort / "datalist.json").read_text())
    listed = {name: partitions[name][:1] for name in ("training", "testing")}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    settings = {"dataset_dir": str(cohort), "datalist": str(tmp_path / "list.json"), "output_dir": str(tmp_path)}
    workflow("extracting", "extract", **settings)
    banks = sorted((tmp_path / "features").iterdir())
    assert [bank.stem for bank in banks] == sorted(Path(entry["image"]).stem for (entry,) in listed.values())
    times = [bank.stat().st_mtime_ns for bank in banks]
    workflow("extracting", "extract", **settings)
    assert [bank.stat().st_mtime_ns for bank in banks] == times
    with h5py.File(banks[0]) as bank:
        assert bank.attrs["mpp"] == 0.5
        assert bank["5x/features"].shape == (len(bank["5x/coords"]), 1280)
        assert np.isfinite(bank["10x/features"][:]).all()
        assert bank["10x/features"][:].std(axis=0).max() > 0
    workflow("exporting", "extract", **settings)
    folder = tmp_path / "trident" / "10x_224px_0px_overlap" / "features_efficientnet_lite0"
    assert sorted(path.stem for path in folder.iterdir()) == [bank.stem for bank in banks]
