"""What stands in the place of an encoder knows what the imported features are, by their banks."""

import hashlib

import pytest

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SettingsError, SlideError
from scripts.features.bank_settings import bank_settings
from scripts.features.imported import ImportedFeatures
from tests.cohorts import draw_slide
from tests.foreign import grid, importing, random_features, write_trident

COORDS = grid(3, 2, 128)


def banks_of(folder, encoder="uni_v1", length=8, slide="s"):
    write_trident(folder / "in" / f"{slide}.h5", COORDS, random_features(len(COORDS), length), encoder=encoder)
    return importing(folder / "in", folder)


def test_it_is_what_the_banks_say(tmp_path):
    features = ImportedFeatures(banks_of(tmp_path), [10], 64)
    assert features.settings() == {"backbone": "imported", "encoder": "uni_v1", "num_features": 8}
    assert (features.num_features, features.feature_bytes, str(features.device)) == (8, 32, "cpu")
    assert features.backbone.name == "imported"


def test_the_checksum_is_that_of_name_and_length(tmp_path):
    found = {
        ImportedFeatures(banks_of(tmp_path / f"{encoder}{length}", encoder, length)).backbone.weights_sha256
        for encoder, length in (("uni_v1", 8), ("uni_v1", 9), ("uni_v2", 8))
    }
    assert len(found) == 3
    assert hashlib.sha256(b'["uni_v1", 8]').hexdigest() in found


def test_banks_of_two_encoders_are_refused_naming_both(tmp_path):
    first = banks_of(tmp_path / "a", "uni_v1", slide="a")
    second = banks_of(tmp_path / "b", "conch_v1", slide="b")
    (first / "b.h5").write_bytes((second / "b.h5").read_bytes())
    told = f"encoder 'uni_v1' of {first}/a.h5, 'conch_v1' of {first}/b.h5"
    with pytest.raises(SettingsError, match=f"feature_dir: has different features: {told}. Keep one of the two there"):
        ImportedFeatures(first)


def test_it_encodes_nothing(tmp_path):
    features, bags = ImportedFeatures(banks_of(tmp_path)), BagBuilder([10], patch_size=64)
    bag = bags({"image": str(draw_slide(tmp_path / "s.tif"))})
    with pytest.raises(SlideError, match=r"s\.tif: has no imported features in .*Run `importing` into this"):
        features.encode(bag)


def test_a_bank_is_asked_for_nothing_that_it_cannot_have(tmp_path):
    features, bags = ImportedFeatures(banks_of(tmp_path)), BagBuilder([10], patch_size=64, min_tissue=0.3)
    entry = {"image": str(tmp_path / "nowhere.svs"), "slide": "s", "mask": "nowhere.png"}
    wanted = {"magnifications": [10], "patch_size": 64, **features.settings()}
    assert bank_settings(entry, bags, features) == wanted
    assert bank_settings(entry | {"sha256": "AB"}, bags, features) == wanted | {"slide_sha256": "ab"}
