"""The slides of a datalist or folder: found on disk, named, with all that is wrong with how they are listed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scripts.core.errors import DatalistError, SettingsError
from scripts.datalists.columns import settle_columns, settle_patients
from scripts.datalists.formats import read_rows
from scripts.datalists.keys import composed
from scripts.datalists.problems import BLOCKS, WARNS, Problem
from scripts.datalists.rows import Faults, Row, row_of
from scripts.datalists.slide_files import (
    CHECK_NAME,
    NAME_IT,
    SLIDE_SUFFIXES,
    SlideFolder,
    each_file_once,
    missing_slide,
    real_path,
    slide_names,
)
from scripts.datalists.values import check_mask_excluded, check_mask_tissue, check_mpp
from scripts.slides.dicom_series import may_be_dicom, series_of
from scripts.slides.remote import is_remote

__all__ = ["ListedSlide", "Listing", "list_file", "list_folder", "list_rows", "list_slide", "missing_files"]

T = TypeVar("T")


@dataclass
class ListedSlide:
    """A slide of a datalist, whose file need not exist; see :func:`scripts.datalists.datalist.load_datalist`.

    Args:
        row: as the datalist describes it.
        patient: as given, or the slide's name.
        partition: None before the datalist is split.
        label: 0 or 1, ``[K]``; None before it is understood.
    """

    row: Row
    image: str
    name: str
    patient: str
    mpp: float | None = None
    mask: str | None = None
    mask_tissue: list[int | str] | None = None
    mask_excluded: list[str] | None = None
    regions: str | None = None
    partition: str | None = None
    label: np.ndarray | None = None

    def entry(self, folder: SlideFolder) -> dict[str, Any]:
        """Its entry without the label; paths of the user's own keys start from ``folder``."""
        keys = ("mpp", "mask", "mask_tissue", "mask_excluded", "regions")
        known = {key: getattr(self, key) for key in keys}
        entry = {"image": self.image, "slide": self.name, "patient": self.patient}
        for key, value in self.row.fields.items():
            if key not in (*entry, *known):
                is_file = isinstance(value, str) and os.path.isfile(folder.path(value))
                entry[key] = folder.path(str(value)) if is_file else value  # type: ignore[assignment]
        return entry | {key: value for key, value in known.items() if value is not None}


@dataclass
class Listing:
    """Slides as they are listed, each file once, and what is wrong with the list.

    Args:
        source: the file or folder, in words.
        folder: the folder that paths start from.
        left_out: names of slides that no run uses.
    """

    source: str
    folder: SlideFolder
    slides: list[ListedSlide]
    problems: list[Problem]
    left_out: set[str] = field(default_factory=set)

    @property
    def kept(self) -> list[ListedSlide]:
        """The slides that are not left out."""
        return [slide for slide in self.slides if slide.name not in self.left_out]

    def leave_out(self, names: Sequence[str]) -> None:
        """Leave slides out, which changes nothing else: the split is that of all.

        Raises:
            SettingsError: if it is no list of names, or there is no such slide.
        """
        if isinstance(names, str) or not isinstance(names, Sequence):
            remedy = """Give a list of slides' names, on the command line --leave_out "['a','b']"."""
            raise SettingsError("leave_out", f"got {names!r}", remedy)
        self.left_out = {composed(str(name)) for name in names}
        unknown = self.left_out.difference(slide.name for slide in self.slides)
        # A slide may be missing because of another problem.
        if unknown and not any(problem.blocks for problem in self.problems):
            cause = f"names {min(unknown)!r}, and {self.source} has no such slide"
            remedy = "Name slides as predictions.csv, slides.csv and the feature bank do."
            raise SettingsError("leave_out", cause, remedy)


def list_file(
    path: Path,
    dataset_dir: str | Path | None,
    class_names: Sequence[str] = (),
    labelled: bool = True,
    with_patients: bool = True,
) -> Listing:
    """The slides of a datalist. Raises a DatalistError if ``dataset_dir`` is no folder.

    Without labels, columns that name the patient need only agree ``with_patients``.
    """
    faults: Faults = []
    rows: list[Row] = []
    start = path.parent if dataset_dir is None else dataset_dir
    try:
        rows = read_rows(path, class_names, faults, labelled)
        if not rows and not faults:
            faults.append(
                DatalistError(f"datalist {path}", "no slides in it", "Add a line or an entry for each slide.")
            )
        if labelled:
            rows = settle_columns(rows, faults)
        elif with_patients:
            rows = settle_patients(rows, faults)
    except DatalistError as error:
        if not os.path.isdir(start):
            raise
        faults.append(error)
    return list_rows(f"datalist {path}", rows, SlideFolder(start), faults)


def list_folder(path: str | Path) -> Listing:
    """The slides of a folder and its subfolders. Raises a DatalistError if it is no folder."""
    faults: Faults = []
    folder, source = SlideFolder(path), f"folder {path}"
    rows = [row_of(slide, source, faults) for slide in each_file_once(folder.slides)]
    listing = list_rows(source, rows, folder, faults)
    left = folder.not_looked_at()
    if rows and left:
        listing.problems.append(Problem(WARNS, "file", source, f"not all of it is looked at: {left}", NAME_IT))
    elif not rows:
        cause, remedy = (f": {left}", NAME_IT) if left else ("", f"Known are: {' '.join(SLIDE_SUFFIXES)}.")
        listing.problems.append(Problem(BLOCKS, "file", source, f"no slides{cause}", remedy))
    return listing


def list_slide(path: str | Path) -> Listing:
    """One slide, by its path or address."""
    faults: Faults = []
    if is_remote(path):
        return list_rows("the slide", [row_of(path, "dataset_dir", faults)], SlideFolder(os.curdir), faults)
    path = os.path.abspath(path)
    return list_rows(f"slide {path}", [row_of(path, "slides", faults)], SlideFolder(os.path.dirname(path)), faults)


def list_rows(source: str, rows: Sequence[Row | None], folder: SlideFolder, faults: Faults) -> Listing:
    """Find the files of rows, whose paths start from ``folder``, and name the slides."""
    row_of_image = _find([row for row in rows if row is not None], folder, faults)
    wanted = [str(row.fields["slide"]) if "slide" in row.fields else None for row in row_of_image.values()]
    names = slide_names(list(row_of_image), folder.folder, wanted)

    def understood(check: Callable[[Any, str], T], row: Row, key: str) -> T | None:
        try:
            return check(row.fields.get(key), row.subject)
        except DatalistError as error:
            faults.append(error)
            return None

    slides = []
    for (image, row), name in zip(row_of_image.items(), names, strict=True):
        # A slide without a patient counts as a patient of its own.
        slide = ListedSlide(row, image, name, " ".join(str(row.fields.get("patient", name)).split()))
        slide.mask, slide.regions = (
            folder.path(str(row.fields[key])) if key in row.fields else None for key in ("mask", "regions")
        )
        slide.mpp, slide.partition = understood(check_mpp, row, "mpp"), row.partition
        for key, check in (("mask_tissue", check_mask_tissue), ("mask_excluded", check_mask_excluded)):
            found = understood(lambda value, subject, of=check: of(value, subject, DatalistError), row, key)  # type: ignore[misc]
            setattr(slide, key, None if found is None else list(found))
        slides.append(slide)
    name_of = {slide.row.subject: slide.name for slide in slides}
    problems = [Problem.of(error, "datalist", slide=name_of.get(str(error.subject), "")) for error in faults]
    return Listing(source, folder, slides, problems)


def _find(rows: Sequence[Row], folder: SlideFolder, faults: Faults) -> dict[str, Row]:
    """The row of each file, the first one where a slide is listed again."""
    row_of_image: dict[str, Row] = {}
    image_of_file: dict[str, str] = {}
    image_of_series: dict[str, str] = {}
    for row in rows:
        cause, remedy = "", "List each slide once."
        try:
            path = folder.find(row.image)
        except DatalistError as error:
            faults.append(error)
            continue
        if (other := row_of_image.get(path)) is not None:
            is_same = other.image == row.image or not may_be_dicom(path)
            cause = f"{'' if is_same else 'of the same DICOM series, '}also listed at {other.subject}"
        elif (image := image_of_series.setdefault(series_of(path) or path, path)) != path:
            cause = f"the DICOM series of {path} has files in {os.path.dirname(image)}, too"
            remedy = "Put all files of the series in one folder; list it once."
        elif not is_remote(path) and (image := image_of_file.setdefault(real_path(path), path)) != path:
            cause = f"is the same file as {image}, by a link"
        if cause:
            faults.append(DatalistError(row.subject, cause, remedy))
        else:
            row_of_image[path] = row
    return row_of_image


def missing_files(slides: Sequence[ListedSlide], keys: Sequence[str], need_slides: bool = True) -> Iterator[Problem]:
    """The slides, unless these need not be there, and of their files those under ``keys``, that are not there."""
    for slide in slides:
        if need_slides and not is_remote(slide.image) and not os.path.isfile(slide.image):
            yield Problem(BLOCKS, "file", slide.row.subject, *missing_slide(slide.image), slide.name)
        for key in keys:
            file = getattr(slide, key)
            if file is not None and not os.path.isfile(file):
                yield Problem(BLOCKS, "file", slide.row.subject, f"no {key} {file!r}", CHECK_NAME, slide.name)
