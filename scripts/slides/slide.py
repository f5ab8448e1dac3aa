"""Open any slide, and read a region of it at any magnification."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import SlideError
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
from scripts.core.settings import check_settings
from scripts.slides.checksums import Stamp, stamp_of
from scripts.slides.dicom_series import folder_slides
from scripts.slides.frames import find_bounds
from scripts.slides.isolation import ReaderError, open_slide, read_pixels
from scripts.slides.opened import CONVERT, Opened
from scripts.slides.resolution import find_resolution, stated_resolutions

__all__ = ["PixelError", "Slide", "resample"]

WHITE = 255
# Suffixes that MONAI's reader with cuCIM takes. cuCIM takes the TIFFs inside other vendors' formats for plain ones.
CUCIM_SUFFIXES = (".tif", ".tiff", ".svs")
# Read at most this many pixels of a level at once: what an overview of a gigapixel slide costs in memory.
OVERVIEW_BLOCK_PX = 2048

logger = logging.getLogger(__name__)
_repeats = Repeats()


class PixelError(SlideError):
    """A slide whose pixels would be shown otherwise than they were scanned."""


class Slide:
    """A whole slide image, read with the libraries that MONAI's :class:`~monai.data.WSIReader` reads with.

    They read in processes of their own (:mod:`scripts.slides.isolation`), which are asked once to open a file. All
    positions are (x, y) in the level-0 frame, as floats; they are rounded once, at the read. What lies beyond the
    border is white, with every backend.

    Args:
        path: the slide's file; of a DICOM series any of its files, or the folder that contains nothing else.
        reader: the backend by MONAI's name, ``"cucim"`` or ``"openslide"``; ``"auto"`` takes cuCIM, and OpenSlide where
            cuCIM cannot read the file or is not installed; before both tifffile where levels are SubIFDs, which neither
            of them sees.
        mpp: micrometres per pixel of level 0, where the file does not say it or says it wrongly.
        read_level: ``"nearest"`` reads the nearest finer level of the pyramid, ``"highest"`` the finest one
            as the paper does; both are then area-averaged to the magnification asked for. ``"upsample"`` is
            ``"nearest"``, and interpolates level 0 where the slide has no level that fine, which else is an error.

    Attributes:
        backend: the library that reads it.
        level_sizes: (width, height) in pixels of each level, finest first; ``downsamples``: level-0 pixels per pixel of
            each.
        unseen_levels: how many levels the file has beside these.
        resolution: of level 0; ``stated_resolutions`` are all that the file states.
        bounds_level0: what QuPath shows of the slide, see :func:`scripts.slides.frames.find_bounds`.
        doubt: what may be missing of it, and what to do; or ``None``.

    Raises:
        PixelError: if it is no RGB image, has false colours, or is one of several images.
        ResolutionError: if its resolution is unknown.
        SlideError: if there is no such file, no backend can read it, its levels contradict each other, or it was
            changed meanwhile.
        SettingsError: if ``reader`` or ``read_level`` has no such value.
    """

    def __init__(
        self, path: str | Path, reader: str = "auto", mpp: float | None = None, read_level: str = "nearest"
    ) -> None:
        check_settings(reader=reader, read_level=read_level)
        self.path, self.read_level = _file_of(Path(path)), read_level
        self._stamp = stamp_of(self.path)
        opened = self._open(reader)
        _warn(self.path, opened)
        self.backend, self.doubt = opened.backend, opened.doubt
        self.unseen_levels = max(0, opened.subifd_levels - len(opened.level_sizes))
        self.level_sizes = list(opened.level_sizes)
        for level, across, down in squeezed_levels(self.level_sizes, MPP_RTOL):
            cause = f"its level {level} is {across:.3g} times narrower and {down:.3g} times lower than level 0"
            raise SlideError(self.path, cause, "Is it a pyramid? Convert it again, or leave the slide out.")
        self.downsamples = mean_downsamples(self.level_sizes)
        self.resolution = find_resolution(self.path, mpp, opened.properties, opened.tiff_pixel_sizes)
        # In some formats a TIFF's first image is a photograph of the whole glass.
        of_level0 = opened.tiff_pixel_sizes if opened.tiff_size_px == self.size_level0 else []
        self.stated_resolutions = stated_resolutions(opened.properties, of_level0)
        self.bounds_level0 = find_bounds(opened.properties, self.size_level0)

    def _open(self, reader: str) -> Opened:
        has_cucim = self.path.suffix.lower() in CUCIM_SUFFIXES and importlib.util.find_spec("cucim") is not None
        backends = ("tifffile", *(("cucim",) if has_cucim else ()), "openslide") if reader == "auto" else (reader,)
        try:
            opened = open_slide(self.path, self._stamp, backends)
        except ReaderError as error:
            self.check_unchanged()
            remedy = "Is the file complete? Copy it again, or leave the slide out."
            raise SlideError(self.path, f"cannot be read as a slide ({error})", remedy) from error
        self.check_unchanged()
        if opened.fault is not None:
            raise PixelError(self.path, *opened.fault)
        if opened.refusal is not None:
            raise SlideError(self.path, *opened.refusal)
        return opened

    def check_mpp(self, mpp: float) -> None:
        """Refuse positions that were computed with another resolution of level 0: they lie elsewhere on the slide.

        Raises:
            SlideError: if it is more than 5% from the slide's.
        """
        if abs(mpp / self.base_mpp - 1) > MPP_RTOL:
            cause = f"has {self.base_mpp:.4g} um/px at level 0, and its features were imported with {mpp:.4g}"
            raise SlideError(self.path, cause, "Import them again with the slide in the datalist.")

    def check_size(self, size: tuple[int, int] | None) -> None:
        """Refuse the features of another scan, by its (width, height) at level 0; ``None`` compares nothing.

        Raises:
            SlideError: if it is not the slide's.
        """
        if size is not None and size != self.size_level0:
            own, other = (" x ".join(map(str, one)) for one in (self.size_level0, size))
            cause = f"has {own} px at level 0, and its features are of a slide of {other} px"
            raise SlideError(self.path, cause, "Give the slide that the features are of, or import them again.")

    def check_unchanged(self, since: Stamp | None = None) -> None:
        """Refuse what was read, if the file is no longer the one that was opened, or that had the stamp ``since``.

        Raises:
            SlideError: if it was replaced, written to or removed.
        """
        cause, remedy = "was changed while it was read", "Run again once it is complete."
        try:
            is_same = stamp_of(self.path) == self._stamp == (since or self._stamp)
        except OSError as error:
            raise SlideError(self.path, f"{cause} ({error.strerror})", remedy) from error
        if not is_same:
            raise SlideError(self.path, cause, remedy)

    @property
    def size_level0(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.level_sizes[0]

    @property
    def base_mpp(self) -> float:
        """Micrometres per pixel of level 0."""
        return self.resolution.mpp

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
        """How patches of this slide are read at a magnification; raises as :meth:`level_for`."""
        level = self.level_for(mpp_of(magnification))
        return Scale(magnification, patch_size_px, self.base_mpp, level, self.downsamples[level])

    def read_overview(self, mpp: float) -> NDArray[np.uint8]:
        """The whole slide at a low resolution in micrometres per pixel, RGB ``[H, W, 3]``.

        It is read block by block, so that memory does not grow with the slide. Pixel (i, j) covers level-0 pixels from
        ``(j, i) * mpp / base_mpp``; the last row and column may reach beyond the border, where it is white.
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

    def read_patch(self, scale: Scale, xy_level0: tuple[float, float]) -> NDArray[np.uint8]:
        """One patch of a scale, whose top left corner is at ``xy_level0``, as RGB ``[H, W, 3]``."""
        side, read_px = scale.patch_size_px, scale.patch_read_px
        return self._read(xy_level0, (side, side), (read_px, read_px), scale.level)

    def read_region(self, xy_level0: tuple[float, float], size_px: tuple[int, int], mpp: float) -> NDArray[np.uint8]:
        """A region at any resolution, RGB ``[height, width, 3]``.

        Args:
            xy_level0: (x, y) of the top left corner in level-0 pixels.
            size_px: (width, height) of the result, in pixels of ``mpp``.
            mpp: micrometres per pixel of the result.

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
        """A region of one level as it is stored, whatever ``read_level``; ``size_px`` is in pixels of the level."""
        return self._read(xy_level0, size_px, size_px, level)

    def _read(
        self, xy_level0: tuple[float, float], size_px: tuple[int, int], read_px: tuple[int, int], level: int
    ) -> NDArray[np.uint8]:
        left, top = (round(v / self.downsamples[level]) for v in xy_level0)
        return resample(self.read_pixels(left, top, *read_px, level), size_px)

    def read_pixels(self, left: int, top: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        """A region of one level as it is stored, RGB ``[height, width, 3]``; place and size are in the level's pixels.

        Raises:
            SlideError: if the slide cannot be read there.
        """
        # The backends never see a request that crosses the border: each fills with another colour.
        level_width, level_height = self.level_sizes[level]
        x0, x1 = max(left, 0), min(left + width, level_width)
        y0, y1 = max(top, 0), min(top + height, level_height)
        region = np.full((height, width, 3), WHITE, dtype=np.uint8)
        if x0 >= x1 or y0 >= y1:
            return region
        try:
            inside = read_pixels(self.path, self._stamp, self.backend, x0, y0, x1 - x0, y1 - y0, level)
        except ReaderError as error:
            self.check_unchanged()
            place = f"{x1 - x0} x {y1 - y0} px at ({x0}, {y0}) of level {level}"
            remedy = "Is the file complete? Copy it again, try another `reader`, or leave the slide out."
            raise SlideError(self.path, f"{self.backend} cannot read {place} ({error})", remedy) from error
        if inside.shape == region.shape:
            return inside
        region[y0 - top : y1 - top, x0 - left : x1 - left] = inside
        return region


def resample(region: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    """A region ``[H, W, 3]`` at another size (width, height): the mean over areas where it shrinks."""
    height, width = region.shape[:2]
    if (width, height) == size_px:
        return region
    shrinks = width >= size_px[0] and height >= size_px[1]
    resized = cv2.resize(region, size_px, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)


def _file_of(path: Path) -> Path:
    """The slide's file: of a folder, the file that stands for its one DICOM slide."""
    if not path.exists():
        raise SlideError(path, "no such file", "Check the path in the datalist, and `dataset_dir`.")
    slides = folder_slides(path) if path.is_dir() else []
    if len(slides) > 1:
        cause = f"is a folder of {len(slides)} DICOM slides"
        raise SlideError(path, cause, f"Give a file of the one that is meant, such as {os.path.basename(slides[0])}.")
    if not slides and not path.is_file():
        raise SlideError(path, "is a folder, a pipe or a device, not a slide", "Give the slide's file.")
    return Path(slides[0]) if slides else path


def _warn(path: Path, opened: Opened) -> None:
    """Log what a user should know of a slide that can be read, of the first few slides."""
    unseen, reasons = opened.subifd_levels - len(opened.level_sizes), "; ".join(opened.passed)
    if opened.doubt is not None:
        _repeats.log(logger, logging.WARNING, "{}: {}. {}".format(path, *opened.doubt), str(path))
    if unseen > 0:
        text = f"{path}: {unseen} of its levels are SubIFDs, which {opened.backend} does not see"
        text += f" ({reasons})" if reasons else ""
        text += ": low magnifications are read from level 0, slowly. Leave `reader` at auto, or convert it: "
        _repeats.log(logger, logging.WARNING, f"{text}{CONVERT}.", str(path))
    elif reasons:
        text = f"{path.name} is read with {opened.backend} ({reasons})"
        _repeats.log(logger, logging.INFO, text, path.name, f"more slides are read with {opened.backend}")
