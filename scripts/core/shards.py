"""Shards: each rank's share of a sequence, and what comes of all shards in the order of the sequence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Sized
from typing import Any, TypeVar

import torch.distributed as dist
from ignite.engine import Engine

__all__ = ["dataset_size", "gather_shards", "shard"]

T = TypeVar("T")


class _Nothing:
    pass


def shard(items: Sequence[T], of_rank: int, ranks: int) -> list[T]:
    """A rank's shard of a sequence: every ``ranks``-th item, as many for each rank, wrapping around for the last."""
    size = -(-len(items) // ranks)
    return [items[(of_rank + ranks * i) % len(items)] for i in range(size)]


def gather_shards(items: Sequence[T], total: int | None = None) -> list[T]:
    """The shards of all ranks, in the order of the sequence that :func:`shard` divided; the same on each rank.

    Args:
        items: this rank's, which can be pickled.
        total: the length of the sequence, after which it wraps around; by default nothing is cut off.
    """
    if not dist.is_initialized():
        return list(items)
    shards: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shards, list(items))
    rounds = itertools.zip_longest(*shards, fillvalue=_Nothing)
    return [item for one in rounds for item in one if item is not _Nothing][:total]


def dataset_size(engine: Engine) -> int | None:
    """The number of items in the dataset that an engine runs over, of all ranks; ``None`` where it is not known."""
    dataset: Any = getattr(engine.state.dataloader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None
