"""Features of other tools that could be taken for something else: never in silence."""

import h5py
import numpy as np
import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.features.exporting import export_banks
from scripts.features.imported import imported_features
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

HIGH = grid(5, 4, 128, (160, 70))
FEATURES = random_features(len(HIGH), seed=2)
CLAM_IS = {"encoder": "uni", "mpp": 0.5}


def datalist(path, *images):
    path.write_text("image,cancer\n" + "".join(f"{image},1\n" for image in images), encoding="utf-8")
    return str(path)


def test_a_name_of_two_slides_in_two_folders_is_refused(tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES)
    told = refusal(tmp_path / "in", tmp_path, datalist=datalist(tmp_path / "list.csv", "a/s.tif", "b/s.tif"))
    assert told.startswith("s: is the name of ")
    assert "a/s.tif and " in told
    assert not list((tmp_path / "features").glob("*.h5"))


def test_two_files_of_one_slide_of_the_datalist_are_refused(tmp_path):
    for name in ("s.h5", "s.ome.h5"):
        write_trident(tmp_path / "in" / name, HIGH, FEATURES)
    told = refusal(tmp_path / "in", tmp_path, datalist=datalist(tmp_path / "list.csv", "s.ome.tiff"))
    assert told.startswith("features: has s, s.ome, which are all ")


def test_slides_that_are_not_in_the_datalist_are_named(tmp_path, caplog):
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES)
    importing(tmp_path / "in", tmp_path, datalist=datalist(tmp_path / "list.csv", "other.tif"))
    assert "1 of 1 slides are not in the datalist, and keep their own names: s" in caplog.text


def test_positions_that_changed_in_another_file_are_not_those_of_the_bank(tmp_path):
    write_clam(tmp_path / "in", "s", HIGH, FEATURES, files=("pt", "patches"))
    importing(tmp_path / "in", tmp_path, CLAM_IS)
    importing(tmp_path / "in", tmp_path, CLAM_IS)  # the same again
    write_clam(tmp_path / "in", "s", HIGH + 64, FEATURES, files=("patches",))
    assert "s.h5: was made otherwise (positions_sha256 " in refusal(tmp_path / "in", tmp_path, CLAM_IS)


def test_features_that_changed_in_the_middle_of_a_file_are_not_those_of_the_bank(tmp_path):
    coords = grid(64, 64, 128)
    path = write_trident(tmp_path / "in" / "s.h5", coords, random_features(len(coords), 256), size=None)
    assert path.stat().st_size > 3 * 2**20
    importing(tmp_path / "in", tmp_path)
    with h5py.File(path, "r+") as file:
        file["features"][2000:2100] += 1
    assert "s.h5: was made otherwise (features_sha256 " in refusal(tmp_path / "in", tmp_path)


def test_clams_features_and_patches_of_two_patchings_are_refused(tmp_path):
    write_clam(tmp_path / "in", "s", HIGH, FEATURES, files=("h5",))
    write_clam(tmp_path / "in", "s", HIGH + 5000, FEATURES, files=("patches",))
    assert "s.h5: has other positions than " in refusal(tmp_path / "in", tmp_path, CLAM_IS)


def test_clams_two_files_with_different_numbers_of_patches_are_refused(tmp_path):
    write_clam(tmp_path / "in", "s", HIGH, FEATURES)
    torch.save(torch.from_numpy(FEATURES[:7]), tmp_path / "in" / "pt_files" / "s.pt")
    told = refusal(tmp_path / "in", tmp_path, CLAM_IS)
    assert f"h5_files/s.h5: has 20 patches, and {tmp_path}/in/pt_files/s.pt has 7" in told


def test_patches_that_the_user_names_are_not_replaced_by_others(tmp_path):
    write_clam(tmp_path / "in", "s", HIGH, FEATURES, files=("pt", "patches"))
    write_clam(tmp_path / "named", "other", HIGH, FEATURES, files=("patches",))
    told = refusal(tmp_path / "in", tmp_path, {**CLAM_IS, "patches": str(tmp_path / "named" / "patches")})
    assert f"s.pt: its slide is not in {tmp_path}/named/patches, which `features_are` names" in told


def test_positions_in_another_unit_are_refused(tmp_path):
    write_stamp(tmp_path / "in" / "s.h5", HIGH, FEATURES, unit="px")
    assert "s.h5: has positions in px, not in um" in refusal(tmp_path / "in", tmp_path, {"mpp": 0.5})


def test_folders_that_cannot_be_meant_are_refused(tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES)
    here = tmp_path / "in"
    assert "features: names " in refusal([here, f"{here}/../in"], tmp_path)
    assert "whose files are no banks" in refusal_into(here, here / "features")
    assert "features_are#patches: is for CLAM, and trident" in refusal(here, tmp_path, {"patches": str(here)})
    write_clam(tmp_path / "clam", "s", HIGH, FEATURES)
    told = refusal(tmp_path / "clam", tmp_path, {**CLAM_IS, "patches": str(tmp_path / "gone")})
    assert "features_are#patches: " in told
    assert "is no folder" in told


def refusal_into(features, feature_dir):
    from scripts.features.importing import Importer

    with pytest.raises(SettingsError) as error:
        Importer(features, feature_dir, feature_dir.parent)
    return str(error.value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(20, 8, dtype=torch.complex64),
        torch.zeros(20, 8).to_sparse(),
        torch.empty(20, 8, device="meta"),
        torch.zeros(20, 8).to(torch.float8_e4m3fn),
    ],
    ids=["complex", "sparse", "meta", "float8"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tensor, tmp_path):
    write_clam(tmp_path / "in", "s", HIGH, FEATURES, files=("patches",))
    torch.save(tensor, tmp_path / "in" / "pt_files" / "s.pt")
    assert "s.pt: " in refusal(tmp_path / "in", tmp_path, CLAM_IS)


def test_a_parameter_is_the_tensor_that_it_is(tmp_path):
    write_clam(tmp_path / "in", "s", HIGH, FEATURES, files=("patches",))
    torch.save(torch.nn.Parameter(torch.from_numpy(FEATURES)), tmp_path / "in" / "pt_files" / "s.pt")
    (bank,) = importing(tmp_path / "in", tmp_path, CLAM_IS).glob("*.h5")
    with h5py.File(bank) as file:
        (scale,) = [key for key in file if key.endswith("x")]
        assert np.isin(file[scale]["features"][:], FEATURES).all()


def test_a_tensor_whose_sign_is_a_flag_is_the_numbers_that_it_is(tmp_path):
    write_clam(tmp_path / "in", "s", HIGH, FEATURES, files=("patches",))
    negated = torch.imag(torch.complex(torch.zeros(20, 8), torch.from_numpy(-FEATURES)).conj())
    assert negated.is_neg()
    torch.save(negated, tmp_path / "in" / "pt_files" / "s.pt")
    (bank,) = importing(tmp_path / "in", tmp_path, CLAM_IS).glob("*.h5")
    with h5py.File(bank) as file:
        assert np.isin(file["10x"]["features"][:], FEATURES).all()


@pytest.mark.parametrize("content", [b"text", b"\x80\x04K\x01.", b"PK\x03\x04"], ids=["text", "pickle", "zip"])
def test_a_file_that_is_no_tensor_is_refused(content, tmp_path):
    write_slideflow(tmp_path / "in", "s", HIGH, FEATURES)
    (tmp_path / "in" / "s.pt").write_bytes(content)
    assert "no file of one plain tensor" in refusal(tmp_path / "in", tmp_path, {"mpp": 0.5})


def test_weights_of_an_encoder_are_not_taken_beside_imported_features(tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH, FEATURES)
    features = importing(tmp_path / "in", tmp_path)
    with pytest.raises(SettingsError, match="backbone: is imported, and `backbone_weights` is for encoders that run"):
        imported_features({"feature_dir": str(features), "backbone_weights": "uni.bin"})


def test_positions_in_half_precision_are_refused(tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH.astype(np.float16), FEATURES)
    assert "s.h5: its positions are float16, which rounds whole pixels" in refusal(tmp_path / "in", tmp_path)


def test_arrays_that_are_groups_or_in_another_file_are_refused_in_plain_words(tmp_path):
    path, other = (write_trident(tmp_path / f"in{i}" / "s.h5", HIGH, FEATURES) for i in "12")
    linked = h5py.VirtualLayout(FEATURES.shape, FEATURES.dtype)
    linked[:] = h5py.VirtualSource(str(other), "features", FEATURES.shape)
    for told, replace in (
        ("its `features` is a group, not an array", lambda file: file.create_group("features")),
        ("its `features` is stored in another file", lambda file: file.create_virtual_dataset("features", linked)),
        (
            "its `features` is stored in another file",
            lambda file: file.__setitem__("features", h5py.ExternalLink(str(other), "features")),
        ),
    ):
        with h5py.File(path, "a") as file:
            del file["features"]
            replace(file)
        assert f"s.h5: {told}" in refusal(path.parent, tmp_path)


def written_by(path, weights, coords=HIGH, magnification=10, seed=2):
    write_trident(path, coords, random_features(len(coords), seed=seed), magnification)
    if weights is not None:
        with h5py.File(path, "a") as file:
            file["features"].attrs["weights_sha256"] = weights
    return path


def test_features_of_two_weights_are_refused_naming_both(tmp_path):
    for seed, (slide, weights) in enumerate((("a", None), ("b", "b" * 64), ("c", "c" * 64))):
        written_by(tmp_path / "in" / f"{slide}.h5", weights, seed=seed)
    told = f"c: weights_sha256 {'b' * 64} of b, {'c' * 64} of c"
    assert told in refusal(tmp_path / "in", tmp_path)
    (tmp_path / "in" / "b.h5").unlink()
    assert f"c: weights_sha256 {'b' * 64} of " in refusal(tmp_path / "in", tmp_path)  # of the bank of b


def test_magnifications_of_two_weights_are_refused_naming_both(tmp_path):
    low = written_by(tmp_path / "low" / "s.h5", "a" * 64, grid(3, 2, 256, (100, 40)), 5)
    high = written_by(tmp_path / "high" / "s.h5", "b" * 64)
    told = f"s: has features of different weights: weights_sha256 {'a' * 64} of {low}, {'b' * 64} of {high}"
    assert told in refusal([low.parent, high.parent], tmp_path)


def test_an_export_of_imported_features_says_of_which_weights_they_are(tmp_path):
    written_by(tmp_path / "in" / "s.h5", "a" * 64)
    written_by(tmp_path / "in" / "t.h5", None, seed=3)
    (folder,) = export_banks(importing(tmp_path / "in", tmp_path), tmp_path / "exported")
    with h5py.File(folder / "s.h5") as file:
        assert file["features"].attrs["weights_sha256"] == "a" * 64


def test_positions_that_contradict_the_side_are_refused(tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH // 2, FEATURES)
    told = "s.h5: its patches of 128 px of level 0 do not overlap, it says, and some lie 64 apart"
    assert told in refusal(tmp_path / "in", tmp_path)


def test_patches_that_overlap_are_imported_from_their_export(tmp_path):
    write_trident(tmp_path / "in" / "s.h5", HIGH // 2, FEATURES, overlap=32)
    (folder,) = export_banks(importing(tmp_path / "in", tmp_path), tmp_path / "exported")
    assert list(importing(folder, tmp_path / "again").glob("s.h5"))
