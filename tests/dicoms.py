"""Small DICOM whole slides, written for a test: one file a level, with the tags that OpenSlide and wsidicom want."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

__all__ = ["JPEG", "JPEG2000", "JPEG2000_LOSSLESS", "SEGMENTATION", "UNCOMPRESSED", "encode", "write_dicom"]

UNCOMPRESSED = ExplicitVRLittleEndian
JPEG, JPEG2000, JPEG2000_LOSSLESS = (UID(f"1.2.840.10008.1.2.4.{number}") for number in (50, 91, 90))
WHOLE_SLIDE, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.5.1.4.1.1.66.4"
STUDY = generate_uid()
TILE_PX = 128


def encode(tile: NDArray[np.uint8], syntax: str, stored: str) -> bytes:
    """A tile as a frame of a transfer syntax.

    Args:
        tile: RGB ``[H, W, 3]``.
        syntax: the transfer syntax.
        stored: ``"RGB"``; ``"YCbCr"``, which the codec knows of and undoes; or ``"plain YCbCr"``, which it does not.
    """
    if stored == "plain YCbCr":
        tile = np.ascontiguousarray(cv2.cvtColor(tile, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])
    if syntax == UNCOMPRESSED:
        return tile.tobytes()
    if syntax == JPEG:
        space = "ycbcr" if stored == "YCbCr" else "rgb"
        return imagecodecs.jpeg8_encode(tile, level=95, colorspace="rgb", outcolorspace=space, subsampling="444")
    lossy = {"level": 40, "reversible": False} if syntax == JPEG2000 else {"level": 0}
    return imagecodecs.jpeg2k_encode(tile, codecformat="j2k", mct=stored == "YCbCr", **lossy)


def write_dicom(
    folder: Path,
    image: NDArray[np.uint8],
    mpp: float | tuple[float, float] | None = 0.5,
    downsamples: Sequence[int] = (1,),
    syntax: str = UNCOMPRESSED,
    photometric: str = "RGB",
    stored: str = "RGB",
    name: str = "level_{}.dcm",
    flavour: str = "VOLUME",
    series: str | None = None,
    sop_class: str = WHOLE_SLIDE,
) -> str:
    """Write an RGB image ``[H, W, 3]`` as a series with a file for each downsample.

    Args:
        folder: where the files are written, with the level as ``{}`` in ``name``.
        image: of level 0.
        mpp: of level 0; ``None`` writes files without PixelSpacing.
        downsamples: of the levels.
        syntax: how frames are compressed.
        photometric: the tag PhotometricInterpretation, true or not.
        stored: see :func:`encode`.
        flavour: third value of ImageType: ``"VOLUME"``, ``"LABEL"``.
        series: UID of the series that the files belong to; by default a new one.
        sop_class: what kind of DICOM object the files are.

    Returns:
        The UID of the series.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = series or generate_uid()
    frame_of_reference = generate_uid(entropy_srcs=[series])
    for level, downsample in enumerate(downsamples):
        width, height = image.shape[1] // downsample, image.shape[0] // downsample
        pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if downsample > 1 else image
        tags = _tags(pixels, series, flavour, sop_class)
        if downsample > 1:
            tags.ImageType = ["DERIVED", "PRIMARY", flavour, "RESAMPLED"]
        tags.FrameOfReferenceUID, tags.InstanceNumber = frame_of_reference, level
        tags.PhotometricInterpretation = photometric
        measures = Dataset()
        if mpp is not None:
            x_mpp, y_mpp = mpp if isinstance(mpp, tuple) else (mpp, mpp)
            spacing = [y_mpp * downsample / 1000, x_mpp * downsample / 1000]
            measures.PixelSpacing, measures.SliceThickness = spacing, 0.001
        shared = Dataset()
        shared.PixelMeasuresSequence = Items([measures])
        tags.SharedFunctionalGroupsSequence = Items([shared])
        tags.ImagedVolumeWidth, tags.ImagedVolumeHeight, tags.ImagedVolumeDepth = width / 2000, height / 2000, 0.001
        frames = [encode(tile, syntax, stored) for tile in _tiles(pixels)]
        tags.NumberOfFrames = len(frames)
        tags.PixelData = b"".join(frames) if syntax == UNCOMPRESSED else encapsulate(frames)
        tags["PixelData"].VR = "OB"
        tags.file_meta.TransferSyntaxUID = UID(syntax)
        tags.save_as(folder / name.format(level), enforce_file_format=True)
    return series


def _tags(pixels: NDArray[np.uint8], series: str, flavour: str, sop_class: str) -> Dataset:
    tags = Dataset()
    tags.file_meta = FileMetaDataset()
    tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID = sop_class
    tags.file_meta.MediaStorageSOPInstanceUID = tags.SOPInstanceUID = generate_uid()
    tags.StudyInstanceUID, tags.SeriesInstanceUID, tags.Modality = STUDY, series, "SM"
    tags.ImageType = ["ORIGINAL", "PRIMARY", flavour, "NONE"]
    tags.Rows = tags.Columns = TILE_PX
    tags.TotalPixelMatrixColumns, tags.TotalPixelMatrixRows = pixels.shape[1], pixels.shape[0]
    tags.SamplesPerPixel, tags.PlanarConfiguration, tags.PixelRepresentation = 3, 0, 0
    tags.BitsAllocated, tags.BitsStored, tags.HighBit = 8, 8, 7
    tags.DimensionOrganizationType, tags.TotalPixelMatrixFocalPlanes = "TILED_FULL", 1
    tags.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 25, 50
    tags.TotalPixelMatrixOriginSequence = Items([origin])
    path = Dataset()
    path.OpticalPathIdentifier = "0"
    tags.OpticalPathSequence, tags.NumberOfOpticalPaths = Items([path]), 1
    tags.FocusMethod, tags.ExtendedDepthOfField, tags.VolumetricProperties = "AUTO", "NO", "VOLUME"
    tags.ContainerIdentifier, tags.SpecimenLabelInImage = "slide", "NO"
    tags.BurnedInAnnotation, tags.LossyImageCompression = "NO", "00"
    return tags


def _tiles(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    down, across = (-(-side // TILE_PX) for side in pixels.shape[:2])
    full = np.full((down * TILE_PX, across * TILE_PX, 3), 255, dtype=np.uint8)
    full[: pixels.shape[0], : pixels.shape[1]] = pixels
    places = [(y * TILE_PX, x * TILE_PX) for y in range(down) for x in range(across)]
    return [np.ascontiguousarray(full[top : top + TILE_PX, left : left + TILE_PX]) for top, left in places]
