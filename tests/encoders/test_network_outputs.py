"""What an encoder of one's own gives: one vector a patch, whatever the batch; anything else is told in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.encoders.backbones import get_backbone
from scripts.encoders.network_files import FILE_KINDS
from scripts.encoders.network_trials import feature_length
from scripts.encoders.runtimes import get_forward
from scripts.features.encoding import Encoder
from tests.cohorts import builder, draw_slide

GIVEN = {"size": 32, "mean": [0.7, 0.6, 0.5], "std": [0.2, 0.25, 0.3]}
CONVOLUTION = nn.Conv2d(3, 4, 3, stride=2)


class Giving(nn.Module):
    """Gives what a function makes of a feature map ``[n, 4, h, w]``."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.end = CONVOLUTION, end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.first(x))


class InBatches(nn.Module):
    """Takes batches of one size, as a network whose code states it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.n = CONVOLUTION, n

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).reshape(self.n, 4, -1).mean(dim=2)


class UpToTwo(Giving):
    """Takes batches of two at most."""

    def forward(self, x: Tensor) -> Any:
        if len(x) > 2:
            raise ValueError("a batch too many\nand more")
        return super().forward(x)


def make_up_to_two() -> nn.Module:
    return UpToTwo(lambda x: x.mean(dim=(2, 3)))


def save(kind: str, folder: Path, network: nn.Module, n: int) -> Path:
    example, path = torch.zeros(n, 3, 32, 32), folder / "network"
    if kind == "torchscript":
        torch.jit.save(torch.jit.trace(network, example), path)
    elif kind == "torch_export":
        torch.export.save(torch.export.export(network, (example,)), path)
    else:
        torch.onnx.export(network, (example,), path, dynamo=True, verbose=False)
    return path


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_file_for_batches_of_one_size_is_refused_before_a_run(kind: str, n: int, tmp_path: Path) -> None:
    path = save(kind, tmp_path, InBatches(n).eval(), n)
    with pytest.raises(SettingsError, match=rf"backbone {kind}: .* free batch axis") as caught:
        get_backbone(kind, path, given=GIVEN)
    assert "\n" not in str(caught.value)
    assert "TorchScript interpreter" not in str(caught.value)


def test_a_network_in_training_mode_is_refused_because_features_depend_on_the_batch(tmp_path: Path) -> None:
    network = nn.Sequential(CONVOLUTION, nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(torch.jit.TracerWarning):
        path = save("torchscript", tmp_path, network.train(), 2)
    with pytest.raises(SettingsError, match="gives a patch other features where another patch is in the batch"):
        get_backbone("torchscript", path, given=GIVEN)
    assert feature_length("mine", network.eval(), 32) == 4


def test_a_network_with_dropout_is_refused_because_features_are_others_each_time(tmp_path: Path) -> None:
    network = nn.Sequential(CONVOLUTION, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 64), nn.Dropout(0.05))
    path = tmp_path / "network.pt"
    torch.jit.trace(network.train(), torch.zeros(2, 3, 32, 32), check_trace=False).save(path)
    with pytest.raises(SettingsError, match=r"gives other features each time\. Export it in evaluation mode"):
        get_backbone("torchscript", path, given=GIVEN)
    assert feature_length("mine", network.eval(), 32) == 64


def with_large(end: Callable[[Tensor], Tensor], large: float) -> nn.Module:
    """A network of three features and one large one that is the same for each patch."""
    return Giving(lambda x: torch.cat([end(x.mean(dim=(2, 3)))[:, :3], torch.full((len(x), 1), large)], dim=1))


@pytest.mark.parametrize("large", [1.0, 100.0, 1e4])
def test_a_large_constant_feature_does_not_hide_that_others_depend_on_the_batch(large: float) -> None:
    with pytest.raises(SettingsError, match="gives a patch other features where another patch is in the batch"):
        feature_length("mine", with_large(lambda x: x - x.mean(dim=0, keepdim=True), large), 32)
    assert feature_length("mine", with_large(lambda x: x, large), 32) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused_before_a_run(value: float) -> None:
    with pytest.raises(SettingsError, match="backbone mine: gives features that are no finite numbers"):
        feature_length("mine", with_large(lambda x: x, value), 32)


class TakingTwo(Giving):
    """Takes something besides the patches."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return super().forward(x + y)


@pytest.mark.parametrize(
    ("network", "remedy"),
    [
        (TakingTwo(lambda x: x.mean(dim=(2, 3))), r"Give one that takes nothing but patches\.$"),
        (nn.Sequential(nn.Conv2d(3, 4, 3).half()), r"Give one whose weights are float32; or switch `amp` off"),
        (nn.Sequential(nn.Conv2d(3, 4, 3).double()), r"Give one whose weights are float32; or switch `amp` off"),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), r"Give the size that it takes as backbone_input"),
    ],
)
def test_the_remedy_is_of_the_cause(network: nn.Module, remedy: str) -> None:
    with pytest.raises(SettingsError, match=remedy):
        feature_length("mine", network, 32)


@pytest.mark.parametrize("kind", ["torchscript", "torch_export"])
def test_a_file_that_takes_more_than_patches_is_told_so(kind: str, tmp_path: Path) -> None:
    network, examples = TakingTwo(lambda x: x.mean(dim=(2, 3))).eval(), (torch.zeros(2, 3, 32, 32),) * 2
    path = tmp_path / "network"
    if kind == "torchscript":
        torch.jit.save(torch.jit.trace(network, examples), path)
    else:
        torch.export.save(torch.export.export(network, examples), path)
    with pytest.raises(SettingsError, match=r"Give one that takes nothing but patches\.$"):
        get_backbone(kind, path, given=GIVEN)


def test_numbers_of_eight_bits_whose_scale_is_the_batchs_make_an_encoder() -> None:
    def rounded(x: Tensor) -> Tensor:
        return torch.round(x / x.abs().max() * 127) / 127 * x.abs().max()

    assert feature_length("mine", Giving(lambda x: rounded(rounded(x).mean(dim=(2, 3)))), 32) == 4


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda x: x, r"gives float32 \[2, 4, 15, 15\] for patches \[2, 3, 32, 32\]"),
        (lambda x: (x, x.mean(dim=(2, 3))), r"gives tuple\(float32 \[2, 4, 15, 15\], float32 \[2, 4\]\) for patches"),
        (lambda x: {"features": x.mean(dim=(2, 3))}, r"gives dict\(float32 \[2, 4\]\) for patches"),
        (lambda x: x.mean(dim=(1, 2, 3)), r"gives float32 \[2\] for patches"),
        (lambda x: x.mean(dim=(2, 3)).long(), r"gives int64 \[2, 4\] for patches"),
        (lambda x: None, r"gives NoneType\(\) for patches"),
    ],
)
def test_what_came_out_is_told_with_its_type_and_shape(end: Callable[[Tensor], Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told + r".*Give one that gives a tensor of floats \[N, F\]"):
        feature_length("mine", Giving(end), 32)


def test_a_network_that_fails_in_the_middle_of_a_run_ends_it_in_one_line(tmp_path: Path) -> None:
    bag = builder()({"image": draw_slide(tmp_path / "s.tif")})
    backbone = get_backbone(f"{__name__}.make_up_to_two", given=GIVEN)
    told = rf"backbone {__name__}\.make_up_to_two: cannot compute patches \[8, 3, \d+, \d+\] \(a batch too many\)"
    with pytest.raises(SettingsError, match=told) as caught:
        Encoder(backbone, batch_size=8).encode_rows(bag)
    assert "\n" not in str(caught.value)


def test_memory_that_ran_out_is_not_taken_for_a_fault_of_the_network() -> None:
    def run_out(_patches: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    backbone = get_backbone(f"{__name__}.make_up_to_two", given=GIVEN)
    backbone.forward = run_out  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        get_forward("torch", backbone, 2)(torch.zeros(2, 3, 32, 32))


class WithNotes(Giving):
    """Has a state beside its tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def make_with_notes() -> nn.Module:
    return WithNotes(lambda x: x.mean(dim=(2, 3)))


def test_a_network_whose_state_is_no_tensor_is_refused() -> None:
    with pytest.raises(SettingsError, match="gives a network whose state '_extra_state' is no tensor"):
        get_backbone(f"{__name__}.make_with_notes", None, given=GIVEN)


def test_what_is_given_whole_needs_no_file_beside_the_network(tmp_path: Path) -> None:
    path = save("torchscript", tmp_path, Giving(lambda x: x.mean(dim=(2, 3))), 2)
    path.with_suffix(".json").write_text("{ of another purpose")
    assert get_backbone("torchscript", path, given=GIVEN).settings()["input_px"] == 32
    with pytest.raises(SettingsError, match="is not JSON .*Mend it, or set mean, std and size in backbone_input"):
        get_backbone("torchscript", path, given={key: GIVEN[key] for key in ("mean", "std")})


class Viewing(nn.Module):
    """Reads memory as it lies, which differs with channels last."""

    def __init__(self, is_strided: bool) -> None:
        super().__init__()
        self.first, self.is_strided = copy.deepcopy(CONVOLUTION).to(memory_format=torch.contiguous_format), is_strided

    def forward(self, x: Tensor) -> Tensor:
        maps = self.first(x)  # [n, 4, h, w]
        if self.is_strided:
            return torch.as_strided(maps, (len(maps), 40), (maps[0].numel(), 1))
        return maps.view(len(maps), -1)[:, :40]


def make_strided() -> nn.Module:
    return Viewing(True)


def make_viewing() -> nn.Module:
    return Viewing(False)


@pytest.mark.parametrize("make", [make_viewing, make_strided])
def test_a_network_that_reads_memory_as_it_lies_gets_it_as_it_expects(make: Callable[[], nn.Module]) -> None:
    backbone = get_backbone(f"{__name__}.{make.__name__}", given=GIVEN)
    patches = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = (torch.tensor(GIVEN[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = make()((patches.float() / 255 - mean) / std)
        for batch in (patches, patches.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(backbone(batch), expected, rtol=1e-4, atol=1e-5)


class NormalisedLater(nn.Module):
    """A batch norm that is registered after a convolution and computed after what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = CONVOLUTION, nn.BatchNorm2d(4)
        with torch.no_grad():
            self.norm.running_mean.fill_(0.5)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(self.first(x))).mean(dim=(2, 3))


def make_normalised_later() -> nn.Module:
    return NormalisedLater().eval()


def test_no_layers_of_ones_own_network_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is compiled, without the compiler, which takes long: tests/encoders/test_own_networks.py has it.
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    backbone = get_backbone(f"{__name__}.make_normalised_later", given=GIVEN)
    patches = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.inference_mode():
        expected = backbone(patches)
        found = get_forward("compile", backbone, 4)(patches.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((), SCALE[0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.mean(dim=(2, 3))


SCALE = [1.0]


def make_hidden() -> nn.Module:
    return Hidden()


def test_buffers_that_no_state_dict_has_are_in_the_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{__name__}.make_hidden"
    first = get_backbone(name, given=GIVEN).weights_sha256
    assert get_backbone(name, given=GIVEN).weights_sha256 == first
    monkeypatch.setattr(f"{__name__}.SCALE", [2.0])
    assert get_backbone(name, given=GIVEN).weights_sha256 != first


def test_what_a_module_sets_for_all_of_torch_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sets_for_all.py").write_text(
        "import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\n"
        f"from {__name__} import make_viewing as make\n"
    )
    get_backbone("sets_for_all.make", given=GIVEN)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
