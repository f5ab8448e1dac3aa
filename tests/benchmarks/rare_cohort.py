"""A synthetic cohort whose classes are rare: most slides have normal glands and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scripts.synthetic.cohort import CLASSES, SlidePlan

__all__ = ["RARE_FRACTIONS", "plan_rare_cohort"]

# The fraction of slides with each class, the same in every partition. Normal glands are in the rest, and
RARE_FRACTIONS = {"cancer": 0.08, "hgd": 0.1, "lgd": 0.2, "hyperplastic": 0.1}
# in this fraction of the slides that have one or two of these classes.
NORMAL_BESIDE = 0.5
MOST_CLASSES = 3
# As in the cohort of `make demo`, one patient in ten has a second slide.
SECOND_SLIDE_FRACTION = 0.1


def plan_rare_cohort(num_slides: Mapping[str, int], seed: int = 0) -> list[SlidePlan]:
    """Labels and patients of a cohort whose classes are rare.

    Args:
        num_slides: of each partition.
        seed: of everything that is random.
    """
    rng = np.random.default_rng(seed)
    plans: list[SlidePlan] = []
    first = 0
    for partition, number in num_slides.items():
        labels = _sample_labels(number, rng)
        seconds = round(number * SECOND_SLIDE_FRACTION)
        owners = rng.choice(number - seconds, seconds, replace=False)
        patients = first + np.concatenate([np.arange(number - seconds), owners])
        first += number - seconds
        plans += [
            SlidePlan(f"rare_{len(plans) + i:03d}", partition, f"P{patients[i]:03d}", tuple(labels[i].tolist()))
            for i in range(number)
        ]
    return plans


def _sample_labels(number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``[number, 5]`` of 0 and 1, one to three classes a slide; the rare classes are independent of each other."""
    labels = np.zeros((number, len(CLASSES)), np.int64)
    while True:
        for name, fraction in RARE_FRACTIONS.items():
            labels[:, CLASSES.index(name)] = rng.permutation(number) < round(fraction * number)
        others = labels.sum(axis=1)
        if others.max(initial=0) <= MOST_CLASSES:
            break
    beside = (others < MOST_CLASSES) & (rng.random(number) < NORMAL_BESIDE)
    labels[:, CLASSES.index("normal")] = (others == 0) | beside
    return labels
