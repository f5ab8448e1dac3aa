"""DICOM whole slides: a slide is a series, whose levels and photographs lie in one folder, one or more files for each.

As a path it is the first of its levels by name, whichever file was named; hidden files come last.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Instance",
    "dicom_slides",
    "folder_files",
    "folder_slides",
    "instance_of",
    "is_dicom",
    "may_be_dicom",
    "series_files",
    "series_of",
    "slide_of",
    "slide_parts",
]

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
# The list of a disk's files, which archives add.
DICOMDIR = "1.2.840.10008.1.3.10"
PREAMBLE_BYTES, DICOM = 128, b"DICM"
SERIES_INSTANCE_UID = (0x0020, 0x000E)
# Archives name instances by number or by UID, whose last number looks like a suffix.
NAMES = re.compile(r"[^.]+|.*\.(dcm|dicom|[0-9]+)", re.IGNORECASE | re.DOTALL)
# A file may be DICOM and TIFF at once: OpenSlide reads one that ends so as a TIFF.
TIFF_SUFFIXES, TIFF = (".tif", ".tiff"), (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")


class Instance(NamedTuple):
    """A DICOM file.

    Args:
        series: UID of its series, ``""`` if it is no part of a whole slide (a segmentation, a report, a CT).
        is_level: whether it has pixels of a level; if not, it is a photograph of the label or of the glass.
        is_resampled: whether it says that its pixels are those of a finer level, reduced.
    """

    series: str
    is_level: bool
    is_resampled: bool = False


def may_be_dicom(path: str | Path) -> bool:
    """Whether a file is named as DICOM files are: it has the suffix ``.dcm`` or ``.dicom``, a number or none."""
    return NAMES.fullmatch(os.path.basename(path)) is not None


def is_dicom(path: str | Path) -> bool:
    """Whether a file begins as a DICOM file does, whatever its name; pipes and devices are not looked at.

    Raises:
        OSError: if it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        return False
    with open(path, "rb") as file:
        head = file.read(PREAMBLE_BYTES + len(DICOM))
    is_tiff = str(path).lower().endswith(TIFF_SUFFIXES) and head.startswith(TIFF)
    return head[PREAMBLE_BYTES:] == DICOM and not is_tiff


def instance_of(path: str | Path) -> Instance | None:
    """A file as an instance; ``None`` for one that is no DICOM file or cannot be read as one.

    One that cannot be read now (a full table of files, a network share that is away) is read again the next time.
    """
    try:
        status = os.stat(path)
        return _instance(os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError):  # a ValueError of a name that no file can have
        return None


# Whoever lists a folder, names its slides and stamps them asks for the same files again.
@lru_cache(maxsize=65_536)
def _instance(path: str, *_: int) -> Instance | None:
    if not is_dicom(path):
        return None
    import pydicom  # a run without DICOM files does not need it

    try:
        with open(path, "rb") as file:
            # The elements after it may be many: a group for each tile.
            head = pydicom.filereader.read_partial(file, stop_when=lambda tag, *_: tag > SERIES_INSTANCE_UID)
        # A DICOMDIR says only in its head what it is.
        if head.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR or head.SOPClassUID != WHOLE_SLIDE:
            return Instance("", False)
        flavours = list(head.get("ImageType") or ())
        return Instance(str(head.SeriesInstanceUID), flavours[2:3] == ["VOLUME"], flavours[3:4] == ["RESAMPLED"])
    except OSError:  # of the disk, not of the file's content: it may be gone at the next call
        raise
    except Exception:  # pydicom raises whatever its parsers come upon; the reader that opens the file says why
        return None


def series_of(path: str | Path) -> str:
    """UID of the series of the whole slide that a file named as DICOM files are is a part of; ``""`` for others."""
    own = instance_of(path) if may_be_dicom(path) else None
    return "" if own is None else own.series


def series_files(path: str | Path) -> list[str]:
    """Absolute paths of all files of the slide that a DICOM file is a part of, sorted; none for other files.

    Hidden ones are among them, and files that are not named as DICOM files are: OpenSlide reads them, too.
    """
    own = instance_of(path)
    if own is None or not own.series:
        return []
    return [
        file for file in folder_files(path) if (other := instance_of(file)) is not None and other.series == own.series
    ]


def folder_files(path: str | Path) -> list[str]:
    """Absolute paths of all files in the folder of a file, sorted; hidden ones and links to nothing are among them.

    Raises:
        OSError: if the folder cannot be read.
    """
    return _files(os.path.dirname(os.path.abspath(path)))


def slide_parts(path: str | Path) -> list[str]:
    """The files that a slide consists of, as far as this is known: those of a DICOM series, or else one file."""
    return (series_files(path) if may_be_dicom(path) else []) or [str(path)]


def dicom_slides(files: Iterable[str]) -> dict[str, str]:
    """The slide of each of some files, given as absolute paths; files of no DICOM slide with a level are left out."""
    of_series: dict[tuple[str, str], list[str]] = {}
    for file in sorted(files, key=lambda file: (os.path.basename(file).startswith("."), file)):
        if series := series_of(file):
            of_series.setdefault((os.path.dirname(file), series), []).append(file)
    slides = {}
    for own in of_series.values():
        levels = [file for file in own if (instance := instance_of(file)) is not None and instance.is_level]
        slides.update({file: levels[0] for file in own if levels})
    return slides


def slide_of(path: str) -> str:
    """The file that stands for the DICOM slide that a file is a part of; of all else the path itself, absolute."""
    return dicom_slides(series_files(path)).get(path, path) if may_be_dicom(path) else path


def folder_slides(folder: str | Path) -> list[str]:
    """Absolute paths of the DICOM slides in a folder, not in its subfolders.

    Raises:
        OSError: if it cannot be read.
    """
    return sorted(set(dicom_slides(_files(os.path.abspath(folder))).values()))


def _files(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if entry.is_file() or not os.path.exists(entry.path))
