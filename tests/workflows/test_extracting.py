"""``extracting``, as shipped."""

import h5py
import numpy as np


def test_every_slide_of_the_datalist_gets_its_bank_and_a_second_run_makes_none(workflow, cohort, tmp_path):
    settings = {"dataset_dir": str(cohort), "output_dir": str(tmp_path)}
    workflow("extracting", "extract", **settings)
    banks = sorted((tmp_path / "features").iterdir())
    assert [bank.stem for bank in banks] == sorted(path.stem for path in (cohort / "slides").iterdir())
    times = [bank.stat().st_mtime_ns for bank in banks]
    workflow("extracting", "extract", **settings)
    assert [bank.stat().st_mtime_ns for bank in banks] == times
    with h5py.File(banks[0]) as bank:
        assert bank.attrs["mpp"] == 0.5
        assert bank["5x/features"].shape == (len(bank["5x/coords"]), 1280)
        assert np.isfinite(bank["10x/features"][:]).all()
        assert bank["10x/features"][:].std(axis=0).max() > 0
