import json
import os
from pathlib import Path

import h5py
import itk
import numpy as np
import pytest
import tifffile
import torch

from scripts.core.errors import SettingsError
from scripts.core.settings import LATER
from scripts.features.bank_settings import LACKING, bank_settings, is_banked, slide_fingerprint
from scripts.features.bank_writing import write_bank
from tests.cohorts import builder, draw_slide, tiny_encoder
from tests.limits import within


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return draw_slide(tmp_path_factory.mktemp("features") / "s.tif")


@pytest.fixture(scope="module")
def bag(slide):
    return builder()({"image": slide})


def settings_of(slide, the_builder=None, encoder=None, **entry):
    return bank_settings({"image": slide, **entry}, the_builder or builder(), encoder or tiny_encoder())


@pytest.fixture
def bank(tmp_path, bag, slide):
    write_bank(tmp_path / "s.h5", bag, tiny_encoder(), settings_of(slide))
    return tmp_path / "s.h5"


@pytest.mark.parametrize("key", LACKING)
def test_a_bank_of_before_a_setting_was_stored_is_used_and_named(bank, slide, key):
    settings = {**settings_of(slide), "slide_sha256": "ab" * 32, "ink": "left out", "device": "cpu"}
    settings |= {"mask_tissue": None, "mask_sha256": "cd" * 32}
    with h5py.File(bank, "r+") as file:
        settings = json.loads(file.attrs["settings"]) | settings
        file.attrs["settings"] = json.dumps(settings)
    lacking: dict[str, list[Path]] = {}
    assert is_banked(bank, settings, lacking)
    assert lacking == {}
    with h5py.File(bank, "r+") as file:
        file.attrs["settings"] = json.dumps({name: value for name, value in settings.items() if name != key})
    assert is_banked(bank, settings, lacking)
    assert lacking == {key: [bank]}
    # Another difference is all that is said of a bank that is refused.
    with pytest.raises(SettingsError, match=r"was made otherwise \(patch_size 64, now 32\)"):
        is_banked(bank, {**settings, "patch_size": 32}, lacking)
    assert lacking == {key: [bank]}


OTHERS = {"overlap": 0.5, "grid_origin": "tissue", "tissue": {"closing_um": 16}, "feature_dtype": "float16"}


@pytest.mark.parametrize("key", sorted(LATER.keys() & OTHERS.keys()))
def test_a_bank_of_before_a_setting_is_that_of_its_default(bank, slide, key):
    with h5py.File(bank, "r+") as file:
        settings = json.loads(file.attrs["settings"])
        file.attrs["settings"] = json.dumps({name: value for name, value in settings.items() if name != key})
    assert is_banked(bank, settings_of(slide))
    with pytest.raises(SettingsError, match=f"was made otherwise .{key} .*, now "):
        is_banked(bank, {**settings_of(slide), key: OTHERS[key]})


def test_a_bank_of_before_its_encoder_was_described_is_that_of_its_backbone(bank, slide):
    settings = settings_of(slide)
    described = {"mean": [128.0] * 3, "std": [64.0] * 3, "input_px": None, "resize": None, "pooling": None}
    assert described.items() <= settings.items()
    with h5py.File(bank, "r+") as file:
        stored = json.loads(file.attrs["settings"])
        file.attrs["settings"] = json.dumps({name: stored[name] for name in stored if name not in described})
    assert is_banked(bank, settings)
    with pytest.raises(SettingsError, match="backbone 'tiny', now 'large'"):
        is_banked(bank, {**settings, "backbone": "large"})


@pytest.mark.parametrize(
    ("key", "value"), [("mean", [127.5] * 3), ("std", [1.0] * 3), ("input_px", 224), ("pooling", "class token")]
)
def test_banks_of_two_encoders_are_not_mixed(bank, slide, key, value):
    with pytest.raises(SettingsError, match=f"was made otherwise .{key} .*, now "):
        is_banked(bank, {**settings_of(slide), key: value})


def test_a_mask_says_what_is_tissue_whatever_ink_there_is(slide):
    assert "ink" in settings_of(slide)
    assert "ink" not in settings_of(slide, mask=slide)
    assert "tissue" not in settings_of(slide, mask=slide)


def test_a_bank_is_reused_for_the_same_settings_only(bank, slide):
    assert is_banked(bank, settings_of(slide))
    assert not is_banked(bank.with_name("other.h5"), settings_of(slide))
    before = bank.read_bytes()
    for settings, both in [
        (settings_of(slide, builder([5, 20])), r"magnifications \[5\.0, 10\.0\], now \[5\.0, 20\.0\]"),
        (settings_of(slide, builder(min_tissue=0.5)), r"min_tissue \[0\.0, 0\.7\], now \[0\.0, 0\.5\]"),
        (settings_of(slide, builder(read_level="highest")), "read_level 'nearest', now 'highest'"),
        ({**settings_of(slide), "amp": True}, "amp False, now True"),
        ({**settings_of(slide), "backbone": "resnet34"}, "backbone 'tiny', now 'resnet34'"),
        ({**settings_of(slide), "mpp_given": 0.25}, r"mpp_given None, now 0\.25"),
        ({**settings_of(slide), "amp": True, "patch_size": 224}, "patch_size 64, now 224, amp False, now True"),
        ({**settings_of(slide), "new_setting": 1}, "new_setting None, now 1"),
    ]:
        with pytest.raises(
            SettingsError, match=rf"s\.h5: was made otherwise \({both}\)\. Choose another `feature_dir`, or delete"
        ):
            is_banked(bank, settings)
    assert bank.read_bytes() == before


def encoder_on(device, amp):
    encoder = tiny_encoder()
    encoder.backbone.amp = amp
    encoder.device = torch.device(device)  # without a GPU nothing can be moved to it
    return encoder


@pytest.mark.parametrize(
    ("amp", "made_on", "used_on", "differs"),
    [
        (True, "cpu", "cuda", "device 'cpu', now 'cuda'"),
        (True, "cuda:1", "cpu", "device 'cuda', now 'cpu'"),
        (True, "cuda:1", "cuda", None),
        (True, "cpu", "cpu", None),
        # In float32 they differ by rounding, as two processors do.
        (False, "cpu", "cuda", None),
        (False, "cuda", "cpu", None),
    ],
)
def test_banks_of_a_cpu_and_a_gpu_do_not_mix_in_bfloat16(tmp_path, bag, slide, amp, made_on, used_on, differs):
    path = tmp_path / "s.h5"
    write_bank(path, bag, tiny_encoder(), settings_of(slide, encoder=encoder_on(made_on, amp)))
    wanted = settings_of(slide, encoder=encoder_on(used_on, amp))
    if differs is None:
        assert is_banked(path, wanted)
    else:
        with pytest.raises(SettingsError, match=rf"s\.h5: was made otherwise \({differs}\)\. Choose another"):
            is_banked(path, wanted)


def test_a_bank_of_an_older_format_is_not_reused(bank, slide, monkeypatch):
    monkeypatch.setattr("scripts.features.bank_settings.BANK_FORMAT", 2)
    with pytest.raises(SettingsError, match=r"was made otherwise \(bank_format 1, now 2\)"):
        is_banked(bank, settings_of(slide))


def test_a_fingerprint_changes_with_the_slides_content(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.features.bank_settings.FINGERPRINT_BYTES", 10)
    path = tmp_path / "s.svs"

    def fingerprint(content):
        path.write_bytes(content)
        return slide_fingerprint(path)

    base = bytearray(100)
    original = fingerprint(base)
    assert fingerprint(base) == original
    for position in (0, 9, 90, 99):  # what a replaced slide changes: header, directories
        changed = bytearray(base)
        changed[position] = 1
        assert fingerprint(changed) != original
    assert fingerprint(base + b"\0") != original
    assert fingerprint(b"") != fingerprint(b"\0")


def test_another_slide_or_mask_under_the_same_name_is_noticed(tmp_path, slide, bank):
    entry = {"image": tmp_path / "s.tif", "mask": tmp_path / "m.png"}
    draw_slide(entry["image"], seed=1)
    itk.imwrite(itk.image_from_array(np.ones((32, 64), np.uint8)), str(entry["mask"]))
    with pytest.raises(SettingsError, match=r"was made otherwise \(slide_fingerprint '.*', now '.*'\)"):
        is_banked(bank, settings_of(entry["image"]))
    one = settings_of(entry["image"], mask=entry["mask"])
    itk.imwrite(itk.image_from_array(np.eye(32, 64, dtype=np.uint8)), str(entry["mask"]))
    two = settings_of(entry["image"], mask=entry["mask"])
    assert one["mask_fingerprint"] != two["mask_fingerprint"]
    assert one["slide_fingerprint"] == two["slide_fingerprint"]
    assert settings_of(slide, mpp=0.25)["mpp_given"] == 0.25


def test_a_mask_that_was_edited_in_its_middle_is_noticed(tmp_path, slide):
    # Uncompressed, of the same size as before.
    tifffile.imwrite(path := tmp_path / "m.tif", mask := np.full((2000, 2000), 255, np.uint8))
    one = settings_of(slide, mask=path)
    mask[900:1100] = 0
    tifffile.imwrite(path, mask)
    assert settings_of(slide, mask=path) != one


def test_a_pipe_has_no_fingerprint(tmp_path):
    os.mkfifo(tmp_path / "b.svs")
    with within(10), pytest.raises(SettingsError, match=r"b\.svs: is a pipe, a device or a socket, not a file"):
        slide_fingerprint(tmp_path / "b.svs")
