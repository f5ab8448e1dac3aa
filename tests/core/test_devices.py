"""Which GPUs torch sees, why it sees none, and that float32 is float32: all on a machine of any kind."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.core import devices
from scripts.core.devices import describe_torch, tell_unused_gpu, use_full_float32
from scripts.core.ranks import own_device
from scripts.encoders.backbones import Backbone
from scripts.networks.methods import METHODS, get_network
from tests.conftest import ROOT

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
A100 = "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-6c1d3e6b)"


class Machine:
    """A machine and a torch, with what each of them is told to have."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        tell_unused_gpu.cache_clear()
        monkeypatch.setattr(devices, "DEVICE_FILES", str(folder / "nvidia[0-9]*"))
        monkeypatch.setattr(devices.shutil, "which", lambda name: None)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        self.torch_sees([], because="Found no NVIDIA driver on your system.")

    def has_device_file(self) -> None:
        # These belong to all GPUs, and are there without any.
        (self.folder / "nvidiactl").touch()
        (self.folder / "nvidia0").touch()

    def lists(self, text: str, code: int = 0) -> None:
        command = self.folder / "nvidia-smi"
        command.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        command.chmod(0o755)
        self.patch.setattr(devices.shutil, "which", lambda name: str(command))

    def torch_sees(self, names: list[str], because: str = "") -> None:
        def init() -> None:
            if not names:
                raise RuntimeError(because)

        self.patch.setattr(torch.cuda, "is_available", lambda: bool(names))
        self.patch.setattr(torch.cuda, "device_count", lambda: len(names))
        self.patch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
        self.patch.setattr(torch.cuda, "init", init)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    yield Machine(tmp_path, monkeypatch)
    tell_unused_gpu.cache_clear()


# --- a GPU that is not used ---------------------------------------------------------------------------------


REASONS: dict[str, tuple[Callable[[Machine], object], str]] = {
    "old driver": (lambda m: m.torch_sees([], TOO_OLD), TOO_OLD),
    "CPU build": (
        lambda m: m.patch.setattr(torch.version, "cuda", None),
        "this torch is built for CPUs alone (builds for GPUs: https://pytorch.org/get-started)",
    ),
    "hidden": (
        lambda m: m.patch.setenv("CUDA_VISIBLE_DEVICES", ""),
        "CUDA_VISIBLE_DEVICES is '', which hides every GPU (unset it to use them)",
    ),
    "hidden by -1": (
        lambda m: m.patch.setenv("CUDA_VISIBLE_DEVICES", "-1"),
        "CUDA_VISIBLE_DEVICES is '-1', which hides every GPU (unset it to use them)",
    ),
    "hidden by Slurm": (
        lambda m: m.patch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles"),
        "CUDA_VISIBLE_DEVICES is 'NoDevFiles', which hides every GPU (unset it to use them)",
    ),
    "none of that number": (
        lambda m: (m.patch.setenv("CUDA_VISIBLE_DEVICES", "5"), m.torch_sees([], "No CUDA GPUs are available")),
        "No CUDA GPUs are available (CUDA_VISIBLE_DEVICES is '5')",
    ),
    "old driver, a GPU chosen": (
        lambda m: (m.patch.setenv("CUDA_VISIBLE_DEVICES", "0"), m.torch_sees([], TOO_OLD)),
        f"{TOO_OLD} (CUDA_VISIBLE_DEVICES is '0')",
    ),
}


@pytest.mark.parametrize("why", REASONS)
def test_a_gpu_that_torch_cannot_use_is_one_warning_with_the_reason(
    machine: Machine, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    prepare, reason = REASONS[why]
    machine.has_device_file()
    prepare(machine)
    for _ in range(3):
        assert own_device() == torch.device("cpu")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"device: the CPU is used, although this machine has a GPU ({machine.folder / 'nvidia0'}): {reason}. "
        "Set `device` to cpu if that is intended"
    )


@pytest.mark.parametrize(
    ("listing", "code", "evidence"),
    [
        (A100, 0, "nvidia-smi: GPU 0: NVIDIA A100-SXM4-80GB"),
        (f"{A100}\nGPU 1: another", 0, "nvidia-smi: GPU 0: NVIDIA A100-SXM4-80GB"),
        (
            "NVIDIA-SMI has failed because it couldn t communicate with the NVIDIA driver.",
            9,
            "nvidia-smi: NVIDIA-SMI has failed because it couldn t communicate with the NVIDIA driver.",
        ),
        ("", 1, "nvidia-smi: no answer"),
        ("No devices were found", 6, None),
    ],
)
def test_where_there_is_no_file_of_a_gpu_its_tool_is_asked(
    machine: Machine, caplog: pytest.LogCaptureFixture, listing: str, code: int, evidence: str | None
) -> None:
    machine.lists(listing, code)
    own_device()
    assert [f"({evidence}): Found no NVIDIA driver" in text for text in caplog.messages] == [True] * bool(evidence)


def test_a_tool_that_hangs_is_not_waited_for(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.lists(A100)
    monkeypatch.setattr(devices, "LISTING_TIMEOUT_S", 0.01)
    (machine.folder / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    own_device()
    assert "(nvidia-smi is installed, but fails: TimeoutExpired)" in caplog.text


def test_nothing_is_said_where_no_gpu_is_or_it_is_used_or_another_rank_says_it(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    assert own_device() == torch.device("cpu")
    tell_unused_gpu.cache_clear()
    machine.has_device_file()
    machine.patch.setenv("LOCAL_RANK", "1")
    assert own_device() == torch.device("cpu")
    tell_unused_gpu.cache_clear()
    machine.patch.delenv("LOCAL_RANK")
    machine.torch_sees(["A100"])
    assert own_device() == torch.device("cuda")
    assert not caplog.records


# --- what make setup ends with ------------------------------------------------------------------------------


def test_what_torch_sees_in_one_line(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    torch_is, no_driver = "torch 2.13.0, built for CUDA 13.0,", "Found no NVIDIA driver on your system"
    assert describe_torch() == f"{torch_is} sees no GPU: {no_driver}"
    machine.has_device_file()
    has_one = f"although this machine has one ({machine.folder / 'nvidia0'})"
    assert describe_torch() == f"{torch_is} sees no GPU, {has_one}: {no_driver}"
    machine.torch_sees(["NVIDIA A100"])
    assert describe_torch() == f"{torch_is} sees 1 GPU: NVIDIA A100"
    machine.torch_sees(["NVIDIA A100", "NVIDIA T4"])
    assert describe_torch() == (
        f"{torch_is} sees 2 GPUs: NVIDIA A100, NVIDIA T4. One process uses one, torchrun uses all (docs/clusters.md)"
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert describe_torch().startswith("torch 2.13.0, built for ROCm 7.0, sees 2 GPUs")
    monkeypatch.setattr(torch.version, "hip", None)
    machine.torch_sees([])
    (machine.folder / "nvidia0").unlink()
    assert describe_torch().startswith("torch 2.13.0 sees no GPU: this torch is built for CPUs alone")


@pytest.mark.parametrize(("target", "python"), [("setup", ".venv"), ("label-env", ".venv-label")])
def test_an_environment_is_made_with_what_its_torch_sees_as_the_last_line(target: str, python: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{python}/bin/python -m scripts.core.devices"


# --- float32 is float32 -------------------------------------------------------------------------------------


@pytest.fixture
def shortcuts() -> Iterator[SimpleNamespace]:
    """A process in which others have asked for TF32, and for what a CPU has in its place."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    torch.set_float32_matmul_precision("medium")
    cudnn.allow_tf32 = True
    yield SimpleNamespace(cudnn=cudnn, products=products)
    use_full_float32()


def makes_a_backbone() -> object:
    return Backbone("one", torch.nn.Conv2d(3, 1, 1), 1, (0, 0, 0), (1, 1, 1), "0" * 64)


@pytest.mark.parametrize(
    "make",
    [
        use_full_float32,
        makes_a_backbone,
        *(lambda method=method: get_network(method, num_classes=2, num_features=8) for method in METHODS),
    ],
    ids=["alone", "backbone", *METHODS],
)
def test_what_computes_switches_the_shortcuts_off(shortcuts: SimpleNamespace, make: Callable[[], object]) -> None:
    assert shortcuts.cudnn.allow_tf32
    assert shortcuts.cudnn.conv.fp32_precision == shortcuts.products.fp32_precision == "tf32"
    make()
    # The older switches, which the compiler and others read, raise an error where the newer ones say otherwise.
    assert shortcuts.cudnn.allow_tf32 is shortcuts.products.allow_tf32 is False
    assert torch.get_float32_matmul_precision() == "highest"
    backends = (torch.backends, shortcuts.cudnn, shortcuts.cudnn.conv, shortcuts.products)
    on_cpu = (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)
    assert {part.fp32_precision for part in (*backends, *on_cpu)} == {"ieee"}


@pytest.mark.parametrize("ask", [torch.backends, torch.backends.cudnn, torch.backends.cudnn.conv])
def test_what_others_asked_of_all_backends_or_of_one_is_switched_off_too(shortcuts: SimpleNamespace, ask: Any) -> None:
    ask.fp32_precision = "tf32"
    makes_a_backbone()
    assert not shortcuts.cudnn.allow_tf32
    assert shortcuts.cudnn.conv.fp32_precision == shortcuts.products.fp32_precision == "ieee"
