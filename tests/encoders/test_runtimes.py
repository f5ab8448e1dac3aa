import copy
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.nn.functional import cosine_similarity

from scripts.core.errors import SettingsError
from scripts.core.settings import RUNTIMES
from scripts.encoders import runtimes
from scripts.encoders.backbones import Backbone, get_backbone, has_fast_bfloat16
from scripts.encoders.baselines import build_resnet34
from scripts.encoders.runtimes import choose_runtime, get_forward
from scripts.features.encoding import Encoder
from tests.cohorts import builder, draw_slide, tiny_backbone

FASTER = [runtime for runtime in RUNTIMES if runtime != "torch"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own; but the compiler's is the same for all, since it takes long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(runtimes.INDUCTOR_FOLDER, default_cache_dir())
    return tmp_path / "cache" / "mustmil"


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return builder()({"image": draw_slide(tmp_path_factory.mktemp("runtimes") / "s.tif")})


@pytest.fixture(scope="module")
def patches(bag):
    return torch.from_numpy(np.concatenate(bag.read_all())).contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def small():
    """A backbone as small as one may be that has all that is folded and cast."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 12, 3, groups=4)
        )
        nn.init.uniform_(network[1].running_mean)
        nn.init.uniform_(network[1].running_var, 0.5, 2.0)
        nn.init.uniform_(network[1].weight, 0.5, 2.0)
    network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    return Backbone("small", network, 12, mean=(128.0,) * 3, std=(64.0,) * 3, weights_sha256="0" * 64)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("runtime", FASTER)
def test_the_features_are_those_of_torch_and_the_backbone_stays_as_it_was(small, patches, runtime, amp):
    before = {key: value.clone() for key, value in small.state_dict().items()}
    with torch.inference_mode():
        expected = small(patches)
        small.amp = amp
        forward = get_forward(runtime, small, batch_size=16)
        found = torch.cat([forward(batch) for batch in patches.split(16)])  # 16 and 10 of them
    small.amp = False
    assert found.shape == (26, 12)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.02 if amp else 1e-5)
    # On a processor without bfloat16 it depends on OpenVINO whether it computes in it.
    if not (amp and runtime == "openvino") or has_fast_bfloat16("cpu"):
        assert amp is not torch.allclose(found, expected, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())


def test_openvino_takes_the_default_backbone(patches):
    backbone = get_backbone("efficientnet_lite0")
    with torch.inference_mode():
        found, expected = get_forward("openvino", backbone, batch_size=8)(patches[:8]), backbone(patches[:8])
    assert cosine_similarity(found, expected).min() > 1 - 1e-5


def test_no_batch_norm_is_left_to_compute():
    for network in (get_backbone("efficientnet_lite0").network, build_resnet34().eval()):
        x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = network(x)
            runtimes._fold_batch_norms(network)
            assert torch.allclose(network(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("runtime", FASTER)
def test_an_encoder_gives_the_same_twice_and_names_its_runtime(bag, runtime):
    encoder = Encoder(tiny_backbone(), batch_size=8, num_workers=2, runtime=runtime)
    rows = encoder.encode_rows(bag)
    assert np.array_equal(rows, encoder.encode_rows(bag))
    assert np.allclose(rows, Encoder(tiny_backbone()).encode_rows(bag), atol=1e-5)
    assert encoder.settings()["runtime"] == runtime


def test_openvino_is_used_without_a_word_to_anybody():
    # In a process of its own, in which whatever looks up an address or opens a connection fails. OpenVINO's package for
    # telemetry, which would do so in a thread, is installed with it.
    code = """
import socket, sys, torch
def refuse(*args, **kwargs): raise AssertionError("it tells somebody")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from scripts.encoders.runtimes import get_forward
from tests.cohorts import tiny_backbone
print(get_forward("openvino", tiny_backbone(), 2)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape)
assert sys.modules["openvino_telemetry"] is None
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "torch.Size([2, 12])" in result.stdout


def test_an_unknown_runtime_is_named():
    with pytest.raises(SettingsError, match=r"runtime: got 'tvm'\. Choose one of torch, compile, openvino"):
        Encoder(tiny_backbone(), runtime="tvm")


def test_a_runtime_that_is_not_installed_or_does_not_run_there_is_told(monkeypatch):
    with pytest.raises(SettingsError, match=r"runtime: openvino does not run on cuda\. Set it to torch or compile"):
        choose_runtime("openvino", torch.device("cuda"))
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"openvino is not installed\. Run: pip install openvino"):
        choose_runtime("openvino", CPU)


def test_without_a_compiler_it_goes_on_with_torch_and_says_so(monkeypatch, caplog):
    assert choose_runtime("compile", CPU) == "compile"
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        encoder = Encoder(tiny_backbone(), runtime="compile")
    assert "nothing can be compiled here (a C++ compiler is missing): going on with torch" in caplog.text
    assert encoder.settings()["runtime"] == "torch"  # what a bank will say


@pytest.mark.parametrize(("found", "missing"), [("gcc", "triton"), (None, "a C compiler")])
def test_on_a_gpu_it_needs_triton_and_a_c_compiler(monkeypatch, caplog, found, missing):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if missing == "triton" else object())
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: found)
    with caplog.at_level(logging.WARNING):
        assert choose_runtime("compile", torch.device("cuda")) == "torch"
    assert f"({missing} is missing)" in caplog.text


def test_what_was_prepared_is_kept_for_the_same_device(bag):
    encoder = Encoder(tiny_backbone(), runtime="openvino")
    encoder.encode_rows(bag)
    prepared = encoder._forward
    encoder.to("cpu")  # as each request of MONAI Label does
    assert encoder._forward is prepared is not None


def features_of(runtime, backbone, patches):
    with torch.inference_mode():
        return get_forward(runtime, backbone, batch_size=8)(patches[:8])


@pytest.fixture
def conversions(monkeypatch):
    """The names of the backbones that were converted for OpenVINO."""
    converted, convert = [], runtimes.converted

    def record(backbone, example):
        converted.append(backbone.name)
        return convert(backbone, example)

    monkeypatch.setattr(runtimes, "converted", record)
    return converted


@pytest.mark.parametrize("amp", [False, True])
def test_openvino_converts_a_network_once_and_gives_the_same_features_from_its_cache(
    small, patches, cache, conversions, amp
):
    backbone = copy.deepcopy(small)
    backbone.amp = amp
    cold = features_of("openvino", backbone, patches)
    warm = features_of("openvino", backbone, patches)
    assert conversions == ["small"]
    assert torch.equal(cold, warm)
    (file,) = (cache / "openvino").iterdir()
    assert file.stat().st_mode & 0o022 == 0


def test_nothing_is_taken_from_the_cache_for_another_network_or_other_libraries(
    small, patches, cache, conversions, monkeypatch
):
    features_of("openvino", small, patches)
    heavier, shifted, precise = (copy.deepcopy(small) for _ in range(3))
    heavier.network[0].weight.data *= 2  # whatever their checksum says
    shifted.mean += 1e-5
    for other in (heavier, shifted):
        with torch.inference_mode():
            expected = other(patches[:8])
        assert torch.allclose(features_of("openvino", other, patches), expected, atol=1e-5)
    precise.amp = True
    features_of("openvino", precise, patches)
    features_of("openvino", small, patches[..., :16])
    monkeypatch.setattr("scripts.encoders.prepared.version", lambda name: "another")
    features_of("openvino", precise, patches)
    assert conversions == ["small"] * 6
    assert (
        len(list((cache / "openvino").iterdir())) == 3
    )  # a file for each size and precision, not one for each version


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:-1] + b"!", lambda _: b""])
def test_a_damaged_cache_is_made_again(small, patches, cache, conversions, damage):
    cold = features_of("openvino", small, patches)
    (file,) = (cache / "openvino").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert torch.equal(features_of("openvino", small, patches), cold)
    assert conversions == ["small"] * 2
    # OpenVINO does not write the same network with the same number of bytes each time.
    assert len(file.read_bytes()) == pytest.approx(len(whole), rel=0.01)
    features_of("openvino", small, patches)
    assert conversions == ["small"] * 2


def test_where_nothing_can_be_kept_networks_are_prepared_each_time(small, patches, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    (tmp_path / "shared" / "mustmil").mkdir(parents=True)
    (tmp_path / "shared" / "mustmil").chmod(0o777)
    with torch.inference_mode():
        expected = small(patches[:8])
    for place in ("file", "shared"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
        with caplog.at_level(logging.INFO):
            found = features_of("openvino", small, patches)
        assert torch.allclose(found, expected, atol=1e-5)
        assert f"what is prepared is not kept in {tmp_path / place / 'mustmil' / 'openvino'} (" in caplog.text
    assert list((tmp_path / "shared" / "mustmil" / "openvino").iterdir()) == []


def test_a_disk_without_room_keeps_nothing_and_costs_nothing(small, patches, monkeypatch, caplog):
    def full(path):
        raise SettingsError(path, "cannot be written: there is no room", "Make room.")

    monkeypatch.setattr("scripts.encoders.prepared.replacing", full)
    with caplog.at_level(logging.INFO):
        assert features_of("openvino", small, patches).shape == (8, 12)
    assert "there is no room" in caplog.text


def test_of_the_users_own_networks_openvino_keeps_nothing(small, patches, cache):
    own = copy.deepcopy(small)
    own.name = "my_package.my_network"
    features_of("openvino", own, patches)
    assert not cache.exists()


@pytest.mark.slow  # a compiler with an empty cache
def test_compile_takes_from_its_cache_what_an_earlier_run_compiled(small, patches, cache, monkeypatch):
    monkeypatch.delenv(runtimes.INDUCTOR_FOLDER)
    counters.clear()
    cold = features_of("compile", small, patches)
    assert os.environ[runtimes.INDUCTOR_FOLDER] == str(cache / "compile")
    assert (counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]) == (0, 1)
    torch._dynamo.reset()
    warm = features_of("compile", small, patches)
    assert (counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]) == (1, 1)
    assert torch.equal(cold, warm)


def test_a_folder_that_the_user_gave_the_compiler_stays(small, tmp_path, monkeypatch):
    monkeypatch.setenv(runtimes.INDUCTOR_FOLDER, str(tmp_path / "mine"))
    get_forward("compile", small, batch_size=8)
    assert os.environ[runtimes.INDUCTOR_FOLDER] == str(tmp_path / "mine")
