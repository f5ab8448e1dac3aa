"""Balanced sampling: slides of rare classes are sampled more often."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import DistributedWeightedRandomSampler

from scripts.core.shards import shard
from scripts.datalists.classes import balanced_weights

__all__ = ["BalancedSampler", "SampledView"]


@dataclass(frozen=True)
class SampledView:
    """A bag, by its place in the dataset, and a view of it (0: its plain patches), in place of an index.

    It is no tuple, because with a tuple MONAI's datasets are asked for a subset.
    """

    index: int
    view: int


class BalancedSampler(DistributedWeightedRandomSampler):
    """Samples as many slides as there are, with replacement, by
    :func:`scripts.datalists.classes.balanced_weights`, and a view of each.

    What an epoch samples depends on the seed and the epoch's number alone, so that a resumed training samples what
    an uninterrupted one would have. MONAI's engines set the sampler's epoch.

    It yields indices; or, where a slide has augmented views, :class:`SampledView`, each view of a slide as likely
    as its plain patches. The slides sampled are the same either way.

    Ranks that share an epoch take turns in what one rank alone would sample; where it does not come out even,
    the first samples are used again. So R ranks with batches of b train on the same slides in each step as one rank
    with batches of R * b.

    Args:
        data: the entries of the dataset's bags, with ``label`` ``[K]``.
        num_replicas: ranks that share the samples.
        views: the number of augmented views of each slide, for each entry (else a ValueError); ``None`` is 0 for all.
    """

    def __init__(
        self,
        dataset: Any,
        data: Sequence[Mapping[str, Any]],
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        views: Sequence[int] | None = None,
    ) -> None:
        if views is not None and len(views) != len(data):
            raise ValueError(f"views has {len(views)} numbers for {len(data)} slides")
        self.views = None if views is None or not any(views) else np.asarray(views, dtype=np.int64)
        weights = balanced_weights(np.stack([np.asarray(entry["label"]) for entry in data])).tolist()
        self.random = torch.Generator()
        # To MONAI's sampler this is the only rank: each samples the whole epoch and takes its shard.
        self.shard, self.shards = rank, num_replicas
        super().__init__(dataset, weights, generator=self.random, num_replicas=1, rank=0, seed=seed)

    def __len__(self) -> int:
        return -(-super().__len__() // self.shards)

    def __iter__(self) -> Iterator[int | SampledView]:
        return iter(shard(self._epoch(), self.shard, self.shards))

    def _epoch(self) -> list[int | SampledView]:
        # Apart for each epoch, which consecutive seeds are not guaranteed to be.
        sequence = np.random.SeedSequence([self.seed, self.epoch, 0])
        self.random.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)
        slides = list(super().__iter__())
        if self.views is None:
            return slides
        # Apart from the random numbers of slides: a sequence that ends in 0 would be that of the slides again.
        generator = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, 0, 1]))
        views = generator.integers(0, self.views[slides], endpoint=True)
        return [SampledView(int(index), int(view)) for index, view in zip(slides, views, strict=True)]
