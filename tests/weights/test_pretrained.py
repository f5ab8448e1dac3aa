"""Going on from weights: classes of the same name are taken, new ones start as usual, and nothing else fits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.core.errors import SettingsError
from scripts.networks.bag_network import BagNetwork
from scripts.networks.methods import METHODS, get_network
from scripts.networks.state_record import sign, weights_sha256
from scripts.weights.paths import serving_weights
from scripts.weights.pretrained import read_pretrained
from tests.weights.test_record import RECORD, SETTINGS

SIZES: dict[str, Any] = {"num_scales": 2, "num_features": 256, "num_nodes": 4}


def network(classes: int, seed: int, method: str = "mustmil", class_attention: str = "joint") -> BagNetwork:
    torch.manual_seed(seed)
    return get_network(method, class_attention, num_classes=classes, **SIZES).eval()


def write(path: Path, names: list[str], method: str = "mustmil", **settings: Any) -> BagNetwork:
    """A file of weights whose training had these classes; returns their network."""
    path.parent.mkdir(exist_ok=True)
    model = network(len(names), 1, method, settings.get("class_attention", "joint"))
    sign(model, {**RECORD, "settings": {**SETTINGS, "class_names": names, "method": method, **settings}})
    torch.save(model.state_dict(), path)
    return model


def started(path: Path, names: list[str], method: str = "mustmil", seed: int = 2, **settings: Any) -> BagNetwork:
    """A new network that starts from a file."""
    model = network(len(names), seed, method, settings.get("class_attention", "joint"))
    used = {**SETTINGS, "class_names": names, "method": method, **settings}
    read_pretrained(path, used, names).load_into(model)
    return model


def logits(model: BagNetwork) -> torch.Tensor:
    bags = torch.randn(3, 7, 2, SIZES["num_features"], generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(bags)  # [B, H, K]


@pytest.mark.parametrize("method", METHODS)
def test_with_classes_added_the_logits_of_the_others_are_what_they_were(tmp_path: Path, method: str) -> None:
    before = write(tmp_path / "model.pt", ["a", "b"], method)
    now = started(tmp_path / "model.pt", ["b", "new", "a"], method)
    assert torch.allclose(logits(now)[..., [2, 0]], logits(before), atol=1e-6)
    # The mean has no layer that classes share.
    is_new = torch.allclose(logits(now)[..., 1], logits(network(3, 2, method))[..., 1], atol=1e-3)
    assert is_new == (method == "mean")


@pytest.mark.parametrize("kind", ["separate", "shared"])
@pytest.mark.parametrize("method", ["mustmil", "msmil", "ssmil"])
def test_so_are_those_of_another_class_attention(tmp_path: Path, method: str, kind: str) -> None:
    before = write(tmp_path / "model.pt", ["a", "b", "gone"], method, class_attention=kind)
    now = started(tmp_path / "model.pt", ["b", "new", "a"], method, class_attention=kind)
    assert torch.allclose(logits(now)[..., [2, 0]], logits(before)[..., :2], atol=1e-6)
    fresh = network(3, 2, method, kind).state_dict()
    for key, value in now.state_dict().items():
        if key.startswith("myfc"):
            assert torch.equal(value[1], fresh[key][1])
    with pytest.raises(SettingsError, match=f"class_attention '{kind}', now 'joint'"):
        started(tmp_path / "model.pt", ["a", "b"], method, class_attention="joint")


@pytest.mark.parametrize("method", METHODS)
def test_with_the_same_classes_the_network_is_the_same_to_the_last_bit(tmp_path: Path, method: str) -> None:
    before = write(tmp_path / "model.pt", ["a", "b"], method)
    now = started(tmp_path / "model.pt", ["a", "b"], method)
    assert weights_sha256(now.state_dict()) == weights_sha256(before.state_dict())


def test_each_class_takes_its_own_rows_and_a_new_one_has_those_of_a_new_network(tmp_path: Path) -> None:
    old = write(tmp_path / "model.pt", ["gone", "a", "b"]).state_dict()
    fresh, now = network(3, 2).state_dict(), started(tmp_path / "model.pt", ["b", "new", "a"]).state_dict()
    places = {0: 2, 2: 1}  # of the new classes among the old ones
    for key, value in now.items():
        if not key.startswith("myfc") and not key.endswith(".2.weight"):
            assert torch.equal(value, old[key]), key
            continue
        assert torch.equal(value[1], fresh[key][1]), key
        for new, before in places.items():
            if not key.endswith("weight") or key.startswith("attention"):
                assert torch.equal(value[new], old[key][before]), key
                continue
            width = value.shape[1] // 3
            parts, theirs = value[new].reshape(3, width), old[key][before].reshape(3, width)
            assert torch.equal(parts[0], theirs[2])
            assert torch.equal(parts[2], theirs[1])
            assert not parts[1].any()


def test_without_a_class_in_common_the_layers_that_classes_share_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = write(tmp_path / "model.pt", ["a", "b"]).state_dict()
    with caplog.at_level(logging.INFO):
        now = started(tmp_path / "model.pt", ["c", "d"]).state_dict()
    fresh = network(2, 2).state_dict()
    for key, value in now.items():
        is_of_classes = key.startswith("myfc") or key.endswith(".2.weight")
        assert torch.equal(value, (fresh if is_of_classes else old)[key]), key
    assert "the layers that classes share; classes taken none; new c, d; dropped a, b" in caplog.text


def test_the_one_output_of_the_binary_task_is_a_class_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "model.pt", ["malignant"], task="binary", positive_classes=["malignant"])
    settings = {**SETTINGS, "task": "multilabel", "class_names": ["benign", "malignant"], "positive_classes": None}
    source = read_pretrained(tmp_path / "model.pt", settings, ["benign", "malignant"])
    assert source.classes == {"taken": ["malignant"], "new": ["benign"], "dropped": []}


def test_steps_between_ordered_classes_are_taken_by_name_and_not_from_another_order(tmp_path: Path) -> None:
    write(tmp_path / "model.pt", ["normal", "lgd", "cancer"], task="ordinal")

    def read(*names: str) -> dict[str, list[str]]:
        settings = {**SETTINGS, "task": "ordinal", "class_names": list(names)}
        return read_pretrained(tmp_path / "model.pt", settings, names).classes

    assert read("normal", "lgd", "hgd", "cancer") == {
        "taken": ["above normal", "above lgd"],
        "new": ["above hgd"],
        "dropped": [],
    }
    with pytest.raises(SettingsError, match="in the order normal, lgd, cancer, now cancer, lgd, normal. Give `class_n"):
        read("cancer", "hgd", "lgd", "normal")


def test_the_record_of_a_training_names_the_weights_and_what_became_of_their_classes(tmp_path: Path) -> None:
    model = write(tmp_path / "model.pt", ["a", "gone"])
    source = read_pretrained(tmp_path / "model.pt", SETTINGS, ["a", "b"])
    assert source.stored == {
        **RECORD,
        "settings": {**SETTINGS, "class_names": ["a", "gone"]},
        "weights_sha256": weights_sha256(model.state_dict()),
        "classes": {"taken": ["a"], "new": ["b"], "dropped": ["gone"]},
    }


@pytest.mark.parametrize("method", METHODS)
def test_of_a_folder_the_file_that_predicts_is_taken(tmp_path: Path, method: str) -> None:
    folder, served = tmp_path / "models", serving_weights(tmp_path / "models", method, [5, 10])
    for name in ("model.pt", "model_5x.pt", "model_10x.pt"):
        if name == served.name or (served.name != "model.pt" and method == "ssmil" and name == "model_5x.pt"):
            write(folder / name, ["a", "b"], method)
    assert read_pretrained(folder, {**SETTINGS, "method": method}, ["a", "b"]).path == served


@pytest.mark.parametrize(
    ("key", "value", "both"),
    [
        ("method", "ssmil", "method 'mustmil', now 'ssmil'"),
        ("magnifications", [5, 20], r"magnifications \[5, 10\], now \[5, 20\]"),
        ("backbone", "uni", "backbone 'efficientnet_lite0', now 'uni'"),
        ("backbone_sha256", "cd34", "backbone_sha256 'ab12', now 'cd34'"),
        ("num_nodes", 8, "num_nodes 4, now 8"),
        ("patch_size", 256, "patch_size 224, now 256"),
    ],
)
def test_another_method_encoder_or_magnification_is_refused_with_both_values(
    tmp_path: Path, key: str, value: Any, both: str
) -> None:
    write(tmp_path / "model.pt", ["a", "b"])
    with pytest.raises(SettingsError, match=rf"model\.pt: cannot be gone on from: they were trained with .*{both}"):
        read_pretrained(tmp_path / "model.pt", {**SETTINGS, key: value}, ["a", "b"])


def test_magnifications_in_another_order_are_the_same(tmp_path: Path) -> None:
    write(tmp_path / "model.pt", ["a", "b"])
    assert read_pretrained(tmp_path / "model.pt", {**SETTINGS, "magnifications": [10.0, 5.0]}, ["a"]).now == ("a",)


def test_patches_of_other_tissue_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "model.pt", ["a", "b"])
    read_pretrained(tmp_path / "model.pt", {**SETTINGS, "min_tissue": 0.4}, ["a", "b"])
    assert "the weights were trained with min_tissue 0.7, now 0.4" in caplog.text


def test_weights_of_synthetic_slides_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = network(2, 1)
    sign(model, {**RECORD, "data": {**RECORD["data"], "drawn_slides": 3}})
    torch.save(model.state_dict(), tmp_path / "model.pt")
    read_pretrained(tmp_path / "model.pt", SETTINGS, ["a", "b"])
    assert "Demonstration weights" in caplog.text


def test_a_checkpoint_is_taken_as_a_file_of_weights_is(tmp_path: Path) -> None:
    model = write(tmp_path / "model.pt", ["a", "b"])
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
    found = started(tmp_path / "last.ckpt", ["a", "b"])
    assert weights_sha256(found.state_dict()) == weights_sha256(model.state_dict())


def test_what_is_no_weights_of_a_training_is_refused_in_one_line(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(SettingsError) as error:
            read_pretrained(path, SETTINGS, ["a", "b"])
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "there is no such folder or file. Check the path." in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "the folder contains no weights. Name a folder into which `training` wrote" in refused(tmp_path / "empty")
    (tmp_path / "text.pt").write_text("no weights")
    assert "text.pt: is not a PyTorch checkpoint of plain tensors" in refused(tmp_path / "text.pt")
    torch.save(network(2, 0).state_dict(), tmp_path / "foreign.pt")
    assert "foreign.pt: has no record of its training. Give a file that training wrote." in refused(
        tmp_path / "foreign.pt"
    )
    write(tmp_path / "damaged.pt", ["a", "b"])
    state = torch.load(tmp_path / "damaged.pt", weights_only=True)
    state["embed.0.weight"][0, 0] += 1e-6
    torch.save(state, tmp_path / "damaged.pt")
    assert "damaged.pt: they are not those that training wrote: their checksum differs" in refused(
        tmp_path / "damaged.pt"
    )
    write(tmp_path / "part" / "model_5x.pt", ["a", "b"])
    assert "contains no model.pt, the file of this training that has the weights of all heads" in refused(
        tmp_path / "part"
    )


def test_a_network_that_a_tensor_does_not_fit_stays_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "model.pt", ["a", "b"])
    other = get_network("mustmil", num_classes=2, num_scales=2, num_features=5, num_nodes=4)
    before = weights_sha256(other.state_dict())
    with pytest.raises(SettingsError, match=r"does not fit the network: embed\.0\.weight is 4x256 in the file, and s"):
        read_pretrained(tmp_path / "model.pt", SETTINGS, ["a", "b"]).load_into(other)
    assert weights_sha256(other.state_dict()) == before
