"""What is wrong with a datalist, all of it: lines, labels, partitions, patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scripts.checking.problems import BLOCKS, WARNS, Problem
from scripts.core.errors import DatalistError, SettingsError
from scripts.datalists.classes import ONE_SIDED_REMEDY, one_sided
from scripts.datalists.columns import by_columns, settle_columns
from scripts.datalists.datalist import ListedSlide, entry_of, locate, not_listed, output_names
from scripts.datalists.formats import Fault, Row, read_rows, row_of
from scripts.datalists.keys import composed
from scripts.datalists.labels import label_remedy, label_vector, resolve_positive_classes, uses_indices
from scripts.datalists.partitions import PARTITIONS
from scripts.datalists.patient_warnings import offered_patients, patient_warnings
from scripts.datalists.patients import look_of, one_spelling
from scripts.datalists.slide_files import NAME_IT, SLIDE_SUFFIXES, SlideFolder
from scripts.datalists.split import FRACTIONS, split_patients

__all__ = ["CheckedList", "check_datalist"]


@dataclass(frozen=True)
class CheckedList:
    """A datalist whose problems are known.

    Args:
        source: the file or folder, in words.
        folder: the folder that paths start from.
        slides: those that were found in it and are not left out, each file once. ``label`` and ``partition`` are None
            where they are missing, wrong, or, with a datalist that names no partitions, not known before its other
            faults are mended.
        class_values: 0 or 1 for each class and slide, None where that is not known; as a whole None where labels say no
            more than high risk or not.
        problems: what is wrong.
        offered: the patient in each slide's name, where the datalist names none and a warning tells of these.
    """

    source: str
    folder: SlideFolder
    slides: list[ListedSlide]
    class_values: list[list[int] | None] | None
    problems: list[Problem]
    offered: list[str | None] = field(default_factory=list)

    def entries(self) -> list[dict[str, object]]:
        """What the slides are to the rest of the bundle, as :func:`scripts.datalists.datalist.load_datalist` tells."""
        return [entry_of(slide, self.folder) for slide in self.slides]


def check_datalist(
    datalist: str | Path | None,
    dataset_dir: str | Path,
    task: str,
    class_names: Sequence[str],
    positive_classes: Sequence[str] | None = None,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    leave_out: Sequence[str] = (),
) -> CheckedList:
    """Check a datalist as :func:`scripts.datalists.datalist.load_datalist` reads it, and go on after each problem.

    Args:
        datalist: a JSON or CSV file, or a ``.txt`` file with one slide a line; None for all slides of ``dataset_dir``.
        dataset_dir: the folder that paths start from, or a slide.
        task: ``"multilabel"`` or ``"binary"``.
        class_names: the classes in order.
        positive_classes: as in :func:`scripts.datalists.datalist.load_partition`.
        seed: draws the split of a datalist without partitions.
        fractions: parts of training, validation and testing in that split.
        leave_out: names of slides that no run uses, as in :func:`scripts.datalists.datalist.load_datalist`.

    Raises:
        DatalistError: if ``dataset_dir`` is no folder.
        SettingsError: if ``task``, ``class_names``, ``positive_classes``, ``fractions`` or ``leave_out`` are wrong.
    """
    positive = resolve_positive_classes(task, class_names, positive_classes)
    problems: list[Problem] = []

    def fault(error: DatalistError) -> None:
        problems.append(Problem.of(error, "datalist"))

    source, folder, rows = _rows(datalist, dataset_dir, class_names, fault)
    if not rows and not problems:
        what_to_do = f"Give slides with one of the suffixes {' '.join(SLIDE_SUFFIXES)}, or a datalist of them."
        problems.append(Problem(BLOCKS, "datalist", source, "no slides in it", what_to_do))
    if datalist is None and (not_looked_at := _not_looked_at(dataset_dir, folder)) is not None:
        problems.append(Problem(WARNS, "file", source, f"not all of it is looked at: {not_looked_at}", NAME_IT))
    slides = locate(rows, folder, fault)
    left_out = _left_out(leave_out, slides, source)
    kept = [i for i, slide in enumerate(slides) if slide.name not in left_out]
    class_values = None
    offered: list[str | None] = [None] * len(slides)
    if any(row.label is not None or row.partition is not None for row in rows):
        labels, label_problems = _understand(slides, rows, task, class_names, positive)
        # The split is that of all slides, and needs all labels.
        is_split = all(row.partition is None for row in rows)
        problems += [problem for i, problem in label_problems if is_split or slides[i].name not in left_out]
        for slide, label in zip(slides, labels, strict=True):
            slide.label = label
        problems += _check_partitions(slides, source, seed, fractions, split=not problems)
        problems += _check_classes([slides[i] for i in kept], source, output_names(task, class_names, positive))
        # Of a line with a fault the patient is not known.
        clear = [slide.row for slide in slides if not slide.row.faulty]
        problems += [Problem(WARNS, "patient", source, *texts) for texts in patient_warnings(clear)]
        offered = offered_patients([slide.row for slide in slides])
        each, unknown = _understand(slides, rows, "multilabel", class_names, None)
        if task == "multilabel" or not unknown:
            class_values = [None if label is None else label.astype(int).tolist() for label in each]
            class_values = [class_values[i] for i in kept]
    elif datalist is not None and rows and not any(row.faulty for row in rows):
        what_to_do = f"`inferring` needs none. To train: {label_remedy(class_names)}"
        problems.append(Problem(WARNS, "label", source, "no slide has a label or a partition", what_to_do))
    problems += _check_patients(slides, source)
    of_subject = {slide.row.subject: slide.name for slide in slides}
    named = [Problem(**{**vars(p), "slide": p.slide or of_subject.get(p.where, "")}) for p in problems]
    return CheckedList(source, folder, [slides[i] for i in kept], class_values, named, [offered[i] for i in kept])


def _rows(
    datalist: str | Path | None, dataset_dir: str | Path, class_names: Sequence[str], fault: Fault
) -> tuple[str, SlideFolder, list[Row]]:
    """What is read, in words; the folder that paths start from; the rows."""
    if datalist is None:
        path = Path(dataset_dir).expanduser()
        folder = SlideFolder(path.parent if path.is_file() else path)
        images = [str(path.absolute())] if path.is_file() else folder.slides
        return f"{dataset_dir}", folder, [row_of(image, f"{dataset_dir}", ()) for image in images]
    path, rows = Path(datalist).expanduser(), []
    of_slides_alone = path.suffix.lower() == ".txt"
    try:
        rows = read_rows(path, () if of_slides_alone else class_names, not of_slides_alone, fault)
        rows = settle_columns(rows, fault)
    except DatalistError as error:
        fault(error)
    return f"datalist {datalist}", SlideFolder(dataset_dir), rows


def _not_looked_at(dataset_dir: str | Path, folder: SlideFolder) -> str | None:
    return folder.not_looked_at() if Path(dataset_dir).expanduser().is_dir() else None


def _left_out(leave_out: Sequence[str], slides: Sequence[ListedSlide], source: str) -> set[str]:
    if unknown := not_listed(leave_out, slides):
        cause = f"names {unknown[0]!r}, and {source} has no such slide"
        raise SettingsError("leave_out", cause, "Name slides as slides.csv does.")
    return {composed(name) for name in leave_out}


def _understand(
    slides: Sequence[ListedSlide],
    rows: Sequence[Row],
    task: str,
    class_names: Sequence[str],
    positive_classes: Sequence[str] | None,
) -> tuple[list[np.ndarray | None], list[tuple[int, Problem]]]:
    """The label of each slide; and by a slide's index what is wrong with it, where there is none."""
    indices = uses_indices(row.label for row in rows)
    labels: list[np.ndarray | None] = []
    problems = []
    for i, slide in enumerate(slides):
        label = None
        if not slide.row.faulty:
            try:
                label = label_vector(slide.row.label, task, class_names, positive_classes, indices, slide.row.subject)
            except DatalistError as error:
                problems.append((i, Problem.of(error, "label")))
        labels.append(label)
    return labels, problems


def _check_partitions(
    slides: Sequence[ListedSlide], source: str, seed: int, fractions: Sequence[float], split: bool
) -> list[Problem]:
    """Draw the partitions of a datalist that names none; what is wrong with them."""
    without = [slide for slide in slides if slide.partition is None and not slide.row.faulty]
    if any(slide.partition is not None for slide in slides):
        what_to_do = f"Give every slide one of: {', '.join(PARTITIONS)}; or none, to have them split."
        key = next(slide.row.partition_key for slide in slides)
        what = f"no partition{f' in {key!r}' if key else ''}, though others have one"
        return [Problem(BLOCKS, "partition", s.row.subject, what, what_to_do) for s in without]
    # Of a part of the slides it would be another split than that of all.
    if split and without:
        labels = np.stack([slide.label for slide in slides if slide.label is not None])
        try:
            patients = one_spelling([slide.patient for slide in slides])
            subject = f"{source}{by_columns(slide.row for slide in slides)}"
            drawn = split_patients(patients, labels, seed, fractions, subject)
        except DatalistError as error:
            return [Problem.of(error, "partition")]
        for slide, partition in zip(slides, drawn, strict=True):
            slide.partition = partition
    return []


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


def _check_patients(slides: Sequence[ListedSlide], source: str) -> list[Problem]:
    """Patients in several partitions, and names that may be one patient's."""
    of_patient: dict[str, list[ListedSlide]] = {}
    for patient, slide in zip(one_spelling([slide.patient for slide in slides]), slides, strict=True):
        if "patient" in slide.row.fields:
            of_patient.setdefault(patient, []).append(slide)
    problems = []
    for own in of_patient.values():
        found = [name for name in PARTITIONS if any(slide.partition == name for slide in own)]
        if len(found) > 1:
            example = [next(slide.name for slide in own if slide.partition == name) for name in found]
            places = " and in ".join(f"{f} ({e})" for f, e in zip(found, example, strict=True))
            name = " = ".join(dict.fromkeys(slide.patient for slide in own))
            what = f"patient {name}{by_columns(slide.row for slide in own)} is in {places}"
            what_to_do = "Keep all slides of a patient in one partition, or results are better than they should be."
            problems.append(Problem(BLOCKS, "patient", source, what, what_to_do, names=(name, *example)))
    spelled: dict[str, list[str]] = {}
    for patient in of_patient:
        spelled.setdefault(look_of("".join(patient.split())), []).append(patient)
    for names in spelled.values():
        if len(names) > 1:
            what = f"patients {', '.join(map(repr, names))} differ in spaces alone"
            what_to_do = "If it is one patient, write the name in one way: the slides may be in several partitions."
            problems.append(Problem(WARNS, "patient", source, what, what_to_do, names=tuple(names)))
    return problems
