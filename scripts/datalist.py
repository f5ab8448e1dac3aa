"""Datalists: which slides there are, their labels and their partitions."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.datalist_formats import PARTITIONS, Row, partition_named, read_rows, row_of
from scripts.datalist_labels import CLASS_NAMES, HIGH_RISK, check_class_names, check_task, label_vector, uses_indices
from scripts.datalist_split import FRACTIONS, split_patients
from scripts.errors import DatalistError
from scripts.slide_files import SLIDE_SUFFIXES, SlideFolder, slide_names, without_suffix

__all__ = [
    "CLASS_NAMES",
    "HIGH_RISK",
    "PARTITIONS",
    "list_slides",
    "load_datalist",
    "load_partition",
    "num_classes",
    "output_names",
]

logger = logging.getLogger(__name__)


def num_classes(task: str, class_names: Sequence[str] = CLASS_NAMES) -> int:
    """The number of logits of each output, K."""
    return len(output_names(task, class_names))


def output_names(task: str, class_names: Sequence[str] = CLASS_NAMES) -> list[str]:
    """What each logit stands for: the classes, or ``["high_risk"]`` in the binary task."""
    check_task(task)
    check_class_names(class_names)
    return ["high_risk"] if task == "binary" else list(class_names)


def load_partition(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    partition: str,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    seed: int = 0,
    high_risk: Sequence[str] = HIGH_RISK,
    fractions: Sequence[float] = FRACTIONS,
) -> list[dict[str, Any]]:
    """Load one partition of a datalist. Slides of the others need no file here, and no label.

    Args:
        datalist: a JSON file ``{"training": [{"image": ..., "label": [...]}, ...], "validation": ...}``, a
            CSV file with a header (``image``, a column for each class or ``label``, and optionally
            ``partition``, ``patient``, ``mpp``, ``mask``), or one without (``id, cancer, hgd, lgd,
            hyperplastic, normal``). An image is a path, or the name without its suffix of a slide anywhere in
            ``dataset_dir``. A datalist without partitions is split here, by patient.
        dataset_dir: the folder that paths start from, by default the datalist's.
        partition: ``"training"``, ``"validation"`` or ``"testing"``.
        task: ``"multilabel"`` or ``"binary"``.
        class_names: the classes in order.
        seed: draws the split of a datalist without partitions.
        high_risk: the classes that count as 1 in the binary task.
        fractions: parts of training, validation and testing in that split.

    Returns:
        A dictionary for each slide: ``image``, absolute path; ``label``, float32 of shape ``[K]``, 0 or 1;
        ``slide``, a unique name that is safe in file names; ``patient``, the slide's name where none is
        given; where given ``mpp``, micrometres per pixel at full resolution, and ``mask``, absolute path; and
        the user's own keys, with paths of existing files made absolute.

    Raises:
        DatalistError: if the datalist, or an entry of this partition, cannot be used.
        SettingsError: if ``task``, ``high_risk`` or ``fractions`` are wrong.
    """
    sheet = _read(datalist, dataset_dir, task, class_names, high_risk, seed, fractions)
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


def load_datalist(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    seed: int = 0,
    high_risk: Sequence[str] = HIGH_RISK,
    fractions: Sequence[float] = FRACTIONS,
) -> dict[str, list[dict[str, Any]]]:
    """Load a datalist: its partitions by name, as :func:`load_partition` gives them, empty ones left out."""
    sheet = _read(datalist, dataset_dir, task, class_names, high_risk, seed, fractions)
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
        A dictionary for each slide: ``image``, ``slide`` and, where given, ``mpp`` and ``mask``, as in
        :func:`load_partition`.

    Raises:
        DatalistError: if there is no slide, or one cannot be used.
    """
    if not isinstance(source, str | Path):
        rows = [row_of(item, f"slides[{i}]", ()) for i, item in enumerate(source)]
        folder, subject = SlideFolder(dataset_dir or "."), "the list of slides"
    elif os.path.isdir(path := os.path.expanduser(source)):
        folder, subject = SlideFolder(path), f"folder {source}"
        rows = [row_of(slide, subject, ()) for slide in folder.slides]
    elif path != without_suffix(path):
        rows, subject = [row_of(os.path.abspath(path), "slides", ())], f"slide {source}"
        folder = SlideFolder(os.path.dirname(os.path.abspath(path)))
    else:
        rows, subject = read_rows(Path(path), (), labelled=False), f"datalist {source}"
        folder = SlideFolder(dataset_dir or Path(path).parent)
    if not rows:
        remedy = f"Known are: {' '.join(SLIDE_SUFFIXES)}."
        raise DatalistError(subject, "no slides", remedy)
    slides = _locate(rows, folder)
    _check_files(slides)
    keys = ("image", "slide", "mpp", "mask")
    return [{key: entry[key] for key in keys if key in entry} for entry in (_entry(s, folder) for s in slides)]


@dataclass
class _Slide:
    row: Row
    image: str
    name: str
    patient: str
    mpp: float | None
    mask: str | None
    partition: str | None
    label: np.ndarray | None = None


@dataclass(frozen=True)
class _Sheet:
    slides: list[_Slide]
    folder: SlideFolder
    task: str
    class_names: Sequence[str]
    high_risk: Sequence[str]
    indices: bool

    def label(self, slide: _Slide) -> np.ndarray:
        return label_vector(
            slide.row.label, self.task, self.class_names, self.high_risk, self.indices, slide.row.subject
        )


def _read(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    task: str,
    class_names: Sequence[str],
    high_risk: Sequence[str],
    seed: int,
    fractions: Sequence[float],
) -> _Sheet:
    check_task(task)
    check_class_names(class_names)
    path = Path(datalist).expanduser()
    rows = read_rows(path, class_names)
    if not rows:
        raise DatalistError(f"datalist {path}", "no slides in it", "Add a line or an entry for each slide.")
    folder = SlideFolder(dataset_dir or path.parent)
    slides = _locate(rows, folder)
    sheet = _Sheet(slides, folder, task, class_names, high_risk, uses_indices(row.label for row in rows))
    without = [slide for slide in slides if slide.partition is None]
    if without and len(without) < len(slides):
        remedy = f"Give every slide one of: {', '.join(PARTITIONS)}; or none, to have them split."
        raise DatalistError(without[0].row.subject, "no partition, though others have one", remedy)
    if without:
        labels = np.stack([sheet.label(slide) for slide in slides])
        subject = f"datalist {path}"
        split = split_patients([slide.patient for slide in slides], labels, seed, fractions, subject)
        for slide, partition in zip(slides, split, strict=True):
            slide.partition = partition
        _log_split(path, slides, seed)
    _check_patients(path, slides)
    return sheet


def _locate(rows: Sequence[Row], folder: SlideFolder) -> list[_Slide]:
    paths = [folder.find(row.image) for row in rows]
    first: dict[str, Row] = {}
    for row, path in zip(rows, paths, strict=True):
        if path in first:
            raise DatalistError(row.subject, f"also listed at {first[path].subject}", "List each slide once.")
        first[path] = row
    wanted = [str(row.fields["slide"]) if "slide" in row.fields else None for row in rows]
    names = slide_names(paths, folder.folder, wanted)
    slides = []
    for row, image, name in zip(rows, paths, names, strict=True):
        # A slide without a patient counts as a patient of its own.
        patient = " ".join(str(row.fields.get("patient", name)).split())
        mask = folder.path(str(row.fields["mask"])) if "mask" in row.fields else None
        slides.append(_Slide(row, image, name, patient, _mpp(row), mask, row.partition))
    return slides


def _mpp(row: Row) -> float | None:
    value = row.fields.get("mpp")
    if value is None:
        return None
    try:
        mpp = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        mpp = math.nan
    if isinstance(value, bool) or not math.isfinite(mpp) or mpp <= 0:
        remedy = "Give micrometres per pixel at full resolution, for example 0.25, or leave it out."
        raise DatalistError(row.subject, f"mpp is {value!r}, not a positive number", remedy)
    return mpp


def _check_patients(path: Path, slides: Sequence[_Slide]) -> None:
    partitions: dict[str, set[str | None]] = {}
    for slide in slides:
        if "patient" in slide.row.fields:
            partitions.setdefault(slide.patient, set()).add(slide.partition)
    crossing = {patient: found for patient, found in partitions.items() if len(found) > 1}
    if crossing:
        shown = [
            f"{patient} ({', '.join(name for name in PARTITIONS if name in found)})"
            for patient, found in list(crossing.items())[:3]
        ]
        more = f" and {len(crossing) - 3} more" if len(crossing) > 3 else ""
        raise DatalistError(
            f"datalist {path}",
            f"patients in more than one partition: {', '.join(shown)}{more}",
            "Keep all slides of a patient in one partition, or results are better than they should be.",
        )


def _check_files(slides: Sequence[_Slide]) -> None:
    remedy = "Check the name, and dataset_dir: the folder that paths start from."
    missing = [slide for slide in slides if not os.path.isfile(slide.image)]
    if missing:
        path = missing[0].image
        suffixes = f" with a suffix like {', '.join(SLIDE_SUFFIXES)}" if path == without_suffix(path) else ""
        more = f", and {len(missing) - 1} more slides are missing" if len(missing) > 1 else ""
        raise DatalistError(missing[0].row.subject, f"no file {path}{suffixes}{more}", remedy)
    for slide in slides:
        if slide.mask is not None and not os.path.isfile(slide.mask):
            raise DatalistError(slide.row.subject, f"no mask {slide.mask!r}", remedy)


def _entries(sheet: _Sheet, slides: Sequence[_Slide]) -> list[dict[str, Any]]:
    labels = [sheet.label(slide) for slide in slides]
    _check_files(slides)
    return [{**_entry(slide, sheet.folder), "label": label} for slide, label in zip(slides, labels, strict=True)]


def _entry(slide: _Slide, folder: SlideFolder) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": slide.image, "slide": slide.name, "patient": slide.patient}
    if slide.mpp is not None:
        entry["mpp"] = slide.mpp
    if slide.mask is not None:
        entry["mask"] = slide.mask
    for key, value in slide.row.fields.items():
        if key not in ("slide", "patient", "mpp", "mask"):
            is_file = isinstance(value, str) and os.path.isfile(folder.path(value))
            entry[key] = folder.path(value) if is_file and isinstance(value, str) else value
    return entry


def _log_split(path: Path, slides: Sequence[_Slide], seed: int) -> None:
    count = Counter(slide.partition for slide in slides)
    patients = {name: len({s.patient for s in slides if s.partition == name}) for name in PARTITIONS}
    parts = [f"{name} {count[name]} slides of {patients[name]} patients" for name in PARTITIONS if count[name]]
    _log_once(f"{path} names no partitions; split by patient with seed {seed}: {', '.join(parts)}")


@functools.cache
def _log_once(message: str) -> None:
    # Each partition is loaded by itself, and all of them see the same split.
    logger.info(message)
