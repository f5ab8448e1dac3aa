"""The bags of a patient's slides as one bag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.utils import CommonKeys, convert_to_tensor
from torch import Tensor

__all__ = ["join_slides"]

OF_ROWS = (CommonKeys.IMAGE, "log_weight", "corners")
OF_SLIDES = ("patch_level0", "base_mpp", "bounds_level0")


def join_slides(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One bag with the rows of all, slide by slide.

    Rows link the patches of one slide. So the log weights stay what they are: -log(c) counts the rows of the bag that
    share a patch, and no other slide has rows with it.

    Args:
        items: bags of L slides, as :class:`scripts.training.datasets.PatchBagDataset` or
            :class:`scripts.inference.transforms.EncodeSlided` makes them; what they have besides is left out.

    Returns:
        Of what they have ``image``, ``log_weight`` and ``corners``, ``[N, ...]``, for the N rows of all;
        ``slide_of_row`` int64 ``[N]``, from 0 up, the slide of each row; and of each slide ``patch_level0`` ``[L, S]``,
        ``base_mpp`` ``[L]`` and ``bounds_level0`` ``[L, 4]``, float64.
    """
    joined: dict[str, Any] = {}
    for key in OF_ROWS:
        if all(key in item for item in items):
            joined[key] = _concatenated([convert_to_tensor(item[key], track_meta=False) for item in items])
    numbers = torch.tensor([len(item[CommonKeys.IMAGE]) for item in items])
    joined["slide_of_row"] = torch.repeat_interleave(torch.arange(len(items)), numbers)
    for key in OF_SLIDES:
        if all(key in item for item in items):
            joined[key] = torch.stack([torch.as_tensor(item[key], dtype=torch.float64) for item in items])
    return joined


def _concatenated(bags: Sequence[Tensor]) -> Tensor:
    """``[N, ...]`` of bags ``[n, ...]``, in memory scale by scale if the bags are so."""
    if bags[0].is_contiguous():
        return torch.cat(list(bags))
    return torch.cat([bag.transpose(0, 1) for bag in bags], dim=1).transpose(0, 1)
