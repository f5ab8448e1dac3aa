import json
import logging
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tqdm import tqdm

from scripts.augmentation import augmentation_settings, view_transform
from scripts.errors import SettingsError, SlideError
from scripts.extraction import Extractor
from scripts.features import bank_path, read_bank
from tests.cohorts import builder, draw_cohort, draw_slide, tiny_backbone, tiny_encoder


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

    def counted(bag, transform):
        encoder.slides.append(bag.slide.path.stem)
        batches = encode(bag, transform)
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
    # Before all slides are opened, the total is what they would hold if a byte of each held what one did so far.
    sizes = [Path(entry["image"]).stat().st_size for entry in cohort]
    assert bar.totals[0] == round(patches[0] / sizes[0] * sum(sizes))
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


# --- views -----------------------------------------------------------------------------------------------


def builder_that_counts(**settings):
    """A bag builder that records which slides it was asked for."""
    the_builder = builder(**settings)
    the_builder.slides = []

    class Counting(type(the_builder)):
        def __call__(self, entry):
            self.slides.append(entry["slide"])
            return super().__call__(entry)

    the_builder.__class__ = Counting
    return the_builder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.h5"))


def test_each_view_gets_a_bank_of_the_patches_that_it_transforms(cohort, tmp_path):
    Extractor(cohort, builder(), tiny_encoder(num_workers=2), tmp_path, views=[2, 0, 1]).run()
    assert files(tmp_path) == ["s0.h5", "s1.h5", "s2.h5", "views/s0/001.h5", "views/s0/002.h5", "views/s2/001.h5"]
    for entry, views in zip(cohort, [2, 0, 1], strict=True):
        bag = builder()(entry)
        for view in range(1, views + 1):
            banked = read_bank(bank_path(tmp_path, entry["slide"], view), (5.0, 10.0))
            transform = view_transform(entry["slide"], view)
            for s in range(2):
                expected = tiny_backbone()(torch.from_numpy(transform(bag.read_all()[s]))).numpy()
                assert np.allclose(banked.features[s], expected, atol=1e-6)
                assert np.array_equal(banked.coords[s], bag.grid.coords[s])
            assert np.array_equal(banked.rows, bag.grid.rows)


def test_the_plain_banks_are_the_same_with_views_and_without(cohort, tmp_path):
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "plain").run()
    Extractor(cohort, builder(), tiny_encoder(), tmp_path / "views", views=[1, 1, 1]).run()
    for name in ("s0.h5", "s1.h5", "s2.h5"):
        with h5py.File(tmp_path / "plain" / name) as plain, h5py.File(tmp_path / "views" / name) as beside:
            assert plain.attrs["settings"] == beside.attrs["settings"]
            for scale in ("5x", "10x"):
                assert np.array_equal(plain[scale]["features"][:], beside[scale]["features"][:])


def test_the_bank_of_a_view_says_which_and_how_views_are_drawn(cohort, tmp_path):
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path, views=[3]).run()
    with h5py.File(tmp_path / "s0.h5") as plain, h5py.File(tmp_path / "views/s0/003.h5") as view:
        before, after = (json.loads(bank.attrs["settings"]) for bank in (plain, view))
    assert after == {**before, "view": 3, **augmentation_settings()}
    assert not {"view", *augmentation_settings()} & set(before)


def test_views_drawn_otherwise_are_refused_and_the_plain_banks_are_not(cohort, tmp_path, monkeypatch):
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path, views=[1]).run()
    monkeypatch.setattr("scripts.augmentation.HUE_SHIFT", 20)
    with pytest.raises(SettingsError, match=r"001\.h5: was made otherwise \(hue_shift 8, now 20\)"):
        Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path, views=[1]).run()
    Extractor(cohort[:1], builder(), tiny_encoder(), tmp_path).run()


def test_only_missing_views_are_made_and_each_slide_is_opened_once(cohort, tmp_path, caplog, bars):
    Extractor(cohort, builder(), tiny_encoder(), tmp_path).run()
    (tmp_path / "s1.h5").unlink()
    made = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}
    opened, encoder = builder_that_counts(), encoder_that_counts()
    with caplog.at_level(logging.INFO):
        Extractor(cohort, opened, encoder, tmp_path, views=[2, 1, 0]).run()
    assert opened.slides == ["s0", "s1"]
    assert encoder.slides == ["s0", "s0", "s1", "s1"]
    patches = [num_patches(entry) for entry in cohort]
    extracted = 2 * patches[0] + 2 * patches[1]
    assert f"extracting 1 of 3 slides and 3 of 3 augmented views into {tmp_path} (2 and 0 are there)" in caplog.messages
    assert f"extracted 1 slides and 3 augmented views, {extracted} patches in" in caplog.messages[-1]
    assert bars[-1].n == bars[-1].total == extracted
    sizes = [Path(entry["image"]).stat().st_size for entry in cohort]
    assert bars[-1].totals[0] == round(2 * patches[0] / (2 * sizes[0]) * (2 * sizes[0] + 2 * sizes[1]))
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in made} == made
    again = encoder_that_counts()
    Extractor(cohort, builder(), again, tmp_path, views=[3, 1, 0]).run()
    assert again.slides == ["s0"]


def test_each_entry_needs_its_number_of_views(cohort, tmp_path):
    with pytest.raises(ValueError, match="views has 1 numbers for 3 entries"):
        Extractor(cohort, builder(), tiny_encoder(), tmp_path, views=[1])


def test_ranks_that_would_write_other_features_are_refused(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.extraction.from_first_rank", lambda make: {**make(), "amp": True})
    monkeypatch.setattr("scripts.extraction.rank", lambda: 1)
    with pytest.raises(
        SettingsError, match=r"amp: the ranks would write .*amp True on rank 0, False on rank 1.*Set amp"
    ):
        Extractor(cohort, builder(), tiny_encoder(), tmp_path).run()
    assert not list(tmp_path.iterdir())
