"""Trying a network that the registry does not know: what it gives, and how it has to be given patches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scripts.core.errors import SettingsError, mistake_in, reason_of

__all__ = ["TIMM", "feature_length", "fitting_memory_format", "in_one_line"]

TIMM = "timm/"
# A network is tried on patches of this size if it takes any.
TRIED_PX = 224
# By how much of the largest feature, and in most features of what each varies by between patches, a patch's may differ
# between two batches: rounding, also of 8-bit weights.
BATCH_TOLERANCE = 0.1
# By how much of itself a feature may differ between two runs of the same batch: rounding in another order.
REPEAT_TOLERANCE = 1e-4
FLOAT_NOISE = torch.finfo(torch.float32).eps
FREE_BATCH = "export it in evaluation mode, with a free batch axis"


def feature_length(name: str, network: nn.Module, input_px: int | None) -> int:
    """Length of a network's features, by running it twice on two patches, and on one of them.

    Raises:
        SettingsError: if it cannot be run, gives anything but one vector of finite floats a patch, another one each
            time, or one that depends on the other patches of the batch.
    """
    patches = _tried_patches(network, input_px)
    both, again, alone = (_features(name, network, batch) for batch in (patches, patches, patches[:1]))
    rows = torch.cat([both, again, alone])  # [5, F]
    if not rows.isfinite().all():
        cause = "gives features that are no finite numbers"
        raise SettingsError(f"backbone {name}", cause, "Give one that gives finite features, in float32.")
    rounding = FLOAT_NOISE * rows.abs().max()
    if ((both - again).abs() > REPEAT_TOLERANCE * rows.abs().amax(0) + rounding).any():
        cause = "gives other features each time"
        raise SettingsError(f"backbone {name}", cause, "Export it in evaluation mode, without dropout.")
    moved, span = (both[0] - alone[0]).abs(), rows.amax(0) - rows.amin(0)  # [F]
    varying = span > 10 * rounding  # what is constant hides nothing
    if moved.max() > BATCH_TOLERANCE * both.abs().max() or (moved / span)[varying].median() > BATCH_TOLERANCE:
        cause = "gives a patch other features where another patch is in the batch"
        raise SettingsError(f"backbone {name}", cause, f"Give one without statistics of a batch: {FREE_BATCH}.")
    return both.shape[1]


def fitting_memory_format(network: nn.Module, input_px: int | None) -> torch.memory_format:
    """Channels last, if the network then gives the features that it gives of contiguous patches; else contiguous.

    Code that reads memory as it lies, such as ``view``, raises an error with the one, or gives other features.
    """
    patches = _tried_patches(network, input_px)
    with torch.inference_mode():
        expected = network(patches)
        try:
            found = network(patches.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return torch.contiguous_format
    is_same = torch.allclose(found, expected, rtol=BATCH_TOLERANCE, atol=1e-3 * float(expected.abs().max()))
    return torch.channels_last if is_same else torch.contiguous_format


def _tried_patches(network: nn.Module, input_px: int | None) -> Tensor:
    px = input_px or TRIED_PX
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    noise = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    # A dark patch of little contrast and a bright one: to statistics of the batch they are not alike.
    contrast, light = torch.tensor([[0.5, 2.0], [-1.0, 1.0]]).view(2, 2, 1, 1, 1)
    return (noise * contrast + light).to(device)  # [2, 3, px, px]


@contextmanager
def in_one_line(name: str, shape: Sequence[int]) -> Iterator[None]:
    """Tell in one line what a network of others raises at patches of a shape.

    Raises:
        SettingsError: if it raises anything that is not in one line already, such as that memory ran out.
    """
    try:
        yield
    except Exception as error:
        if mistake_in(error) is not None:
            raise
        reason = reason_of(error)
        if "TorchScript interpreter" in reason:  # whose own traceback follows, and then the reason
            reason = str(error).strip().splitlines()[-1]
        amp_off = "or switch `amp` off, if it is on."
        remedy = f"Give the size that it takes as backbone_input; {FREE_BATCH}; {amp_off}"
        if name.startswith(TIMM):
            remedy = f"Give a size that it takes as backbone_input, or none; {amp_off}"
        elif re.search("(?i)half|float16|double", reason):
            remedy = f"Give one whose weights are float32; {amp_off}"
        elif re.search("missing|flatten user inputs", reason):
            remedy = "Give one that takes nothing but patches."
        raise SettingsError(f"backbone {name}", f"cannot compute patches {list(shape)} ({reason})", remedy) from error


def _features(name: str, network: nn.Module, patches: Tensor) -> Tensor:
    with torch.inference_mode(), in_one_line(name, patches.shape):
        features = network(patches)
    n = len(patches)
    is_table = isinstance(features, Tensor) and features.ndim == 2 and len(features) == n and features.shape[1] > 0
    if not is_table or not features.is_floating_point():
        cause = f"gives {_described(features)} for patches {list(patches.shape)}"
        remedy = f"Give one that gives a tensor of floats [N, F], a vector for each of N patches; {FREE_BATCH}."
        raise SettingsError(f"backbone {name}", cause, remedy)
    return features.float()  # [n, F]


def _described(output: Any) -> str:
    """What a network gave, by type and shape."""
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {list(output.shape)}"
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return f"{type(output).__name__}({', '.join(map(_described, [*parts][:3]))})"
