"""Files of other tools: which are found under which names, and attributes that cannot be used."""

import csv
import json
import unicodedata

import h5py
import numpy as np
import pytest

from scripts.datalists.failures import FailedSlidesError
from tests.foreign import (
    banks_in,
    grid,
    importing,
    random_features,
    refusal,
    write_clam,
    write_slideflow,
    write_stamp,
    write_trident,
)

LOW, HIGH = grid(3, 2, 256, (100, 40)), grid(5, 4, 128, (160, 70))
FEATURES = random_features(len(HIGH))
CLAM_IS = {"encoder": "uni", "mpp": 0.5}
NFC, NFD = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("tool", ["trident", "clam", "clam pt", "stamp", "slideflow"])
def test_suffixes_count_in_any_case(tool, tmp_path):
    folder, given = tmp_path / "in", {"mpp": 0.5}
    if tool == "trident":
        write_trident(folder / "s.h5", HIGH, FEATURES)
    elif tool == "stamp":
        write_stamp(folder / "deep" / "s.h5", HIGH * 0.5, FEATURES)
    elif tool == "slideflow":
        write_slideflow(folder, "s", HIGH, FEATURES)
    else:
        write_clam(folder, "s", HIGH, FEATURES, files=("pt" if tool == "clam pt" else "h5", "patches"))
        given = CLAM_IS
    for path in list(folder.rglob("s*.*")):
        path.rename(path.with_suffix(path.suffix.upper()))
    assert banks_in(importing(folder, tmp_path, given)) == ["s.h5"]


def test_accents_are_the_same_however_they_are_encoded(tmp_path):
    for magnification, coords, name in ((5, LOW, NFC), (10, HIGH, NFD)):
        features = random_features(len(coords))
        write_trident(tmp_path / f"{magnification}x" / f"{name}.h5", coords, features, magnification=magnification)
    assert banks_in(importing([tmp_path / "5x", tmp_path / "10x"], tmp_path)) == [f"{NFC}.h5"]
    write_clam(tmp_path / "clam", NFD, HIGH, FEATURES, files=("pt",))
    write_clam(tmp_path / "clam", NFC, HIGH, FEATURES, files=("patches",))
    assert banks_in(importing(tmp_path / "clam", tmp_path / "out", CLAM_IS)) == [f"{NFC}.h5"]


def test_names_that_differ_in_case_alone_are_refused_naming_both(tmp_path):
    folders = [tmp_path / "5x", tmp_path / "10x"]
    write_trident(folders[0] / "S1.h5", LOW, random_features(len(LOW)), magnification=5)
    write_trident(folders[1] / "s1.h5", HIGH, FEATURES)
    assert refusal(folders, tmp_path).startswith("features: has S1, s1, which are all slide S1 (in any case). Give the")
    for folder, coords, magnification in zip(folders, (LOW, HIGH), (5, 10), strict=True):
        for name in ("S1", "s1", "s2"):
            write_trident(folder / f"{name}.h5", coords, random_features(len(coords)), magnification=magnification)
    assert "features: has S1, s1, which are all" in refusal(folders, tmp_path)


def test_two_files_of_one_name_in_a_folder_are_refused(tmp_path):
    for name in (NFC, NFD):
        write_trident(tmp_path / "in" / f"{name}.h5", HIGH, FEATURES)
    if len(list((tmp_path / "in").iterdir())) < 2:
        pytest.skip("a file system that takes the two for one")
    assert "are of slides of the same name. Give the folder of one of them, or rename one" in refusal(
        tmp_path / "in", tmp_path
    )


def test_what_macos_leaves_beside_files_is_no_slide(tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES)
    (tmp_path / "in" / "._s.h5").write_bytes(b"\x00\x05\x16\x07")
    assert banks_in(importing(tmp_path / "in", tmp_path)) == ["s.h5"]


def test_a_long_or_unsafe_name_becomes_that_of_a_datalist(tmp_path):
    """As the datalist calls the slide in the trainings that follow."""
    for name in ("n" * 250, "=formula"):
        write_trident(tmp_path / "in" / f"{name}.h5", HIGH, random_features(len(HIGH), seed=len(name)))
    banks = banks_in(importing(tmp_path / "in", tmp_path / "out"))
    datalist = tmp_path / "list.csv"
    datalist.write_text(f"image\n{'n' * 250}.svs\n=formula.svs\n")
    assert banks == banks_in(importing(tmp_path / "in", tmp_path / "listed", datalist=datalist))
    assert [len(name) for name in banks] == [len("_formula.h5"), 153]


def test_a_name_to_which_no_suffix_fits_is_one_line(tmp_path):
    write_slideflow(tmp_path / "in", "s", HIGH, FEATURES)
    (tmp_path / "in" / "s.pt").rename(tmp_path / "in" / f"{'n' * 250}.pt")
    assert "a bag has no positions, and there is no nnn" in refusal(tmp_path / "in", tmp_path, {"mpp": 0.5})


UNUSABLE = [
    ("coords", "patch_size", "ten", "its `patch_size` is 'ten', not a number above 0"),
    ("coords", "patch_size", 224.4, "its `patch_size` is '224.4', not a whole number of pixels"),
    ("coords", "patch_size", -224, "its `patch_size` is '-224', not a number above 0"),
    ("coords", "target_magnification", np.nan, "its `target_magnification` is 'nan', not a number above 0"),
    ("coords", "patch_size_level0", [128, 64], "its `patch_size_level0` is '[128, 64]', not a number above 0"),
    ("coords", "level0_width", 1e300, "its `level0_width` is '1e+300', not a whole number of pixels"),
    ("coords", "level0_mpp", np.inf, "its `level0_mpp` is 'inf', not a number above 0"),
    ("features", "encoder", 5, "its `encoder` is '5', not a text"),
]


@pytest.mark.parametrize(("array", "name", "value", "told"), UNUSABLE)
def test_an_attribute_that_cannot_be_used_is_one_line(array, name, value, told, tmp_path):
    path = write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES)
    with h5py.File(path, "r+") as file:
        file[array].attrs[name] = value
    assert refusal(tmp_path / "in", tmp_path) == (
        f"{path}: {told}. Extract the features of this slide again, or leave it out."
    )


def test_so_it_is_with_the_other_tools(tmp_path):
    write_stamp(tmp_path / "stamp" / "s.h5", HIGH * 0.5, FEATURES, tile_um=-64.0)
    assert "s.h5: its `tile_size_um` is '-64.0', not a number above 0" in refusal(tmp_path / "stamp", tmp_path)
    write_clam(tmp_path / "fine", "s", HIGH, FEATURES, downsample=0.5)
    assert "its patches have a side of 0 px of level 0" in refusal(tmp_path / "fine", tmp_path / "own", CLAM_IS)
    write_clam(tmp_path / "clam", "s", HIGH, FEATURES, downsample=np.nan)
    assert "patches/s.h5: its `downsample` is '[nan, nan]', not" in refusal(tmp_path / "clam", tmp_path, CLAM_IS)
    write_slideflow(tmp_path / "flow", "s", HIGH, FEATURES, config={"tile_px": 64.5})
    assert "bags_config.json: its `tile_px` is '64.5', not a whole number" in refusal(tmp_path / "flow", tmp_path)


def test_a_parent_folder_names_the_folders_to_give(tmp_path):
    for magnification, coords in ((5, LOW), (10, HIGH)):
        folder = tmp_path / "job" / f"{magnification}x_64px_0px_overlap" / "features_uni_v1"
        write_trident(folder / "s.h5", coords, random_features(len(coords)), magnification=magnification)
    names = ["10x_64px_0px_overlap", "5x_64px_0px_overlap"]
    told = refusal(tmp_path / "job", tmp_path)
    assert "job has no features itself, and folders that have: " in told
    assert f"{names[0]} (trident), {names[1]} (trident). Give those of one encoder: " in told
    assert f'--features "{[str(tmp_path / "job" / name) for name in names]}"' in told
    assert banks_in(importing([tmp_path / "job" / name for name in names], tmp_path)) == ["s.h5"]


def test_features_of_trident_without_attributes_are_named(tmp_path):
    path = write_trident(tmp_path / "10x" / "features_uni" / "s.h5", HIGH, FEATURES)
    with h5py.File(path, "r+") as file:
        for array in file.values():
            for name in list(array.attrs):
                del array.attrs[name]
    told = refusal(tmp_path / "10x", tmp_path)
    assert "has no features itself, and folders that have: features_uni (clam). Give those of one encoder" in told
    given = {**CLAM_IS, "patch_size": 64, "magnifications": 10}
    assert banks_in(importing(path.parent, tmp_path, given)) == ["s.h5"]


def break_config(folder, content):
    (folder / "bags_config.json").write_text(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: break_config(f, "{"), "bags_config.json: cannot be read as JSON (Expecting property name"),
        (lambda f: break_config(f, "[]"), "bags_config.json: does not have `extractor` as slideflow writes it"),
        (lambda f: break_config(f, '{"extractor": "uni"}'), "does not have `extractor` as slideflow writes it"),
        (
            lambda f: (f / "s.index.npz").write_bytes(b"PK\x03\x04"),
            "s.index.npz: cannot be read (File is not a zip",
        ),
        (lambda f: np.savez(f / "s.index", other=np.zeros(3)), "s.index.npz: cannot be read ("),
        (lambda f: (f / "s.pt").write_bytes(b"text"), "s.pt: cannot be read (no file of one plain tensor)"),
    ],
)
def test_damaged_files_of_slideflow_are_named_in_plain_words(damage, told, tmp_path):
    write_slideflow(tmp_path / "in", "s", HIGH, FEATURES)
    damage(tmp_path / "in")
    with pytest.raises(FailedSlidesError):
        importing(tmp_path / "in", tmp_path, {"mpp": 0.5}, strict=False)
    with open(tmp_path / "failed.csv") as file:
        (row,) = csv.DictReader(file)
    assert told in row["reason"]
    assert "Error" not in row["reason"]
    assert "BadZipFile" not in row["reason"]


def test_a_config_without_an_encoder_asks_for_it(tmp_path):
    write_slideflow(tmp_path / "in", "s", HIGH, FEATURES)
    config = tmp_path / "in" / "bags_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "extractor": None}))
    assert "does not say which encoder made it" in refusal(tmp_path / "in", tmp_path, {"mpp": 0.5})
