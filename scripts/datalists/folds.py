"""The slides of a datalist in folds: each slide is tested once, by a network that has seen no slide of its patient."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import DatalistError
from scripts.core.ranks import is_first_rank
from scripts.core.repeats import first_names
from scripts.core.setting_checks import number
from scripts.datalists.columns import by_columns
from scripts.datalists.datalist import entries_of, labels_of
from scripts.datalists.keys import OPTIONAL_KEYS
from scripts.datalists.labels import resolve_positive_classes
from scripts.datalists.listed import ListedSlide, list_file
from scripts.datalists.partitions import PARTITIONS
from scripts.datalists.patient_warnings import patient_warnings
from scripts.datalists.patients import one_spelling
from scripts.datalists.problems import raise_first
from scripts.datalists.split import fold_patients
from scripts.slides.checksums import given_sha256

__all__ = ["Folds", "load_folds", "refuse_twice"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folds:
    """The labelled slides of a datalist, in folds.

    Args:
        slides: all ``n`` of them, in the datalist's order.
        entries: of those that are not left out, see :func:`scripts.datalists.datalist.load_datalist`.
        partitions: for each fold the partition of each of the ``n`` slides.
    """

    slides: Sequence[ListedSlide]
    entries: Sequence[dict[str, Any]]
    partitions: Sequence[list[str]]

    def part(self, fold: int, partition: str) -> list[dict[str, Any]]:
        """The entries of a partition of a fold, counted from 0."""
        own = dict(zip((slide.name for slide in self.slides), self.partitions[fold], strict=True))
        return [entry for entry in self.entries if own[entry["slide"]] == partition]

    def parts(self, *partitions: str) -> dict[str, list[dict[str, Any]]]:
        """The entries of some partitions of every fold, by fold and partition in words."""
        folds = range(len(self.partitions))
        return {f"fold {fold + 1} {name}": self.part(fold, name) for fold in folds for name in partitions}

    def datalist(self, fold: int) -> str:
        """The datalist of a fold as JSON: all slides with what the bundle reads of them, in the fold's partitions."""
        lists: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTITIONS}
        for slide, partition in zip(self.slides, self.partitions[fold], strict=True):
            row = slide.row
            known = {key: row.fields[key] for key in OPTIONAL_KEYS if key in row.fields}
            lists[partition].append({"image": row.image, "slide": slide.name, "label": row.label, **known})
        return json.dumps(lists, indent=1) + "\n"


def load_folds(
    datalist: str | Path,
    dataset_dir: str | Path | None,
    folds: int,
    task: str,
    class_names: Sequence[str],
    seed: int = 0,
    positive_classes: Sequence[str] | None = None,
    leave_out: Sequence[str] = (),
    need_files: bool = True,
) -> Folds:
    """Load a datalist for cross-validation, whatever partitions it names. Slides without a label are not used.

    Args:
        datalist: see :func:`scripts.datalists.datalist.load_datalist`, and so the others.
        folds: how many.

    Raises:
        DatalistError: if the datalist or an entry cannot be used, there are too few patients, or two slides have the
            same ``sha256``.
        SettingsError: if ``folds``, ``task``, ``class_names``, ``positive_classes`` or ``leave_out`` are wrong.
    """
    number(2, 10**4)("folds", folds)
    positive = resolve_positive_classes(task, class_names, positive_classes)
    path = Path(datalist).expanduser()
    listing = list_file(path, dataset_dir, class_names)
    listing.leave_out(leave_out)
    raise_first(listing.problems)
    unlabelled = [slide.name for slide in listing.slides if slide.row.label is None]
    slides = listing.slides = [slide for slide in listing.slides if slide.row.label is not None]
    if not slides:
        raise DatalistError(listing.source, "no slide has a label", "Add labels; `inferring` needs none.")
    labels, problems = labels_of(slides, slides, task, class_names, positive)
    raise_first(problems)
    known = [label for label in labels if label is not None]
    for slide, label in zip(slides, known, strict=True):
        slide.label = label
    entries = entries_of(listing, listing.kept, need_files)
    refuse_twice({entry["slide"]: given_sha256(entry) for entry in entries})
    rows = [slide.row for slide in slides]
    patients = one_spelling([slide.patient for slide in slides])
    partitions = fold_patients(patients, np.stack(known), folds, seed, f"{listing.source}{by_columns(rows)}")
    if is_first_rank():
        if any(row.partition is not None for row in rows):
            logger.warning("%s: its partitions are not used: in cross-validation each slide is tested once", path)
        if unlabelled:
            names = first_names(unlabelled)
            logger.warning("%s: %d slides have no label and are not used: %s", path, len(unlabelled), names)
        for what, remedy in patient_warnings([replace(row, partition=None) for row in rows]):
            logger.warning("%s: %s. %s", path, what, remedy)
        known_patients = len(set(patients)) if any("patient" in row.fields for row in rows) else None
        cohort = f"{len(slides)} slides" + (f" of {known_patients} patients" if known_patients else "")
        sizes = ", ".join(str(fold.count("testing")) for fold in partitions)
        logger.info("%s: %s in %d folds with seed %d, of which each tests: %s", path, cohort, folds, seed, sizes)
    return Folds(slides, entries, partitions)


def refuse_twice(sha256: Mapping[str, str | None]) -> None:
    """Refuse a slide under two names: in two folds it would be trained on where it is tested.

    Args:
        sha256: by the slide's name, the checksum of its file; ``None`` where it is not known.

    Raises:
        DatalistError: if two are the same.
    """
    first: dict[str, str] = {}
    for name, of_slide in sha256.items():
        if of_slide is not None and (other := first.setdefault(of_slide, name)) != name:
            cause = f"is the same slide as {other} under another name (both files have the SHA-256 {of_slide[:12]}...)"
            remedy = "Keep one of the two, or name one in `leave_out`: else it may be trained on where it is tested."
            raise DatalistError(f"slide {name}", cause, remedy)
