"""What a DICOM series lacks: OpenSlide shows the levels that it can read, and says nothing of the others."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.core.repeats import first_names
from scripts.slides.dicom_series import folder_files, instance_of, is_dicom, may_be_dicom

__all__ = ["Gaps", "series_gaps"]

# Names that nothing but an instance has; others, such as README, are one only if they begin as one.
NAMES = re.compile(r".*\.(dcm|dicom)|[0-9]+(\.[0-9]+)+", re.IGNORECASE | re.DOTALL)


class Gaps(NamedTuple):
    """What is missing of a series.

    Args:
        fault: for which it is not to be read, and what to do.
        doubt: what may be missing of one that can be read, and what to do.
    """

    fault: tuple[str, str] | None = None
    doubt: tuple[str, str] | None = None


def series_gaps(path: str | Path) -> Gaps:
    """What is missing of the DICOM slide that a file is a part of.

    A file that cannot be read is a fault where all else in the folder is of one slide, and a doubt where it may be of
    another. A series of resampled levels alone may be all that somebody wanted: it has a true resolution.

    Raises:
        OSError: if the folder cannot be read.
    """
    own = instance_of(path)
    # Before the others are asked: the folder of a slide that is not DICOM may hold thousands.
    if own is None or not own.series:
        return Gaps()
    of_file = {file: instance_of(file) for file in folder_files(path)}
    levels = [instance for instance in of_file.values() if instance is not None and instance.is_level]
    unread = _named([file for file, instance in of_file.items() if instance is None and _should_be_dicom(file)])
    if unread and all(level.series == own.series for level in levels):
        cause = f"is a DICOM series whose folder has files that cannot be read as DICOM: {unread}"
        return Gaps((cause, "They may be levels of the slide: copy them again, or move them to another folder."))
    if unread:
        cause = f"its folder has files that cannot be read as DICOM, perhaps levels of it: {unread}"
        return Gaps(None, (cause, "Copy them again, or move them to another folder."))
    if levels and all(level.is_resampled for level in levels if level.series == own.series):
        cause = "each of its levels says that it was resampled from a finer one, which is not there"
        return Gaps(None, (cause, "Copy the whole series, if finer levels are wanted."))
    return Gaps()


def _should_be_dicom(file: str) -> bool:
    name = os.path.basename(file)
    if name.startswith("."):  # macOS leaves files like ._a.dcm beside a.dcm
        return False
    try:
        return NAMES.fullmatch(name) is not None or (may_be_dicom(file) and is_dicom(file))
    except OSError:
        return True


def _named(files: Sequence[str]) -> str:
    return first_names([f"{os.path.basename(file)}{_why(file)}" for file in files])


def _why(file: str) -> str:
    if not os.path.exists(file):
        return " (a link to no file)"
    return "" if os.path.getsize(file) else " (empty)"
