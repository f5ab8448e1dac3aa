"""Networks in INT8, against the same ones in float32."""

import re

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from scripts.core.errors import SettingsError
from scripts.encoders import quantising, runtimes
from scripts.encoders.backbones import Backbone
from scripts.encoders.int8_networks import write_int8
from scripts.encoders.quantising import quantise
from scripts.encoders.runtimes import adds_int8_exactly, get_forward
from tests.cohorts import tiny_backbone


def small(attention: bool = False) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=4), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU6()
        )
        if attention:
            network.append(nn.Flatten(2)).append(_Attention()).append(nn.Flatten())
        else:
            network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    return Backbone("small", network, 32, mean=(128.0,) * 3, std=(64.0,) * 3, weights_sha256="0" * 64)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.to_qkv(x.transpose(1, 2)).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 32**0.5, dim=-1)
        attended: torch.Tensor = self.out(weights @ v).mean(dim=1)
        return attended


@pytest.fixture(scope="module")
def patches() -> torch.Tensor:
    """Smooth patches of many colours."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (24, 3, 4, 4), generator=generator).float()
    smooth = nn.functional.interpolate(coarse, size=(48, 48), mode="bilinear")
    return smooth.to(torch.uint8).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def needs_nncf(request):
    if "without" not in request.node.name:
        pytest.importorskip("nncf", reason="nncf is not installed (the extra int8)")


@pytest.mark.parametrize("attention", [False, True])
def test_features_in_int8_are_close_to_those_in_float32_and_not_the_same(patches, tmp_path, capfd, attention):
    backbone = small(attention)
    xml, weights = quantise(backbone, patches[:16])
    assert capfd.readouterr().out == ""  # what is printed there is a workflow's
    assert re.search('element_type="i8"', xml.decode())
    network = write_int8(tmp_path, {"patch": [48, 48], "encoder": {}}, xml, weights)
    with torch.inference_mode():
        expected = backbone(patches)
        found = get_forward("openvino", backbone, 24, network)(patches)
    assert found.shape == (24, 32)
    assert found.dtype == torch.float32
    centre = expected.mean(dim=0)
    # Where sums saturate, 0.816 with attention, as products of two activations have the full range; else 0.999.
    least = 0.75 if attention and not adds_int8_exactly() else 0.95
    assert cosine_similarity(found - centre, expected - centre).mean() > least
    assert not torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("processor", "exact"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_vnni": False, "avx_vnni": False, "amx_int8": False}, False),
        ({"architecture": "x86_64", "avx512_vnni": True}, True),
        ({"architecture": "x86_64", "avx_vnni": True}, True),
        ({"architecture": "x86_64", "amx_int8": True}, True),
        ({"architecture": "aarch64"}, True),
        ({}, True),  # of an older torch, which does not tell
    ],
)
def test_a_processor_on_which_sums_of_int8_saturate_is_warned_of_once(
    patches, tmp_path, monkeypatch, caplog, processor, exact
):
    xml, weights = quantise(small(), patches[:8])
    network = write_int8(tmp_path, {"patch": [48, 48], "encoder": {}}, xml, weights)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    runtimes._warn_of_saturation.cache_clear()
    for _ in range(2):
        get_forward("openvino", small(), 4, network)(patches[:4])
    runtimes._warn_of_saturation.cache_clear()
    assert adds_int8_exactly() is exact
    assert caplog.text.count("neither VNNI nor AMX: sums saturate") == (not exact)


def test_the_same_patches_give_the_same_bytes_and_others_give_others(patches):
    first = quantise(small(), patches[:8])
    assert quantise(small(), patches[:8]) == first
    assert quantise(small(), patches[8:16]) != first


def test_a_patch_has_the_same_features_whatever_is_in_its_batch(patches, tmp_path):
    network = write_int8(tmp_path, {"patch": [48, 48], "encoder": {}}, *quantise(small(), patches[:8]))
    forward = get_forward("openvino", small(), 8, network)
    assert torch.allclose(forward(patches[:8])[2:3], forward(patches[2:3]), rtol=0, atol=1e-5)


def test_without_nncf_the_error_says_how_to_install_it(monkeypatch, patches):
    monkeypatch.setattr(quantising, "find_spec", lambda name: None)
    told = r"precision: int8 needs NNCF to quantise the encoder, and it is not installed\. Run: pip install .*\[int8\]"
    with pytest.raises(SettingsError, match=told):
        quantise(tiny_backbone(), patches)


def test_a_network_of_another_openvino_is_refused_in_one_line_without_nncf(tmp_path, patches):
    about = {"patch": [48, 48], "encoder": {}, "versions": {"openvino": "2099.1"}}
    network = write_int8(tmp_path, about, b"<net/>", b"")
    with pytest.raises(SettingsError, match=r"cannot be computed by the openvino .* Install .*2099\.1"):
        get_forward("openvino", small(), 8, network)(patches)
