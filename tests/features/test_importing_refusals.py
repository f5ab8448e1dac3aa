"""Features of other tools that are not imported: each ends in one line that says why and what to do."""

import csv

import h5py
import numpy as np
import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.datalists.failures import FailedSlidesError
from scripts.features.bank import bank_path
from scripts.features.bank_settings import bank_settings
from scripts.features.bank_writing import write_bank
from scripts.features.encoding import Encoder
from tests.cohorts import builder, draw_slide, tiny_backbone
from tests.foreign import grid, importing, random_features, refusal, write_slideflow, write_stamp, write_trident

LOW, HIGH = grid(3, 2, 256, (100, 40)), grid(5, 4, 128, (160, 70))


@pytest.fixture
def features():
    return random_features(len(LOW), seed=1), random_features(len(HIGH), seed=2)


def test_slides_that_fail_are_recorded_and_the_others_are_imported(features, tmp_path):
    for name in "abc":
        write_trident(tmp_path / "in" / f"{name}.h5", HIGH, features[1])
    (tmp_path / "in" / "a.h5").write_bytes(b"no HDF5")
    broken = features[1].copy()
    broken[3, 2] = np.nan
    write_trident(tmp_path / "in" / "b.h5", HIGH, broken)
    with pytest.raises(FailedSlidesError, match=r"importing: 2 of 3 slides failed \(a, b\)"):
        importing(tmp_path / "in", tmp_path, strict=False)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["c.h5"]
    with open(tmp_path / "failed.csv") as file:
        reasons = {row["slide"]: row["reason"] for row in csv.DictReader(file)}
    assert "a.h5: cannot be read (" in reasons["a"]
    assert "its features are not all finite numbers in float32, such as those of patch 3" in reasons["b"]


def broken_trident(change):
    """A file of TRIDENT with something wrong in it, by a function of its positions and features."""

    def write(folder):
        coords, features = change(HIGH.copy(), random_features(len(HIGH)))
        write_trident(folder / "s.h5", coords, features)

    return write


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (
            broken_trident(lambda c, f: (np.concatenate([c[:-1], c[:1]]), f)),
            "has 1 patches twice, such as that at (160, 70)",
        ),
        (broken_trident(lambda c, f: (c[:-1], f)), "has features of 20 patches and positions of 19"),
        (broken_trident(lambda c, f: (c - 200, f)), "has a patch at (-40, -130), outside of the slide"),
        (broken_trident(lambda c, f: (c * 10, f)), "outside of the slide of 1024 x 512"),
        (broken_trident(lambda c, f: (c[:0], f[:0])), "has no patches"),
        (broken_trident(lambda c, f: (c[:, :1], f)), "its positions are int64 [20, 1], not [n, 2]"),
        (broken_trident(lambda c, f: (c, f.astype(int))), "its features are int64 [20, 8], not [n, F] floats"),
        (
            broken_trident(lambda c, f: (c, f * np.inf)),
            "its features are not all finite numbers in float32, such as those of patch 0",
        ),
        (
            broken_trident(lambda c, f: (c, np.concatenate([f[:5], f[5:] * 0]))),
            "its features of patch 5 are all 0, as if never written",
        ),
        (broken_trident(lambda c, f: (c, f * 0)), "its features of patch 0 are all 0, as if never written"),
        (
            broken_trident(lambda c, f: (c, np.where(f < 9, 1e300, f))),
            "its features are not all finite numbers in float32, such as those of patch 0",
        ),
        (
            lambda folder: write_trident(folder / "s.h5", HIGH, random_features(20), patch_size_level0=512),
            "its patches at 10x have 4 um/px, and 10x is 1 um/px",
        ),
    ],
)
def test_damaged_features_are_refused_in_one_line(write, told, tmp_path):
    write(tmp_path / "a")
    line = refusal(tmp_path / "a", tmp_path)
    assert told in line
    assert "s" in line.split(":")[0]
    assert not list((tmp_path / "features").iterdir())


@pytest.mark.parametrize(
    ("low", "told"),
    [
        ({"encoder": "conch_v1"}, "s: has different encoders: conch_v1 at 5x, uni_v1 at 10x"),
        ({"length": 9}, "s: has different feature lengths: 9 at 5x, 8 at 10x"),
        ({"patch_size": 128, "coords": grid(2, 1, 512)}, "s: has different patch sizes: 128 at 5x, 64 at 10x"),
        ({"size": (1024, 500)}, "have another level-0 size in pixels: 1024 x 512 and 1024 x 500"),
        ({"level0": 40}, "have another magnification of level 0: 20 and 40"),
        ({"magnification": 10}, "are both at 10x"),
        ({"coords": grid(1, 1, 256, (800, 0))}, "s: none of its 20 patches at 10x has its centre in one at 5x"),
    ],
)
def test_magnifications_that_do_not_fit_are_refused(low, told, tmp_path):
    write_trident(tmp_path / "high" / "s.h5", HIGH, random_features(len(HIGH)))
    given = {"magnification": 5, **low}
    coords = given.pop("coords", LOW)
    features = random_features(len(coords), given.pop("length", 8))
    write_trident(tmp_path / "low" / "s.h5", coords, features, **given)
    assert told in refusal([tmp_path / "high", tmp_path / "low"], tmp_path)


def test_resolutions_that_differ_between_scales_are_refused(tmp_path):
    for name, magnification, coords, mpp in (("low", 5, LOW, 0.5), ("high", 10, HIGH, 0.45)):
        features = random_features(len(coords))
        write_trident(tmp_path / name / "s.h5", coords, features, magnification=magnification, level0_mpp=mpp)
    told = refusal([tmp_path / "high", tmp_path / "low"], tmp_path)
    assert "have another um/px of level 0: 0.45 and 0.5" in told


def test_slides_that_are_not_of_the_same_features_are_refused(tmp_path):
    for name, encoder in (("a", "uni_v1"), ("b", "conch_v1")):
        write_trident(tmp_path / "in" / f"{name}.h5", HIGH, random_features(len(HIGH)), encoder=encoder)
    assert "b: encoder 'uni_v1' of a, 'conch_v1' of b" in refusal(tmp_path / "in", tmp_path)


def test_another_scan_of_the_slide_is_refused(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    draw_slide(slides / "s.tif", size=(900, 512))
    write_trident(tmp_path / "a" / "s.h5", HIGH, random_features(len(HIGH)))
    told = refusal(tmp_path / "a", tmp_path, dataset_dir=slides)
    assert "s: its features are of a slide of 1024 x 512 px, and the slide has 900 x 512 px" in told
    write_trident(tmp_path / "b" / "s.h5", HIGH[:4], random_features(4), size=None, level0_mpp=0.25, level0=40)
    told = refusal(tmp_path / "b", tmp_path / "out", dataset_dir=slides)
    assert "s: its level 0 has 0.25 um/px (file: level0_mpp of s.h5), and 0.5 um/px (file: " in told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"encoder": "conch"}, "features_are#encoder: got 'conch', and .* says 'uni_v1'"),
        ({"patch_size": 256}, "features_are#patch_size: got 256, and .* says 64"),
        ({"magnifications": [20]}, "features_are#magnifications: got 20, and .* says 10"),
        ({"magnifications": [5, 10]}, "features_are#magnifications: got .5, 10. for 1 folders in `features`"),
        ({"mpp": "a"}, "features_are#mpp: got 'a'"),
        ({"mpps": 0.5}, "features_are: got .'mpps': 0.5.. Give a dictionary with some of encoder, patch_size"),
        (5, "features_are: got 5. Give a dictionary"),
        ({"encoder": ""}, "features_are#encoder: got ''"),
    ],
)
def test_what_is_given_is_checked(given, told, tmp_path):
    write_trident(tmp_path / "a" / "s.h5", HIGH, random_features(len(HIGH)))
    with pytest.raises(SettingsError, match=told):
        importing(tmp_path / "a", tmp_path, given)


def test_folders_of_no_tool_and_of_several_are_refused(features, tmp_path):
    assert "features: names no folder" in refusal(None, tmp_path)
    assert "is no folder" in refusal(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "is of no known tool: it has no files. Expected is one of: trident: " in refusal(
        tmp_path / "empty", tmp_path
    )
    with h5py.File(tmp_path / "empty" / "s.h5", "w") as file:
        file["embeddings"] = features[0]
    assert "it has 1 .h5, the .h5 with embeddings" in refusal(tmp_path / "empty", tmp_path)
    (tmp_path / "empty" / "s.h5").write_bytes(b"damaged")
    assert "it has 1 .h5, of which no .h5 can be read" in refusal(tmp_path / "empty", tmp_path)
    write_slideflow(tmp_path / "mixed", "s", HIGH, features[1])
    write_trident(tmp_path / "mixed" / "t.h5", HIGH, features[1])
    assert "has features of trident (1 slides) and of slideflow (1 slides)" in refusal(tmp_path / "mixed", tmp_path)
    for encoder in ("a", "b"):
        write_trident(tmp_path / "job" / f"features_{encoder}" / "s.h5", HIGH, features[1])
    told = refusal(tmp_path / "job", tmp_path)
    assert "folders that have: features_a (trident), features_b (trident). Give those of one encoder: " in told


def test_files_that_run_code_are_refused(features, tmp_path):
    write_slideflow(tmp_path / "a", "s", HIGH, features[1])
    torch.save({"model": print}, tmp_path / "a" / "s.pt")
    assert "s.pt: cannot be read (" in refusal(tmp_path / "a", tmp_path)
    torch.save({"features": torch.zeros(3)}, tmp_path / "a" / "s.pt")
    assert "s.pt: contains a dict, not a tensor" in refusal(tmp_path / "a", tmp_path)
    np.savez(tmp_path / "a" / "s.index", arr_0=np.array([print] * 20))
    torch.save(torch.from_numpy(features[1]), tmp_path / "a" / "s.pt")
    assert "s.index.npz: cannot be read (" in refusal(tmp_path / "a", tmp_path)


def test_a_bag_without_its_index_and_a_file_of_a_slide_are_refused(features, tmp_path):
    write_slideflow(tmp_path / "a", "s", HIGH, features[1], ending="none")
    assert "a bag has no positions, and there is no s.index.npz beside it" in refusal(tmp_path / "a", tmp_path)
    write_stamp(tmp_path / "b" / "s.h5", HIGH, features[1], feat_type="slide")
    assert "has features of a slide, not of tiles" in refusal(tmp_path / "b", tmp_path)
    write_stamp(tmp_path / "c" / "s.h5", HIGH, features[1], unit=None, tile_size_um=None)
    assert "does not say the unit of its positions" in refusal(tmp_path / "c", tmp_path)


def test_imported_features_are_not_mixed_with_banks_of_ours(features, tmp_path):
    slide = draw_slide(tmp_path / "s.tif")
    bags, encoder, entry = builder(), Encoder(tiny_backbone()), {"image": str(slide)}
    write_bank(bank_path(tmp_path / "features", "own"), bags(entry), encoder, bank_settings(entry, bags, encoder))
    write_trident(tmp_path / "a" / "s.h5", HIGH, features[1])
    assert "own.h5 is a bank of tiny, not of imported features" in refusal(tmp_path / "a", tmp_path)


def test_a_resolution_that_one_slide_lacks_costs_that_slide(features, tmp_path):
    for name in "ab":
        write_stamp(tmp_path / "in" / f"{name}.h5", HIGH * 0.25, features[1], tile_um=32.0)
    datalist = tmp_path / "list.csv"
    datalist.write_text("image,mpp\na.svs,0.25\nb.svs,\n")
    with pytest.raises(FailedSlidesError, match=r"importing: 1 of 2 slides failed \(b\)"):
        importing(tmp_path / "in", tmp_path, strict=False, datalist=datalist)
    assert "b.h5: does not say the resolution of level 0" in (tmp_path / "failed.csv").read_text()
    # What no datalist says ends the run with the first slide: the others lack it, too.
    write_stamp(tmp_path / "again" / "a.h5", HIGH, features[1], extractor=None)
    told = refusal(tmp_path / "again", tmp_path / "out", datalist=datalist)
    assert "a.h5: does not say which encoder made it" in told
    assert not (tmp_path / "out" / "failed.csv").exists()
