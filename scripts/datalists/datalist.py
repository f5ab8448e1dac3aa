"""Datalists as workflows load them: which slides there are, their labels and their partitions."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import DatalistError
from scripts.core.ranks import is_first_rank
from scripts.core.repeats import Repeats
from scripts.datalists.columns import by_columns
from scripts.datalists.labels import (
    CLASS_NAMES,
    label_vector,
    resolve_positive_classes,
    uses_indices,
)
from scripts.datalists.listed import (
    ListedSlide,
    Listing,
    list_file,
    list_folder,
    list_rows,
    list_slide,
    missing_files,
)
from scripts.datalists.partitions import PARTITIONS, partition_or_none
from scripts.datalists.patient_warnings import patient_warnings
from scripts.datalists.patients import one_spelling
from scripts.datalists.problems import BLOCKS, Problem, raise_first
from scripts.datalists.rows import Faults, row_of
from scripts.datalists.slide_files import SlideFolder, as_on_disk, without_suffix
from scripts.datalists.split import split_patients
from scripts.datalists.units import SLIDE
from scripts.slides.remote import is_remote

__all__ = [
    "entries_of",
    "labels_of",
    "list_labels",
    "list_slides",
    "load_datalist",
    "load_partition",
    "understand",
]

logger = logging.getLogger(__name__)
_repeats = Repeats()

LIST_SUFFIXES = (".json", ".csv", ".txt", ".tsv")


def load_datalist(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    seed: int = 0,
    positive_classes: Sequence[str] | None = None,
    leave_out: Sequence[str] = (),
    need_files: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Load a datalist.

    Args:
        datalist: a JSON file ``{"training": [{"image": ..., "label": [...]}, ...], "validation": ...}``, a
            CSV file with a header (``image``, a column for each class or ``label``, and optionally
            ``partition``, ``patient``, ``mpp``, ``mask``, ``mask_tissue``, ``regions``, ``sha256``), or one without
            (``id, cancer, hgd, lgd, hyperplastic, normal``). An image is a path, or the name without its suffix of a
            slide anywhere in ``dataset_dir``. A datalist without partitions is split here, by patient.
        dataset_dir: the folder that paths start from, by default the datalist's.
        task: one of :data:`scripts.core.tasks.TASKS`.
        class_names: the classes in order.
        seed: of the split of a datalist without partitions.
        positive_classes: those that count as 1 in the binary task, see
            :func:`scripts.datalists.labels.resolve_positive_classes`.
        leave_out: names of slides of the datalist that are not used; the split is that of all.
        need_files: whether the files of slides and masks have to be there.

    Returns:
        The partitions by name, empty ones left out, with a dictionary for each slide: ``image``, absolute path;
        ``label``, float32 of shape ``[K]``, 0 or 1; ``slide``, a unique name that is safe in file names; where any
        slide has one ``patient``, of the others the slide's name; where given ``mpp``, micrometres per pixel at full
        resolution, ``mask`` and ``regions``, absolute paths, ``mask_tissue`` and ``mask_excluded``, lists, and
        ``sha256``; and the user's own keys, with paths of existing files made absolute.

    Raises:
        DatalistError: if the datalist or an entry cannot be used.
        SettingsError: if ``task``, ``class_names``, ``positive_classes`` or ``leave_out`` are wrong.
    """
    listing = _read(datalist, dataset_dir, task, class_names, seed, positive_classes, leave_out)
    entries = entries_of(listing, listing.kept, need_files)
    partitions: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTITIONS}
    for slide, entry in zip(listing.kept, entries, strict=True):
        partitions[str(slide.partition)].append(entry)
    return {name: part for name, part in partitions.items() if part}


def load_partition(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    partition: str,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    need_files: bool = True,
    **options: Any,
) -> list[dict[str, Any]]:
    """Load one partition as :func:`load_datalist` does. Slides of the others need no file here, and no label.

    Args:
        partition: ``"training"``, ``"validation"`` or ``"testing"``.
        need_files: see :func:`load_datalist`.
        options: ``seed``, ``positive_classes`` and ``leave_out``.

    Raises:
        DatalistError: also if it has no slides.
    """
    wanted = partition_or_none(partition)
    if wanted is None:
        raise DatalistError("partition", f"unknown partition {partition!r}", f"Use one of: {', '.join(PARTITIONS)}.")
    listing = _read(datalist, dataset_dir, task, class_names, **options, partition=wanted)
    slides = [slide for slide in listing.kept if slide.partition == wanted]
    if not slides:
        found = ", ".join(name for name in PARTITIONS if any(slide.partition == name for slide in listing.kept))
        remedy = f"Add slides to {wanted}, or leave all partitions out to have the slides split."
        raise DatalistError(listing.source, f"no slides for {wanted} (it has: {found})", remedy)
    return entries_of(listing, slides, need_files)


def list_labels(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    partition: str,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    **options: Any,
) -> list[dict[str, Any]]:
    """``slide`` and ``label`` ``[K]`` of each slide of a partition, none of whose files need be here.

    Takes and raises what :func:`load_partition` does; returns an empty list if the datalist has no such partition.
    """
    options.pop("need_files", None)
    listing = _read(datalist, dataset_dir, task, class_names, **options, partition=partition)
    return [{"slide": slide.name, "label": slide.label} for slide in listing.kept if slide.partition == partition]


def list_slides(
    source: str | Path | Sequence[str | Path | dict[str, Any]],
    dataset_dir: str | Path | None = None,
    need_files: bool = True,
    unit: str = SLIDE,
) -> list[dict[str, Any]]:
    """List slides without labels, for prediction.

    Args:
        source: a folder with slides (in subfolders, too), a slide, a list of slides (JSON, CSV, or ``.txt``
            with one a line; of labels and partitions nothing is used), or a Python list of paths or entries.
        dataset_dir: the folder that paths in a list start from, by default that of the list, for a Python
            list the working directory.
        need_files: see :func:`load_datalist`.
        unit: with ``"patient"`` what names the patient is used as well.

    Returns:
        A dictionary for each slide: ``image``, ``slide`` and, where given, ``mpp``, ``mask``, ``mask_tissue``,
        ``mask_excluded`` and ``sha256``, and perhaps ``patient``, as in :func:`load_datalist`.

    Raises:
        DatalistError: if there is no slide, or one cannot be used.
    """
    if not isinstance(source, str | Path):
        faults: Faults = []
        rows = [row_of(item, f"slides[{i}]", faults) for i, item in enumerate(source)]
        if not rows:
            raise DatalistError("the list of slides", "no slides in it", "Name at least one slide.")
        listing = list_rows("the list of slides", rows, SlideFolder(dataset_dir or "."), faults)
    else:
        path = as_on_disk(os.path.expanduser(source))
        if is_remote(source):
            listing = list_slide(source)
        elif os.path.isdir(path):
            listing = list_folder(path)
        elif _is_slide(path):
            listing = list_slide(path)
        else:
            listing = list_file(Path(path), dataset_dir, labelled=False, with_patients=unit != SLIDE)
    raise_first([*listing.problems, *(missing_files(listing.slides, ("mask",)) if need_files else ())])
    for problem in listing.problems:
        logger.warning("%s: %s. %s", problem.where, problem.what, problem.what_to_do)
    keys = ["image", "slide", "mpp", "mask", "mask_tissue", "mask_excluded", "sha256"]
    if unit != SLIDE and any("patient" in slide.row.fields for slide in listing.slides):
        keys.append("patient")
    entries = [slide.entry(listing.folder) for slide in listing.slides]
    return [{key: entry[key] for key in keys if key in entry} for entry in entries]


def _is_slide(path: str) -> bool:
    """Whether a file is to be opened as a slide, whatever its name, and not read as a list of slides."""
    if path != without_suffix(path) or path.lower().endswith(LIST_SUFFIXES) or not os.path.isfile(path):
        return path != without_suffix(path)
    with open(path, "rb") as file:
        return b"\0" in file.read(1024)


def _read(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    task: str,
    class_names: Sequence[str],
    seed: int = 0,
    positive_classes: Sequence[str] | None = None,
    leave_out: Sequence[str] = (),
    partition: str | None = None,
) -> Listing:
    positive = resolve_positive_classes(task, class_names, positive_classes)
    path = Path(datalist).expanduser()
    listing = list_file(path, dataset_dir, class_names)
    listing.leave_out(leave_out)
    understand(listing, task, class_names, positive, seed, partition)
    raise_first(listing.problems)
    rows = [slide.row for slide in listing.slides]
    is_split = all(row.partition is None for row in rows)
    if is_split:
        _log_split(path, listing.slides, seed)
    elif key := rows[0].partition_key:
        _log_once(f"{path}: the partitions are those of {key!r}")
    if by := by_columns(rows):
        _log_once(f"{path}: each slide's patient is known{by}")
    # Missing patients matter only to a split. One patient under two names matters to given partitions, too.
    for what, remedy in patient_warnings(rows, is_split):
        _log_once(f"{path}: {what}. {remedy}", logging.WARNING)
    return listing


def understand(
    listing: Listing,
    task: str,
    class_names: Sequence[str],
    positive_classes: Sequence[str] | None,
    seed: int = 0,
    partition: str | None = None,
) -> None:
    """Understand the labels and partitions of a datalist; split it, if it names none and nothing is wrong with it.

    Args:
        listing: the datalist, whose slides get ``label`` and ``partition``, and whose problems are added.
        positive_classes: resolved.
        partition: the one whose labels are needed, by default all. A split needs those of all slides.

    Raises:
        SettingsError: if the positive classes are needed and not known, or the seed is none.
    """
    slides, problems = listing.slides, listing.problems
    is_split = all(slide.row.partition is None for slide in slides)
    needed = slides if is_split else [s for s in listing.kept if partition in (None, s.partition)]
    labels, label_problems = labels_of(slides, needed, task, class_names, positive_classes)
    problems += label_problems
    for slide, label in zip(needed, labels, strict=True):
        slide.label = label
    patients = one_spelling([slide.patient for slide in slides])
    if not is_split:
        key = next(slide.row.partition_key for slide in slides)
        what = f"no partition{f' in {key!r}' if key else ''}, though others have one"
        remedy = f"Give every slide one of: {', '.join(PARTITIONS)}; or none, to have them split."
        unknown = [slide for slide in slides if slide.partition is None and not slide.row.faulty]
        problems += [Problem(BLOCKS, "partition", s.row.subject, what, remedy, s.name) for s in unknown]
    elif slides and not any(problem.blocks for problem in problems):
        subject = f"{listing.source}{by_columns(slide.row for slide in slides)}"
        try:
            split = split_patients(patients, np.stack([s.label for s in slides if s.label is not None]), seed, subject)
        except DatalistError as error:
            problems.append(Problem.of(error, "partition"))
        else:
            for slide, own in zip(slides, split, strict=True):
                slide.partition = own
    of_patient: dict[str, list[ListedSlide]] = {}
    for patient, slide in zip(patients, slides, strict=True):
        if "patient" in slide.row.fields:
            of_patient.setdefault(patient, []).append(slide)
    crossing = [own for own in of_patient.values() if len({slide.partition for slide in own} - {None}) > 1]
    problems += [_crossing(own, listing.source) for own in crossing]


def labels_of(
    slides: Sequence[ListedSlide],
    needed: Sequence[ListedSlide],
    task: str,
    class_names: Sequence[str],
    positive_classes: Sequence[str] | None,
) -> tuple[list[np.ndarray | None], list[Problem]]:
    """The labels of the slides that are needed, None for those that cannot be understood; and what is wrong with these.

    All slides of the datalist decide together whether numbers are class indices.
    """
    indices = uses_indices(slide.row.label for slide in slides)
    labels: list[np.ndarray | None] = []
    problems = []
    for slide in needed:
        row, label = slide.row, None
        if not row.faulty:
            try:
                label = label_vector(row.label, task, class_names, positive_classes, indices, row.subject)
            except DatalistError as error:
                problems.append(Problem.of(error, "label", slide=slide.name))
        labels.append(label)
    return labels, problems


def _crossing(slides: Sequence[ListedSlide], source: str) -> Problem:
    """The problem of a patient whose slides are in several partitions."""
    example = {name: s.name for name in PARTITIONS for s in reversed(slides) if s.partition == name}
    patient = " = ".join(dict.fromkeys(slide.patient for slide in slides))
    places = " and in ".join(f"{partition} ({name})" for partition, name in example.items())
    what = f"patient {patient}{by_columns(slide.row for slide in slides)} is in {places}"
    remedy = "Keep all slides of a patient in one partition, or the results are optimistically biased."
    return Problem(BLOCKS, "patient", source, what, remedy, names=(patient, *example.values()))


def entries_of(listing: Listing, slides: Sequence[ListedSlide], need_files: bool) -> list[dict[str, Any]]:
    """The entries of slides of a datalist, see :func:`load_datalist`; raises what it does."""
    raise_first(missing_files(slides, ("mask", "regions") if need_files else ("regions",), need_files))
    entries = [{**slide.entry(listing.folder), "label": slide.label} for slide in slides]
    if any("patient" in slide.row.fields for slide in listing.slides):
        return entries
    return [{key: value for key, value in entry.items() if key != "patient"} for entry in entries]


def _log_split(path: Path, slides: Sequence[ListedSlide], seed: int) -> None:
    known = any("patient" in slide.row.fields for slide in slides)
    parts = []
    for name in PARTITIONS:
        patients = [slide.patient.casefold() for slide in slides if slide.partition == name]
        of_patients = f" of {len(set(patients))} patients" if known else ""
        parts.append(f"{name} {len(patients)} slides{of_patients}")
    unit = "patient" if known else "slide"
    _log_once(f"{path} names no partitions; split by {unit} with seed {seed}: {', '.join(parts)}")


def _log_once(message: str, level: int = logging.INFO) -> None:
    # Each partition is loaded by itself, and all of them see the same split.
    if level == logging.INFO or is_first_rank():
        _repeats.log_once(logger, level, message)
