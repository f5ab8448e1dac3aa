import logging
import os

import h5py
import numpy as np
import pytest
from tqdm import tqdm

from scripts.errors import SettingsError, SlideError
from scripts.extraction import Extractor
from scripts.features import read_bank
from tests.cohorts import builder, draw_cohort, draw_slide, tiny_encoder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("extraction"), 3)


@pytest.fixture
def bars(monkeypatch):
    """The progress bars that are shown."""
    shown = []

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.totals = []
            shown.append(self)

        def update(self, n=1):
            self.totals.append(self.total)
            return super().update(n)

    monkeypatch.setattr("scripts.extraction.tqdm", Bar)
    return shown


def encoder_that_counts(fail_at=None):
    encoder = tiny_encoder()
    encode, encoder.slides = encoder.encode, []

    def counted(bag):
        encoder.slides.append(bag.slide.path.stem)
        batches = encode(bag)
        yield next(batches)
        if fail_at == bag.slide.path.stem:
            raise SlideError(bag.slide.path, "breaks off", "Copy it again.")
        yield from batches

    encoder.encode = counted
    return encoder


def num_patches(entry):
    return sum(len(coords) for coords in builder()(entry).grid.coords)


def test_each_slide_gets_a_bank_of_its_bag(cohort, tmp_path):
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "features").run()
    assert sorted(os.listdir(tmp_path / "features")) == ["s0.h5", "s1.h5", "s2.h5"]
    for entry in cohort:
        bag = builder()(entry)
        banked = read_bank(tmp_path / "features" / f"{entry['slide']}.h5", (5.0, 10.0))
        assert np.array_equal(banked.row_features(), tiny_encoder().encode_rows(bag))
        assert np.array_equal(banked.rows, bag.grid.rows)


def test_what_is_there_is_not_made_again(cohort, tmp_path, bars, caplog):
    Extractor(cohort[:2], builder(), tiny_encoder(), tmp_path).run()
    made = {name: (tmp_path / name).stat().st_mtime_ns for name in os.listdir(tmp_path)}
    encoder = encoder_that_counts()
    with caplog.at_level(logging.INFO):
        Extractor(cohort, builder(), encoder, tmp_path).run()
    assert encoder.slides == ["s2"]
    assert f"extracting 1 of 3 slides into {tmp_path} (2 are there)" in caplog.messages
    again = encoder_that_counts()
    Extractor(cohort, builder(), again, tmp_path).run()
    assert again.slides == []
    assert len(bars) == 2  # none where nothing is to do
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in made} == made


def test_an_interrupted_extraction_goes_on_with_the_slide_that_it_stopped_in(cohort, tmp_path):
    with pytest.raises(SlideError, match=r"s1\.tif: breaks off"):
        Extractor(cohort, builder(), encoder_that_counts(fail_at="s1"), tmp_path).run()
    assert os.listdir(tmp_path) == ["s0.h5"]
    encoder = encoder_that_counts()
    Extractor(cohort, builder(), encoder, tmp_path).run()
    assert encoder.slides == ["s1", "s2"]
    with h5py.File(tmp_path / "s1.h5") as bank:
        assert np.array_equal(bank["rows"][:], builder()(cohort[1]).grid.rows)


def test_the_progress_bar_counts_patches(cohort, tmp_path, bars, caplog):
    with caplog.at_level(logging.INFO):
        Extractor(cohort, builder(), tiny_encoder(), tmp_path).run()
    (bar,) = bars
    patches = [num_patches(entry) for entry in cohort]
    assert bar.total == bar.n == sum(patches)
    assert bar.unit == "patch"
    # Before all slides are opened, the total is what they would hold if all were like those so far.
    assert bar.totals[0] == 3 * patches[0]
    assert bar.totals[-1] == sum(patches)
    assert f"extracted 3 slides, {sum(patches)} patches in" in caplog.messages[-1]


def test_other_settings_are_refused_before_anything_is_encoded(cohort, tmp_path):
    Extractor(cohort[1:2], builder(), tiny_encoder(), tmp_path).run()
    encoder = encoder_that_counts()
    with pytest.raises(
        SettingsError, match=r"s1\.h5: was made otherwise \(min_tissue \[0\.0, 0\.7\], now \[0\.0, 0\.5"
    ):
        Extractor(cohort, builder(min_tissue=0.5), encoder, tmp_path).run()
    assert encoder.slides == []
    assert os.listdir(tmp_path) == ["s1.h5"]


def test_an_entrys_mpp_decides_its_bank(cohort, tmp_path):
    finer = {**cohort[0], "mpp": 0.25}
    Extractor([finer], builder(min_tissue=0.2), tiny_encoder(), tmp_path).run()
    with h5py.File(tmp_path / "s0.h5") as bank:
        assert bank["10x"]["coords"].attrs["patch_level0"] == 256.0
        assert bank.attrs["mpp_source"] == "datalist: mpp"
    with pytest.raises(SettingsError, match=r"mpp_given 0\.25, now None"):
        Extractor(cohort[:1], builder(min_tissue=0.2), tiny_encoder(), tmp_path).run()


def test_patches_left_out_without_an_ancestor_are_reported(tmp_path, caplog):
    entry = {"image": str(draw_slide(tmp_path / "s.tif")), "slide": "s"}
    strict = builder(min_tissue=[0.6, 0.7])
    assert strict(entry).grid.orphans == 4  # those of the left 5x patches, half of which are glass
    with caplog.at_level(logging.INFO):
        Extractor([entry], strict, tiny_encoder(), tmp_path).run()
    assert caplog.messages[-1].endswith("; 4 patches left out without an ancestor")
