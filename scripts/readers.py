"""A MONAI reader that gives any magnification, for everything in MONAI that takes a ``BaseWSIReader``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.wsi_reader import BaseWSIReader
from monai.utils import ensure_tuple, ensure_tuple_rep
from numpy.typing import DTypeLike, NDArray

from scripts.magnification import magnification_of, mpp_of
from scripts.slides import Slide

__all__ = ["MagnificationReader"]


class MagnificationReader(BaseWSIReader):
    """MONAI's readers refuse an ``mpp`` or a ``power`` that is no level of the file; this one resamples.

    ``get_data(slide, location, size, power=10)`` returns the region at 10x (1.0 um/px), read from the nearest
    finer level, whatever levels the file has; ``mpp=`` likewise. ``level=`` reads a level as in MONAI. As in
    MONAI, ``location`` is (top, left) in level-0 pixels and ``size`` is (height, width) of the result.

    Args:
        reader: see :class:`Slide`.
        read_level: see :class:`Slide`.
        kwargs: see MONAI's ``BaseWSIReader``.
    """

    supported_suffixes = ["tif", "tiff", "svs", "ndpi", "mrxs", "scn", "bif", "vms"]
    backend = "magnification"

    def __init__(self, reader: str = "auto", read_level: str = "nearest", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reader, self.read_level = reader, read_level

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> Slide | list[Slide]:
        """Open a slide, or a list of them; ``mpp=`` gives the base resolution of a file that has none."""
        slides = [
            Slide(path, reader=self.reader, read_level=self.read_level, **kwargs) for path in ensure_tuple(data)
        ]
        return slides if len(slides) > 1 else slides[0]

    def get_data(
        self,
        wsi: Slide | Sequence[Slide],
        location: tuple[float, float] = (0, 0),
        size: tuple[int, int] | None = None,
        level: int | None = None,
        mpp: float | tuple[float, float] | None = None,
        power: float | None = None,
        mode: str | None = None,
    ) -> tuple[np.ndarray, dict]:
        """A region of a slide, or of each of several, see the class; returns ``[3, H, W]`` and its metadata."""
        if mpp is None and power is None and level is None:
            mpp, power, level = self.mpp, self.power, self.level
        if level is not None or isinstance(wsi, list | tuple) or (mpp is None and power is None):
            return super().get_data(wsi, location, size, level=level, mpp=mpp, power=power, mode=mode)  # type: ignore[arg-type]
        if mpp is not None and power is not None:
            raise ValueError(f"give `mpp` or `power`, not both, got mpp={mpp} and power={power}")
        target_mpp = mpp_of(power) if power is not None else ensure_tuple_rep(mpp, 2)[0]
        if size is None:
            size = tuple(round(v * wsi.base_mpp / target_mpp) for v in wsi.size_level0[::-1])
        region = wsi.read_region((location[1], location[0]), (size[1], size[0]), target_mpp)
        patch = np.moveaxis(region, -1, self.channel_dim).astype(self.dtype, copy=False)
        metadata = self._get_metadata(wsi, patch, location, size, wsi.level_for(target_mpp))  # type: ignore[arg-type]
        return patch, {**metadata, "mpp": target_mpp}

    def get_size(self, wsi: Slide, level: int) -> tuple[int, int]:
        """(height, width) of a level."""
        width, height = wsi.level_sizes[level]
        return height, width

    def get_level_count(self, wsi: Slide) -> int:
        """The number of levels."""
        return len(wsi.level_sizes)

    def get_downsample_ratio(self, wsi: Slide, level: int) -> float:
        """Level-0 pixels per pixel of a level."""
        return wsi.downsamples[level]

    def get_file_path(self, wsi: Slide) -> str:
        """The slide's absolute path."""
        return str(wsi.path.absolute())

    def get_mpp(self, wsi: Slide, level: int) -> tuple[float, float]:
        """Micrometres per pixel of a level."""
        return (wsi.base_mpp * wsi.downsamples[level],) * 2

    def get_power(self, wsi: Slide, level: int) -> float:
        """Magnification of a level, as resolution: 10x is 1.0 um/px."""
        return magnification_of(self.get_mpp(wsi, level)[0])

    def _get_patch(
        self,
        wsi: Slide,
        location: tuple[int, int],
        size: tuple[int, int],
        level: int,
        dtype: DTypeLike,
        mode: str,
    ) -> NDArray[Any]:
        region = wsi.read_region((location[1], location[0]), (size[1], size[0]), self.get_mpp(wsi, level)[0])
        return np.moveaxis(region, -1, self.channel_dim).astype(dtype, copy=False)
