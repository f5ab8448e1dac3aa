"""How many patches a GPU encodes at once: what its memory allows, found by trying."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from scripts.encoders.backbones import Backbone

__all__ = ["BATCHES", "batch_for", "largest_batch"]

BATCHES = (32, 64, 128, 256)
"""The sizes that are tried. From a few dozen patches up, a GPU is busy with each of a network's operations."""

# The rest is left to what else needs memory on the GPU: the copies of the next batch, training, another program.
MEMORY_FRACTION = 0.5

logger = logging.getLogger(__name__)


def largest_batch(peak_bytes: Callable[[int], int | None], budget_bytes: float) -> int:
    """The largest of :data:`BATCHES` that fits, or the smallest of them.

    By memory and not by the clock: the size of a batch decides the last digits of features on a GPU, and of two runs
    that are timed each may choose another size. What memory a batch takes is the same in every run.

    Args:
        peak_bytes: encodes so many patches; gives the memory that was in use, or ``None`` where it was not enough.
        budget_bytes: what may be in use.
    """
    chosen = BATCHES[0]
    for size in BATCHES:
        peak = peak_bytes(size)
        if peak is None or peak > budget_bytes:
            break
        chosen = size
    return chosen


def batch_for(backbone: Backbone, device: torch.device, patch_px: int) -> int:
    """The batch for a backbone on a GPU, where it is, by encoding black patches.

    Args:
        backbone: the frozen backbone.
        device: the GPU.
        patch_px: side of the patches in pixels.
    """

    def peak_bytes(size: int) -> int | None:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            patches = torch.zeros((size, 3, patch_px, patch_px), dtype=torch.uint8, device=device)
            with torch.inference_mode():
                backbone(patches.contiguous(memory_format=torch.channels_last))
            torch.cuda.synchronize(device)
        except torch.cuda.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_allocated(device)

    total = torch.cuda.get_device_properties(device).total_memory
    size = largest_batch(peak_bytes, total * MEMORY_FRACTION)
    torch.cuda.empty_cache()
    logger.info("auto: encode_batch %d, which the memory of %s allows (%.0f GB)", size, device, total / 1e9)
    return size
