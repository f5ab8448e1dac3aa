"""Each rank's share of a dataset, and what comes of all shares in the order of the dataset."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Sized
from typing import Any, TypeVar

import torch.distributed as dist
from ignite.engine import Engine

__all__ = ["dataset_size", "gather_results", "gather_shards", "shard"]

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


def gather_results(items: Sequence[T], names: Sequence[str], engine: Engine) -> list[T]:
    """What all ranks made of the dataset that an engine runs over, in the dataset's order; the same on each rank.

    Args:
        items: this rank's, which can be pickled: one for each name, or none.
        names: of the slides that they are of. Where ranks take slides from a queue, the dataset has ``order``, the
            names of all in order, and some may be missing; else it was divided by :func:`shard`.
        engine: at the end of its run.
    """
    pairs = gather_shards(list(zip(names, items, strict=True)) if items else [], dataset_size(engine))
    order = getattr(getattr(engine.state.dataloader, "dataset", None), "order", None)
    if order is not None:
        place = {name: index for index, name in enumerate(order)}
        pairs.sort(key=lambda pair: place[pair[0]])
    return [item for _, item in pairs]


def dataset_size(engine: Engine) -> int | None:
    """The number of items in the dataset that an engine runs over, of all ranks; ``None`` where it is not known."""
    dataset: Any = getattr(engine.state.dataloader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None
