"""What one bag is: a slide, or all slides of a patient (the setting ``unit``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.utils import CommonKeys
from numpy.typing import NDArray

from scripts.core.errors import DatalistError
from scripts.core.ranks import is_first_rank
from scripts.core.repeats import first_names
from scripts.core.settings import check_settings
from scripts.core.tasks import get_task
from scripts.datalists.failures import without
from scripts.datalists.patients import patients_known, patients_of

__all__ = [
    "PATIENT",
    "SLIDE",
    "bags_of",
    "check_patients",
    "is_patient",
    "slides_in",
    "united_label",
    "warn_of_patients",
]

SLIDE, PATIENT = "slide", "patient"
SLIDES = "slides"

logger = logging.getLogger(__name__)

Entry = Mapping[str, Any]


def bags_of(entries: Sequence[Entry], unit: str = SLIDE, left_out: Sequence[str] = ()) -> list[Entry]:
    """The entries of the bags that slides make.

    Args:
        entries: of a datalist, with ``slide`` and, where they are known, ``patient`` and ``label`` ``[K]``.
        unit: ``"slide"`` or ``"patient"``.
        left_out: names of slides without which the workflow goes on. Neither the order nor the names of the other bags
            depend on them.

    Returns:
        The entries themselves, of which each is a bag; or an entry for each patient, in the order of their first
        slides: ``slide`` and ``patient``, both the patient's name; ``slides``, the entries of the patient's slides; and
        ``label`` (:func:`united_label`) where the slides have one. A slide without a patient is a patient of its own.

    Raises:
        SettingsError: if there is no such unit.
        DatalistError: if there are slides, and none is left.
    """
    check_settings(unit=unit)
    left = without(entries, left_out) if left_out else list(entries)
    if unit == SLIDE:
        return left
    kept = {str(entry["slide"]): entry for entry in left}
    own: dict[str, list[Entry]] = {}
    for slide, patient in patients_of(entries).items():
        own.setdefault(patient, []).extend([kept[slide]] if slide in kept else [])
    return [_bag(patient, slides) for patient, slides in own.items() if slides]


def slides_in(bag: Entry) -> Sequence[Entry]:
    """The entries of the slides of a bag of :func:`bags_of`, in the order of its rows."""
    slides: Sequence[Entry] = bag.get(SLIDES, [bag])
    return slides


def is_patient(bag: Entry) -> bool:
    """Whether the entry of a bag is that of a patient's slides."""
    return SLIDES in bag


def united_label(labels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The label ``[K]`` of a patient: each class that any of the slides, with labels ``[K]`` of 0 and 1, has."""
    return np.max(np.stack([np.asarray(label) for label in labels]), axis=0)


def check_patients(bags: Sequence[Entry], task: str) -> None:
    """Refuse patients whose slides differ in their class, where the task knows one class alone.

    Args:
        bags: of :func:`bags_of`.
        task: one of :data:`scripts.core.tasks.TASKS`.

    Raises:
        DatalistError: if there are such patients.
    """
    if get_task(task).is_exclusive and (differ := _differing(bags)):
        cause = f"slides of {len(differ)} patients have different classes ({first_names(differ)})"
        raise DatalistError("unit patient", cause, f"Give all slides of a patient one class: `task` is {task}.")


def warn_of_patients(bags: Sequence[Entry]) -> None:
    """Warn, on the first rank, where the bags of patients may not be what the user means.

    That is where no slide has a patient, and where slides of one patient differ in their label.
    """
    if not any(map(is_patient, bags)) or not is_first_rank():
        return
    slides = [slide for bag in bags for slide in slides_in(bag)]
    if not patients_known(slides):
        logger.warning(
            "`unit` is patient, and no slide has a patient: each of the %d slides is a bag of its own. Add a column "
            "`patient` to the datalist.",
            len(slides),
        )
    if differ := _differing(bags):
        logger.warning(
            "slides of %d of %d patients have different labels (%s): each of these patients has every class that one "
            "of their slides has. If a label is that of the patient, give it to all of their slides.",
            len(differ),
            len(bags),
            first_names(differ),
        )


def _differing(bags: Sequence[Entry]) -> list[str]:
    """The names of the bags whose slides have different labels."""
    return [str(bag["slide"]) for bag in bags if len({_label_key(slide) for slide in slides_in(bag)}) > 1]


def _bag(patient: str, slides: Sequence[Entry]) -> dict[str, Any]:
    labels = [slide[CommonKeys.LABEL] for slide in slides if CommonKeys.LABEL in slide]
    label = {"label": united_label(labels)} if labels else {}
    return {"slide": patient, PATIENT: patient, SLIDES: list(slides), **label}


def _label_key(slide: Entry) -> tuple[float, ...]:
    return tuple(np.asarray(slide.get(CommonKeys.LABEL, ()), dtype=np.float64).tolist())
