"""What the headers of JPEG and JPEG 2000 data say of its colours."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["AS_RGB", "AS_YCBCR", "UNTRANSFORMED", "jpeg2000_colours", "jpeg_colours"]

AS_RGB, AS_YCBCR, UNTRANSFORMED = "as RGB", "as YCbCr", "without that transform"
# Markers of JPEG: application data in which JFIF and Adobe say how colours are coded, and the frame's components.
JFIF, ADOBE, FRAMES = 0xE0, 0xEE, (0xC0, 0xC1, 0xC2)
# Marker of JPEG 2000 for how tiles are coded; markers of both formats where the data begins.
CODING, DATA = 0x52, (0xDA, 0x90)


def jpeg_colours(frame: bytes) -> str | None:
    """How a JPEG stores colours, if it says so: in Adobe's marker, else in JFIF's or in the components' names."""
    found: dict[int, str] = {}
    for marker, content in _segments(frame):
        if marker == ADOBE and content.startswith(b"Adobe") and len(content) > 11:
            found[0] = AS_YCBCR if content[11] else AS_RGB
        elif marker == JFIF and content.startswith(b"JFIF\0"):
            found[1] = AS_YCBCR
        elif marker in FRAMES and content[6::3] == b"RGB":
            found[2] = AS_RGB
    return found[min(found)] if found else None


def jpeg2000_colours(frame: bytes) -> str | None:
    """:data:`UNTRANSFORMED` for JPEG 2000 that names no transform to RGB: decoders show it as it is stored."""
    for marker, content in _segments(frame):
        if marker == CODING and len(content) > 4:
            return None if content[4] else UNTRANSFORMED
    return None


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers before the pixels, each with what follows it."""
    place = 2
    while place + 4 <= len(frame) and frame[place] == 0xFF and frame[place + 1] not in DATA:
        size = int.from_bytes(frame[place + 2 : place + 4], "big")
        yield frame[place + 1], frame[place + 4 : place + 2 + size]
        place += 2 + max(size, 2)
