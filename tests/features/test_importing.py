"""Features of other tools become banks: what is read from their files, how patches are linked, what is refused."""

import logging

import h5py
import numpy as np
import pytest
import torch

from scripts.bags.bag import BagBuilder
from scripts.core.magnification import Scale
from scripts.features.bank import bank_path, read_bank, stored_settings
from scripts.features.bank_settings import bank_settings
from scripts.features.bank_writing import write_bank
from scripts.features.encoding import Encoder
from scripts.features.exporting import export_banks
from scripts.networks.methods import get_network
from tests.cohorts import builder, draw_slide, tiny_backbone
from tests.conftest import ROOT
from tests.foreign import (
    grid,
    importing,
    random_features,
    refusal,
    write_clam,
    write_slideflow,
    write_stamp,
    write_trident,
)

TRIDENT = ROOT.parent / "shared" / "foreign" / "trident"
needs_trident = pytest.mark.skipif(not TRIDENT.is_dir(), reason=f"needs {TRIDENT}")
LOW, HIGH = grid(3, 2, 256, (100, 40)), grid(5, 4, 128, (160, 70))


def check_links(bank, low, high, sides, features, tolerance=0.0):
    """Compare a bank with a loop over all pairs of the patches that it was made of."""
    expected = []
    for j, corner in enumerate(high):
        inside = np.asarray(corner) + sides[1] / 2 - low
        holds = np.flatnonzero(((inside >= -tolerance) & (inside < sides[0] + tolerance)).all(axis=1))
        if len(holds):
            distances = np.linalg.norm(inside[holds] - sides[0] / 2, axis=1)
            expected.append((holds[np.argmin(distances)], j))
    expected.sort(key=lambda pair: (high[pair[1]][1], high[pair[1]][0]))
    assert len(bank.rows) == len(expected) > 0
    for row, (i, j) in zip(bank.rows, expected, strict=True):
        assert np.allclose(bank.coords[0][row[0]], low[i])
        assert np.allclose(bank.coords[1][row[1]], high[j])
        assert np.array_equal(bank.features[0][row[0]], features[0][i])
        assert np.array_equal(bank.features[1][row[1]], features[1][j])
    for s in range(2):
        assert set(bank.rows[:, s]) == set(range(len(bank.coords[s])))
    counts = [np.bincount(patches) for patches in bank.rows.T]
    expected_weight = -np.log(np.stack([count[patches] for count, patches in zip(counts, bank.rows.T, strict=True)], 1))
    assert np.allclose(bank.log_weight(), expected_weight)


@pytest.fixture
def features():
    return random_features(len(LOW), seed=1), random_features(len(HIGH), seed=2)


def write_both(tool, folder, low, high, features):
    """The same patches at 5x and 10x of a slide with 0.5 um/px, as a tool stores them; and what it does not say."""
    low_dir, high_dir = folder / "low", folder / "high"
    if tool == "trident":
        write_trident(low_dir / "s.h5", low, features[0], magnification=5)
        write_trident(high_dir / "s.h5", high, features[1], magnification=10)
        return [high_dir, low_dir], {}
    if tool in ("clam", "clam pt"):
        files = ("h5", "pt", "patches") if tool == "clam" else ("pt", "patches")
        write_clam(low_dir, "s", low, features[0], downsample=4.0, files=files)
        write_clam(high_dir, "s", high, features[1], downsample=2.0, files=files)
        return [high_dir, low_dir], {"encoder": "uni_v1", "mpp": 0.5}
    if tool == "stamp":
        write_stamp(low_dir / "cohort" / "s.h5", low * 0.5, features[0], tile_um=128.0)
        write_stamp(high_dir / "cohort" / "s.h5", high * 0.5, features[1], tile_um=64.0)
        return [high_dir, low_dir], {"mpp": 0.5}
    ending = ".npz" if tool == "slideflow" else ".npy"
    write_slideflow(low_dir, "s", low, features[0], tile_um=128, ending=ending)
    write_slideflow(high_dir, "s", high, features[1], tile_um=64, ending=ending)
    return [high_dir, low_dir], {"mpp": 0.5}


TOOLS = ("trident", "clam", "clam pt", "stamp", "slideflow", "slideflow npy")


@pytest.mark.parametrize("tool", TOOLS)
def test_two_magnifications_are_linked(tool, features, tmp_path):
    if tool == "stamp":  # which stores half of the digits
        features = tuple(of_scale.astype(np.float16) for of_scale in features)
    folders, given = write_both(tool, tmp_path, LOW, HIGH, features)
    path = importing(folders, tmp_path, given) / "s.h5"
    bank = read_bank(path, (5.0, 10.0))
    check_links(bank, LOW, HIGH, (256, 128), features)
    assert bank.patch_level0 == (256, 128)
    assert bank.base_mpp == 0.5
    settings = stored_settings(path)
    # Of slideflow with the checksum of {"weights": "uni.bin"}.
    names = {"stamp": "uni", **dict.fromkeys(["slideflow", "slideflow npy"], "UNIFeatures-560bdcd0")}
    assert (settings["backbone"], settings["encoder"]) == ("imported", names.get(tool, "uni_v1"))
    assert (settings["patch_size"], settings["num_features"]) == (64, 8)
    assert settings["imported_from"] == tool.split()[0]
    with h5py.File(path) as file:
        assert file.attrs["orphans"] == len(HIGH) - len(bank.rows)
        assert file["10x/features"].dtype == (np.float16 if tool == "stamp" else np.float32)


@pytest.mark.parametrize("tool", TOOLS)
def test_one_magnification_alone_has_a_row_for_each_patch(tool, features, tmp_path):
    folders, given = write_both(tool, tmp_path, LOW, HIGH, [f.astype(np.float16) for f in features])
    bank = read_bank(importing(str(folders[0]), tmp_path, given) / "s.h5", (10.0,))
    assert np.array_equal(bank.coords[0], sorted(HIGH.tolist(), key=lambda corner: corner[::-1]))
    assert bank.rows.tolist() == [[j] for j in range(len(HIGH))]
    assert (bank.log_weight() == 0).all()


def test_three_magnifications_and_a_nearest_lower_patch(tmp_path):
    """CLAM's grids of two pieces of tissue, which overlap."""
    scales = {
        5: np.concatenate([grid(2, 2, 256, (100, 40)), grid(2, 1, 256, (150, 90))]),
        10: np.concatenate([grid(3, 2, 128, (110, 50)), grid(2, 2, 128, (401, 60))]),
        20: np.concatenate([grid(8, 7, 64, (104, 44)), grid(4, 3, 64, (430, 100))]),
    }
    for magnification, coords in scales.items():
        features = random_features(len(coords), seed=magnification)
        write_clam(tmp_path / f"{magnification}x", "s", coords, features, downsample=20 / magnification)
    folders = [tmp_path / f"{magnification}x" for magnification in (10, 20, 5)]
    bank = read_bank(importing(folders, tmp_path, {"mpp": 0.5, "encoder": "uni"}) / "s.h5", (5.0, 10.0, 20.0))
    assert bank.rows.shape[1] == 3
    centres = bank.coords[2] + 32
    for s, side in ((0, 256), (1, 128)):
        inside = centres[bank.rows[:, 2]] - bank.coords[s][bank.rows[:, s]]
        assert ((inside >= 0) & (inside < side)).all()
        distances = np.linalg.norm(inside - side / 2, axis=1)
        low = scales[(5, 10)[s]]
        to_all = centres[bank.rows[:, 2]][:, None] - low
        holds = ((to_all >= 0) & (to_all < side)).all(axis=2)
        nearest = np.where(holds, np.linalg.norm(to_all - side / 2, axis=2), np.inf).min(axis=1)
        assert np.allclose(distances, nearest)


@needs_trident
def test_files_that_trident_wrote(tmp_path):
    folders = [TRIDENT / "10x_224px_0px_overlap", TRIDENT / "5x_224px_0px_overlap" / "features_resnet34x"]
    banks = importing(folders, tmp_path)
    for slide in ("demo_000", "demo_001"):
        arrays = []
        for name in ("5x", "10x"):
            with h5py.File(next(TRIDENT.glob(f"{name}_*/features_*/{slide}.h5"))) as file:
                arrays.append((file["coords"][:], file["features"][:]))
        (low, of_low), (high, of_high) = arrays
        bank = read_bank(banks / f"{slide}.h5", (5.0, 10.0))
        check_links(bank, low, high, (896, 448), (of_low, of_high))
        settings = stored_settings(banks / f"{slide}.h5")
        assert (settings["encoder"], settings["patch_size"], settings["num_features"]) == ("resnet34x", 224, 512)


@pytest.mark.parametrize("setting", [{}, {"overlap": 0.5}, {"grid_origin": "tissue"}, {"min_tissue": [0.4, 0.7]}])
@pytest.mark.parametrize(("mpp", "dtype"), [(0.5, "float32"), (0.4933, "float16")])
def test_banks_of_ours_come_back_as_they_were(setting, mpp, dtype, tmp_path):
    slide = draw_slide(tmp_path / "s.tif", mpp=mpp)
    bags, encoder = builder(**setting), Encoder(tiny_backbone(), feature_dtype=dtype)
    entry = {"image": str(slide), "slide": "s"}
    own_path = bank_path(tmp_path / "own", "s")
    write_bank(own_path, bags(entry), encoder, bank_settings(entry, bags, encoder))
    own = read_bank(own_path, (5.0, 10.0))
    folders = export_banks(tmp_path / "own", tmp_path / "out")
    back = read_bank(importing(folders, tmp_path) / "s.h5", (5.0, 10.0))
    assert np.array_equal(back.rows, own.rows)
    assert back.base_mpp == own.base_mpp
    assert back.patch_level0 == own.patch_level0
    for s in range(2):
        assert np.array_equal(back.coords[s], np.rint(own.coords[s]))
        assert np.array_equal(back.features[s], own.features[s])
    assert np.array_equal(back.log_weight(), own.log_weight())
    network = get_network("mustmil", num_classes=3, num_features=12, num_scales=2, num_nodes=16).eval()
    with torch.no_grad():
        logits = [
            network.calc_head(torch.from_numpy(bank.row_features())[None], torch.from_numpy(bank.log_weight())[None])
            for bank in (own, back)
        ]
    assert torch.equal(*logits)


def test_a_second_export_is_the_first(features, tmp_path):
    """Imported banks are exported, and imported again, without a loss."""
    folders, given = write_both("stamp", tmp_path, LOW, HIGH, features)
    first = importing(folders, tmp_path, given)
    second = importing(export_banks(first, tmp_path / "out"), tmp_path / "again")
    one, other = (read_bank(banks / "s.h5", (5.0, 10.0)) for banks in (first, second))
    assert np.array_equal(one.rows, other.rows)
    assert all(
        np.array_equal(a, b) for a, b in zip(one.features + one.coords, other.features + other.coords, strict=True)
    )
    settings = [stored_settings(banks / "s.h5") for banks in (first, second)]
    assert settings[0]["encoder"] == settings[1]["encoder"] == "uni"


def test_patches_in_the_micrometres_of_stamp_are_named_by_their_exact_resolution(features, tmp_path):
    write_stamp(tmp_path / "a" / "s.h5", HIGH * 0.5, features[1], tile_um=256.0, tile_px=224)
    path = importing(tmp_path / "a", tmp_path, {"mpp": 0.5}) / "s.h5"
    settings = stored_settings(path)
    assert settings["magnifications"] == [8.75]  # 256 / 224 um/px
    assert read_bank(path, (8.75,)).patch_level0 == (512,)
    assert Scale(8.75, 224, 0.5).patch_level0 == pytest.approx(512)


def test_level_0_is_that_of_the_slide_where_it_is_at_hand(features, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    draw_slide(slides / "s.tif", mpp=0.48)
    write_trident(tmp_path / "a" / "s.h5", HIGH, features[1])
    path = importing(tmp_path / "a", tmp_path, dataset_dir=slides) / "s.h5"
    with h5py.File(path) as bank:
        assert bank.attrs["mpp"] == pytest.approx(0.48, rel=1e-6)
        assert bank.attrs["mpp_source"].startswith("file: ")
        assert tuple(bank.attrs["size_level0"]) == (1024, 512)
    assert len(stored_settings(path)["slide_sha256"]) == 64
    # Without the slide the rounded magnification of level 0 is all that is known: 20x is 0.5 um/px.
    with h5py.File(importing(tmp_path / "a", tmp_path / "without") / "s.h5") as bank:
        assert bank.attrs["mpp"] == 0.5
        assert "rounded" in bank.attrs["mpp_source"]


def test_the_datalist_says_the_resolution_and_the_name_of_slides_that_are_not_there(features, tmp_path):
    write_stamp(tmp_path / "a" / "s.h5", HIGH * 0.25, features[1], tile_um=32.0)
    datalist = tmp_path / "list.csv"
    datalist.write_text("image,slide,mpp\nnowhere/s.svs,case 1,0.25\nnowhere/t.svs,case 2,0.25\n")
    bank = read_bank(importing(tmp_path / "a", tmp_path, datalist=datalist) / "case 1.h5", (20.0,))
    assert bank.base_mpp == 0.25
    assert np.array_equal(bank.coords[0], sorted(HIGH.tolist(), key=lambda corner: corner[::-1]))


def test_a_second_run_imports_what_is_missing(features, tmp_path, caplog):
    write_trident(tmp_path / "a" / "s.h5", HIGH, features[1])
    banks = importing(tmp_path / "a", tmp_path)
    before = (banks / "s.h5").stat().st_mtime_ns
    write_trident(tmp_path / "a" / "t.h5", HIGH, features[1])
    with caplog.at_level(logging.INFO):
        importing(tmp_path / "a", tmp_path)
    assert (banks / "s.h5").stat().st_mtime_ns == before
    assert "imported 1 slides" in caplog.text
    assert "1 slides were in" in caplog.text
    # Other features of the same slide are neither used nor replaced in silence.
    write_trident(tmp_path / "a" / "s.h5", HIGH, features[1] + 1)
    assert "s.h5: was made otherwise (features_sha256" in refusal(tmp_path / "a", tmp_path)


def test_slides_that_are_in_one_folder_alone_are_left_out(features, tmp_path, caplog):
    folders, _ = write_both("trident", tmp_path, LOW, HIGH, features)
    write_trident(folders[0] / "t.h5", HIGH, features[1])
    banks = importing(folders, tmp_path)
    assert [path.name for path in banks.iterdir()] == ["s.h5"]
    assert "1 of 2 slides are not in all folders, and left out: t" in caplog.text
    (folders[0] / "s.h5").unlink()
    told = refusal(folders, tmp_path / "again")
    assert told.startswith(
        "features: no slide is in all folders: they have slides of trident (t, ...) and trident (s, "
    )


def test_what_files_do_not_say_is_asked_for_with_the_option_that_says_it(tmp_path):
    """Each value in turn, until nothing is missing."""
    write_clam(tmp_path / "a", "s", HIGH, random_features(len(HIGH)), files=("h5",))
    given = {}
    for key, value, asked in (
        (
            "mpp",
            0.5,
            "does not say the resolution of level 0, in micrometres per pixel. Give it, for example --features_are "
            "\"{'mpp': 0.25}\"",
        ),
        (
            "encoder",
            "uni",
            "does not say which encoder made it. Give it, for example --features_are "
            "\"{'mpp': 0.5, 'encoder': 'uni'}\"",
        ),
        (
            "patch_size",
            64,
            "does not say the side of a patch in pixels. Give it, for example --features_are "
            "\"{'mpp': 0.5, 'encoder': 'uni', 'patch_size': 256}\"",
        ),
        (
            "magnifications",
            [10],
            "does not say at which magnification its patches are. Give it, for example --features_are "
            "\"{'mpp': 0.5, 'encoder': 'uni', 'patch_size': 64, 'magnifications': [10]}\"",
        ),
    ):
        told = refusal(tmp_path / "a", tmp_path, given)
        assert told.startswith(str(tmp_path / "a" / "h5_files" / "s.h5"))
        assert asked in told
        given[key] = value
    bank = read_bank(importing(tmp_path / "a", tmp_path, given) / "s.h5", (10.0,))
    assert bank.patch_level0 == (128,)
    # A patch of another side in level-0 pixels than its magnification has.
    given["patch_size_level0"] = 130
    assert read_bank(importing(tmp_path / "a", tmp_path / "b", given) / "s.h5", (10.0,)).patch_level0 == (130,)


def test_a_resolution_that_is_no_usual_one_needs_a_name(tmp_path):
    write_clam(tmp_path / "a", "s", HIGH, random_features(len(HIGH)))
    given = {"mpp": 0.35, "encoder": "uni"}
    assert "at which magnification its patches are (0.7 um/px is no usual one)" in refusal(
        tmp_path / "a", tmp_path, given
    )
    importing(tmp_path / "a", tmp_path, given | {"magnifications": 14})


def test_the_patches_of_tensors_may_be_elsewhere(features, tmp_path):
    write_clam(tmp_path / "features", "s", HIGH, features[1], files=("pt",))
    write_clam(tmp_path / "patching", "s", HIGH, features[1], files=("patches",))
    given = {"mpp": 0.5, "encoder": "uni"}
    told = refusal(tmp_path / "features", tmp_path / "out", given)
    assert "a tensor has no positions" in told
    assert "--features_are \"{'patches': 'PATH'}\"" in told
    for place in (tmp_path / "patching", tmp_path / "patching" / "patches"):
        out = tmp_path / place.name / "out"
        bank = read_bank(importing(tmp_path / "features", out, given | {"patches": str(place)}) / "s.h5", (10.0,))
        assert len(bank.rows) == len(HIGH)


def test_a_nominal_magnification_is_taken_with_a_warning(features, tmp_path, caplog):
    """TRIDENT calls a scan of 0.22 um/px 40x; its 10x has then 0.88 um/px."""
    write_trident(tmp_path / "a" / "s.h5", HIGH * 2, features[1], level0=40, patch_size_level0=256, size=None)
    bank = read_bank(importing(tmp_path / "a", tmp_path, {"mpp": 0.22}, bag_builder=BagBuilder()) / "s.h5", (10.0,))
    assert bank.patch_level0 == (256,)
    assert "slide s: its patches at 10x have 0.88 um/px, and 10x is 1: used as they are" in caplog.text
