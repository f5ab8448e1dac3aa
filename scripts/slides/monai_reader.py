"""A MONAI reader that gives any magnification, for everything in MONAI that takes a ``BaseWSIReader``."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from monai.data.wsi_reader import BaseWSIReader
from monai.utils import ensure_tuple, ensure_tuple_rep
from numpy.typing import DTypeLike, NDArray

from scripts.core.magnification import magnification_of, mpp_of
from scripts.slides.slide import Slide

__all__ = ["MagnificationReader"]

# A level of the pyramid (int), or a resolution in micrometres per pixel (float) that no level need have.
Level = int | float


class MagnificationReader(BaseWSIReader):
    """MONAI's readers refuse an ``mpp`` or a ``power`` that no level of the file has; this one resamples.

    ``get_data(slide, location, size, power=10)`` returns the region at 10x (1.0 um/px), read from the nearest
    finer level; ``mpp=`` likewise. ``level=`` reads a level as MONAI does. As in MONAI, ``location`` is (top, left)
    in level-0 pixels and ``size`` is (height, width) of the result. The metadata contain the ``level`` that was read
    and the result's ``mpp``. Two of ``level``, ``mpp`` and ``power``, or a level that is not there, is a ValueError.

    Args:
        reader: see :class:`Slide`.
        read_level: see :class:`Slide`.
        kwargs: see MONAI's ``BaseWSIReader``.
    """

    supported_suffixes = ["tif", "tiff", "svs", "ndpi", "mrxs", "scn", "bif", "vms", "dcm"]  # noqa: RUF012
    backend = "magnification"

    def __init__(self, reader: str = "auto", read_level: str = "nearest", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reader, self.read_level = reader, read_level

    def read(self, data: Sequence[str | PathLike] | str | PathLike, **kwargs: Any) -> Slide | list[Slide]:
        """Open a slide, or a list of them; ``mpp=`` gives the base resolution of a file that has none."""
        slides = [Slide(path, reader=self.reader, read_level=self.read_level, **kwargs) for path in ensure_tuple(data)]
        return slides if len(slides) > 1 else slides[0]

    def get_valid_level(  # type: ignore[override]
        self, wsi: Slide, level: Level | None, mpp: float | tuple[float, float] | None, power: float | None
    ) -> Level:
        if isinstance(level, float):  # a further slide of a list: MONAI hands on what the first one gave
            return level
        if level is None and mpp is None and power is None:
            level, mpp, power = self.level, self.mpp, self.power
        if level is None and (mpp is None) != (power is None):
            return mpp_of(power) if power is not None else float(ensure_tuple_rep(mpp, 2)[0])
        return super().get_valid_level(wsi, level, mpp, power)  # type: ignore[arg-type]

    def get_size(self, wsi: Slide, level: Level) -> tuple[int, int]:
        if isinstance(level, float):
            width, height = (max(1, round(side * wsi.base_mpp / level)) for side in wsi.size_level0)
        else:
            width, height = wsi.level_sizes[level]
        return height, width

    def get_level_count(self, wsi: Slide) -> int:
        return len(wsi.level_sizes)

    def get_downsample_ratio(self, wsi: Slide, level: int) -> float:
        return wsi.downsamples[level]

    def get_file_path(self, wsi: Slide) -> str:
        return str(wsi.path.absolute())

    def get_mpp(self, wsi: Slide, level: int) -> tuple[float, float]:
        return (wsi.base_mpp * wsi.downsamples[level],) * 2

    def get_power(self, wsi: Slide, level: int) -> float:
        return magnification_of(self.get_mpp(wsi, level)[0])

    def _get_patch(  # type: ignore[override]
        self,
        wsi: Slide,
        location: tuple[float, float],
        size: tuple[int, int],
        level: Level,
        dtype: DTypeLike,
        mode: str,
    ) -> NDArray[Any]:
        read = wsi.read_region if isinstance(level, float) else wsi.read_level_region
        region = read((location[1], location[0]), (size[1], size[0]), level)  # type: ignore[arg-type]
        return np.moveaxis(region, -1, self.channel_dim).astype(dtype, copy=False)

    def _get_metadata(
        self, wsi: Slide, patch: Any, location: tuple[float, float], size: tuple[int, int], level: Level
    ) -> dict:
        mpp = level if isinstance(level, float) else self.get_mpp(wsi, level)[0]
        read = wsi.level_for(level) if isinstance(level, float) else level
        return {**super()._get_metadata(wsi, patch, location, size, read), "mpp": mpp}  # type: ignore[arg-type]
