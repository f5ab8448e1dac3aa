"""DICOM slides that OpenSlide shows and should not: in false colours, or without the levels that it cannot read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

from scripts.core.repeats import first_names
from scripts.slides.codestreams import AS_RGB, UNTRANSFORMED, jpeg2000_colours, jpeg_colours
from scripts.slides.dicom_series import folder_files, instance_of, is_dicom, may_be_dicom, series_files

__all__ = ["dicom_fault", "series_gaps"]

JPEG, JPEG2000, JPEG2000_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.90"
UNCOMPRESSED = "1.2.840.10008.1.2.1"
# Codings of pixels that OpenSlide reads, by transfer syntax.
READ = {
    JPEG: ("RGB", "YBR_FULL_422"),
    JPEG2000: ("RGB", "YBR_ICT", "YBR_RCT"),
    JPEG2000_LOSSLESS: ("RGB", "YBR_RCT"),
    UNCOMPRESSED: ("RGB",),
}
READ_ALL = "JPEG (RGB or YBR_FULL_422), JPEG 2000 (RGB, YBR_ICT or YBR_RCT) or uncompressed RGB"
# The markers of a frame end within so many bytes: a colour profile is the longest of them.
HEAD_BYTES = 1 << 20
PIXEL_DATA = b"\xe0\x7f\x10\x00"
# Names that only instances have; files with other names, such as README, are one only if they begin as one.
NAMES = re.compile(r".*\.(dcm|dicom)|[0-9]+(\.[0-9]+)+", re.IGNORECASE | re.DOTALL)


def dicom_fault(path: str | Path) -> tuple[str, str] | None:
    """Why a DICOM file must not be shown as a slide, and what to do; ``None`` for a slide, and for other files.

    Raises:
        OSError: if a file cannot be read.
    """
    if not is_dicom(path):
        return None
    if not may_be_dicom(path):
        # Datalists take each file of such a name for a slide: each level would be one.
        return "is a DICOM file, and is not named as one", "Rename all files of its series to end in .dcm."
    own = instance_of(path)
    if own is not None and not own.series:
        return "is a DICOM file, but no whole slide image", "Give a file of the slide, or leave it out."
    files = [file for file in series_files(path) if (instance := instance_of(file)) is not None and instance.is_level]
    if own is not None and not files:
        return "is a DICOM series without a level of a slide", "Give the whole series, or leave the slide out."
    for file in files:
        try:
            fault = _false_colours(file)
        except OSError:
            raise
        except Exception as error:  # pydicom raises whatever its parsers come upon
            fault = f"cannot be read as DICOM: {error}", "Copy the file again, or leave the slide out."
        if fault is not None:
            of_file = "" if os.path.samefile(file, path) else f" ({os.path.basename(file)})"
            return f"{fault[0]}{of_file}", fault[1]
    return None


def series_gaps(path: str | Path) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
    """What is missing of the DICOM slide that a file is a part of.

    A file that cannot be read is a fault where all else in the folder is of one slide, and a doubt where it may be of
    another. A series that has only resampled levels may be what the user wants: its resolution is true.

    Returns:
        A fault for which it must not be read, and a doubt; each a cause and what to do, or ``None``.

    Raises:
        OSError: if the folder cannot be read.
    """
    own = instance_of(path)
    # Before the others are read: the folder of a slide that is not DICOM may contain thousands.
    if own is None or not own.series:
        return None, None
    of_file = {file: instance_of(file) for file in folder_files(path)}
    levels = [instance for instance in of_file.values() if instance is not None and instance.is_level]
    unread = [file for file, instance in of_file.items() if instance is None and _should_be_dicom(file)]
    names = first_names([f"{os.path.basename(file)}{_why(file)}" for file in unread])
    if unread and all(level.series == own.series for level in levels):
        cause = f"is a DICOM series whose folder has files that cannot be read as DICOM: {names}"
        return (cause, "They may be levels of the slide: copy them again, or move them to another folder."), None
    if unread:
        cause = f"its folder has files that cannot be read as DICOM, perhaps levels of it: {names}"
        return None, (cause, "Copy them again, or move them to another folder.")
    if levels and all(level.is_resampled for level in levels if level.series == own.series):
        cause = "each of its levels says that it was resampled from a finer one, which is not there"
        return None, (cause, "Copy the whole series, if finer levels are wanted.")
    return None, None


def _false_colours(path: str) -> tuple[str, str] | None:
    """OpenSlide believes the tag PhotometricInterpretation: where the compressed data differs, glass turns salmon."""
    import pydicom

    with open(path, "rb") as file:
        wanted = ["PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated"]
        tags = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=wanted)
        syntax, photometric = tags.file_meta.TransferSyntaxUID, str(tags.get("PhotometricInterpretation", "unnamed"))
        channels, bits = int(tags.get("SamplesPerPixel", 0)), int(tags.get("BitsAllocated", 0))
        frame = b"" if syntax == UNCOMPRESSED else _first_frame(file)
    if (channels, bits) != (3, 8):
        cause = f"is no RGB image of 8 bits: {channels} channel{'s' * (channels != 1)} of {bits} bits, {photometric}"
        return cause, "Convert it to RGB of 8 bits, or leave the slide out."
    if photometric not in READ.get(syntax, ()):
        cause = f"stores {photometric} pixels as {syntax.name}, which no reader here takes"
        return cause, f"Convert it to {READ_ALL}, or leave the slide out."
    stored = jpeg_colours(frame) if syntax == JPEG else jpeg2000_colours(frame)
    if stored is None or (stored in (AS_RGB, UNTRANSFORMED)) == (photometric == "RGB"):
        return None
    cause = f"says that its pixels are {photometric}, and stores them {stored}: its colours would be false"
    return cause, "Convert the slide again from the scanner's file, or leave it out."


def _first_frame(file: BinaryIO) -> bytes:
    """The head of the first frame of a file that stands before its pixels; nothing if it has none."""
    if file.read(len(PIXEL_DATA)) != PIXEL_DATA:
        return b""
    file.seek(8, os.SEEK_CUR)  # how they are stored, and a length that compressed pixels do not have
    file.seek(_item_size(file), os.SEEK_CUR)  # where each frame begins
    return file.read(min(_item_size(file), HEAD_BYTES))


def _item_size(file: BinaryIO) -> int:
    return int.from_bytes(file.read(8)[4:], "little")


def _should_be_dicom(file: str) -> bool:
    name = os.path.basename(file)
    if name.startswith("."):  # macOS leaves files like ._a.dcm beside a.dcm
        return False
    try:
        return NAMES.fullmatch(name) is not None or (may_be_dicom(file) and is_dicom(file))
    except OSError:
        return True


def _why(file: str) -> str:
    if not os.path.exists(file):
        return " (a link to no file)"
    return "" if os.path.getsize(file) else " (empty)"
