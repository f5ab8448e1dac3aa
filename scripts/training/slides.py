"""The slides of a training: those to extract, with their augmented views, and those that are left when some failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.datalists.cohort import Cohort
from scripts.datalists.failures import without
from scripts.datalists.units import SLIDE, bags_of
from scripts.training.datasets import training_views, views_of_slides

__all__ = ["TrainingSlides"]

Entries = Sequence[Mapping[str, Any]]


class TrainingSlides:
    """The slides that a training is fed, and those whose features it needs besides.

    Args:
        cohort: knows the labels.
        training: slides to train on, as :meth:`Cohort.partition` or MONAI Label gives them.
        others: slides to validate or evaluate on, without augmented views.
        source: ``"bank"``, or ``"patches"``, which are read from the slides themselves.
        views: augmented views of slides of the rarest classes.
        may_be_empty: whether there need not be both, as where features are only extracted.
        unit: what a bag is, see :func:`scripts.datalists.units.bags_of`.

    Attributes:
        training: the entries to train on, with labels.
        others: the other entries, with labels.
    """

    def __init__(
        self,
        cohort: Cohort,
        training: Entries,
        others: Entries,
        source: str = "bank",
        views: int = 0,
        may_be_empty: bool = False,
        unit: str = SLIDE,
    ) -> None:
        self.training = cohort.entries(training) if training or not may_be_empty else []
        self.others = cohort.entries(others, self.training) if others or not may_be_empty else []
        self.source, self.views, self.unit = source, views, unit
        self._cohort, self._given = cohort, training

    @property
    def datalist(self) -> Path | None:
        """The file that the slides come from; ``None`` where they were handed over."""
        return self._cohort.datalist_of(self._given)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All entries."""
        return [*self.training, *self.others]

    @property
    def views_to_extract(self) -> list[int]:
        """For each of the entries the number of its augmented views."""
        counts = views_of_slides(self.source, self.training, self.views, self.unit)
        return [*counts, *[0] * len(self.others)]

    def training_views(self, left_out: Sequence[str] = ()) -> list[int] | None:
        """For each bag that is trained on, the number of its augmented views; ``None`` without augmentation."""
        return training_views(self.source, self.training, self.views, left_out, self.unit)

    def training_bags(self, left_out: Sequence[str] = ()) -> list[Any]:
        """The entries of the bags to train on, without some slides."""
        return list(bags_of(self.training, self.unit, left_out))

    def training_without(self, left_out: Sequence[str]) -> list[Any]:
        """The entries to train on, without some slides."""
        return list(without(self.training, left_out))

    def others_without(self, left_out: Sequence[str]) -> list[Any]:
        """The other entries, without some slides."""
        return list(without(self.others, left_out))
