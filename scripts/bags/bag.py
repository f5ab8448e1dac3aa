"""The bag of one slide: the one room that knows slide, tissue and grid together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.bags.annotation_files import is_annotation_file
from scripts.bags.annotations import read_annotated_tissue
from scripts.bags.blocks import Block, plan_blocks
from scripts.bags.grid import LinkedGrid, link_grids, tissue_thresholds
from scripts.bags.tissue import TissueMask, find_tissue, read_tissue_mask
from scripts.bags.tissue_settings import tissue_settings
from scripts.core.errors import SlideError
from scripts.core.magnification import Scale, check_magnifications
from scripts.core.repeats import Repeats
from scripts.core.settings import check_settings
from scripts.datalists.values import check_mask_excluded, check_mask_tissue
from scripts.slides.checksums import given_sha256, slide_sha256
from scripts.slides.resolution import ResolutionError, is_rounded
from scripts.slides.slide import Slide, resample
from scripts.slides.staging import SlideStaging

__all__ = ["Bag", "BagBuilder"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bag:
    """A slide, its tissue, and its linked grid."""

    slide: Slide
    tissue: TissueMask
    grid: LinkedGrid

    @cached_property
    def covered_mm2(self) -> float:
        """Area of the tissue that patches of the highest magnification cover, in square millimetres."""
        return self.tissue.covered_mm2(self.grid.coords[-1], self.grid.scales[-1].patch_level0)

    @property
    def covered_fraction(self) -> float:
        """Fraction of the tissue that they cover, in 0..1; 0 without tissue."""
        return self.covered_mm2 / self.tissue.area_mm2 if self.tissue.area_mm2 > 0 else 0.0

    def read_patch(self, scale_index: int, patch: int) -> NDArray[np.uint8]:
        """Patch ``patch`` of scale ``scale_index`` (from low to high), RGB ``[H, W, 3]``."""
        x, y = self.grid.coords[scale_index][patch]
        return self.slide.read_patch(self.grid.scales[scale_index], (float(x), float(y)))

    def read_block(self, block: Block) -> list[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
        """The patches of a block, of which each pixel is decoded once.

        Returns:
            For each part of the block the scale's index, the patches ``[n]``, and their pixels, RGB ``[n, 3, H, W]``
            with the channels last in memory.
        """
        region = self.slide.read_pixels(*block.corner_px, *block.size_px, block.level)
        parts = []
        for part in block.parts:
            scale = self.grid.scales[part.scale_index]
            read_px, side = scale.patch_read_px, scale.patch_size_px
            pixels = np.empty((len(part.patches), side, side, 3), dtype=np.uint8)
            for patch, (x, y) in zip(pixels, part.corners_px, strict=True):
                patch[:] = resample(region[y : y + read_px, x : x + read_px], (side, side))
            parts.append((part.scale_index, part.patches, pixels.transpose(0, 3, 1, 2)))
        return parts

    def read_all(self, num_workers: int = 0) -> list[NDArray[np.uint8]]:
        """Every patch of every scale, from low to high: RGB ``[n_s, 3, H, W]``, read by so many threads.

        Raises:
            SlideError: if the slide cannot be read, or was changed since it was opened.
        """
        shapes = [
            (len(coords), 3, scale.patch_size_px, scale.patch_size_px)
            for coords, scale in zip(self.grid.coords, self.grid.scales, strict=True)
        ]
        patches = [np.empty(shape, dtype=np.uint8) for shape in shapes]

        def read(block: Block) -> None:
            for scale_index, numbers, pixels in self.read_block(block):
                patches[scale_index][numbers] = pixels

        with ThreadPoolExecutor(max(1, num_workers)) as threads:
            for _ in threads.map(read, plan_blocks(self.grid)):
                pass
        self.slide.check_unchanged()
        return patches


class BagBuilder:
    """Makes the bag of an entry of the datalist.

    Args:
        magnifications: the scales, in any order.
        patch_size: side of the patches at every scale, in pixels.
        min_tissue: see :func:`scripts.bags.grid.tissue_thresholds`.
        reader: see :class:`Slide`.
        read_level: see :class:`Slide`.
        mask_tissue: what of the entries' masks is tissue: values of images, see
            :func:`scripts.bags.mask_values.tissue_in`, and classes of annotations, see
            :func:`scripts.bags.annotations.read_annotated_tissue`; an entry's own ``mask_tissue`` takes precedence.
        mask_excluded: the classes of annotations that are cut out of the tissue; an entry's own takes precedence.
        overlap: see :func:`scripts.bags.grid.link_grids`.
        grid_origin: ``slide``, one grid from the slide's corner, or ``tissue``, one for each piece of tissue.
        tissue: constants of tissue detection that are changed, see
            :class:`scripts.bags.tissue_settings.TissueSettings`; where a mask says what is tissue they do nothing.
        slide_cache: see :class:`scripts.slides.staging.SlideStaging`.
        slide_cache_gb: see there.

    Attributes:
        staging: copies slides from slow storage; whoever asks for bags begins it and ends it.

    Raises:
        SettingsError: if a setting has no such value.
    """

    def __init__(
        self,
        magnifications: Sequence[float] = (5, 10),
        patch_size: int = 224,
        min_tissue: float | Sequence[float] = 0.7,
        reader: str = "auto",
        read_level: str = "nearest",
        mask_tissue: int | str | Sequence[int | str] | None = None,
        mask_excluded: str | Sequence[str] | None = None,
        overlap: float = 0.0,
        grid_origin: str = "slide",
        tissue: Mapping[str, Any] | None = None,
        slide_cache: str | Path | None = None,
        slide_cache_gb: float = 50.0,
    ) -> None:
        check_settings(
            patch_size=patch_size, reader=reader, read_level=read_level, overlap=overlap, grid_origin=grid_origin
        )
        self.magnifications = check_magnifications(magnifications)
        self.patch_size = patch_size
        self.min_tissue = tissue_thresholds(min_tissue, len(self.magnifications))
        self.reader, self.read_level = reader, read_level
        self.overlap, self.grid_origin = float(overlap), grid_origin
        self.tissue = tissue_settings({} if tissue is None else tissue)
        self.staging = SlideStaging(slide_cache, slide_cache_gb)
        self._repeats = Repeats()
        self.mask_tissue = check_mask_tissue(mask_tissue)
        self.mask_excluded = check_mask_excluded(mask_excluded)

    def open_slide(self, entry: Mapping[str, Any], known_mpp: float | None = None) -> Slide:
        """The slide of an entry: its ``image``, with the entry's ``mpp`` if it has one.

        Args:
            entry: of the datalist.
            known_mpp: for a slide of which neither the entry nor the file says the resolution, or the file says no more
                than an objective power, as imported features may know it.
        """
        entry = self.staging.local(entry)
        try:
            slide = Slide(entry["image"], reader=self.reader, mpp=entry.get("mpp"), read_level=self.read_level)
            if known_mpp is None or known_mpp == slide.base_mpp or not is_rounded(slide.resolution.source):
                return slide
        except ResolutionError:
            if known_mpp is None or entry.get("mpp") is not None:
                raise
        return Slide(entry["image"], reader=self.reader, mpp=known_mpp, read_level=self.read_level)

    def look(self, entry: Mapping[str, Any]) -> Bag:
        """The bag of an entry, which may be empty: to find out why.

        Raises:
            SlideError: if the slide or its mask cannot be read, or the slide is too coarse.
        """
        slide = self.open_slide(entry)
        scales = [slide.scale(m, self.patch_size) for m in self.magnifications]
        return self.link(slide, scales, self.tissue_of(entry, slide))

    def link(self, slide: Slide, scales: Sequence[Scale], tissue: TissueMask) -> Bag:
        """The bag of a slide with its tissue, at the slide's scales for the magnifications, from low to high."""
        pieces = tissue.pieces_level0() if self.grid_origin == "tissue" else None
        size, fraction = slide.size_level0, tissue.fraction
        grid = link_grids(scales, size, fraction, self.min_tissue, self.overlap, pieces, tissue.quick_fraction)
        return Bag(slide, tissue, grid)

    def tissue_of(self, entry: Mapping[str, Any], slide: Slide) -> TissueMask:
        """The tissue of an entry: by its ``mask``, or else found.

        Raises:
            SlideError: if slide or mask cannot be read, or it is not known which of the mask's values or classes are
                tissue.
        """
        if entry.get("mask") is None:
            return find_tissue(slide, self.tissue)
        mask, listed, excluded = entry["mask"], self._mask_tissue_of(entry), self._mask_excluded_of(entry)
        if is_annotation_file(mask):
            return read_annotated_tissue(mask, slide, listed, excluded, lambda: find_tissue(slide, self.tissue))
        own = check_mask_tissue(entry.get("mask_tissue"), entry["image"], SlideError) or ()
        names = {"mask_excluded": entry.get("mask_excluded"), "mask_tissue": [v for v in own if isinstance(v, str)]}
        if key := next((key for key, given in names.items() if given), None):
            remedy = "List the values that are tissue as its `mask_tissue`, or give annotations as `mask`."
            raise SlideError(slide.path, f"its mask {mask} is an image, and `{key}` names classes", remedy)
        return read_tissue_mask(mask, slide, _values(listed))

    def __call__(self, entry: Mapping[str, Any]) -> Bag:
        """The bag of an entry with ``image`` and, optionally, ``mpp``, ``mask``, ``mask_tissue``, ``mask_excluded``.

        For the first few slides, once each, it logs ink that was left out, and warns of more ink than tissue and of
        tissue that is everywhere; not where a mask says what is tissue.

        Raises:
            SlideError: as :meth:`look`, and if there is no tissue, or no patch has enough.
        """
        bag = self.look(entry)
        path = str(bag.slide.path)
        if bag.tissue.is_found:
            # Melanin and some blue stains look like ink, and may be all that the slide has.
            of_ink = logging.WARNING if bag.tissue.ink_mm2 > bag.tissue.area_mm2 else logging.INFO
            for level, message in ((logging.WARNING, bag.tissue.doubt()), (of_ink, bag.tissue.ink())):
                if message is not None:
                    self._repeats.log(logger, level, f"{path}: {message[0]}. {message[1]}", path)
        return self.check(bag)

    def verified(self, entry: Mapping[str, Any], always: bool = False) -> tuple[Bag, str | None]:
        """The bag of an entry whose file has the entry's checksum, and that checksum, the file's SHA-256.

        Args:
            entry: as above, and with ``sha256`` where it is known.
            always: compute the checksum also of an entry without one, for which it is ``None`` otherwise.

        Raises:
            SlideError: as above, and if the checksum differs, or the file is changed meanwhile.
        """
        sha256, stamp = None, None
        if always or given_sha256(entry) is not None:
            sha256, stamp = slide_sha256(self.staging.local(entry))
        bag = self(entry)
        bag.slide.check_unchanged(since=stamp)
        return bag, sha256

    def check(self, bag: Bag) -> Bag:
        """The same bag, if it has rows.

        Raises:
            SlideError: if there is no tissue, or no patch has enough.
        """
        if bag.grid.num_rows > 0:
            return bag
        if bag.tissue.is_found:
            cause, first, mask = "no tissue was found", " (without a stain it has none)", "give a `mask`"
        else:
            cause, first, mask = "its `mask` leaves no tissue", "", "correct the `mask`"
        if bag.tissue.area_mm2 > 0:
            cause = (
                f"no patch of {bag.grid.scales[-1].patch_um:g} um contains enough tissue (min_tissue "
                f"{list(self.min_tissue)}; {bag.tissue.area_mm2:.3g} mm2 of tissue; {bag.grid.orphans} patches "
                "without an ancestor)"
            )
            first = ", lower `min_tissue`"
        remedy = f"Look at it with `inspecting`{first}, {mask}, or leave the slide out."
        raise SlideError(bag.slide.path, cause, remedy)

    def settings(self) -> dict[str, Any]:
        """What decides the content of a bag, as plain values that are stored with its features."""
        return {
            "magnifications": list(self.magnifications),
            "patch_size": self.patch_size,
            "min_tissue": list(self.min_tissue),
            "read_level": self.read_level,
            "overlap": self.overlap,
            "grid_origin": self.grid_origin,
        }

    def mask_settings(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What else decides the content of the bag of an entry: how its ``mask`` is read, or how tissue is found."""
        if entry.get("mask") is None:
            return {"tissue": self.tissue.changed()}
        listed = self._mask_tissue_of(entry)
        if is_annotation_file(entry["mask"]):
            # Where all classes are excluded, tissue is found in the rest.
            found = {"tissue": self.tissue.changed()}
            decides = {"mask_tissue": listed, "mask_excluded": self._mask_excluded_of(entry)}
        else:
            found, decides = {}, {"mask_tissue": _values(listed)}
        return {key: None if value is None else list(value) for key, value in decides.items()} | found

    def _mask_excluded_of(self, entry: Mapping[str, Any]) -> tuple[str, ...] | None:
        own = check_mask_excluded(entry.get("mask_excluded"), entry["image"], SlideError)
        return self.mask_excluded if own is None else own

    def _mask_tissue_of(self, entry: Mapping[str, Any]) -> tuple[int | str, ...] | None:
        own = check_mask_tissue(entry.get("mask_tissue"), entry["image"], SlideError)
        return self.mask_tissue if own is None else own


def _values(mask_tissue: Sequence[int | str] | None) -> tuple[int, ...] | None:
    """Of what is listed as tissue the values of images; the classes are of annotations."""
    return tuple(value for value in mask_tissue or () if isinstance(value, int)) or None
