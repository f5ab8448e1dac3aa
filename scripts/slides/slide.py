"""Open any slide, and read a region of it at any magnification."""

from __future__ import annotations

import logging
import math
import os
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import SettingsError, SlideError
from scripts.core.magnification import (
    MPP_RTOL,
    Scale,
    magnification_of,
    mean_downsamples,
    mpp_of,
    scale_name,
    squeezed_levels,
)
from scripts.core.repeats import Repeats
from scripts.slides.dicom_series import folder_slides
from scripts.slides.first_look import CONVERT, Look
from scripts.slides.frames import Rectangle, find_bounds
from scripts.slides.isolation import ReaderError, has_cucim, open_levels, read_kind, read_look, read_pixels
from scripts.slides.resolution import Resolution, find_resolution
from scripts.slides.stamp import Stamp, stamp_of

__all__ = ["READERS", "READ_LEVELS", "Slide", "check_reader", "pixel_fault", "resample"]

READERS = ("auto", "cucim", "openslide")
READ_LEVELS = ("nearest", "highest", "upsample")

WHITE = 255
# Of the files that MONAI's reader with cuCIM takes.
CUCIM_SUFFIXES = (".tif", ".tiff", ".svs")
# Read at most this many pixels of a level at once: what an overview of a gigapixel slide costs in memory.
OVERVIEW_BLOCK_PX = 2048

logger = logging.getLogger(__name__)
_repeats = Repeats()


class Slide:
    """A whole slide image, read with the libraries that MONAI's :class:`~monai.data.WSIReader` reads with.

    They read in processes of their own (:mod:`scripts.slides.isolation`): a file on which one crashes costs that slide
    alone. All positions are (x, y) in the level-0 frame, as floats; they are rounded once, at the read. What lies
    beyond the border is white, with every backend.

    Args:
        path: the slide's file; of a DICOM series any of its files, or the folder that holds it alone.
        reader: the backend by MONAI's name, ``"cucim"`` or ``"openslide"``; ``"auto"`` takes cuCIM, and OpenSlide where
            cuCIM cannot read the file or is not installed; before both tifffile where levels are SubIFDs, which neither
            of them sees.
        mpp: micrometres per pixel of level 0, where the file does not say it or says it wrongly.
        read_level: ``"nearest"`` reads the nearest finer level of the pyramid, ``"highest"`` the finest one
            as the paper does; both are then area-averaged to the magnification asked for. ``"upsample"`` is
            ``"nearest"``, and interpolates level 0 where the slide has no level that fine, which else is an error.

    Raises:
        SlideError: if there is no such file, it is no RGB image, no backend can read it, its levels contradict each
            other, its resolution is unknown, or it was changed meanwhile.
        SettingsError: if ``reader`` or ``read_level`` has no such value.
    """

    def __init__(
        self, path: str | Path, reader: str = "auto", mpp: float | None = None, read_level: str = "nearest"
    ) -> None:
        check_reader(reader, read_level)
        self.path = Path(path)
        self.read_level = read_level
        if not self.path.exists():
            raise SlideError(self.path, "no such file", "Check the path in the datalist, and `dataset_dir`.")
        if self.path.is_dir():
            self.path = _in_folder(self.path)
        if not self.path.is_file():
            raise SlideError(self.path, "is a folder, a pipe or a device, not a slide", "Give the slide's file.")
        self._stamp: Stamp = stamp_of(self.path)
        look = _look_at(self.path)
        if look.fault is not None:
            raise SlideError(self.path, *look.fault)
        self.doubt = look.doubt
        if look.doubt is not None:
            _repeats.log(logger, logging.WARNING, "{}: {}. {}".format(self.path, *look.doubt), str(self.path))
        self.backend, self.level_sizes = _open(self.path, reader, self._stamp, look.subifd_levels)
        self.unseen_levels = max(0, look.subifd_levels - len(self.level_sizes))
        for level, across, down in squeezed_levels(self.level_sizes, MPP_RTOL):
            raise SlideError(
                self.path,
                f"its level {level} is {across:.3g} times narrower and {down:.3g} times lower than level 0",
                "Is it a pyramid? Convert it again, or leave the slide out.",
            )
        self.downsamples = mean_downsamples(self.level_sizes)
        self.resolution: Resolution = find_resolution(self.path, mpp)
        self.check_unchanged()

    @property
    def size_level0(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.level_sizes[0]

    @property
    def base_mpp(self) -> float:
        """Micrometres per pixel of level 0."""
        return self.resolution.mpp

    @cached_property
    def bounds_level0(self) -> Rectangle:
        """The part of level 0 that QuPath shows: see :func:`scripts.slides.frames.find_bounds`.

        Raises:
            SlideError: if it cannot be read, or the slide was changed since it was opened.
        """
        bounds = find_bounds(self.path, self.size_level0)
        self.check_unchanged()
        return bounds

    def check_unchanged(self, since: Stamp | None = None) -> None:
        """Refuse what was read from the slide, if its file is no longer the one that was opened.

        Args:
            since: its stamp before it was opened; ``None`` looks no further back.

        Raises:
            SlideError: if it was replaced, written to or removed.
        """
        for stamp in (self._stamp, since or self._stamp):
            _check_unchanged(self.path, stamp)

    def level_for(self, mpp: float) -> int:
        """The level that is read for a resolution in micrometres per pixel.

        Raises:
            SlideError: if the slide has no level that fine, and upsampling was not asked for.
        """
        mpps = [self.base_mpp * downsample for downsample in self.downsamples]
        fine_enough = [level for level, level_mpp in enumerate(mpps) if level_mpp <= mpp * (1 + MPP_RTOL)]
        if not fine_enough and self.read_level == "upsample":
            return 0
        if not fine_enough:
            raise SlideError(
                self.path,
                f"has {self.base_mpp:g} um/px ({scale_name(round(magnification_of(self.base_mpp), 2))}), "
                f"coarser than the {mpp:g} um/px asked for ({scale_name(round(magnification_of(mpp), 2))})",
                "Leave the slide out, ask for lower `magnifications`, correct its `mpp` in the datalist, or have it "
                "interpolated with `read_level` upsample.",
            )
        return 0 if self.read_level == "highest" else max(fine_enough, key=lambda level: mpps[level])

    def scale(self, magnification: float, patch_size_px: int) -> Scale:
        """How patches of this slide are read at a magnification.

        Raises:
            SlideError: if the slide has no level that fine.
        """
        level = self.level_for(mpp_of(magnification))
        return Scale(magnification, patch_size_px, self.base_mpp, level, self.downsamples[level])

    def read_patch(self, scale: Scale, xy_level0: tuple[float, float]) -> NDArray[np.uint8]:
        """One patch of a scale, whose top left corner is at ``xy_level0``, as RGB ``[H, W, 3]``."""
        side = (scale.patch_size_px, scale.patch_size_px)
        return self._read(xy_level0, side, (scale.patch_read_px, scale.patch_read_px), scale.level)

    def read_region(self, xy_level0: tuple[float, float], size_px: tuple[int, int], mpp: float) -> NDArray[np.uint8]:
        """A region at any resolution.

        Args:
            xy_level0: (x, y) of the top left corner in level-0 pixels.
            size_px: (width, height) of the result, in pixels of ``mpp``.
            mpp: micrometres per pixel of the result.

        Returns:
            RGB of shape ``[height, width, 3]``.

        Raises:
            SlideError: if the slide has no level that fine, or cannot be read there.
        """
        level = self.level_for(mpp)
        factor = mpp / (self.base_mpp * self.downsamples[level])
        read_px = (max(1, round(size_px[0] * factor)), max(1, round(size_px[1] * factor)))
        return self._read(xy_level0, size_px, read_px, level)

    def read_level_region(
        self, xy_level0: tuple[float, float], size_px: tuple[int, int], level: int
    ) -> NDArray[np.uint8]:
        """A region of one level as it is stored, whatever ``read_level``.

        Args:
            xy_level0: (x, y) of the top left corner in level-0 pixels.
            size_px: (width, height) in pixels of the level.
            level: the level of the pyramid.

        Returns:
            RGB of shape ``[height, width, 3]``.

        Raises:
            SlideError: if the slide cannot be read there.
        """
        return self._read(xy_level0, size_px, size_px, level)

    def read_overview(self, mpp: float) -> NDArray[np.uint8]:
        """The whole slide at a low resolution, block by block, so that memory does not grow with the slide.

        Pixel (i, j) of the result covers level-0 pixels from ``(j, i) * mpp / base_mpp``; the last row and
        column may reach beyond the border, where it is white.

        Args:
            mpp: micrometres per pixel of the result.

        Returns:
            RGB of shape ``[ceil(height * base_mpp / mpp), ceil(width * base_mpp / mpp), 3]``.
        """
        pixel_level0 = mpp / self.base_mpp
        width, height = (math.ceil(round(side / pixel_level0, 6)) for side in self.size_level0)
        step = max(1, int(OVERVIEW_BLOCK_PX * self.downsamples[self.level_for(mpp)] / pixel_level0))
        overview = np.empty((height, width, 3), dtype=np.uint8)
        for top in range(0, height, step):
            for left in range(0, width, step):
                block = overview[top : top + step, left : left + step]
                size_px = (block.shape[1], block.shape[0])
                block[:] = self.read_region((left * pixel_level0, top * pixel_level0), size_px, mpp)
        return overview

    def _read(
        self, xy_level0: tuple[float, float], size_px: tuple[int, int], read_px: tuple[int, int], level: int
    ) -> NDArray[np.uint8]:
        downsample = self.downsamples[level]
        left, top = (round(v / downsample) for v in xy_level0)
        return resample(self.read_pixels(left, top, *read_px, level), size_px)

    def read_pixels(self, left: int, top: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        """A region of one level as it is stored, by its place in pixels of that level.

        Args:
            left: of its first column, in pixels of the level.
            top: of its first row, in pixels of the level.
            width: in pixels of the level.
            height: in pixels of the level.
            level: the level of the pyramid.

        Returns:
            RGB of shape ``[height, width, 3]``.

        Raises:
            SlideError: if the slide cannot be read there.
        """
        # The backends never see a request that crosses the border: each fills with another colour.
        level_width, level_height = self.level_sizes[level]
        x0, x1 = max(left, 0), min(left + width, level_width)
        y0, y1 = max(top, 0), min(top + height, level_height)
        if x0 >= x1 or y0 >= y1:
            return np.full((height, width, 3), WHITE, dtype=np.uint8)
        inside = self._read_inside(x0, y0, x1 - x0, y1 - y0, level)
        if inside.shape[:2] == (height, width):
            return inside
        region = np.full((height, width, 3), WHITE, dtype=np.uint8)
        region[y0 - top : y1 - top, x0 - left : x1 - left] = inside
        return region

    def _read_inside(self, left: int, top: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        try:
            return read_pixels(self.path, self.backend, self._stamp, left, top, width, height, level)
        except ReaderError as error:
            self.check_unchanged()
            raise SlideError(
                self.path,
                f"{self.backend} cannot read {width} x {height} px at ({left}, {top}) of level {level} ({error})",
                "Is the file complete? Copy it again, try another `reader`, or leave the slide out.",
            ) from error


def resample(region: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    """A region ``[H, W, 3]`` at another size (width, height): the mean over areas where it shrinks."""
    height, width = region.shape[:2]
    if (width, height) == size_px:
        return region
    shrinks = width >= size_px[0] and height >= size_px[1]
    resized = cv2.resize(region, size_px, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)


def pixel_fault(path: Path) -> tuple[str, str] | None:
    """Why a file's pixels are not those of a slide, and what to do: no RGB, false colours, or one of a thousand images.

    Of a file that is so damaged that this cannot be told, nothing is said: to open it will say it.
    """
    return _look_at(path).fault


def check_reader(reader: str, read_level: str) -> None:
    """Check the settings of a :class:`Slide`.

    Raises:
        SettingsError: if one has no such value.
    """
    for key, value, known in (("reader", reader, READERS), ("read_level", read_level, READ_LEVELS)):
        if value not in known:
            raise SettingsError(key, f"got {value!r}", f"Choose one of {', '.join(known)}.")


def _look_at(path: Path) -> Look:
    try:
        return read_look(path)
    except ReaderError:
        return Look(None)


def _in_folder(folder: Path) -> Path:
    """The file that stands for the one DICOM slide of a folder."""
    slides = folder_slides(folder)
    if len(slides) > 1:
        cause = f"is a folder of {len(slides)} DICOM slides"
        raise SlideError(folder, cause, f"Give a file of the one that is meant, such as {os.path.basename(slides[0])}.")
    return Path(slides[0]) if slides else folder


def _open(path: Path, reader: str, stamp: Stamp, subifd_levels: int) -> tuple[str, list[tuple[int, int]]]:
    """The backend's name, and (width, height) of each level."""
    reasons = []
    for backend in _candidates(path, subifd_levels) if reader == "auto" else (reader,):
        try:
            levels = open_levels(path, backend, stamp)
        except ReaderError as error:
            reasons.append(f"{backend}: {error}")
            continue
        if len(levels) < subifd_levels:
            why = f" ({'; '.join(reasons)})" if reasons else ""
            text = (
                f"{path}: {subifd_levels - len(levels)} of its levels are SubIFDs, which {backend} does not see{why}: "
                f"low magnifications are read from level 0, slowly. Leave `reader` at auto, or convert it: {CONVERT}."
            )
            _repeats.log(logger, logging.WARNING, text, str(path))
        elif reasons:
            text = f"{path.name} is read with {backend} ({'; '.join(reasons)})"
            _repeats.log(logger, logging.INFO, text, path.name, f"more slides are read with {backend}")
        return backend, levels
    _check_unchanged(path, stamp)
    if (kind := _kind_of(path)) is not None:
        raise SlideError(path, *kind)
    raise SlideError(
        path,
        f"cannot be read as a slide ({'; '.join(reasons)})",
        "Is it a whole slide image, and complete? Copy it again, or leave it out of the datalist.",
    )


def _kind_of(path: Path) -> tuple[str, str] | None:
    try:
        return read_kind(path)
    except ReaderError:
        return None


def _check_unchanged(path: Path, stamp: Stamp) -> None:
    cause, remedy = "was changed while it was read", "Run again once it is complete."
    try:
        is_same = stamp_of(path) == stamp
    except OSError as error:
        raise SlideError(path, f"{cause} ({error.strerror})", remedy) from error
    if not is_same:
        raise SlideError(path, cause, remedy)


def _candidates(path: Path, subifd_levels: int) -> tuple[str, ...]:
    of_levels = ("tifffile",) if subifd_levels else ()
    # cuCIM takes the TIFFs inside other vendors' formats for plain ones: only files it claims to know.
    of_cucim = ("cucim",) if path.suffix.lower() in CUCIM_SUFFIXES and has_cucim() else ()
    return (*of_levels, *of_cucim, "openslide")
