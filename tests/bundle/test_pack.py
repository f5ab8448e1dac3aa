"""Packing: what is in the zip, what it says of its weights, and which weights are refused."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from bundle.archive import unpack
from bundle.checked import Bundle
from bundle.pack import Packed, pack
from bundle.verify import OK, check
from scripts.core.errors import SettingsError
from scripts.encoders.int8_networks import write_int8
from scripts.encoders.runtimes import OPENVINO
from scripts.weights.record import DEMONSTRATION, read_origin
from tests.bundles import DRAWN, change_json, copied, make_weights, write
from tests.conftest import ROOT

NAME = "pathology_mustmil_classification"


def packed(repository: Path, weights: Path, folder: Path) -> tuple[Packed, Path]:
    """What packing returns, and the unpacked bundle."""
    result = pack(repository, weights, folder / "dist")
    return result, unpack(result.path, folder / "unpacked")


def refusal(repository: Path, weights: Path, folder: Path) -> str:
    """Why packing refuses, after a look that it wrote nothing."""
    with pytest.raises(SettingsError) as error:
        pack(repository, weights, folder / "dist")
    assert not list(folder.glob("dist/*"))
    return str(error.value)


def test_the_zip_has_the_files_of_a_bundle_and_nothing_else(trained_repository: Path, tmp_path: Path) -> None:
    root = copied(trained_repository, tmp_path)
    for name in ("models/last.ckpt", "models/model_40x.pt", "scripts/__pycache__/x.pyc", "output/x", "dist/x", ".env"):
        write(root, name, "junk")
    # An encoder's weights may be gated: wherever a user puts them, they are not handed on.
    for name in (
        "pytorch_model.bin",
        "models/uni/pytorch_model.bin",
        "models/encoder.safetensors",
        "models/encoder.onnx",
    ):
        write(root, name, "junk")
    write(root, "docs/guide.md~", "junk")
    result = pack(root, root / "models", tmp_path / "dist")

    version = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    assert result.path == tmp_path / "dist" / f"{NAME}_v{version}.zip"
    wanted = {path.relative_to(trained_repository).as_posix() for path in trained_repository.rglob("*.*")}
    wanted |= {"LICENSE", "SHA256SUMS"}
    assert set(zipfile.ZipFile(result.path).namelist()) == {f"{NAME}/{name}" for name in wanted}
    assert {"models/model.pt", "models/model_5x.pt", "models/model_10x.pt", "docs/data_license.txt"} <= wanted
    assert result.left_out == ["docs/guide.md~"]
    assert "left out (unknown to git, or no part of a bundle): docs/guide.md~" in str(result)


def test_with_the_shipped_settings_all_but_what_is_said_of_the_weights_is_as_in_the_repository(
    trained_repository: Path, packed_zip: Path, tmp_path: Path
) -> None:
    top = unpack(packed_zip, tmp_path)
    changed = {
        path.relative_to(top).as_posix()
        for path in top.rglob("*")
        if path.is_file()
        and path.name != "SHA256SUMS"
        and path.read_bytes() != (trained_repository / path.relative_to(top)).read_bytes()
    }
    assert changed == {"configs/metadata.json", "docs/README.md", "models/README.md"}
    assert "trained on 31 slides and chosen on 7 others" in (top / "models" / "README.md").read_text(encoding="utf-8")


def test_metadata_and_cards_say_the_operating_point_of_the_served_weights(
    trained_repository: Path, packed_zip: Path, tmp_path: Path
) -> None:
    top = unpack(packed_zip, tmp_path)
    metadata = json.loads((top / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["operating_point"] == read_origin(trained_repository / "models" / "model.pt")["operating_point"]
    assert list(metadata["operating_point"]) == ["global", "5x", "10x"]
    text = (
        "Their operating point was found on 7 validation slides: calibration temperature (slope 0.8), threshold f1 "
        "(cancer 0.250, hgd 0.250, lgd 0.250, hyperplastic 0.250, normal 0.250)."
    )
    for name in ("docs/README.md", "models/README.md", "configs/metadata.json"):
        assert text in (top / name).read_text(encoding="utf-8")


def test_packing_twice_gives_the_same_bytes(trained_repository: Path, packed_zip: Path, tmp_path: Path) -> None:
    again = pack(copied(trained_repository, tmp_path), trained_repository / "models", tmp_path)
    assert again.path.read_bytes() == packed_zip.read_bytes()
    assert again.sha256 == hashlib.sha256(packed_zip.read_bytes()).hexdigest()
    beside = again.path.with_name(f"{again.path.name}.sha256")
    assert beside.read_text(encoding="utf-8") == f"{again.sha256}  {again.path.name}\n"


def test_the_settings_of_the_weights_become_the_defaults(trained_repository: Path, tmp_path: Path) -> None:
    own = {"class_names": ["benign", "malignant"], "positive_classes": ["malignant"]}
    weights = make_weights(
        tmp_path / "w", magnifications=[5, 10, 20], task="binary", min_tissue=0.5, num_nodes=16, **own
    )
    result, top = packed(trained_repository, weights, tmp_path)
    assert [name for name in result.sizes if name.endswith(".pt")] == [
        "models/model.pt",
        "models/model_10x.pt",
        "models/model_20x.pt",
        "models/model_5x.pt",
    ]
    for name in ("train", "extract", "inspect"):
        config = json.loads((top / "configs" / f"{name}.json").read_text(encoding="utf-8"))
        assert config["magnifications"] == [5, 10, 20]
        assert config["min_tissue"] == 0.5
        assert config.get("num_nodes", 16) == 16
        assert config.get("task", "binary") == "binary"
        assert {key: config[key] for key in own if key in config} == ({} if name == "inspect" else own)
    for name in ("evaluate", "inference"):
        config = ConfigParser()
        config.read_config(top / "configs" / f"{name}.json")
        config["bundle_root"] = str(top)
        found = {
            key: config.get_parsed_content(key) for key in (*own, "magnifications", "min_tissue", "num_nodes", "task")
        }
        assert found == {**own, "magnifications": [5, 10, 20], "min_tissue": 0.5, "num_nodes": 16, "task": "binary"}
    metadata = json.loads((top / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 4
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "malignant"}
    for rule in ("data format", "network in and out", "weights"):
        assert check(rule, Bundle(top, "folder")).state == OK
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [3, 1281]


def test_the_papers_settings_are_packed_as_they_are(trained_repository: Path, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w", magnifications=[5, 10, 20], num_nodes=16)
    _, top = packed(trained_repository, weights, tmp_path)
    assert (top / "configs" / "paper.json").read_bytes() == (ROOT / "configs" / "paper.json").read_bytes()


def test_weights_of_drawn_slides_are_called_a_demonstration_everywhere(
    trained_repository: Path, tmp_path: Path
) -> None:
    result, top = packed(trained_repository, make_weights(tmp_path / "w", DRAWN), tmp_path)
    assert str(result).splitlines()[-1] == DEMONSTRATION
    metadata = json.loads((top / "configs" / "metadata.json").read_text(encoding="utf-8"))
    texts = [metadata["name"], metadata["description"], metadata["intended_use"]]
    card = (top / "docs" / "README.md").read_text(encoding="utf-8")
    texts.append("\n".join(card.splitlines()[:5]))
    texts.append((top / "models" / "README.md").read_text(encoding="utf-8"))
    assert all("demonstration" in text.lower() for text in texts)
    assert DEMONSTRATION in card


def test_it_prints_what_was_packed(trained_repository: Path, tmp_path: Path) -> None:
    lines = str(pack(trained_repository, trained_repository / "models", tmp_path)).splitlines()
    configs = len(list(trained_repository.glob("configs/*")))
    assert any(line.split()[:3] == ["configs", str(configs), "files"] for line in lines)
    # 2 embeddings of 1280 x 128, a branch of 256 and two of 128: 1.5 MB in single precision.
    assert any(line.split() == ["models/model.pt", "1.5", "MB"] for line in lines)
    assert lines[-1].startswith("SHA-256 ")
    assert not any("emonstration" in line for line in lines)


@pytest.mark.parametrize("kind", ["separate", "shared"])
def test_weights_of_another_class_attention_and_of_repeated_rows_are_packed_and_verified(
    trained_repository: Path, tmp_path: Path, kind: str
) -> None:
    weights = make_weights(tmp_path / "w", num_nodes=4, class_attention=kind, linking="repeated")
    top = packed(trained_repository, weights, tmp_path)[1]
    for rule in ("data format", "network in and out", "weights", "TorchScript"):
        assert check(rule, Bundle(top, "folder")).state == OK
    train = json.loads((top / "configs" / "train.json").read_text(encoding="utf-8"))["advanced"]
    assert (train["class_attention"], train["linking"]) == (kind, "repeated")


@pytest.mark.parametrize("linking", ["shuffled", "pooled"])
def test_weights_of_rows_that_are_not_the_slides_are_refused(
    trained_repository: Path, tmp_path: Path, linking: str
) -> None:
    weights = make_weights(tmp_path / "w", num_nodes=4, linking=linking)
    assert (
        f"model.pt: was trained with linking {linking}, an ablation that sees other rows than the slide has. Pack "
        "weights of a training with `linking` linked."
    ) in refusal(trained_repository, weights, tmp_path)


def test_only_the_serving_weights_of_msmil_are_packed(trained_repository: Path, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w", method="msmil")
    result = pack(trained_repository, weights, tmp_path / "dist")
    assert [name for name in result.sizes if name.endswith(".pt")] == ["models/model.pt"]


def test_without_weights_it_says_how_to_get_them(trained_repository: Path, tmp_path: Path) -> None:
    message = refusal(trained_repository, tmp_path / "none", tmp_path)
    assert "none/model.pt: there is no such file. Train first (python -m monai.bundle run training" in message
    assert "--ckpt_dir" in message


def test_weights_without_a_record_are_refused(trained_repository: Path, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w")
    torch.save(dict(torch.load(weights / "model.pt", weights_only=True)), weights / "model.pt")
    assert "w/model.pt: has no record of its training" in refusal(trained_repository, weights, tmp_path)


def test_weights_of_two_trainings_are_refused(trained_repository: Path, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w")
    make_weights(tmp_path / "other", DRAWN)
    (tmp_path / "other" / "model_5x.pt").replace(weights / "model_5x.pt")
    assert "w/model_5x.pt: is not of the same training as model.pt" in refusal(trained_repository, weights, tmp_path)
    (weights / "model_5x.pt").unlink()
    assert "w/model_5x.pt: there is no such file" in refusal(trained_repository, weights, tmp_path)


def test_a_method_without_a_global_output_is_refused(trained_repository: Path, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w", method="ssmil")
    (weights / "model_10x.pt").rename(weights / "model.pt")
    message = refusal(trained_repository, weights, tmp_path)
    assert "is of the method ssmil, which has no global output" in message


@pytest.mark.parametrize("name", ["docs/README.md", "models/README.md"])
def test_a_card_without_a_place_for_the_weights_is_refused(trained_repository: Path, tmp_path: Path, name: str) -> None:
    root = copied(trained_repository, tmp_path)
    write(root, name, "# A card\n")
    assert f"{name}: has not one block between" in refusal(root, root / "models", tmp_path)
    (root / name).unlink()
    assert f"{name}: there is no such file" in refusal(root, root / "models", tmp_path)


def test_a_model_card_that_names_its_weights_too_late_is_refused(trained_repository: Path, tmp_path: Path) -> None:
    root = copied(trained_repository, tmp_path)
    write(root, "docs/README.md", "# A card\n" + "\n" * 9 + "<!-- weights -->\n<!-- /weights -->\n")
    message = refusal(root, root / "models", tmp_path)
    assert "docs/README.md: says what its weights are on line 11" in message


def test_a_file_that_the_zoo_does_not_take_is_refused_or_has_to_be_named(
    trained_repository: Path, tmp_path: Path
) -> None:
    root = copied(trained_repository, tmp_path)
    (root / "docs" / "large.png").write_bytes(bytes(25 * 1024**2 + 1))
    message = refusal(root, root / "models", tmp_path)
    assert "docs/large.png: has 26.2 MB, and the Model Zoo takes files of at most 25 MB" in message
    write(root, "large_files.yml", "large_files:\n- path: docs/large.png\n  url: https://example.org/large.png\n")
    result = pack(root, root / "models", tmp_path / "dist")
    assert "docs/large.png has more than 25 MB: leave it out of a pull request" in str(result)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("configs/metadata.json", "{", "configs/metadata.json: is not JSON"),
        ("configs/metadata.json", '"text"', "configs/metadata.json: holds no JSON object"),
        ("configs/metadata.json", "3", "configs/metadata.json: holds no JSON object"),
        ("configs/metadata.json", "[" * 100_000, "configs/metadata.json: is not JSON"),
        (
            "configs/inference.json",
            "[]",
            "configs/inference.json: cannot be given the settings of the weights: it holds",
        ),
        ("configs/train.json", "[" * 100_000, "configs/train.json: cannot be given the settings"),
        ("configs/train.json", '{"min_tissue": 0.1}', "configs/train.json: cannot be given the settings"),
        ("large_files.yml", "", "large_files.yml: has no list"),
    ],
)
def test_broken_files_of_the_repository_are_named(
    trained_repository: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    root = copied(trained_repository, tmp_path)
    write(root, name, text)
    assert message in refusal(root, root / "models", tmp_path)


def test_metadata_without_what_packing_needs_names_it(trained_repository: Path, tmp_path: Path) -> None:
    root = copied(trained_repository, tmp_path)
    change_json(root, "configs/metadata.json", lambda content: content.pop("version"))
    assert "configs/metadata.json: has no version" in refusal(root, root / "models", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version="../../../x"), "configs/metadata.json#version: is '../../../x'"),
        (lambda m: m.update(version="1/2"), "configs/metadata.json#version: is '1/2'"),
        (lambda m: m.update(name=["a"]), "configs/metadata.json#name: is no text"),
        (lambda m: m.update(network_data_format=None), "configs/metadata.json#network_data_format: is no JSON object"),
        (lambda m: m.update(description="\ud800"), "configs/metadata.json: cannot be written again"),
    ],
)
def test_metadata_that_cannot_be_packed_is_refused(
    trained_repository: Path, tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    root = copied(trained_repository, tmp_path)
    content = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    change(content)
    write(root, "configs/metadata.json", json.dumps(content))
    assert message in refusal(root, root / "models", tmp_path)


def test_metadata_that_is_nested_too_deeply_is_refused(trained_repository: Path, tmp_path: Path) -> None:
    root = copied(trained_repository, tmp_path)
    text = (root / "configs" / "metadata.json").read_text(encoding="utf-8")
    write(root, "configs/metadata.json", text.replace("{", '{"more": ' + "[" * 900 + "]" * 900 + ",", 1))
    assert "configs/metadata.json: cannot be written again (maximum rec" in refusal(root, root / "models", tmp_path)


@pytest.mark.parametrize("name", ["LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md"])
def test_a_necessary_file_that_is_missing_or_no_utf_8_is_named(
    trained_repository: Path, tmp_path: Path, name: str
) -> None:
    root = copied(trained_repository, tmp_path)
    (root / name).write_bytes("größe".encode("latin-1"))
    assert f"{name}: is not UTF-8" in refusal(root, root / "models", tmp_path)
    (root / name).unlink()
    assert f"{name}: there is no such file" in refusal(root, root / "models", tmp_path)


@pytest.mark.parametrize("value", ["$exit(0)", ["@other"], {"_target_": "os.remove"}])
def test_a_record_with_code_is_refused(trained_repository: Path, tmp_path: Path, value: Any) -> None:
    weights = make_weights(tmp_path / "w", imports=value)
    message = refusal(trained_repository, weights, tmp_path)
    assert "w/model.pt: its record has code or a reference as imports" in message


def weights_in_int8(folder: Path, **settings: Any) -> tuple[Path, Path]:
    """The folder of weights that were trained in INT8, and the file of the encoder's network in it."""
    folder.mkdir()
    network = write_int8(folder, {"encoder": {}, "patch": [224, 224]}, b"<net/>", b"weights")
    write_int8(folder, {"encoder": {}, "patch": [224, 224]}, b"<net/>", b"of an earlier training")
    return make_weights(folder, precision="int8", int8_sha256=network.sha256, **settings), network.path


def test_of_weights_in_int8_the_network_of_their_encoder_is_packed_and_verified(
    trained_repository: Path, tmp_path: Path
) -> None:
    weights, network = weights_in_int8(tmp_path / "models")
    result, top = packed(trained_repository, weights, tmp_path)
    assert [path.name for path in (top / "models").glob("*.zip")] == [network.name]
    assert (top / "models" / network.name).read_bytes() == network.read_bytes()
    assert network.name in str(result)
    assert "PyPI), is part of the bundle in INT8 alone." in (top / "docs" / "README.md").read_text(encoding="utf-8")
    assert json.loads((top / "configs" / "train.json").read_text("utf-8"))["advanced"]["precision"] == "int8"
    needed = json.loads((top / "configs" / "metadata.json").read_text("utf-8"))["required_packages_version"]
    assert needed["openvino"] == OPENVINO
    assert str(check("weights", Bundle(top, "folder"))) == f"{OK:<12} weights"
    (top / "models" / network.name).unlink()
    assert f"the network {network.name} is not in" in str(check("weights", Bundle(top, "folder")))


def test_weights_in_int8_without_their_network_or_of_a_gated_encoder_are_refused(
    trained_repository: Path, tmp_path: Path
) -> None:
    weights, network = weights_in_int8(tmp_path / "models")
    network.unlink()
    assert f"the network {network.name} is not in {weights}" in refusal(trained_repository, weights, tmp_path)
    weights, _ = weights_in_int8(tmp_path / "gated", backbone="uni", num_features=1024)
    told = "its INT8 network contains the weights of uni, which are gated"
    assert told in refusal(trained_repository, weights, tmp_path)


def test_a_zip_has_no_place_where_a_folder_is(trained_repository: Path, tmp_path: Path, packed_zip: Path) -> None:
    (tmp_path / packed_zip.name).mkdir()
    with pytest.raises(SettingsError, match=f"{packed_zip.name}: is a folder"):
        pack(trained_repository, trained_repository / "models", tmp_path)


def test_names_that_are_left_out_are_printed_in_one_line(trained_repository: Path, tmp_path: Path) -> None:
    root = copied(trained_repository, tmp_path)
    write(root, "docs/a\n\udcff.bak", "x")
    assert r"no part of a bundle): docs/a\n\udcff.bak" in str(pack(root, root / "models", tmp_path / "dist"))


@pytest.mark.parametrize(("task", "logits"), [("multiclass", 5), ("ordinal", 4)])
def test_a_bundle_of_one_class_a_slide_keeps_the_rules_and_serves_probabilities(
    trained_repository: Path, tmp_path: Path, task: str, logits: int
) -> None:
    weights = make_weights(tmp_path / "models", task=task)
    _, top = packed(trained_repository, weights, tmp_path)
    for rule in ("data format", "network in and out", "weights", "TorchScript", "ONNX"):
        assert str(check(rule, Bundle(top, "folder"))) == f"{OK:<12} {rule}"
    metadata = json.loads((top / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"] == [logits]
    assert f"({task}, 5x, 10x, efficientnet_lite0)" in (top / "docs" / "README.md").read_text(encoding="utf-8")
