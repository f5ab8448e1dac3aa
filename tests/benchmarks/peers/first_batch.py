"""When an extraction of ours has its first features; a config file that is laid over extract.json names it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.bags.bag import Bag
from scripts.features.encoding import Encoded, Encoder, PatchTransform

__all__ = ["noting_first_batch"]


def noting_first_batch(encoder: Encoder, path: str) -> Encoder:
    """The encoder, which from now on writes to ``path`` when it first has features, in seconds since the epoch."""
    encode, file = encoder.encode, Path(path)

    def noting(bag: Bag, transforms: Sequence[PatchTransform | None] = (None,)) -> Iterator[Encoded]:
        for encoded in encode(bag, transforms):
            if not file.exists():
                file.write_text(repr(time.time()), encoding="utf-8")
            yield encoded

    encoder.encode = noting  # type: ignore[method-assign]
    return encoder
