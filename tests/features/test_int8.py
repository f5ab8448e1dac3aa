"""The INT8 network of a run: with which patches it is made, where it lies, and that features are never mixed."""

import json
import logging
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.encoders.int8_networks import copy_int8, int8_name, read_int8
from scripts.features import int8
from scripts.features.bank import read_bank, stored_settings
from scripts.features.encoding import Encoder
from scripts.features.extraction import Extractor
from scripts.features.int8 import NUM_PATCHES, Int8, sample_patches
from tests.cohorts import builder, conv_backbone, draw_cohort, tiny_backbone


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("int8"))


@pytest.fixture
def quantised(monkeypatch):
    """The patches with which networks are made; they are not made."""
    seen = []

    def quantise(backbone, patches):
        seen.append(patches)
        return patches.numpy().tobytes(), b"weights"

    monkeypatch.setattr(int8, "quantise", quantise)
    return seen


def prepared(folder, entries, seed=0, **others):
    made = Int8(folder, seed, **others)
    made.prepare(tiny_backbone(), entries, builder())
    return made.network


def test_the_patches_are_of_all_slides_and_of_both_magnifications(cohort):
    patches, slides = sample_patches(cohort, builder(), seed=0)
    assert slides == len(cohort)
    assert patches.dtype == torch.uint8
    assert patches.shape[1:] == (3, 64, 64)
    known = {}
    for entry in cohort:
        bag = builder()(entry)
        for scale, pixels in enumerate(bag.read_all()):
            known |= {patch.tobytes(): (entry["slide"], scale) for patch in pixels}
    found = [known[patch.numpy().tobytes()] for patch in patches]
    share = -(-NUM_PATCHES // len(cohort) // 2)
    for entry in cohort:
        for scale, coords in enumerate(builder()(entry).grid.coords):
            assert found.count((entry["slide"], scale)) == min(share, len(coords))


def test_the_seed_chooses_them(cohort):
    one, again, other = (sample_patches(cohort, builder(), seed, count=8)[0] for seed in (0, 0, 1))
    assert len(one) == 8
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_slide_that_cannot_be_used_is_passed_over_and_without_any_there_is_a_clear_error(cohort, tmp_path):
    broken = {"image": str(tmp_path / "broken.tif"), "slide": "broken"}
    Path(broken["image"]).write_bytes(b"no slide")
    patches, slides = sample_patches([broken, *cohort], builder(), seed=0)
    assert slides == len(cohort)
    assert len(patches) > 0
    exchanged = {**cohort[0], "sha256": "0" * 64}
    with pytest.raises(SettingsError, match="precision: is int8, and no slide has a patch"):
        sample_patches([broken, exchanged], builder(), seed=0)


def test_a_network_is_made_once_for_a_folder_and_used_by_all_that_write_there(cohort, tmp_path, quantised, caplog):
    caplog.set_level(logging.INFO)
    first = prepared(tmp_path / "features", cohort)
    assert first.path == tmp_path / "features" / int8_name(first.sha256)
    assert prepared(tmp_path / "features", cohort[:1], seed=1) == first
    assert len(quantised) == 1
    assert f"the network in {first.path} is used" in caplog.text
    assert prepared(tmp_path / "others", cohort).sha256 == first.sha256
    assert prepared(tmp_path / "more", cohort[:2], seed=1).sha256 != first.sha256


def test_its_file_says_how_it_was_made_and_names_no_slide(cohort, tmp_path, quantised):
    about = prepared(tmp_path, cohort, seed=3).about
    assert about["encoder"] == json.loads(json.dumps(tiny_backbone().settings()))
    assert [about[key] for key in ("patch", "patches", "slides", "seed")] == [[64, 64], len(quantised[0]), 5, 3]
    assert about["versions"].keys() == {"torch", "openvino", "nncf"}
    assert not any(entry["slide"] in json.dumps(about) for entry in cohort)


def test_that_of_trained_weights_is_used_and_found_beside_them_or_their_banks(cohort, tmp_path, quantised):
    network = prepared(tmp_path / "features", cohort)
    (tmp_path / "models").mkdir()
    shutil.move(network.path, tmp_path / "models")
    of_weights = {"sha256": network.sha256, "folders": [tmp_path / "models"]}
    assert prepared(tmp_path / "new", cohort[:1], seed=1, **of_weights).sha256 == network.sha256
    assert not (tmp_path / "new").exists()  # until there are banks
    assert len(quantised) == 1
    (tmp_path / "new").mkdir()
    copy_int8(read_int8(tmp_path / "models" / network.path.name), tmp_path / "new")
    shutil.rmtree(tmp_path / "models")
    assert Int8(tmp_path / "new", **of_weights).network.sha256 == network.sha256
    with pytest.raises(SettingsError, match=f"the network {network.path.name} is not in {tmp_path / 'models'}"):
        Int8(None, **of_weights)


def test_banks_of_another_network_than_that_of_the_weights_are_refused(cohort, tmp_path, quantised):
    network, other = prepared(tmp_path / "features", cohort), prepared(tmp_path / "others", cohort[:1], seed=1)
    assert other.sha256 != network.sha256
    of_weights = {"sha256": network.sha256, "folders": [tmp_path / "features"]}
    with pytest.raises(SettingsError, match=f"others: contains the INT8 network {other.path.name}, and these weights"):
        prepared(tmp_path / "others", cohort, **of_weights)


def test_a_network_that_another_run_has_made_meanwhile_is_used(cohort, tmp_path, quantised, monkeypatch):
    first = prepared(tmp_path / "first", cohort)
    make = int8.quantise

    def slowly(backbone, patches):
        copy_int8(first, tmp_path / "second")
        return make(backbone, patches)

    monkeypatch.setattr(int8, "quantise", slowly)
    assert prepared(tmp_path / "second", cohort[:1], seed=1).sha256 == first.sha256


def test_a_damaged_copy_is_replaced(cohort, tmp_path, quantised):
    network = prepared(tmp_path / "features", cohort)
    copy = tmp_path / network.path.name
    copy.write_bytes(b"damaged")
    copy_int8(network, tmp_path)
    assert read_int8(copy).sha256 == network.sha256


def test_weights_of_other_features_have_none():
    with pytest.raises(SettingsError, match="precision: is int8, and these weights were not trained on features of"):
        _ = Int8().network


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ({"device": "cuda"}, "is int8, which is for CPUs, and `device` is cuda. Set `precision` to amp"),
        ({"runtime": "torch"}, "is int8, which openvino alone computes, and `runtime` is torch. Set `runtime` to open"),
    ],
)
def test_it_is_for_openvino_on_a_cpu(monkeypatch, others, told):
    monkeypatch.setattr("scripts.core.setting_checks.device", lambda key, value: None)
    monkeypatch.setattr("scripts.features.encoding.check_settings", lambda **settings: None)
    with pytest.raises(SettingsError, match=f"precision: {told}"):
        Encoder(tiny_backbone(), **{"runtime": "openvino", "int8": Int8(), **others})


def test_a_network_that_onnxruntime_computes_cannot_be_had_in_int8():
    backbone = tiny_backbone()
    backbone.runtime = "torch"
    with pytest.raises(SettingsError, match="precision: is int8, and an tiny file is computed by torch, as it is"):
        Encoder(backbone, runtime="openvino", int8=Int8())


def test_extraction_in_int8_makes_banks_that_others_refuse(cohort, tmp_path):
    pytest.importorskip("nncf", reason="nncf is not installed (the extra int8)")
    folder = tmp_path / "features"

    def extract(entries, precision=None):
        made = None if precision is None else Int8(folder)
        encoder = Encoder(conv_backbone(), num_workers=0, runtime="openvino", int8=made)
        Extractor(entries, builder(), encoder, folder, ranges_from=cohort[:2]).run()
        return encoder

    encoder = extract(cohort[:2], "int8")
    network = read_int8(next(folder.glob("*.zip")))
    assert network.about["slides"] == 2
    assert stored_settings(folder / "s0.h5")["int8_sha256"] == network.sha256
    assert encoder.checksums == {"backbone_sha256": "c" * 64, "int8_sha256": network.sha256}
    banked = read_bank(folder / "s0.h5", (5.0, 10.0)).row_features()
    assert np.array_equal(banked, encoder.encode_rows(builder()(cohort[0])))
    plain = Encoder(conv_backbone(), runtime="openvino").encode_rows(builder()(cohort[0]))
    assert not np.allclose(banked, plain, rtol=1e-3)
    assert np.corrcoef(banked.ravel(), plain.ravel())[0, 1] > 0.99

    with pytest.raises(SettingsError, match=r"was made otherwise \(precision 'int8', now 'amp'\)"):
        extract(cohort[:2])
    with h5py.File(folder / "s1.h5", "a") as bank:
        other = {**json.loads(bank.attrs["settings"]), "int8_sha256": "f" * 64}
        bank.attrs["settings"] = json.dumps(other)
    with pytest.raises(SettingsError, match=r"s1.h5: was made otherwise \(int8_sha256 'ffff.*', now "):
        extract(cohort[:2], "int8")
