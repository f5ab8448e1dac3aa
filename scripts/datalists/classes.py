"""Classes that all slides of a partition have, or none of them: nothing can be learned or measured of these."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.ranks import is_first_rank

__all__ = ["ONE_SIDED_REMEDY", "one_sided", "warn_of_one_sided"]

ONE_SIDED_REMEDY = "Such a class cannot be learned or measured there: add slides, or choose other partitions."

logger = logging.getLogger(__name__)


def one_sided(labels: Sequence[NDArray[Any]], names: Sequence[str]) -> str:
    """The classes that every slide has, or none, in words; empty if there are none.

    Args:
        labels: of each slide, 0 or 1, ``[K]``.
        names: what the K outputs stand for.
    """
    if not labels:
        return ""
    share = np.mean(labels, axis=0)  # [K]
    none = [name for name, of_class in zip(names, share, strict=True) if of_class == 0]
    every = [name for name, of_class in zip(names, share, strict=True) if of_class == 1]
    parts = [f"no slide has {', '.join(none)}"] if none else []
    parts += [f"every slide has {', '.join(every)}"] if every else []
    return "; ".join(parts)


def warn_of_one_sided(names: Sequence[str], **partitions: Sequence[Mapping[str, Any]]) -> None:
    """Warn of such classes, in one line for all partitions, on the first rank.

    Args:
        names: what the K outputs stand for.
        partitions: by name, the entries of a datalist with ``label`` ``[K]``.
    """
    found = {name: one_sided([entry["label"] for entry in data], names) for name, data in partitions.items()}
    parts = [f"{name}: {text}" for name, text in found.items() if text]
    if parts and is_first_rank():
        logger.warning("%s. %s", "; ".join(parts), ONE_SIDED_REMEDY)
