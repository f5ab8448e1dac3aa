"""What JPEG and JPEG 2000 data says of its own colours, before it is decoded."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["AS_RGB", "AS_YCBCR", "UNTRANSFORMED", "jpeg2000_colours", "jpeg_colours"]

AS_RGB, AS_YCBCR, UNTRANSFORMED = "as RGB", "as YCbCr", "without that transform"
# Markers of JPEG: applications' data in which JFIF and Adobe tell how colours are coded, and the frame's components.
JFIF, ADOBE, FRAMES = 0xE0, 0xEE, (0xC0, 0xC1, 0xC2)
# Of JPEG 2000: how tiles are coded. Of both: where the data begins.
CODING, DATA = 0x52, (0xDA, 0x90)


def jpeg_colours(frame: bytes) -> str | None:
    """How a JPEG stores colours, if it says so: by Adobe's marker, else by JFIF's or the components' names."""
    shown: dict[int, str] = {}
    for marker, content in _segments(frame):
        if marker == ADOBE and content.startswith(b"Adobe") and len(content) > 11:
            shown[0] = AS_YCBCR if content[11] else AS_RGB
        elif marker == JFIF and content.startswith(b"JFIF\0"):
            shown[1] = AS_YCBCR
        elif marker in FRAMES and content[6::3] == b"RGB":
            shown[2] = AS_RGB
    return shown[min(shown)] if shown else None


def jpeg2000_colours(frame: bytes) -> str | None:
    """What JPEG 2000 stores where decoders are told of no transform to RGB, and show it as it is."""
    for marker, content in _segments(frame):
        if marker == CODING and len(content) > 4:
            return None if content[4] else UNTRANSFORMED
    return None


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers that come before the data of a JPEG or a JPEG 2000, and what they hold."""
    place = 2
    while place + 4 <= len(frame) and frame[place] == 0xFF and frame[place + 1] not in DATA:
        size = int.from_bytes(frame[place + 2 : place + 4], "big")
        yield frame[place + 1], frame[place + 4 : place + 2 + size]
        place += 2 + max(size, 2)
