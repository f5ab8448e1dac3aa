"""How much each slide weighs where classes are to be balanced."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["balanced_weights"]


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
