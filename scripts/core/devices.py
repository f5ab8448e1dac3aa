"""What computes: the GPUs that torch sees, why it sees none, and float32 without shortcuts."""

from __future__ import annotations

import functools
import glob
import logging
import os
import shutil
import subprocess

import torch

__all__ = ["describe_torch", "tell_unused_gpu", "use_full_float32"]

DEVICE_FILES = "/dev/nvidia[0-9]*"
# Timeout of `nvidia-smi -L`, which wakes each GPU and waits for it.
LISTING_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)


def use_full_float32() -> None:
    """Let float32 mean float32 in this process: no TF32, whose products have 11 bits, in convolutions and matrices.

    cuDNN's convolutions are TF32 by default on GPUs since Ampere; matrix products are where somebody asked for it, as
    the environment of NVIDIA's containers does. It holds for the process from now on, as PyTorch's switches do: to
    switch back after each call would change what other threads are computing.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # The same in PyTorch's newer words, of which a wider one counts where a narrower one is silent. The older switches
    # come first: they raise an error once the two disagree.
    torch.backends.cudnn.fp32_precision = torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]


@functools.cache
def tell_unused_gpu() -> None:
    """Warn, once a process, where this machine has a GPU that torch cannot use; called where torch sees none.

    Of several ranks on a machine one warns.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" or not (gpu := _gpu_here()):
        return
    logger.warning(
        "device: the CPU is used, although this machine has a GPU (%s): %s. Set `device` to cpu if that is intended",
        gpu,
        _why_none(),
    )


def describe_torch() -> str:
    """One line on PyTorch: its version, what it was built for, and the GPUs that it sees, or why it sees none."""
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    torch_is = f"torch {torch.__version__}" + (f", built for {built_for}," if _is_built_for_gpus() else "")
    if not torch.cuda.is_available():
        here = f", although this machine has one ({gpu})" if (gpu := _gpu_here()) else ""
        return f"{torch_is} sees no GPU{here}: {_why_none()}"
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    if count == 1:
        return f"{torch_is} sees 1 GPU: {names}"
    return f"{torch_is} sees {count} GPUs: {names}. One process uses one, torchrun uses all (docs/clusters.md)"


def _is_built_for_gpus() -> bool:
    return bool(torch.version.cuda or torch.version.hip)


def _gpu_here() -> str | None:
    """What shows that this machine has an NVIDIA GPU, whether torch sees it or not."""
    if files := sorted(glob.glob(DEVICE_FILES)):
        return files[0]
    if (command := shutil.which("nvidia-smi")) is None:
        return None
    try:
        listing = subprocess.run(
            [command, "-L"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LISTING_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi is installed, but fails: {type(error).__name__}"
    first = next(iter(listing.stdout.splitlines()), "").split(" (UUID")[0].strip()
    return None if first.startswith("No devices") else f"nvidia-smi: {first or 'no answer'}"


def _why_none() -> str:
    """Why torch sees no GPU, and what helps."""
    if not _is_built_for_gpus():
        return "this torch is built for CPUs alone (builds for GPUs: https://pytorch.org/get-started)"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible[:1].isdigit() and not visible.startswith(("GPU-", "MIG-")):
        return f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides every GPU (unset it to use them)"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        return reason if visible is None else f"{reason} (CUDA_VISIBLE_DEVICES is {visible!r})"
    return "torch counts no GPU"


if __name__ == "__main__":
    print(describe_torch())
