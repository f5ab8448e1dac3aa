"""Imported features that may not be what they seem: of another slide, scale or resolution."""

import json
import logging
import os
import shlex

import h5py
import pytest
import tifffile

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SettingsError
from scripts.datalists.failures import FailedSlidesError
from scripts.features.bank import stored_settings
from scripts.features.exporting import export_banks
from scripts.features.imported import ImportedFeatures
from scripts.features.importing import Importer
from tests.conftest import ROOT
from tests.foreign import (
    banks_in,
    grid,
    importing,
    random_features,
    refusal,
    write_clam,
    write_slideflow,
    write_trident,
)
from tests.pyramids import noise

TRIDENT = ROOT.parent / "shared" / "foreign" / "trident"
LOW, HIGH = grid(3, 2, 256, (100, 40)), grid(5, 4, 128, (160, 70))
FEATURES = random_features(len(HIGH))


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def write_pair(folder, slide, low):
    """A slide at 5x and 10x, of which 5x has these patches; returns the two folders."""
    write_trident(folder / "low" / f"{slide}.h5", low, random_features(len(low)), magnification=5)
    write_trident(folder / "high" / f"{slide}.h5", HIGH, FEATURES)
    return [folder / "low", folder / "high"]


@pytest.mark.skipif(not TRIDENT.is_dir(), reason=f"needs {TRIDENT}")
def test_slides_of_trident_that_lose_many_patches_are_named_with_both_numbers(tmp_path, caplog):
    folders = [TRIDENT / f"{m}x_224px_0px_overlap" for m in (5, 10)]
    with caplog.at_level(logging.INFO):
        banks = importing(folders, tmp_path)
    for slide, total in (("demo_000", 68), ("demo_001", 80)):
        with h5py.File(banks / f"{slide}.h5") as bank:
            orphans = bank.attrs["orphans"]
            assert orphans + len(bank["rows"]) == total
        told = f"slide {slide}: {orphans} of its {total} patches at 10x have no ancestor at 5x, and are left out: "
        assert f"{told}extract all magnifications over the same tissue area" in caplog.text
    assert " of 148 patches of the highest magnification, which have no ancestor" in caplog.text


@pytest.mark.parametrize(("dropped", "is_told"), [(0, False), (2, False), (3, True)])
def test_a_quarter_of_the_patches_may_be_without_an_ancestor(dropped, is_told, tmp_path, caplog):
    low, high = grid(4, 2, 256)[dropped:], grid(8, 4, 128)
    write_trident(tmp_path / "low" / "s.h5", low, random_features(len(low)), magnification=5)
    write_trident(tmp_path / "high" / "s.h5", high, random_features(len(high)))
    with h5py.File(importing([tmp_path / "low", tmp_path / "high"], tmp_path) / "s.h5") as bank:
        assert bank.attrs["orphans"] == 4 * dropped
    assert any("have no ancestor" in warning for warning in warnings_in(caplog)) == is_told


def test_patches_that_are_larger_than_their_magnification_says_are_refused(tmp_path):
    """CLAM's files without `patches` say no size; those of 5x and 10x may be swapped."""
    low = grid(4, 4, 256, (100, 40))
    write_clam(tmp_path / "5x", "s", low, random_features(len(low)), files=("h5",))
    write_clam(tmp_path / "10x", "s", HIGH, FEATURES, files=("h5",))
    given = {"encoder": "uni", "mpp": 0.5, "patch_size": 64}
    folders = [tmp_path / "5x", tmp_path / "10x"]
    told = refusal(folders, tmp_path, {**given, "magnifications": [10, 5]})
    assert "s.h5: its patches lie 256 px of level 0 apart or more, and 64 px at 10x and 0.5 um/px are 128 px" in told
    assert banks_in(importing(folders, tmp_path / "right", {**given, "magnifications": [5, 10]})) == ["s.h5"]
    # Gaps that the user means.
    alone = {**given, "magnifications": [10], "patch_size_level0": 128}
    assert banks_in(importing(tmp_path / "5x", tmp_path / "gaps", alone)) == ["s.h5"]


def test_patches_that_overlap_by_half_are_named(tmp_path, caplog):
    """Those of 10x that are called 5x, or what the tool was asked for."""
    write_clam(tmp_path / "in", "s", HIGH, FEATURES, files=("h5",))
    given = {"encoder": "uni", "mpp": 0.5, "patch_size": 64}
    importing(tmp_path / "in", tmp_path / "right", {**given, "magnifications": [10]})
    assert not warnings_in(caplog)
    importing(tmp_path / "in", tmp_path / "wrong", {**given, "magnifications": [5]})
    told = "slide s: most of its patches lie 128 px of level 0 apart, and 64 px at 5x and 0.5 um/px are 256 px: they"
    assert told in caplog.text


def test_few_patches_may_lie_apart(tmp_path):
    few = grid(2, 2, 300)
    write_clam(tmp_path / "in", "s", few, random_features(len(few)), files=("h5",))
    given = {"encoder": "uni", "mpp": 0.5, "patch_size": 64, "magnifications": [10]}
    assert banks_in(importing(tmp_path / "in", tmp_path, given)) == ["s.h5"]


def test_a_file_that_says_that_it_is_of_another_slide_is_named(tmp_path, caplog):
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES).rename(tmp_path / "in" / "t.h5")
    importing(tmp_path / "in", tmp_path)
    assert "1 slides have files that say that they are of another one, in brackets: t (s)" in caplog.text


def test_the_same_features_of_two_slides_are_refused(tmp_path):
    path = write_trident(tmp_path / "in" / "a.h5", HIGH, FEATURES)
    (tmp_path / "in" / "b.h5").write_bytes(path.read_bytes())
    told = f"slide b: has the same features as a ({tmp_path / 'in' / 'b.h5'}). Leave one of the two out"
    assert refusal(tmp_path / "in", tmp_path).startswith(told)
    # Also where one of the two is there already.
    assert refusal(tmp_path / "in", tmp_path).startswith(told)


@pytest.mark.parametrize(("exact", "expected"), [({}, None), ({"level0_mpp": 0.48}, 0.48)])
def test_a_rounded_resolution_is_not_exported_as_an_exact_one(exact, expected, tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES, **exact)
    (folder,) = export_banks(importing(tmp_path / "in", tmp_path), tmp_path / "out")
    with h5py.File(folder / "s.h5") as file:
        assert file["coords"].attrs.get("level0_mpp") == expected
    with h5py.File(importing(folder, tmp_path / "again") / "s.h5") as bank:
        assert bank.attrs["mpp_source"].endswith("rounded") == (expected is None)


@pytest.mark.parametrize("encoder", ["timm/vit", "../../../out", "n" * 250])
def test_the_name_of_an_encoder_is_that_of_one_folder(encoder, tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES, encoder=encoder)
    (folder,) = export_banks(importing(tmp_path / "in", tmp_path), tmp_path / "a" / "out")
    assert folder.parent == tmp_path / "a" / "out" / "10x_64px_0px_overlap"
    banks = importing(folder, tmp_path / "again")
    assert stored_settings(banks / "s.h5")["encoder"] == encoder


def test_each_bank_that_is_there_has_to_agree_and_is_opened_once(tmp_path, monkeypatch):
    opened = []

    def reading(path):
        opened.append(path.name)
        return stored_settings(path)

    monkeypatch.setattr("scripts.features.imported.stored_settings", reading)
    for name in "abc":
        write_trident(tmp_path / "in" / f"{name}.h5", HIGH, FEATURES)
    banks = importing(tmp_path / "in", tmp_path)
    importing(tmp_path / "in", tmp_path)
    assert opened == ["a.h5"]  # the others are compared when their turn comes
    write_trident(tmp_path / "other" / "b.h5", HIGH, FEATURES, encoder="conch_v1")
    (banks / "b.h5").write_bytes((importing(tmp_path / "other", tmp_path / "out") / "b.h5").read_bytes())
    told = f"encoder 'uni_v1' of {banks}/a.h5, 'conch_v1' of {banks}/b.h5"
    write_trident(tmp_path / "more" / "d.h5", HIGH, FEATURES)
    assert told in refusal(tmp_path / "more", tmp_path)
    assert "b.h5: was made otherwise (encoder 'conch_v1', now 'uni_v1'" in refusal(tmp_path / "in", tmp_path)


def test_the_last_line_can_be_pasted(tmp_path, caplog):
    out = tmp_path / "my study's"
    with caplog.at_level(logging.INFO):
        banks = importing(write_pair(tmp_path, "s", LOW), out)
    words = shlex.split(caplog.messages[-1].partition("use them with ")[2])
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given == {
        "--backbone": "imported",
        "--feature_dir": str(banks),
        "--magnifications": "[5,10]",
        "--patch_size": "64",
    }


def test_a_strict_run_ends_with_the_first_slide_that_lacks_a_value(tmp_path):
    write_trident(tmp_path / "in" / "a.h5", HIGH, FEATURES, encoder=None)
    write_trident(tmp_path / "in" / "b.h5", HIGH, FEATURES)
    assert "a.h5: does not say which encoder made it" in refusal(tmp_path / "in", tmp_path)
    assert not list((tmp_path / "features").iterdir())


@pytest.mark.parametrize(
    ("array", "lacks", "told"),
    [
        ("features", "encoder", """made it. Give it, for example --features_are "{'encoder': 'uni_v1'}"."""),
        ("coords", "patch_size", """in pixels. Give it, for example --features_are "{'patch_size': 64}"."""),
        ("coords", "level0_magnification", "per pixel. Extract its features again, or leave it out. Where slides"),
    ],
)
def test_a_value_that_one_slide_lacks_costs_that_slide(array, lacks, told, tmp_path):
    """Also if it is the first; what the remedy says does not contradict the others."""
    folders = [tmp_path / "low", tmp_path / "high"]
    for name in "abc":
        write_pair(tmp_path, name, LOW)
    for folder in folders:
        with h5py.File(folder / "a.h5", "r+") as file:
            del file[array].attrs[lacks]
    with pytest.raises(FailedSlidesError, match=r"importing: 1 of 3 slides failed \(a\)"):
        importing(folders, tmp_path, strict=False)
    assert sorted(path.stem for path in (tmp_path / "features").iterdir()) == ["b", "c"]
    assert told in (tmp_path / "failed.csv").read_text().replace('""', '"')


def test_files_of_one_slide_that_contradict_what_is_given_cost_that_slide(tmp_path):
    """Also if it is the first; of all slides it is the user's mistake, which ends the run."""
    for name in "abc":
        write_trident(tmp_path / "in" / f"{name}.h5", HIGH, FEATURES, encoder="conch" if name == "a" else None)
    with pytest.raises(FailedSlidesError, match=r"importing: 1 of 3 slides failed \(a\)"):
        importing(tmp_path / "in", tmp_path, {"encoder": "uni_v1"}, strict=False)
    assert "got 'uni_v1', and" in (tmp_path / "failed.csv").read_text()
    with pytest.raises(SettingsError, match="features_are#patch_size: got 32, and"):
        importing(tmp_path / "in", tmp_path, {"encoder": "uni_v1", "patch_size": 32}, strict=False)


def test_a_slide_whose_files_are_at_one_magnification_costs_that_slide(tmp_path):
    folders = [tmp_path / "low", tmp_path / "high"]
    for name in "abc":
        write_pair(tmp_path, name, LOW)
    (tmp_path / "low" / "a.h5").write_bytes((tmp_path / "high" / "a.h5").read_bytes())
    with pytest.raises(FailedSlidesError, match=r"importing: 1 of 3 slides failed \(a\)"):
        importing(folders, tmp_path, strict=False)
    assert "are both at" in (tmp_path / "failed.csv").read_text()


def test_a_value_that_all_slides_lack_is_asked_for_once(tmp_path):
    for name in "ab":
        write_trident(tmp_path / "in" / f"{name}.h5", HIGH, FEATURES, encoder=None)
    with pytest.raises(SettingsError, match=r"b\.h5: does not say which encoder made it. Give it, for example"):
        importing(tmp_path / "in", tmp_path, strict=False)
    assert not (tmp_path / "failed.csv").exists()


def test_the_example_does_not_contradict_the_slides_other_file(tmp_path):
    folders = write_pair(tmp_path, "s", LOW)
    with h5py.File(folders[0] / "s.h5", "r+") as file:
        del file["features"].attrs["encoder"]
    assert "{'encoder': 'uni_v1'}" in refusal(folders, tmp_path)
    for key in ("target_magnification", "patch_size_level0"):
        with h5py.File(folders[0] / "s.h5", "r+") as file:
            del file["coords"].attrs[key]
    told = refusal(folders, tmp_path, {"encoder": "uni_v1"})
    assert "low/s.h5: does not say at which magnification its patches are" in told
    assert "{'encoder': 'uni_v1', 'magnifications': [5, 10]}" in told


def test_an_error_names_the_key_that_was_given(tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES)
    for value in (-10, [[5]], "10x"):
        with pytest.raises(SettingsError, match="^features_are#magnifications: got "):
            Importer(tmp_path / "in", tmp_path / "features", tmp_path, {"magnifications": value})


@pytest.fixture
def slide_of_power(tmp_path):
    """A slide of 1024 x 512 px that says no more than an objective power of 20, with its features."""
    description = "Aperio Image Library v1.0\r\n1024x512 (128x128) |AppMag = 20"
    path = tmp_path / "slides" / "s.svs"
    path.parent.mkdir()
    tifffile.imwrite(path, noise(512, 1024), tile=(128, 128), photometric="rgb", metadata=None, description=description)
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES)
    return path


def test_what_the_user_says_is_more_exact_than_an_objective_power(slide_of_power, tmp_path):
    banks = importing(tmp_path / "in", tmp_path, {"mpp": 0.46}, dataset_dir=slide_of_power.parent)
    with h5py.File(banks / "s.h5") as bank:
        assert (bank.attrs["mpp"], bank.attrs["mpp_source"]) == (0.46, "features_are: mpp")
    # Maps are then drawn at that resolution, too.
    assert BagBuilder().open_slide({"image": slide_of_power}, 0.46).base_mpp == 0.46
    (folder,) = export_banks(banks, tmp_path / "out")
    with h5py.File(folder / "s.h5") as file:
        assert file["coords"].attrs["level0_mpp"] == 0.46


def test_an_objective_power_is_not_exported_as_an_exact_resolution(slide_of_power, tmp_path):
    banks = importing(tmp_path / "in", tmp_path, dataset_dir=slide_of_power.parent)
    with h5py.File(banks / "s.h5") as bank:
        assert bank.attrs["mpp_source"] == "file: objective power 20"
    (folder,) = export_banks(banks, tmp_path / "out")
    with h5py.File(folder / "s.h5") as file:
        assert "level0_mpp" not in file["coords"].attrs


def test_a_resolution_far_from_the_objective_power_is_refused(slide_of_power, tmp_path):
    told = refusal(tmp_path / "in", tmp_path, {"mpp": 0.25}, dataset_dir=slide_of_power.parent)
    assert "its level 0 has 0.25 um/px (features_are: mpp), and 0.5 um/px (file: objective power 20)" in told


def test_one_file_at_two_magnifications_is_refused(tmp_path):
    given = {"mpp": 0.5, "encoder": "uni", "patch_size": 64, "magnifications": [5, 10]}
    for name in ("low", "high"):
        write_clam(tmp_path / name, "s", HIGH, FEATURES, files=("h5",))
    told = refusal([tmp_path / "low", tmp_path / "high"], tmp_path, given)
    assert told.startswith("slide s: has the same features at several magnifications: ")


def test_features_of_two_weights_of_an_encoder_are_of_two_encoders(tmp_path):
    found = set()
    for sha256 in ("a" * 64, "b" * 64, None):
        path = write_trident(tmp_path / str(sha256) / "s.h5", HIGH, FEATURES, encoder="torchscript")
        if sha256 is not None:
            with h5py.File(path, "r+") as file:
                file["features"].attrs["weights_sha256"] = sha256
        banks = importing(path.parent, tmp_path / f"banks of {sha256}")
        found.add(ImportedFeatures(banks).backbone.weights_sha256)
    assert len(found) == 3


def test_a_bank_of_another_resolution_costs_its_slide(tmp_path):
    for name in "ab":
        write_trident(tmp_path / "in" / f"{name}.h5", HIGH, random_features(len(HIGH)) + ord(name))
    importing(tmp_path / "in", tmp_path)
    listed = tmp_path / "list.csv"
    listed.write_text("image,mpp\na.svs,0.48\nb.svs,0.5\n")
    with pytest.raises(FailedSlidesError, match=r"importing: 1 of 2 slides failed \(a\)"):
        importing(tmp_path / "in", tmp_path, strict=False, datalist=listed)
    assert "a.h5: was made otherwise (base_mpp 0.5, now 0.48)" in (tmp_path / "failed.csv").read_text()


def test_tiles_at_the_border_may_reach_over_it_by_what_the_resolution_is_off(tmp_path):
    corners = grid(3, 2, 448)
    write_slideflow(tmp_path / "in", "s", corners, random_features(len(corners)), tile_px=224, tile_um=224.0)
    banks = importing(tmp_path / "in", tmp_path, {"mpp": 0.498})
    with h5py.File(banks / "s.h5") as bank:
        assert bank["10x"]["coords"][:].min() == 0


def test_a_file_and_a_slide_of_one_name_that_are_not_the_same_are_refused(tmp_path):
    write_trident(tmp_path / "in" / "a.h5", HIGH, FEATURES)
    listed = tmp_path / "list.csv"
    listed.write_text("image,slide\na.svs,b\nc.svs,a\n")
    assert "a: is the name of a.svs and c.svs" in refusal(tmp_path / "in", tmp_path, datalist=listed).replace(
        f"{tmp_path}/", ""
    )


def test_models_of_one_class_of_slideflow_are_two_encoders(tmp_path):
    for name, corners, model in (("low", LOW, "resnet"), ("high", HIGH, "vit")):
        kwargs = {"model_name": model}
        config = {"extractor": {"class": "slideflow.TimmFE", "kwargs": kwargs}}
        side = {"tile_um": 64.0 if name == "high" else 128.0, "config": config}
        write_slideflow(tmp_path / name, "s", corners, random_features(len(corners)), **side)
    told = refusal([tmp_path / "low", tmp_path / "high"], tmp_path, {"mpp": 0.5})
    assert "s: has different encoders: TimmFE-" in told


def test_a_pipe_among_features_is_not_waited_for(tmp_path):
    write_slideflow(tmp_path / "bags", "s", HIGH, FEATURES)
    (tmp_path / "bags" / "s.index.npz").unlink()
    os.mkfifo(tmp_path / "bags" / "s.index.npz")
    assert "s.index.npz: " in refusal(tmp_path / "bags", tmp_path, {"mpp": 0.5})
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES)
    os.mkfifo(tmp_path / "in" / "a.h5")
    assert "a.h5: " in refusal(tmp_path / "in", tmp_path)


def test_banks_that_were_made_otherwise_are_not_exported_together(tmp_path):
    for name in "ab":
        write_trident(tmp_path / "in" / f"{name}.h5", HIGH, random_features(len(HIGH)) + ord(name))
    banks = importing(tmp_path / "in", tmp_path)
    for name, mean in (("a", [0.5]), ("b", [0.1])):
        with h5py.File(banks / f"{name}.h5", "r+") as bank:
            bank.attrs["settings"] = json.dumps({**json.loads(bank.attrs["settings"]), "mean": mean})
    with pytest.raises(SettingsError, match=r"has features of another kind \(mean \[0.5\] of a, \[0.1\] of b\)"):
        export_banks(banks, tmp_path / "out")
