"""Banks as other tools read them: by the keys and places that TRIDENT 0.3.0, torchmil 1.0.2 and CLAM document."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.features.bank import bank_path, read_bank
from scripts.features.bank_settings import bank_settings
from scripts.features.bank_writing import write_bank
from scripts.features.encoding import Encoder
from scripts.features.exporting import export_banks
from scripts.features.layouts.recognition import recognise
from scripts.slides.frames import Rectangle
from tests.cohorts import builder, draw_slide, tiny_backbone
from tests.conftest import ROOT

TRIDENT = ROOT.parent / "shared" / "foreign" / "trident"


def make_bank(folder, slide, name="s", dtype="float32", **settings):
    bags, encoder = builder(**settings), Encoder(tiny_backbone(), feature_dtype=dtype)
    path, entry = bank_path(folder, name), {"image": str(slide)}
    write_bank(path, bags(entry), encoder, bank_settings(entry, bags, encoder))
    return read_bank(path, bags.magnifications)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return draw_slide(tmp_path_factory.mktemp("exported") / "s.tif")


def attributes(dataset):
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in dataset.attrs.items()}


def test_each_magnification_is_a_folder_of_trident(slide, tmp_path):
    bank = make_bank(tmp_path / "features", slide)
    folders = export_banks(tmp_path / "features", tmp_path / "out")
    assert folders == [tmp_path / "out" / f"{m}x_64px_0px_overlap" / "features_tiny" for m in (5, 10)]
    for s, folder in enumerate(folders):
        with h5py.File(folder / "s.h5") as file:
            assert np.array_equal(file["features"][:], bank.features[s])
            assert np.array_equal(file["coords"][:], bank.coords[s])
            assert file["coords"].dtype == np.int64
            assert attributes(file["features"])["encoder"] == "tiny"
        with h5py.File(folder.parent / "patches" / "s_patches.h5") as file:
            assert list(file) == ["coords"]
            assert np.array_equal(file["coords"][:], bank.coords[s])


@pytest.mark.parametrize("bounds", [None, (300, 40, 700, 400)])
def test_coordinates_are_pixels_of_level_0_whatever_bounds_a_slide_has(slide, tmp_path, monkeypatch, bounds):
    if bounds is not None:
        monkeypatch.setattr("scripts.slides.slide.find_bounds", lambda *_: Rectangle(*bounds))
    bank = make_bank(tmp_path / "features", slide)
    for s, folder in enumerate(export_banks(tmp_path / "features", tmp_path / "out")):
        # All multiples of a patch's side that reach into the tissue by most of a patch of 10x, from (368, 16).
        side = (256, 128)[s]
        expected = [(x, y) for y in range(0, 512, side) for x in range(256 if side == 256 else 384, 1024, side)]
        for file in (folder / "s.h5", folder.parent / "patches" / "s_patches.h5"):
            with h5py.File(file) as exported:
                assert exported["coords"][:].tolist() == bank.coords[s].tolist() == [[x, y] for x, y in expected]
                assert [exported["coords"].attrs[f"level0_{side}"] for side in ("width", "height")] == [1024, 512]


@pytest.mark.skipif(not TRIDENT.is_dir(), reason=f"needs {TRIDENT}")
def test_the_attributes_are_those_that_trident_writes_and_of_their_kinds(slide, tmp_path):
    make_bank(tmp_path / "features", slide)
    (_, folder) = export_banks(tmp_path / "features", tmp_path / "out")
    theirs = next(TRIDENT.glob("10x_*/features_*/*.h5"))
    with h5py.File(folder / "s.h5") as own, h5py.File(theirs) as other:
        for name in ("features", "coords"):
            ours, wanted = attributes(own[name]), attributes(other[name])
            assert {key: type(ours[key]) for key in wanted} == {key: type(value) for key, value in wanted.items()}
        assert ours | {"name": "s", "savetodir": "x"} == {
            "patch_size": 64, "patch_size_level0": 128.0, "level0_magnification": 20, "target_magnification": 10.0,
            "overlap": 0, "level0_width": 1024, "level0_height": 512, "level0_mpp": 0.5, "name": "s", "savetodir": "x",
        }  # fmt: skip


@pytest.mark.parametrize(("overlap", "is_rounded"), [(0.5, False), (0.3, True)])
def test_positions_that_were_rounded_are_marked_and_linked_with_a_tolerance(slide, tmp_path, overlap, is_rounded):
    make_bank(tmp_path / "features", slide, overlap=overlap)
    (_, folder) = export_banks(tmp_path / "features", tmp_path / "out")
    with h5py.File(folder / "s.h5") as file:
        assert ("rounded" in file["coords"].attrs) == is_rounded
    tool, slides = recognise(folder)
    assert tool.read(slides["s"], None).stated.is_rounded == is_rounded


def test_torchmil_finds_all_that_it_asks_for(slide, tmp_path):
    """By the paths that its ``TridentWSIDataset`` makes of a folder and the encoder's name."""
    for name in ("one", "two"):
        bank = make_bank(tmp_path / "features", slide, name, overlap=0.25)
    export_banks(tmp_path / "features", tmp_path / "out")
    base = f"{tmp_path}/out/10x_64px_16px_overlap/"
    bags = sorted(Path(f"{base}features_tiny/").glob("*.h5"))
    assert [path.stem for path in bags] == ["one", "two"]
    for path in bags:
        with h5py.File(path) as features, h5py.File(f"{base}patches/{path.stem}_patches.h5") as patches:
            assert len(features["features"]) == len(patches["coords"]) == len(bank.features[1])


def test_clams_training_finds_the_features_as_tensors(slide, tmp_path):
    bank = make_bank(tmp_path / "features", slide, dtype="float16")
    _, data_dir = export_banks(tmp_path / "features", tmp_path / "out", "pt")
    features = torch.load(data_dir / "pt_files" / "s.pt", weights_only=True)
    assert features.dtype == torch.float32  # CLAM's network does not convert
    assert np.array_equal(features.float().numpy(), bank.features[1])
    assert not list(data_dir.glob("*.h5"))


def test_augmented_views_are_not_exported(slide, tmp_path):
    make_bank(tmp_path / "features", slide)
    view = bank_path(tmp_path / "features", "s", 1)
    view.parent.mkdir(parents=True)
    view.write_bytes(bank_path(tmp_path / "features", "s").read_bytes())
    export_banks(tmp_path / "features", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("features_tiny/*.h5")] == ["s.h5", "s.h5"]


def test_what_cannot_be_exported_is_one_line(slide, tmp_path):
    with pytest.raises(SettingsError, match="there is no feature bank in .*nowhere. Run `extracting` first"):
        export_banks(tmp_path / "nowhere", tmp_path)
    make_bank(tmp_path / "features", slide)
    for wrong in ("npy", [], ["h5", "npy"], None):
        with pytest.raises(SettingsError, match="export_formats: got .*Give h5 or pt, or a list of these"):
            export_banks(tmp_path / "features", tmp_path / "out", wrong)
    (tmp_path / "features" / "t.h5").write_text(json.dumps({}))
    with pytest.raises(SettingsError, match=r"t\.h5: is not a feature bank"):
        export_banks(tmp_path / "features", tmp_path / "out")


def test_banks_of_two_encoders_are_not_exported_together(slide, tmp_path):
    make_bank(tmp_path / "features", slide, "a")
    make_bank(tmp_path / "features", slide, "b")
    bank = bank_path(tmp_path / "features", "b")
    with h5py.File(bank, "r+") as file:
        file.attrs["settings"] = json.dumps({**json.loads(file.attrs["settings"]), "weights_sha256": "ab" * 32})
    with pytest.raises(SettingsError, match=r"b\.h5: has features of another kind \(weights_sha256 "):
        export_banks(tmp_path / "features", tmp_path / "out")


def test_a_bank_that_is_being_written_is_none_yet(slide, tmp_path):
    make_bank(tmp_path / "features", slide, "a")
    (tmp_path / "features" / ".b.here-12.part.h5").write_bytes(b"half")
    (folder, *_) = export_banks(tmp_path / "features", tmp_path / "out")
    assert [path.name for path in folder.glob("*.h5")] == ["a.h5"]
