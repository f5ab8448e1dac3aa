"""Rules on trained weights: each fails for its own reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from monai.data import load_net_with_metadata

from bundle.archive import unpack
from bundle.checked import Bundle
from bundle.pack import pack
from bundle.rules_weights import RULES
from bundle.verify import FAILED, NOT_CHECKED, OK, check
from scripts.inference.decisions import Decided
from scripts.networks.methods import get_network
from scripts.networks.state_record import sign
from scripts.weights.checkpoints import load_weights
from scripts.weights.record import read_origin
from tests.bundles import DRAWN, change_json, copied, finding, make_weights, write


@pytest.fixture
def root(trained_repository: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    folder = copied(trained_repository, tmp_path)
    points = read_origin(folder / "models" / "model.pt")["operating_point"]
    change_json(folder, "configs/metadata.json", lambda metadata: metadata.update(operating_point=points))
    return folder


@pytest.mark.parametrize("rule", RULES)
def test_weights_with_the_settings_of_the_configs_keep_every_rule(rule: str, root: Path) -> None:
    assert str(check(rule, Bundle(root, "folder"))) == f"{OK:<12} {rule}"


@pytest.mark.parametrize("rule", RULES)
def test_without_weights_the_rules_are_not_checked_and_a_zip_fails(rule: str, root: Path) -> None:
    (root / "models" / "model.pt").unlink()
    folder, archive = (check(rule, Bundle(root, kind)) for kind in ("folder", "zip"))
    assert folder.state == NOT_CHECKED
    assert folder.text.startswith("there is no models/model.pt. Run training: python -m monai.bundle run training")
    assert (archive.state, archive.text[:39]) == (FAILED, "models/model.pt: there is no such file.")


def change_weights(change: Callable[[Any], object]) -> Callable[[Path], object]:
    """Changes the state dict in ``model.pt``, and keeps its record."""

    def edit(root: Path) -> None:
        state = torch.load(root / "models" / "model.pt", weights_only=True)
        change(state)
        torch.save(state, root / "models" / "model.pt")

    return edit


def make_other(**settings: Any) -> Callable[[Path], object]:
    """Puts weights of other settings beside a config that has settings of its own."""

    def edit(root: Path) -> None:
        make_weights(root / "models", **settings)
        own = {"num_nodes": 128, "class_names": ["cancer", "hgd", "lgd", "hyperplastic", "normal"], "min_tissue": 0.7}
        change_json(root, "configs/inference.json", lambda config: config.update(own))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: (r / "models" / "model_5x.pt").unlink(), "model_5x.pt: there is no such file"),
        (change_weights(lambda s: s.pop("myfc.0.bias")), "model.pt: does not fit the network: myfc.0.bias is absent"),
        (change_weights(lambda s: s["myfc.0.bias"].add_(1)), "their checksum differs"),
        (lambda r: write(r, "models/model.pt", "id,cancer\n1,0\n"), "model.pt: is not a PyTorch checkpoint"),
        (
            make_other(num_nodes=16),
            "model.pt: they were trained with other settings (num_nodes",
        ),
        (
            make_other(class_names=["a", "b", "c", "d", "e"]),
            "trained with other settings (class_",
        ),
        (
            make_other(min_tissue=0.1),
            "configs/inference.json#min_tissue: is 0.7, and the weights",
        ),
        (
            lambda r: change_json(r, "configs/train.json", lambda c: c["advanced"].update({"read_level": "highest"})),
            "configs/train.json#read_level: is 'highest', and the weights were trained with 'nearest'",
        ),
    ],
)
def test_weights_that_do_not_load_or_fit_are_named(root: Path, edit: Callable[[Path], object], message: str) -> None:
    edit(root)
    assert message in finding("weights", root)


@pytest.fixture
def demonstration(trained_repository: Path, tmp_path: Path) -> Path:
    """A packed bundle whose weights were trained on synthetic slides."""
    packed = pack(trained_repository, make_weights(tmp_path / "weights", DRAWN), tmp_path / "dist")
    return unpack(packed.path, tmp_path / "unpacked")


def without(key: str) -> Callable[[Path], object]:
    return lambda root: change_json(root, "configs/metadata.json", lambda metadata: metadata.update({key: "A model"}))


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        (without("name"), "configs/metadata.json#name"),
        (without("description"), "configs/metadata.json#description"),
        (without("intended_use"), "configs/metadata.json#intended_use"),
        (lambda r: write(r, "models/README.md", "# Weights\n"), "models/README.md"),
        (
            lambda r: write(r, "docs/README.md", "\n" * 10 + (r / "docs" / "README.md").read_text(encoding="utf-8")),
            "docs/README.md, its first 10 lines",
        ),
    ],
)
def test_a_demonstration_has_to_say_so_wherever_a_user_looks(
    demonstration: Path, edit: Callable[[Path], object], place: str
) -> None:
    assert check("demonstration", Bundle(demonstration, "zip")).state == OK
    edit(demonstration)
    assert f"{place}: does not say that the weights are a demonstration" in finding("demonstration", demonstration)


def test_in_a_repository_nothing_has_to_say_so_before_it_is_packed(root: Path) -> None:
    make_weights(root / "models", DRAWN)
    found = check("demonstration", Bundle(root, "repository"))
    assert (found.state, found.text) == (
        NOT_CHECKED,
        "the weights are a demonstration; packing says so in what is handed on",
    )


def change_points(change: Callable[[Any], object], name: str = "model.pt") -> Callable[[Path], object]:
    """Changes the operating point in a file of weights, which stays a whole file that training could have written."""

    def edit(root: Path) -> None:
        network = get_network("mustmil", num_classes=5, num_scales=2, num_features=1280)
        load_weights(network, root / "models" / name)
        origin = network.origin
        change(origin)
        sign(network, network.record, origin)
        torch.save(network.state_dict(), root / "models" / name)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            change_points(lambda o: o["operating_point"].pop("10x")),
            "models/model.pt: its operating point cannot be used for the outputs global, 5x, 10x",
        ),
        (
            change_points(lambda o: o["operating_point"]["5x"]["classes"].pop("lgd"), "model_5x.pt"),
            "models/model_5x.pt: its operating point cannot be used for the outputs 5x",
        ),
        (
            change_points(lambda o: o["operating_point"]["global"]["classes"]["lgd"].update(threshold=1.5)),
            "models/model.pt: its operating point cannot be used",
        ),
        (
            change_points(lambda o: o["operating_point"]["global"]["classes"]["lgd"].update(threshold=0.75)),
            "configs/metadata.json#operating_point: is not that of models/model.pt. Pack the weights again.",
        ),
    ],
)
def test_an_operating_point_that_cannot_be_used_or_is_not_told_is_named(
    packed_zip: Path, tmp_path: Path, edit: Callable[[Path], object], message: str
) -> None:
    top = unpack(packed_zip, tmp_path)
    assert check("operating point", Bundle(top, "folder")).state == OK
    (top / "SHA256SUMS").unlink()
    edit(top)
    assert message in finding("operating point", top)


def test_weights_without_an_operating_point_are_not_checked_for_one(packed_zip: Path, tmp_path: Path) -> None:
    top = unpack(packed_zip, tmp_path)
    (top / "SHA256SUMS").unlink()
    for name in ("model.pt", "model_5x.pt", "model_10x.pt"):
        change_points(lambda origin: origin.pop("operating_point"), name)(top)
    found = check("operating point", Bundle(top, "folder"))
    assert (found.state, found.text) == (NOT_CHECKED, "the weights have no operating point: decisions are at 0.5")


def forward(line: str) -> Callable[[Path], object]:
    """Puts a line at the start of the forward pass of the bundle's networks."""

    def edit(root: Path) -> None:
        text = (root / "scripts" / "networks" / "bag_network.py").read_text(encoding="utf-8")
        first = "        features = self._encode(x)  # [B, N, S, F]\n"
        assert text.count(first) == 1
        write(root, "scripts/networks/bag_network.py", text.replace(first, f"        {line}\n{first}"))

    return edit


def test_a_network_that_does_not_become_torchscript_is_named(root: Path) -> None:
    forward("x = eval('x')")(root)
    assert finding("TorchScript", root)


def test_the_exported_archive_decides_as_the_weights(packed_zip: Path, tmp_path: Path) -> None:
    top = unpack(packed_zip, tmp_path)
    files = {"meta_file": str(top / "configs/metadata.json"), "config_file": str(top / "configs/inference.json")}
    path, ckpt_file = str(tmp_path / "model.ts"), str(top / "models/model.pt")
    options = {"key_in_ckpt": "", "bundle_root": str(top)}
    monai.bundle.ckpt_export(net_id="network_def", filepath=path, ckpt_file=ckpt_file, **files, **options)
    exported, metadata, _ = load_net_with_metadata(path)
    classes = metadata["operating_point"]["5x"]["classes"]
    shift, slope, intercept, threshold = (
        np.array([of_class[key] for of_class in classes.values()])
        for key in ("shift", "slope", "intercept", "threshold")
    )
    with torch.no_grad():
        logits = exported(torch.randn(1, 6, 2, 1281, generator=torch.Generator().manual_seed(0)))[0]
    calibrated = 1 / (1 + np.exp(-(slope * (logits[1].numpy() + shift) + intercept)))
    network = get_network("mustmil", num_classes=5, num_scales=2, num_features=1280)
    load_weights(network, ckpt_file)
    decided = Decided("pred", network, ["global", "5x", "10x"], list(classes))({"pred": logits})
    assert decided["calibrated"][1].numpy() == pytest.approx(calibrated, abs=1e-6)
    assert decided["decision"][1].tolist() == (calibrated >= threshold).tolist()
    assert 0 < decided["decision"].sum() < decided["decision"].numel()


def test_a_network_that_differs_as_torchscript_is_named(root: Path) -> None:
    forward("x = x * 2.0 if torch.jit.is_scripting() else x")(root)
    text = finding("TorchScript", root)
    assert text.startswith("TorchScript: its outputs for 1 rows and 0 of padding differ from the network's by up to")


def test_a_network_that_keeps_to_the_number_of_rows_it_was_exported_with_is_named(root: Path) -> None:
    forward("x = x[:, :5] if torch.compiler.is_compiling() else x")(root)
    assert finding("ONNX", root).startswith("ONNX: its outputs for 300 rows and 0 of padding differ")


def test_a_network_that_does_not_become_onnx_is_named(root: Path) -> None:
    forward("x = x * 2.0 if bool(x.sum() > 0) else x")(root)
    assert finding("ONNX", root)


def stripped(path: Path) -> None:
    torch.save(dict(torch.load(path, weights_only=True)), path)


@pytest.mark.parametrize("name", ["model_5x.pt", "model_40x.pt"])
def test_every_file_of_weights_is_of_the_same_training(root: Path, tmp_path: Path, name: str) -> None:
    other = make_weights(tmp_path / "other", DRAWN) / "model_5x.pt"
    other.replace(root / "models" / name)
    assert f"models/{name}: is not of the same training as model.pt" in finding("weights", root)
    stripped(root / "models" / name)
    assert f"models/{name}: has no record of its training" in finding("weights", root)
    write(root, f"models/{name}", "x")
    assert f"models/{name}: is not a PyTorch checkpoint" in finding("weights", root)


def test_weights_that_packing_leaves_out_of_a_repository_may_be_of_another(root: Path, tmp_path: Path) -> None:
    (make_weights(tmp_path / "other", DRAWN) / "model_5x.pt").replace(root / "models" / "model_40x.pt")
    assert check("weights", Bundle(root, "repository")).state == OK
