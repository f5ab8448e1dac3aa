"""The slides of a comparison: those of one split, or of folds, each of which tests a part of the patients."""

from __future__ import annotations

from scripts.datalists.cohort import Cohort
from scripts.datalists.units import SLIDE
from scripts.experiments.fold_datalists import views_of_folds
from scripts.training.slides import TrainingSlides

__all__ = ["ComparedSlides"]


class ComparedSlides:
    """The slides of a comparison.

    Args:
        cohort: the datalist.
        folds: divide the patients into so many folds, and test each slide once; ``None`` takes one split.
        views: augmented views of bags of the rarest classes.
        unit: what a bag is, see :func:`scripts.datalists.units.bags_of`.

    Attributes:
        split: the folds, or ``None``.
        training: the entries to train on; of folds all.
        testing: the entries to test; of folds all.
        entries: all of them.
        views_to_extract: for each of the entries the number of its augmented views.

    Raises:
        DatalistError: if the datalist cannot be used.
    """

    def __init__(self, cohort: Cohort, folds: int | None = None, views: int = 0, unit: str = SLIDE) -> None:
        self._cohort = cohort
        self.split = None if folds is None else cohort.folds(folds)
        if self.split is not None:
            self.entries = self.training = self.testing = list(self.split.entries)
            self.views_to_extract = views_of_folds(self.split, views, unit)
            return
        self.testing = cohort.partition("testing")
        training, others = cohort.partition("training"), cohort.partition("validation", "testing")
        slides = TrainingSlides(cohort, training, others, views=views, unit=unit)
        self.training, self.entries, self.views_to_extract = slides.training, slides.entries, slides.views_to_extract

    def warn_of_one_sided(self) -> None:
        """Warn of classes that no slide, or every slide, of a partition has."""
        if self.split is None:
            self._cohort.warn_of_one_sided("training", "validation", "testing")
        else:
            self._cohort.warn_of_one_sided_folds(self.split)
