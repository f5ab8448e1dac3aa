"""Datalists: which slides there are, their labels and their partitions."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import DatalistError, SettingsError
from scripts.core.ranks import is_first_rank
from scripts.core.repeats import Repeats, first_names
from scripts.datalists.columns import by_columns, settle_columns
from scripts.datalists.formats import Fault, Row, raised, read_rows, row_of
from scripts.datalists.keys import composed
from scripts.datalists.labels import (
    CLASS_NAMES,
    POSITIVE_CLASSES,
    label_vector,
    output_names,
    resolve_positive_classes,
    uses_indices,
)
from scripts.datalists.mask_tissue import check_mask_tissue
from scripts.datalists.partitions import PARTITIONS, partition_named
from scripts.datalists.patient_warnings import patient_warnings
from scripts.datalists.patients import one_spelling
from scripts.datalists.slide_files import (
    NAME_IT,
    SLIDE_SUFFIXES,
    SlideFolder,
    as_on_disk,
    each_file_once,
    real_path,
    slide_names,
    without_suffix,
)
from scripts.datalists.split import FRACTIONS, split_patients
from scripts.slides.dicom_series import may_be_dicom, series_of

__all__ = [
    "CLASS_NAMES",
    "PARTITIONS",
    "POSITIVE_CLASSES",
    "ListedSlide",
    "entry_of",
    "list_labels",
    "list_slides",
    "load_datalist",
    "load_partition",
    "locate",
    "not_listed",
    "num_classes",
    "output_names",
    "resolve_positive_classes",
]

logger = logging.getLogger(__name__)
_repeats = Repeats()

LIST_SUFFIXES = (".json", ".csv", ".txt", ".tsv")
SHOWN_PATIENTS = 3


def num_classes(task: str, class_names: Sequence[str] = CLASS_NAMES) -> int:
    """The number of logits of each output, K: one for each class, or one in the binary task."""
    return len(output_names(task, class_names))


def load_partition(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    partition: str,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    seed: int = 0,
    positive_classes: Sequence[str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    leave_out: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Load one partition of a datalist. Slides of the others need no file here, and no label.

    Args:
        datalist: a JSON file ``{"training": [{"image": ..., "label": [...]}, ...], "validation": ...}``, a
            CSV file with a header (``image``, a column for each class or ``label``, and optionally
            ``partition``, ``patient``, ``mpp``, ``mask``, ``mask_tissue``, ``regions``, ``sha256``), or one without
            (``id, cancer, hgd, lgd, hyperplastic, normal``). An image is a path, or the name without its suffix of a
            slide anywhere in ``dataset_dir``. A datalist without partitions is split here, by patient.
        dataset_dir: the folder that paths start from, by default the datalist's.
        partition: ``"training"``, ``"validation"`` or ``"testing"``.
        task: ``"multilabel"`` or ``"binary"``.
        class_names: the classes in order.
        seed: draws the split of a datalist without partitions.
        positive_classes: those that count as 1 in the binary task, see
            :func:`scripts.datalists.labels.resolve_positive_classes`.
        fractions: parts of training, validation and testing in that split.
        leave_out: names of slides of the datalist that are not used; the split is that of all.

    Returns:
        A dictionary for each slide: ``image``, absolute path; ``label``, float32 of shape ``[K]``, 0 or 1;
        ``slide``, a unique name that is safe in file names; where any slide has one ``patient``, of the others the
        slide's name; where given ``mpp``, micrometres per pixel at full resolution, ``mask`` and ``regions``, absolute
        paths, ``mask_tissue``, a list of whole numbers, and ``sha256``; and the user's own keys, with paths of
        existing files made absolute.

    Raises:
        DatalistError: if the datalist, or an entry of this partition, cannot be used.
        SettingsError: if ``task``, ``class_names``, ``positive_classes`` or ``fractions`` are wrong.
    """
    sheet = _read(datalist, dataset_dir, task, class_names, positive_classes, seed, fractions, leave_out)
    wanted = partition_named(partition, "partition")
    slides = [slide for slide in sheet.slides if slide.partition == wanted]
    if not slides:
        found = ", ".join(name for name in PARTITIONS if any(s.partition == name for s in sheet.slides))
        raise DatalistError(
            f"datalist {datalist}",
            f"no slides for {wanted} (it has: {found})",
            f"Add slides to {wanted}, or leave all partitions out to have the slides split.",
        )
    return _entries(sheet, slides)


def list_labels(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    partition: str,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    seed: int = 0,
    leave_out: Sequence[str] = (),
    positive_classes: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The names and labels of a partition, none of whose files need be here.

    Args:
        datalist: as for :func:`load_partition`, and so the others.

    Returns:
        ``slide`` and ``label`` ``[K]`` of each slide; none if the datalist has no such partition.

    Raises:
        DatalistError: if the datalist, or a label of this partition, cannot be understood.
    """
    sheet = _read(datalist, dataset_dir, task, class_names, positive_classes, seed, FRACTIONS, leave_out)
    slides = [slide for slide in sheet.slides if slide.partition == partition]
    return [{"slide": slide.name, "label": sheet.label(slide)} for slide in slides]


def load_datalist(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    seed: int = 0,
    positive_classes: Sequence[str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    leave_out: Sequence[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Load a datalist: its partitions by name, as :func:`load_partition` gives them, empty ones left out."""
    sheet = _read(datalist, dataset_dir, task, class_names, positive_classes, seed, fractions, leave_out)
    entries = _entries(sheet, sheet.slides)
    partitions: dict[str, list[dict[str, Any]]] = {}
    for name in PARTITIONS:
        chosen = [entry for entry, s in zip(entries, sheet.slides, strict=True) if s.partition == name]
        if chosen:
            partitions[name] = chosen
    return partitions


def list_slides(
    source: str | Path | Sequence[str | Path | dict[str, Any]], dataset_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """List slides without labels, for prediction.

    Args:
        source: a folder with slides (in subfolders, too), a slide, a list of slides (JSON, CSV, or ``.txt``
            with one a line; of labels and partitions nothing is used), or a Python list of paths or entries.
        dataset_dir: the folder that paths in a list start from, by default that of the list, for a Python
            list the working directory.

    Returns:
        A dictionary for each slide: ``image``, ``slide`` and, where given, ``mpp``, ``mask``, ``mask_tissue`` and
        ``sha256``, as in :func:`load_partition`.

    Raises:
        DatalistError: if there is no slide, or one cannot be used.
    """
    path = as_on_disk(os.path.expanduser(source)) if isinstance(source, str | Path) else ""
    if not isinstance(source, str | Path):
        rows = [row_of(item, f"slides[{i}]", ()) for i, item in enumerate(source)]
        folder, subject = SlideFolder(dataset_dir or "."), "the list of slides"
    elif os.path.isdir(path):
        folder, subject = SlideFolder(path), f"folder {source}"
        rows = [row_of(slide, subject, ()) for slide in each_file_once(folder.slides)]
        if rows and (left := folder.not_looked_at()) is not None:
            logger.warning("%s: not all of it was looked at: %s. %s", subject, left, NAME_IT)
    elif _is_slide(path):
        rows, subject = [row_of(os.path.abspath(path), "slides", ())], f"slide {source}"
        folder = SlideFolder(os.path.dirname(os.path.abspath(path)))
    else:
        rows, subject = read_rows(Path(path), (), labelled=False), f"datalist {source}"
        folder = SlideFolder(dataset_dir or Path(path).parent)
    if not rows:
        remedy = f"Known are: {' '.join(SLIDE_SUFFIXES)}."
        left = folder.not_looked_at() if os.path.isdir(path) else None
        raise DatalistError(subject, *((f"no slides: {left}", NAME_IT) if left else ("no slides", remedy)))
    slides = locate(rows, folder)
    _check_files(slides, ("mask",))
    keys = ("image", "slide", "mpp", "mask", "mask_tissue", "sha256")
    return [{key: entry[key] for key in keys if key in entry} for entry in (entry_of(s, folder) for s in slides)]


@dataclass
class ListedSlide:
    """A slide of a datalist, before anybody has looked at its file or understood its label.

    Args:
        row: as the datalist describes it.
        image: absolute path, of a file that need not exist.
        name: unique, and safe in file names.
        patient: as given, or the slide's name.
        mpp: micrometres per pixel at full resolution, where given.
        mask: absolute path, where given.
        mask_tissue: the values of the mask that are tissue, where given.
        regions: absolute path, where given.
        partition: one of :data:`PARTITIONS`, or None.
        label: 0 or 1, ``[K]``, once it is understood.
    """

    row: Row
    image: str
    name: str
    patient: str
    mpp: float | None
    mask: str | None
    regions: str | None
    partition: str | None
    label: np.ndarray | None = None
    mask_tissue: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Sheet:
    slides: list[ListedSlide]
    folder: SlideFolder
    task: str
    class_names: Sequence[str]
    positive_classes: Sequence[str] | None
    indices: bool

    def label(self, slide: ListedSlide) -> np.ndarray:
        return label_vector(
            slide.row.label, self.task, self.class_names, self.positive_classes, self.indices, slide.row.subject
        )


def _read(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    task: str,
    class_names: Sequence[str],
    positive_classes: Sequence[str] | None,
    seed: int,
    fractions: Sequence[float],
    leave_out: Sequence[str],
) -> _Sheet:
    positive = resolve_positive_classes(task, class_names, positive_classes)
    path = Path(datalist).expanduser()
    rows = settle_columns(read_rows(path, class_names))
    if not rows:
        raise DatalistError(f"datalist {path}", "no slides in it", "Add a line or an entry for each slide.")
    folder = SlideFolder(dataset_dir or path.parent)
    slides = locate(rows, folder)
    sheet = _Sheet(slides, folder, task, class_names, positive, uses_indices(row.label for row in rows))
    without = [slide for slide in slides if slide.partition is None]
    if without and len(without) < len(slides):
        remedy = f"Give every slide one of: {', '.join(PARTITIONS)}; or none, to have them split."
        key = next(slide.row.partition_key for slide in slides)
        cause = f"no partition{f' in {key!r}' if key else ''}, though others have one"
        raise DatalistError(without[0].row.subject, cause, remedy)
    if without:
        labels = np.stack([sheet.label(slide) for slide in slides])
        subject = f"datalist {path}{by_columns(slide.row for slide in slides)}"
        split = split_patients(one_spelling([slide.patient for slide in slides]), labels, seed, fractions, subject)
        for slide, partition in zip(slides, split, strict=True):
            slide.partition = partition
        _log_split(path, slides, seed)
    elif key := slides[0].row.partition_key:
        _log_once(f"{path}: the partitions are those of {key!r}")
    if by := by_columns(rows):
        _log_once(f"{path}: each slide's patient is known{by}")
    # What leaves patients open matters to a split; one patient under two names, to given partitions, too.
    for what, remedy in patient_warnings(rows, is_split=bool(without)):
        _log_once(f"{path}: {what}. {remedy}", logging.WARNING)
    _check_patients(path, slides)
    _check_left_out(path, slides, leave_out)
    left_out = {composed(name) for name in leave_out}
    return replace(sheet, slides=[slide for slide in slides if slide.name not in left_out])


def locate(rows: Sequence[Row], folder: SlideFolder, fault: Fault = raised) -> list[ListedSlide]:
    """Find the files of a datalist's rows, and name the slides.

    Args:
        rows: as :func:`scripts.datalists.formats.read_rows` gives them.
        folder: the folder that paths start from.
        fault: called with the error of each row whose slide is ambiguous, listed before or a DICOM series in two
            folders, which is then left out, and of each whose ``mpp`` or ``mask_tissue`` is none, which is then kept
            without.
    """
    row_of_image: dict[str, Row] = {}
    image_of_file: dict[str, str] = {}
    image_of_series: dict[str, str] = {}
    for row in rows:
        try:
            path = folder.find(row.image)
            if path in row_of_image:
                other = row_of_image[path]
                is_same = other.image == row.image or not may_be_dicom(path)
                cause = f"{'' if is_same else 'of the same DICOM series, '}also listed at {other.subject}"
                raise DatalistError(row.subject, cause, "List each slide once.")
            series = series_of(path) or path
            if (other_image := image_of_series.setdefault(series, path)) != path:
                cause = f"the DICOM series of {path} has files in {os.path.dirname(other_image)}, too"
                raise DatalistError(row.subject, cause, "Put all files of the series in one folder; list it once.")
            if (other_image := image_of_file.setdefault(real_path(path), path)) != path:
                cause = f"is the same file as {other_image}, by a link"
                raise DatalistError(row.subject, cause, "List each slide once.")
        except DatalistError as error:
            fault(error)
        else:
            row_of_image[path] = row
    wanted = [str(row.fields["slide"]) if "slide" in row.fields else None for row in row_of_image.values()]
    names = slide_names(list(row_of_image), folder.folder, wanted)
    slides = []
    for (image, row), name in zip(row_of_image.items(), names, strict=True):
        # A slide without a patient counts as a patient of its own.
        patient = " ".join(str(row.fields.get("patient", name)).split())
        mask, regions = (folder.path(str(row.fields[k])) if k in row.fields else None for k in ("mask", "regions"))
        try:
            mpp = _mpp(row)
        except DatalistError as error:
            fault(error)
            mpp = None
        try:
            mask_tissue = check_mask_tissue(row.fields.get("mask_tissue"), row.subject, DatalistError)
        except DatalistError as error:
            fault(error)
            mask_tissue = None
        slides.append(
            ListedSlide(row, image, name, patient, mpp, mask, regions, row.partition, mask_tissue=mask_tissue)
        )
    return slides


def _mpp(row: Row) -> float | None:
    value = row.fields.get("mpp")
    if value is None:
        return None
    try:
        # Python reads 0_5 as 5.
        mpp = float(value) if isinstance(value, str | int | float) and "_" not in str(value) else math.nan
    except (ValueError, OverflowError):
        mpp = math.nan
    if isinstance(value, bool) or not math.isfinite(mpp) or mpp <= 0:
        remedy = "Give micrometres per pixel at full resolution, for example 0.25, or leave it out."
        raise DatalistError(row.subject, f"mpp is {value!r}, not a positive number", remedy)
    return mpp


def _check_patients(path: Path, slides: Sequence[ListedSlide]) -> None:
    of_patient: dict[str, list[ListedSlide]] = {}
    for patient, slide in zip(one_spelling([slide.patient for slide in slides]), slides, strict=True):
        if "patient" in slide.row.fields:
            of_patient.setdefault(patient, []).append(slide)
    crossing = [own for own in of_patient.values() if len({slide.partition for slide in own}) > 1]
    if crossing:
        shown = [
            f"{' = '.join(dict.fromkeys(slide.patient for slide in own))} "
            f"({', '.join(name for name in PARTITIONS if any(slide.partition == name for slide in own))})"
            for own in crossing
        ]
        raise DatalistError(
            f"datalist {path}",
            f"{len(crossing)} of {len(of_patient)} patients in more than one partition"
            f"{by_columns(s.row for own in crossing for s in own)}: "
            f"{first_names(shown, shown=SHOWN_PATIENTS)}",
            "Keep all slides of a patient in one partition, or results are better than they should be.",
        )


def _check_left_out(path: Path, slides: Sequence[ListedSlide], leave_out: Sequence[str]) -> None:
    if unknown := not_listed(leave_out, slides):
        cause = f"has no slide {unknown[0]!r}, which `leave_out` names"
        raise DatalistError(f"datalist {path}", cause, "Name slides as predictions.csv and the feature bank do.")


def not_listed(leave_out: Sequence[str], slides: Sequence[ListedSlide]) -> list[str]:
    """The names in ``leave_out`` that are of no slide.

    Raises:
        SettingsError: if it is no list.
    """
    if isinstance(leave_out, str) or not isinstance(leave_out, Sequence):
        remedy = """Give a list of slides' names, on the command line --leave_out "['a','b']"."""
        raise SettingsError("leave_out", f"got {leave_out!r}", remedy)
    listed = {slide.name for slide in slides}
    return [name for name in leave_out if not isinstance(name, str) or composed(name) not in listed]


def _is_slide(path: str) -> bool:
    """Whether a file is to be opened as a slide, whatever its name, and not read as a list of slides."""
    if path != without_suffix(path) or path.lower().endswith(LIST_SUFFIXES) or not os.path.isfile(path):
        return path != without_suffix(path)
    with open(path, "rb") as file:
        return b"\0" in file.read(1024)


def _check_files(slides: Sequence[ListedSlide], keys: Sequence[str]) -> None:
    remedy = "Check the name, and dataset_dir: the folder that paths start from."
    missing = [slide for slide in slides if not os.path.isfile(slide.image)]
    if missing:
        path = missing[0].image
        suffixes = f" with a suffix like {', '.join(SLIDE_SUFFIXES)}" if path == without_suffix(path) else ""
        more = f", and {len(missing) - 1} more slides are missing" if len(missing) > 1 else ""
        target = f", which {path} links to" if os.path.islink(path) else ""
        raise DatalistError(
            missing[0].row.subject,
            f"no file {os.readlink(path) if target else path}{target}{suffixes}{more}",
            remedy,
        )
    for slide in slides:
        for key in keys:
            file = getattr(slide, key)
            if file is not None and not os.path.isfile(file):
                raise DatalistError(slide.row.subject, f"no {key} {file!r}", remedy)


def _entries(sheet: _Sheet, slides: Sequence[ListedSlide]) -> list[dict[str, Any]]:
    labels = [sheet.label(slide) for slide in slides]
    _check_files(slides, ("mask", "regions"))
    entries = [{**entry_of(slide, sheet.folder), "label": label} for slide, label in zip(slides, labels, strict=True)]
    if not any("patient" in slide.row.fields for slide in sheet.slides):
        for entry in entries:
            del entry["patient"]
    return entries


def entry_of(slide: ListedSlide, folder: SlideFolder) -> dict[str, Any]:
    """What a slide is to the rest of the bundle, without its label: see :func:`load_partition`."""
    entry: dict[str, Any] = {"image": slide.image, "slide": slide.name, "patient": slide.patient}
    if slide.mpp is not None:
        entry["mpp"] = slide.mpp
    if slide.mask is not None:
        entry["mask"] = slide.mask
    if slide.mask_tissue is not None:
        entry["mask_tissue"] = list(slide.mask_tissue)
    if slide.regions is not None:
        entry["regions"] = slide.regions
    for key, value in slide.row.fields.items():
        if key not in ("slide", "patient", "mpp", "mask", "mask_tissue", "regions"):
            is_file = isinstance(value, str) and os.path.isfile(folder.path(value))
            entry[key] = folder.path(value) if is_file and isinstance(value, str) else value
    return entry


def _log_split(path: Path, slides: Sequence[ListedSlide], seed: int) -> None:
    count = Counter(slide.partition for slide in slides)
    patients = {name: len({s.patient.casefold() for s in slides if s.partition == name}) for name in PARTITIONS}
    known = any("patient" in slide.row.fields for slide in slides)
    of_patients = {name: f" of {patients[name]} patients" if known else "" for name in PARTITIONS}
    parts = [f"{name} {count[name]} slides{of_patients[name]}" for name in PARTITIONS if count[name]]
    unit = "patient" if known else "slide"
    _log_once(f"{path} names no partitions; split by {unit} with seed {seed}: {', '.join(parts)}")


def _log_once(message: str, level: int = logging.INFO) -> None:
    # Each partition is loaded by itself, and all of them see the same split.
    if level == logging.INFO or is_first_rank():
        _repeats.log_once(logger, level, message)
