import hashlib
import zipfile

import pytest

from scripts.core.errors import SettingsError
from scripts.encoders.int8_networks import (
    INT8_FILES,
    copy_int8,
    find_int8,
    fitting_int8,
    int8_name,
    read_int8,
    write_int8,
)

ENCODER = {"backbone": "tiny", "weights_sha256": "0" * 64, "mean": (128.0, 128.0, 128.0), "amp": False}
ABOUT = {"encoder": ENCODER, "patch": (64, 64), "patches": 8, "slides": 2, "seed": 0}


@pytest.fixture
def network(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    return write_int8(folder, ABOUT, b"<net/>", b"\1\2")


def test_a_network_is_named_by_the_checksum_of_its_file_and_read_as_it_was_written(network):
    assert network.sha256 == hashlib.sha256(network.path.read_bytes()).hexdigest()
    assert network.path.name == f"encoder_int8_{network.sha256[:16]}.zip" == int8_name(network.sha256)
    assert network.path.match(INT8_FILES)
    assert read_int8(network.path) == network
    assert (network.patch, network.xml, network.weights) == ((64, 64), b"<net/>", b"\1\2")


def test_the_same_network_gives_the_same_file(network, tmp_path):
    assert write_int8(tmp_path, ABOUT, b"<net/>", b"\1\2").path.read_bytes() == network.path.read_bytes()
    assert write_int8(tmp_path, ABOUT, b"<net/>", b"\1\3").sha256 != network.sha256


def test_it_is_found_by_its_checksum_in_the_first_folder_that_has_it(network, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    assert find_int8(network.sha256, [models, network.path.parent]).path == network.path
    copy_int8(network, models)
    assert find_int8(network.sha256, [models, network.path.parent]).path == models / network.path.name
    with pytest.raises(SettingsError, match=rf"precision: is int8, and the network {int8_name('f' * 64)} is not in"):
        find_int8("f" * 64, [models])


def test_a_damaged_or_foreign_file_is_refused_in_one_line(network, tmp_path):
    content = network.path.read_bytes()
    network.path.write_bytes(content[:-1])
    for sha256 in (None, network.sha256):
        with pytest.raises(SettingsError, match=rf"{network.path.name}: its SHA-256 begins with .*: it is damaged"):
            read_int8(network.path, sha256)
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("about.json", "[]")
    for content in (b"no zip", other.read_bytes()):
        sha256 = hashlib.sha256(content).hexdigest()
        path = tmp_path / int8_name(sha256)
        path.write_bytes(content)
        with pytest.raises(SettingsError, match="is no INT8 network of this bundle"):
            read_int8(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_int8(tmp_path / "none.zip")


def test_the_network_of_a_folder_is_that_of_the_encoder_and_the_patch_size(network, tmp_path):
    folder = network.path.parent
    assert fitting_int8(folder, ENCODER, [64, 64]) == network
    assert fitting_int8(folder, ENCODER, [32, 32]) is None
    assert fitting_int8(folder, {**ENCODER, "weights_sha256": "1" * 64}, [64, 64]) is None
    assert fitting_int8(tmp_path / "none", ENCODER, [64, 64]) is None
    write_int8(folder, {**ABOUT, "seed": 1}, b"<net/>", b"\1\2")
    with pytest.raises(SettingsError, match="contains several INT8 networks of tiny"):
        fitting_int8(folder, ENCODER, [64, 64])
