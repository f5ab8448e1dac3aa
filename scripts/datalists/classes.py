"""How classes are spread over slides: which are in all of them or none, and what weight balances them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.core.ranks import is_first_rank
from scripts.datalists.units import SLIDE, bags_of

__all__ = ["FOLDS_REMEDY", "ONE_SIDED_REMEDY", "balanced_weights", "one_sided", "warn_of_one_sided"]

ONE_SIDED_REMEDY = "Such a class cannot be learned or measured there: add slides, or choose other partitions."
FOLDS_REMEDY = "Such a class cannot be learned or measured there: add slides, or choose another `split_seed`."

logger = logging.getLogger(__name__)


def balanced_weights(labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """The weight of each slide: the inverse of its class's frequency.

    A slide of several classes gets the sum over its classes, a slide of none counts as a class of its own. A
    binary label has two classes, 0 and 1.

    Args:
        labels: ``[n, K]`` of 0 and 1.

    Returns:
        ``[n]``, each greater than 0, summing to 1.
    """
    labels = np.asarray(labels, dtype=np.float64)
    none = (labels.sum(axis=1, keepdims=True) == 0).astype(np.float64)
    classes = np.concatenate([labels, none], axis=1)
    counts = classes.sum(axis=0)
    weights = classes @ np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    return weights / weights.sum()


def one_sided(labels: Sequence[NDArray[Any]], names: Sequence[str], unit: str = SLIDE) -> str:
    """The classes that every slide, or patient, has, or none, in words; empty if there are none.

    Args:
        labels: of the slides, or of the patients, ``[K]`` of 0 and 1 each.
        names: of the classes.
        unit: what the labels are of: ``"slide"`` or ``"patient"``.
    """
    if not labels:
        return ""
    fraction = np.mean(labels, axis=0)  # [K]
    found = [
        (text, [name for name, of_class in zip(names, fraction, strict=True) if of_class == value])
        for value, text in ((0, f"no {unit} has"), (1, f"every {unit} has"))
    ]
    return "; ".join(f"{text} {', '.join(classes)}" for text, classes in found if classes)


def warn_of_one_sided(
    names: Sequence[str],
    partitions: Mapping[str, Sequence[Mapping[str, Any]]],
    remedy: str = ONE_SIDED_REMEDY,
    unit: str = SLIDE,
) -> None:
    """Warn of such classes, in one line for all partitions, on the first rank.

    Args:
        names: of the classes.
        partitions: the entries of each, by name.
        remedy: the next step.
        unit: what a bag is, see :func:`scripts.datalists.units.bags_of`.
    """
    found = {
        name: one_sided([bag["label"] for bag in bags_of(data, unit)], names, unit) for name, data in partitions.items()
    }
    parts = [f"{name}: {text}" for name, text in found.items() if text]
    if parts and is_first_rank():
        logger.warning("%s. %s", "; ".join(parts), remedy)
