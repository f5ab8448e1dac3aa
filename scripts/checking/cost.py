"""What `extracting` will cost in time and disk: measured on one slide, estimated for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from scripts.bags.bag import Bag
from scripts.features.encoding import Encoder

__all__ = ["Rate", "bank_bytes", "measure_rate"]

# In a bank, a corner is two float64, the patch of a row int64.
CORNER_BYTES, LINK_BYTES = 16, 8


@dataclass(frozen=True)
class Rate:
    """How fast a bag was read and encoded.

    Args:
        slide: the file's name.
        patches: how many were encoded.
        seconds: how long that took, without the start of the backbone.
    """

    slide: str
    patches: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Patches a second."""
        return self.patches / self.seconds


def measure_rate(encoder: Encoder, bag: Bag, seconds: float = 10.0) -> Rate:
    """Encode a bag, of at least one row, for so many seconds, after a first batch that does not count.

    Raises:
        SlideError: if the slide cannot be read.
        SettingsError: if the runtime cannot compute the backbone.
    """
    _encode(encoder, bag, lambda patches, _: True)
    patches, taken = _encode(encoder, bag, lambda _, passed: passed >= seconds)
    return Rate(bag.slide.path.name, patches, taken)


def bank_bytes(num_patches: Sequence[int], num_rows: int, feature_bytes: int) -> int:
    """The size in bytes of the feature bank of a slide with so many patches at each scale, without HDF5's own 10 kB.

    Args:
        num_patches: of each scale.
        num_rows: of the bag.
        feature_bytes: of the features of a patch.
    """
    patches = sum(num_patches) * (feature_bytes + CORNER_BYTES)
    return patches + num_rows * len(num_patches) * LINK_BYTES


def _encode(encoder: Encoder, bag: Bag, is_enough: Callable[[int, float], bool]) -> tuple[int, float]:
    """Patches that were encoded, and the seconds; ``is_enough`` is asked after each whole batch."""
    start, patches = time.perf_counter(), 0
    with closing(encoder.encode(bag)) as encoded:  # type: ignore[type-var]
        for _, _, numbers, _ in encoded:
            patches += len(numbers)
            passed = time.perf_counter() - start
            if patches % encoder.batch_size == 0 and is_enough(patches, passed):
                break
    return patches, max(passed, 1e-9)
