"""How the pixels of a DICOM slide are stored: what OpenSlide would show in false colours is refused before it is read.

OpenSlide believes the tag PhotometricInterpretation. Where the compressed data says otherwise, glass turns salmon.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from scripts.slides.codestreams import AS_RGB, UNTRANSFORMED, jpeg2000_colours, jpeg_colours
from scripts.slides.dicom_series import instance_of, is_dicom, may_be_dicom, series_files

__all__ = ["dicom_fault"]

JPEG, JPEG2000, JPEG2000_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.90"
UNCOMPRESSED = "1.2.840.10008.1.2.1"
# What OpenSlide reads: how pixels may be coded in each transfer syntax.
READ = {
    JPEG: ("RGB", "YBR_FULL_422"),
    JPEG2000: ("RGB", "YBR_ICT", "YBR_RCT"),
    JPEG2000_LOSSLESS: ("RGB", "YBR_RCT"),
    UNCOMPRESSED: ("RGB",),
}
READ_ALL = "JPEG (RGB or YBR_FULL_422), JPEG 2000 (RGB, YBR_ICT or YBR_RCT) or uncompressed RGB"

# Of a frame, where its markers end: a colour profile is the longest thing before.
HEAD_BYTES = 1 << 20
PIXEL_DATA = b"\xe0\x7f\x10\x00"


def dicom_fault(path: str | Path) -> tuple[str, str] | None:
    """What is wrong with the pixels of a DICOM slide, and what to do; ``None`` for one whose colours are true.

    Nothing is said of other files, and of what cannot be parsed: OpenSlide knows what to say of these.

    Raises:
        OSError: if a file cannot be read.
    """
    if not is_dicom(path):
        return None
    if not may_be_dicom(path):
        # Lists take files with such names for slides of their own: each level would be one.
        return "is a DICOM file, and is not named as one", "Rename all files of its series to end in .dcm."
    own = instance_of(path)
    if own is not None and not own.series:
        return "is a DICOM file, but no whole slide image", "Give a file of the slide, or leave it out."
    files = [file for file in series_files(path) if (instance := instance_of(file)) is not None and instance.is_level]
    if own is not None and not files:
        return "is a DICOM series without a level of a slide", "Give the whole series, or leave the slide out."
    for file in files:
        try:
            fault = _fault_of(file)
        except OSError:
            raise
        except Exception as error:  # pydicom raises whatever its parsers come upon
            fault = f"cannot be read as DICOM: {error}", "Copy the file again, or leave the slide out."
        if fault is not None:
            of_file = "" if os.path.samefile(file, path) else f" ({os.path.basename(file)})"
            return f"{fault[0]}{of_file}", fault[1]
    return None


def _fault_of(path: str) -> tuple[str, str] | None:
    import pydicom

    with open(path, "rb") as file:
        wanted = ["PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated"]
        tags = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=wanted)
        syntax, photometric = tags.file_meta.TransferSyntaxUID, str(tags.get("PhotometricInterpretation", "unnamed"))
        samples, bits = int(tags.get("SamplesPerPixel", 0)), int(tags.get("BitsAllocated", 0))
        frame = b"" if syntax == UNCOMPRESSED else _first_frame(file)
    if (samples, bits) != (3, 8):
        cause = f"is no RGB image of 8 bits: {samples} channel{'s' * (samples != 1)} of {bits} bits, {photometric}"
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
    """The head of the first frame, of a file that stands before its pixels; nothing if they are not there."""
    if file.read(len(PIXEL_DATA)) != PIXEL_DATA:
        return b""
    file.seek(8, os.SEEK_CUR)  # how they are stored, and a length that compressed pixels do not have
    file.seek(_item_size(file), os.SEEK_CUR)  # where each frame begins
    return file.read(min(_item_size(file), HEAD_BYTES))


def _item_size(file: BinaryIO) -> int:
    return int.from_bytes(file.read(8)[4:], "little")
