"""Encoders without a name: network files, Python functions and models of timm, with what they were trained on."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import linecache
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.encoders.backbones import get_backbone
from scripts.encoders.network_files import FILE_KINDS
from scripts.encoders.runtimes import get_forward
from scripts.features.encoding import Encoder
from scripts.weights.record import record_problem
from scripts.workflow import scoring_settings

GIVEN = {"mean": [0.7, 0.6, 0.5], "std": [0.2, 0.25, 0.3]}
PX = 64


class Small(nn.Module):
    """Two convolutions and an average: ``[n, 3, H, W]`` to ``[n, 6]``."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, features, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.norm(self.first(x))))).mean(dim=(2, 3))


def make_small(features: int = 6) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = Small(features).eval()
        nn.init.uniform_(network.norm.running_mean)
        nn.init.uniform_(network.norm.running_var, 0.5, 2.0)
    return network


make_eight = functools.partial(make_small, 8)
make_eight_again = functools.partial(make_eight)


class Indexed(Small):
    """Its features in the order of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(6).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = super().forward(x)[:, self.order]  # type: ignore[index]
        return features


def make_indexed() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Indexed().eval()


def make_text() -> str:
    return "no module"


def make_map() -> nn.Module:
    return nn.Conv2d(3, 4, 3)


def make_exit() -> nn.Module:
    raise SystemExit(0)


def make_lazy() -> nn.Module:
    return nn.LazyLinear(4)


def make_meta() -> nn.Module:
    with torch.device("meta"):
        return Small()


def make_broken() -> nn.Module:
    raise ValueError("there is\nno licence")


def save(kind: str, folder: Path, network: nn.Module | None = None) -> Path:
    network = make_small() if network is None else network
    example = torch.zeros(2, 3, PX, PX)
    path = folder / {"torchscript": "small.pt", "torch_export": "small.pt2", "onnx": "small.onnx"}[kind]
    batch = torch.export.Dim("batch", min=1, max=4096)
    if kind == "torchscript":
        torch.jit.save(torch.jit.trace(network, example), path)
    elif kind == "torch_export":
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), path)
    else:
        torch.onnx.export(network, (example,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in FILE_KINDS}


@pytest.fixture
def patches() -> Tensor:
    return torch.randint(0, 256, (3, 3, PX, PX), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def plain(patches: Tensor) -> Tensor:
    mean, std = (torch.tensor(GIVEN[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        features: Tensor = make_small()((patches.float() / 255 - mean) / std)
    return features


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_network_file_gives_the_features_of_its_network(kind: str, files: dict[str, Path], patches: Tensor) -> None:
    backbone = get_backbone(kind, files[kind], given={**GIVEN, "size": PX})
    with torch.inference_mode():
        torch.testing.assert_close(backbone(patches), plain(patches), rtol=1e-4, atol=1e-5)
    assert backbone.num_features == 6
    assert not backbone.training
    assert backbone.settings()["input_px"] == PX


@pytest.mark.parametrize("runtime", [pytest.param("compile", marks=pytest.mark.slow), "openvino"])
@pytest.mark.parametrize("kind", ["torchscript", "torch_export"])
def test_each_runtime_computes_a_file_of_torch(
    kind: str, runtime: str, files: dict[str, Path], patches: Tensor
) -> None:
    forward = get_forward(runtime, get_backbone(kind, files[kind], given={**GIVEN, "size": PX}), batch_size=2)
    with torch.inference_mode():
        found = torch.cat([forward(batch.contiguous(memory_format=torch.channels_last)) for batch in patches.split(2)])
    torch.testing.assert_close(found, plain(patches), rtol=1e-3, atol=1e-4)


def test_the_checksum_of_an_onnx_file_covers_the_weights_beside_it(files: dict[str, Path], tmp_path: Path) -> None:
    path, data = (tmp_path / name for name in ("small.onnx", "small.onnx.data"))
    path.write_bytes(files["onnx"].read_bytes())
    weights = files["onnx"].with_name(data.name).read_bytes()
    data.write_bytes(weights)
    first = get_backbone("onnx", path, given={**GIVEN, "size": PX}).weights_sha256
    data.write_bytes(weights[:-4] + bytes(4))
    assert get_backbone("onnx", path, given={**GIVEN, "size": PX}).weights_sha256 != first


@pytest.mark.parametrize("runtime", ["compile", "openvino"])
def test_no_other_runtime_computes_an_onnx_file(runtime: str, files: dict[str, Path]) -> None:
    backbone = get_backbone("onnx", files["onnx"], amp=True, given={**GIVEN, "size": PX})
    assert not backbone.amp  # onnxruntime computes in what the file says
    with pytest.raises(SettingsError, match=rf"runtime: {runtime} cannot compute an onnx file, .* Set it to torch"):
        Encoder(backbone, runtime=runtime)


def test_a_python_function_gives_a_network_and_takes_weights(patches: Tensor, tmp_path: Path) -> None:
    name = f"{__name__}.make_small"
    first = get_backbone(name, given=GIVEN)
    with torch.inference_mode():
        torch.testing.assert_close(first(patches), plain(patches), rtol=1e-4, atol=1e-5)
    torch.save({key: value * 2 for key, value in make_small().state_dict().items()}, tmp_path / "other.pth")
    other = get_backbone(name, tmp_path / "other.pth", given=GIVEN)
    assert other.weights_sha256 != first.weights_sha256 == get_backbone(name, given=GIVEN).weights_sha256
    assert not torch.allclose(other(patches), first(patches))


def test_a_bank_knows_the_source_of_a_python_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = "from torch import nn\ndef make(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"

    def settings(text: str) -> dict[str, Any]:
        (tmp_path / "versions_of_mine.py").write_text(text)
        sys.modules.pop("versions_of_mine", None)
        importlib.invalidate_caches()
        linecache.clearcache()
        return get_backbone("versions_of_mine.make", given=GIVEN).settings()

    first = settings(source)
    assert settings(source) == first
    other = settings(source.replace("make():", "make():  # of the next version\n    "))
    assert {key for key in first if other[key] != first[key]} == {"source_sha256"}
    assert first["pooling"] == "the network's own"


def test_the_source_of_a_partial_function_is_that_of_its_function() -> None:
    functions = [f"{__name__}.{function}" for function in ("make_small", "make_eight", "make_eight_again")]
    sources = {get_backbone(function, given=GIVEN).settings()["source_sha256"] for function in functions}
    assert sources == {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}


def test_a_network_with_a_table_of_indices_takes_its_own_weights(patches: Tensor, tmp_path: Path) -> None:
    name = f"{__name__}.make_indexed"
    torch.save(make_indexed().state_dict(), tmp_path / "own.pth")
    backbone = get_backbone(name, tmp_path / "own.pth", given=GIVEN)
    torch.testing.assert_close(backbone(patches), get_backbone(name, given=GIVEN)(patches))
    torch.save({**make_indexed().state_dict(), "order": torch.rand(6)}, tmp_path / "other.pth")
    with pytest.raises(SettingsError, match=r"do not fit the backbone: order is of torch\.float32"):
        get_backbone(name, tmp_path / "other.pth", given=GIVEN)


def test_a_deviation_that_would_be_stored_as_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"backbone_input#std: got .* Give three numbers in 0\.001\.\.1"):
        get_backbone(f"{__name__}.make_small", given={**GIVEN, "std": [1e-30] * 3})
    smallest = get_backbone(f"{__name__}.make_small", given={**GIVEN, "std": [0.001] * 3})
    assert all(smallest.settings()["std"])


def test_patches_of_another_size_are_resized_once_before_they_are_normalised(files: dict[str, Path]) -> None:
    backbone = get_backbone("torchscript", files["torchscript"], given={**GIVEN, "size": PX})
    large = torch.randint(0, 256, (2, 3, 96, 80), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    resized = torch.nn.functional.interpolate(large.float(), (PX, PX), mode="bicubic", antialias=True)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(large), plain(resized), rtol=1e-4, atol=1e-5)


def test_what_it_was_trained_on_may_stand_beside_the_file(patches: Tensor, tmp_path: Path) -> None:
    path = save("torchscript", tmp_path)
    path.with_suffix(".json").write_text(json.dumps({**GIVEN, "size": PX}))
    beside = get_backbone("torchscript", path)
    with torch.inference_mode():
        torch.testing.assert_close(beside(patches), plain(patches), rtol=1e-4, atol=1e-5)
    # The setting goes before it.
    assert get_backbone("torchscript", path, given={"mean": [0.1] * 3}).settings() != beside.settings()


def recorded(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What the weights of a training store of its encoder; evaluating compares with it what it uses itself."""
    settings = {"backbone": "torchscript", "backbone_input": given}
    encoder = Encoder(get_backbone("torchscript", path, given=given))
    return scoring_settings(settings, encoder)


def test_whether_the_option_or_the_file_said_it_makes_no_difference(tmp_path: Path) -> None:
    path = save("torchscript", tmp_path)
    said = {**GIVEN, "size": PX}
    by_option, settings = recorded(path, said), get_backbone("torchscript", path, given=said).settings()
    path.with_suffix(".json").write_text(json.dumps(said))
    by_file = recorded(path, {})
    assert by_file == by_option
    assert get_backbone("torchscript", path).settings() == settings  # so their banks are one another's
    record = {"settings": by_file}
    assert record_problem(record, by_option) is None
    assert record_problem(record, recorded(path, {"size": PX})) is None
    # What the file says belongs to the encoder: the weights of a training with it are not used with another.
    path.with_suffix(".json").write_text(json.dumps({**GIVEN, "size": 32}))
    problem = record_problem(record, recorded(path, {}))
    assert problem is not None
    assert "backbone_input" in problem


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"mean": [1, 2, 3]}', r"#mean: got \[1, 2, 3\]\. Give three numbers in 0\.\.1"),
        ('{"means": [0.5, 0.5, 0.5]}', "has 'means'. Give size, mean and std"),
        ('{"size": "224"}', "#size: got '224'"),
        ("[]", "Give a dictionary"),
        (
            '{"mean": [0.5, 0.5, 0.5]}',
            r"does not say its std\. Set --backbone_input .* or in small\.json beside the file",
        ),
    ],
)
def test_a_wrong_file_beside_it_is_told(beside: str, told: str, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    path.write_bytes(files["torchscript"].read_bytes())
    path.with_suffix(".json").write_text(beside)
    with pytest.raises(SettingsError, match=told):
        get_backbone("torchscript", path)


@pytest.mark.parametrize("kind", FILE_KINDS)
@pytest.mark.parametrize("content", ["half", "nothing", "another kind"])
def test_a_file_that_is_not_whole_or_of_another_kind_is_refused(
    kind: str, content: str, files: dict[str, Path], tmp_path: Path
) -> None:
    data = files[kind].read_bytes()
    other = files["onnx" if kind != "onnx" else "torchscript"].read_bytes()
    path = tmp_path / files[kind].name
    path.write_bytes({"half": data[: len(data) // 2], "nothing": b"", "another kind": other}[content])
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logging.getLogger("torch.export").addHandler(handler)
    with pytest.raises(SettingsError, match=rf"{path.name}: is not a readable {kind} file") as caught:
        get_backbone(kind, path, given=GIVEN)
    logging.getLogger("torch.export").removeHandler(handler)
    assert "\n" not in str(caught.value)
    assert not logged  # torch.export would log its own traceback


@pytest.mark.parametrize(
    ("name", "weights", "told"),
    [
        ("torchscript", None, r"needs its network's file\. Give --backbone_weights PATH"),
        ("onnx", "hub", r"needs its network's file\. Give --backbone_weights PATH"),
        ("onnx", "gone.onnx", r"gone\.onnx: no such file\. Give the path of the network's own file"),
        ("torchscript", "x" * 5000, r"xxx: no such file\. Give the path of the network's own file"),
        ("torchscript", str(Path(__file__).parent), r"encoders: is a folder\. Give the path of the network's own file"),
        ("torchscript", "", r"backbone_weights: got ''\. Give a path as text"),
        (f"{__name__}.make_nothing", None, r"cannot be made \(.*no attribute 'make_nothing'\)"),
        ("no_such_package.make", None, r"cannot be made \(.*No module named 'no_such_package'\)"),
        (f"{__name__}.make_text", None, r"gives str and no torch module\. Give the dotted name of a function"),
        (f"{__name__}.make_lazy", None, r"gives a network whose weights have no values yet \(lazy, or on the meta"),
        (f"{__name__}.make_meta", None, r"gives a network whose weights have no values yet \(lazy, or on the meta"),
        (f"{__name__}.make_small", "x" * 5000, r"xxx: no such file"),
        (f"{__name__}.make_broken", None, r"cannot be made \(there is\)"),
        (f"{__name__}.make_exit", None, r"cannot be made "),
        (f"{__name__}.make_map", None, r"gives float32 \[2, 4, 222, 222\] for patches \[2, 3, 224, 224\]"),
    ],
)
def test_what_is_no_encoder_is_told_in_one_line(name: str, weights: str | None, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        get_backbone(name, weights, given=GIVEN)
    assert "\n" not in str(caught.value)


def test_a_network_of_a_fixed_size_asks_for_it(files: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"cannot compute patches \[2, 3, 224, 224\] .*Give the size"):
        get_backbone("torch_export", files["torch_export"], given=GIVEN)


def test_an_encoder_with_a_name_states_its_own_input() -> None:
    with pytest.raises(SettingsError, match=r"backbone_input: is for encoders without an entry; that of resnet34"):
        get_backbone("resnet34", given=GIVEN)


def test_without_timm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "weights.bin").write_bytes(b"")
    for name in ("uni2_h", "conch", "timm/vit_tiny_patch16_224"):
        with pytest.raises(SettingsError, match=r"needs timm, which cannot be imported .*pip install timm safetensors"):
            get_backbone(name, tmp_path / "weights.bin")
