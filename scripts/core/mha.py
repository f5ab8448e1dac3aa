"""Images with physical spacing as MetaImage (``.mha``), which ITK and 3D Slicer read.

ITK could write them, but takes more than two seconds to load. The format is a header of text, then the pixels.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["write_mha"]


def write_mha(
    path: str | Path,
    pixels: NDArray[np.uint8] | NDArray[np.float32],
    spacing_mm: tuple[float, float],
    origin_mm: tuple[float, float],
) -> None:
    """Write an image, compressed without loss.

    Args:
        path: the file.
        pixels: ``[h, w]``.
        spacing_mm: (x, y) size of a pixel in millimetres.
        origin_mm: (x, y) of the first pixel's centre in millimetres.

    Raises:
        OSError: if the file cannot be written.
    """
    height, width = pixels.shape
    data = zlib.compress(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
    header = {
        "ObjectType": "Image",
        "NDims": 2,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": len(data),
        "TransformMatrix": "1 0 0 1",
        "Offset": "{:.17g} {:.17g}".format(*origin_mm),
        "ElementSpacing": "{:.17g} {:.17g}".format(*spacing_mm),
        "DimSize": f"{width} {height}",
        "ElementType": "MET_UCHAR" if pixels.dtype == np.uint8 else "MET_FLOAT",
        "ElementDataFile": "LOCAL",  # The pixels follow this line, which has to be the last.
    }
    lines = "".join(f"{key} = {value}\n" for key, value in header.items())
    Path(path).write_bytes(lines.encode("ascii") + data)
