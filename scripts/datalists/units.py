"""What one bag is: a slide, or all slides of a patient (the setting ``unit``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.utils import CommonKeys
from numpy.typing import NDArray

from scripts.core.ranks import is_first_rank
from scripts.core.repeats import first_names
from scripts.core.settings import check_settings
from scripts.core.tasks import get_task
from scripts.datalists.failures import without
from scripts.datalists.patients import patients_known, patients_of
from scripts.datalists.problems import BLOCKS, WARNS, Problem, raise_first

__all__ = [
    "PATIENT",
    "SLIDE",
    "bags_of",
    "check_patients",
    "is_patient",
    "label_problem",
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
    if (problem := label_problem(bags, task, "unit patient")) is not None:
        raise_first([problem])


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
    if (problem := label_problem(bags, "multilabel", "unit patient")) is not None:
        logger.warning("%s. %s", problem.what, problem.what_to_do)


def label_problem(bags: Sequence[Entry], task: str, where: str, unit: str = PATIENT) -> Problem | None:
    """What is wrong where slides of one patient differ in their label; ``None`` where none do.

    With patients as bags it blocks where the task knows one class alone. With slides as bags it may be right.

    Args:
        bags: of patients.
        task: one of :data:`scripts.core.tasks.TASKS`.
        where: the datalist or the setting.
        unit: what a bag is where these slides are used.
    """
    differ = [str(bag["slide"]) for bag in bags if len({_label_key(slide) for slide in slides_in(bag)}) > 1]
    if not differ:
        return None
    severity, names = WARNS, first_names(differ)
    what = f"slides of {len(differ)} of {len(bags)} patients have different labels ({names})"
    remedy = "If a label is that of the patient, give it to all of their slides."
    if unit == PATIENT and get_task(task).is_exclusive:
        severity, what = BLOCKS, f"slides of {len(differ)} patients have different classes ({names})"
        remedy = f"Give all slides of a patient one class: `task` is {task}."
    elif unit == PATIENT:
        what += ": each of these patients has every class that one of their slides has"
    else:
        remedy = f"That is right where each label is that of its slide. {remedy}"
    return Problem(severity, "label", where, what, remedy, names=tuple(differ))


def _bag(patient: str, slides: Sequence[Entry]) -> dict[str, Any]:
    labels = [slide[CommonKeys.LABEL] for slide in slides if CommonKeys.LABEL in slide]
    label = {"label": united_label(labels)} if labels else {}
    return {"slide": patient, PATIENT: patient, SLIDES: list(slides), **label}


def _label_key(slide: Entry) -> tuple[float, ...]:
    return tuple(np.asarray(slide.get(CommonKeys.LABEL, ()), dtype=np.float64).tolist())
