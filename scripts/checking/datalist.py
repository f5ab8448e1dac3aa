"""What is wrong with a datalist, all of it: what stops a run, and what spoils its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.checking.problems import WARNS, Problem
from scripts.datalists.classes import ONE_SIDED_REMEDY, one_sided
from scripts.datalists.datalist import labels_of, understand
from scripts.datalists.labels import label_remedy, output_names, resolve_positive_classes
from scripts.datalists.listed import ListedSlide, Listing, list_file, list_folder, list_slide
from scripts.datalists.partitions import PARTITIONS
from scripts.datalists.patient_warnings import offered_patients, patient_warnings
from scripts.datalists.patients import look_of, one_spelling
from scripts.datalists.units import PATIENT, SLIDE, bags_of, label_problem

__all__ = ["CheckedList", "check_datalist"]


@dataclass(frozen=True)
class CheckedList:
    """A datalist whose problems are known.

    Args:
        listing: what it was read from.
        slides: those that were found and are not left out, each file once. ``label`` and ``partition`` are None
            where they are missing, wrong, or, with a datalist that names no partitions, not known before its other
            faults are mended.
        class_values: 0 or 1 for each class and slide, None where that is not known; as a whole None where labels say
            only high risk or not.
        problems: what is wrong.
        offered: the patient in each slide's name, where the datalist names none and a warning offers these.
    """

    listing: Listing
    slides: list[ListedSlide]
    class_values: list[list[int] | None] | None
    problems: list[Problem]
    offered: list[str | None] = field(default_factory=list)

    @property
    def source(self) -> str:
        """The file or folder, in words."""
        return self.listing.source

    def entries(self) -> list[dict[str, object]]:
        """What the slides are to the rest of the bundle, see :func:`scripts.datalists.datalist.load_datalist`."""
        return [slide.entry(self.listing.folder) for slide in self.slides]


def check_datalist(
    datalist: str | Path | None,
    dataset_dir: str | Path,
    task: str,
    class_names: Sequence[str],
    positive_classes: Sequence[str] | None = None,
    seed: int = 0,
    leave_out: Sequence[str] = (),
    unit: str = SLIDE,
) -> CheckedList:
    """Check a datalist as :func:`scripts.datalists.datalist.load_datalist` reads it, and go on after each problem.

    Args:
        datalist: a JSON or CSV file, or a ``.txt`` file with one slide a line; None for all slides of ``dataset_dir``.
        dataset_dir: the folder that paths start from, or a slide.
        task: as for :func:`scripts.datalists.datalist.load_datalist`, and so the others.
        unit: what a bag of the run will be.

    Raises:
        DatalistError: if ``dataset_dir`` is no folder.
        SettingsError: if ``task``, ``class_names``, ``positive_classes`` or ``leave_out`` are wrong.
    """
    positive = resolve_positive_classes(task, class_names, positive_classes)
    if datalist is None:
        path = Path(dataset_dir).expanduser()
        listing = list_slide(path) if path.is_file() else list_folder(path)
    else:
        labelled = Path(datalist).suffix.lower() != ".txt"
        listing = list_file(Path(datalist).expanduser(), dataset_dir, class_names if labelled else (), labelled)
    listing.leave_out(leave_out)
    rows = [slide.row for slide in listing.slides]
    kept = listing.kept
    class_values = None
    offered: list[str | None] = [None] * len(rows)
    if any(row.label is not None or row.partition is not None for row in rows):
        understand(listing, task, class_names, positive, seed)
        listing.problems += _check_classes(kept, listing.source, output_names(task, class_names, positive))
        listing.problems += [Problem(WARNS, "patient", listing.source, *texts) for texts in patient_warnings(rows)]
        if (problem := label_problem(_patients(kept), task, listing.source, unit)) is not None:
            listing.problems.append(problem)
        offered = offered_patients(rows)
        # Those of the binary task may say no more than 0 or 1.
        own = "multilabel" if task == "binary" else task
        labels, unknown = labels_of(listing.slides, kept, own, class_names, None)
        if task == own or not unknown:
            class_values = [None if label is None else label.astype(int).tolist() for label in labels]
    elif datalist is not None and rows and not any(row.faulty for row in rows):
        what_to_do = f"`inferring` needs none. To train: {label_remedy(class_names, task)}"
        what = "no slide has a label or a partition"
        listing.problems.append(Problem(WARNS, "label", listing.source, what, what_to_do))
    listing.problems += _check_spaces(listing.slides, listing.source)
    of_kept = [
        patient for slide, patient in zip(listing.slides, offered, strict=True) if slide.name not in listing.left_out
    ]
    return CheckedList(listing, kept, class_values, listing.problems, of_kept)


def _check_classes(slides: Sequence[ListedSlide], source: str, names: Sequence[str]) -> list[Problem]:
    """Partitions without slides, and classes that all slides of a partition have, or none."""
    problems = []
    if all(slide.partition is None for slide in slides):
        return []
    for partition in PARTITIONS:
        where = f"{source}, {partition}"
        if all(slide.partition != partition for slide in slides):
            what_to_do = "`training` needs training and validation, `evaluating` the partition that it evaluates."
            problems.append(Problem(WARNS, "partition", where, "no slides", what_to_do, names=(partition,)))
        labels = [s.label for s in slides if s.partition == partition and s.label is not None]
        if what := one_sided(labels, names):
            problems.append(Problem(WARNS, "class", where, what, ONE_SIDED_REMEDY, names=(partition,)))
    return problems


def _patients(slides: Sequence[ListedSlide]) -> list[Mapping[str, object]]:
    """The patients of the slides whose label is known."""
    labelled = [slide for slide in slides if slide.label is not None]
    return bags_of([{"slide": s.name, "patient": s.patient, "label": s.label} for s in labelled], PATIENT)


def _check_spaces(slides: Sequence[ListedSlide], source: str) -> list[Problem]:
    """Patients whose names differ only in spaces, and may be one."""
    spelled: dict[str, dict[str, None]] = {}
    for patient in one_spelling([slide.patient for slide in slides if "patient" in slide.row.fields]):
        spelled.setdefault(look_of("".join(patient.split())), {})[patient] = None
    what_to_do = "If it is one patient, write the name in one way: the slides may be in several partitions."
    return [
        Problem(
            WARNS,
            "patient",
            source,
            f"patients {', '.join(map(repr, names))} differ only in spaces",
            what_to_do,
            names=tuple(names),
        )
        for names in spelled.values()
        if len(names) > 1
    ]
