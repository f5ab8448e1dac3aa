"""Patients to predict: their slides one by one, and all of these as one bag."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scripts.datalists.failures import FailedSlides, PassingSlides
from scripts.datalists.units import SLIDE, bags_of, slides_in, warn_of_patients
from scripts.slides.staging import SlideStaging
from scripts.training.joined_slides import join_slides

__all__ = ["PassingPatients", "passing_bags"]

logger = logging.getLogger(__name__)


class PassingPatients(PassingSlides):
    """The bags of patients, each the slides' bags joined (:func:`scripts.training.joined_slides.join_slides`).

    A patient of whom a slide fails is left out, with a warning: a prediction of the other slides could miss what that
    one shows.

    Args:
        data: the slides' entries.
        transform: makes the bag of a slide; raises as that of :class:`scripts.datalists.failures.PassingSlides`.
        failures: records the slides that fail, once it is started.
        staging: as there; all slides of a patient are copied together.
    """

    what = "patient"

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable,
        failures: FailedSlides,
        staging: SlideStaging | None = None,
    ) -> None:
        bags = bags_of(data, "patient")
        warn_of_patients(bags)
        super().__init__(bags, transform, failures, staging)

    def _slides(self, entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        return slides_in(entry)

    def _pass(self, entry: Mapping[str, Any]) -> Any:
        slides = slides_in(entry)
        # All are tried, so that one run names every slide that fails.
        made = [super(PassingPatients, self)._pass(slide) for slide in slides]
        failed = [str(slide["slide"]) for slide, item in zip(slides, made, strict=True) if item is None]
        if failed:
            logger.warning(
                "patient %s is not predicted: %s of %d slides failed (%s). Mend these, or take them out of the list.",
                entry["slide"], len(failed), len(slides), ", ".join(failed),
            )  # fmt: skip
            return None
        return {**join_slides(made), "slide": entry["slide"]}


def passing_bags(
    data: Sequence[Mapping[str, Any]],
    transform: Callable,
    failures: FailedSlides,
    unit: str = SLIDE,
    staging: SlideStaging | None = None,
) -> PassingSlides:
    """The bags of slides, or of patients, one by one without those that fail; arguments as :class:`PassingPatients`."""
    return (PassingSlides if unit == SLIDE else PassingPatients)(data, transform, failures, staging)
