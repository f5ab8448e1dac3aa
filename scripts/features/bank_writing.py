"""Writing a feature bank: the file is there when it is complete, with a checksum of each array."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from scripts.bags.bag import Bag
from scripts.core.files import replacing
from scripts.core.provenance import software
from scripts.features.bank import BANK_FORMAT, bank_datasets, geometry_crc32, patch_sides
from scripts.features.encoding import Encoder, PatchTransform
from scripts.features.hdf5 import writing_hdf5

__all__ = ["ROWS_AT_ONCE", "NewBank", "NewScale", "NewView", "seal_bank", "write_bank", "write_banks", "writing_bank"]

ROWS_AT_ONCE = 4096
# Patches of a scale whose features are collected before they are written: 6 MB of 1,536 numbers each.
COLLECTED = 1024


@dataclass(frozen=True)
class NewScale:
    """One scale of a bank that is written.

    Args:
        name: ``"5x"``.
        coords: ``[n, 2]`` float64, (x, y) of the patches' top left corners in level-0 pixels.
        patch_level0: side of a patch in level-0 pixels.
        attributes: what else is stored with the coordinates.
    """

    name: str
    coords: NDArray[np.float64]
    patch_level0: float
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class NewBank:
    """What a bank that is written contains, but for its features.

    Args:
        settings: which decide whether the bank is used again.
        made_by: what made it; never compared.
        slide: the name of the file that the features are of.
        reader: what read it.
        mpp: micrometres per pixel of level 0.
        mpp_source: where that was found, in words.
        size_level0: (width, height) of level 0; ``None`` where it is not known.
        rows: ``[N, S]`` int64, see :class:`BankedBag`.
        orphans: see :class:`scripts.bags.grid.LinkedGrid`.
        scales: from low to high magnification.
        num_features: F.
        feature_dtype: of the features.
    """

    settings: Mapping[str, Any]
    made_by: Mapping[str, Any]
    slide: str
    reader: str
    mpp: float
    mpp_source: str
    size_level0: tuple[int, int] | None
    rows: NDArray[np.int64]
    orphans: int
    scales: Sequence[NewScale]
    num_features: int
    feature_dtype: np.dtype[np.floating]


@contextlib.contextmanager
def writing_bank(path: Path, new: NewBank) -> Iterator[tuple[list[h5py.Dataset], Callable[[], None]]]:
    """Write a bank; the file appears under its name, with checksums, when the block ends without an error.

    Yields:
        the features of each scale ``[n_s, F]``, to be filled, and a function that raises the error of a failed write.

    Raises:
        SettingsError: if it cannot be written.
    """
    with replacing(path) as part, writing_hdf5(part) as (bank, check):
        bank.attrs["settings"] = json.dumps({"bank_format": BANK_FORMAT, **new.settings})
        bank.attrs["made_by"] = json.dumps(new.made_by)
        # HDF5 stores UTF-8, and the name of a file may be anything.
        bank.attrs["slide"] = os.fsencode(new.slide).decode(errors="backslashreplace")
        bank.attrs["reader"] = new.reader
        bank.attrs["mpp"] = new.mpp
        bank.attrs["mpp_source"] = new.mpp_source
        if new.size_level0 is not None:
            bank.attrs["size_level0"] = new.size_level0
        bank.attrs["orphans"] = new.orphans
        bank["rows"] = new.rows
        datasets = []
        for scale in new.scales:
            group = bank.create_group(scale.name)
            group["coords"] = scale.coords
            group["coords"].attrs["frame"] = "(x, y) of the top left corner, level-0 pixels"
            group["coords"].attrs["patch_level0"] = scale.patch_level0
            group["coords"].attrs.update(scale.attributes)
            shape = (len(scale.coords), new.num_features)
            datasets.append(group.create_dataset("features", shape, dtype=new.feature_dtype))
        yield datasets, check
        seal_bank(bank, [scale.name for scale in new.scales])


@dataclass(frozen=True)
class NewView:
    """A view of a bag whose bank is written.

    Args:
        path: the bank file.
        settings: of :func:`scripts.features.bank_settings.bank_settings`, which decide whether the bank is used again.
        transform: applied to the patches before they are encoded; ``None`` leaves them as they are.
    """

    path: Path
    settings: Mapping[str, Any]
    transform: PatchTransform | None = None


def write_bank(
    path: Path,
    bag: Bag,
    encoder: Encoder,
    settings: Mapping[str, Any],
    on_batch: Callable[[int], object] | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Encode the plain patches of a bag into a bank, see :func:`write_banks`."""
    write_banks([NewView(path, settings)], bag, encoder, on_batch, made_by)


def write_banks(
    views: Sequence[NewView],
    bag: Bag,
    encoder: Encoder,
    on_batch: Callable[[int], object] | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Encode views of a bag batch by batch, each into a bank; the files appear under their names when all are encoded.

    Args:
        views: what is made from one reading of the slide.
        bag: the slide's bag.
        encoder: encodes the patches.
        on_batch: called with the number of patches of each batch.
        made_by: stored beside the versions of the software, such as the seed; never compared.

    Raises:
        SlideError: if the slide cannot be read, or was changed since it was opened; there is no bank then.
    """
    encoder.prepare(bag.grid.scales[0].patch_size_px)
    with contextlib.ExitStack() as banks:
        collected, checks = [], []
        for view in views:
            datasets, check = banks.enter_context(writing_bank(view.path, _new_bank(view, bag, encoder, made_by)))
            collected.append([_Collected(dataset) for dataset in datasets])
            checks.append(check)
        for view_index, scale_index, patches, features in encoder.encode(bag, [view.transform for view in views]):
            collected[view_index][scale_index].add(patches, features)
            checks[view_index]()
            if on_batch is not None:
                on_batch(len(features))
        for of_view, check in zip(collected, checks, strict=True):
            for of_scale in of_view:
                of_scale.write()
            check()


def _new_bank(view: NewView, bag: Bag, encoder: Encoder, made_by: Mapping[str, Any] | None) -> NewBank:
    grid, slide = bag.grid, bag.slide
    return NewBank(
        settings=view.settings,
        made_by={**software(slide.backend), "machine": encoder.made_with(), **(made_by or {})},
        slide=slide.path.name,
        reader=slide.backend,
        mpp=slide.base_mpp,
        mpp_source=slide.resolution.source,
        size_level0=slide.size_level0,
        rows=grid.rows,
        orphans=grid.orphans,
        scales=[
            NewScale(s.name, coords, s.patch_level0, {"patch_read_px": s.patch_read_px, "read_level": s.level})
            for s, coords in zip(grid.scales, grid.coords, strict=True)
        ],
        num_features=encoder.num_features,
        feature_dtype=encoder.feature_dtype,
    )


class _Collected:
    """Features of a scale that are written many at once, each run of neighbours by one call: HDF5 takes long for each.

    Args:
        dataset: the features of the scale, ``[n, F]``.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset, self._num_patches = dataset, 0
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.floating]]] = []

    def add(self, patches: NDArray[np.int64], features: NDArray[np.floating]) -> None:
        """Add features ``[n, F]`` of some patches ``[n]``; copied, for they may be a part of a whole batch."""
        self._parts.append((patches, features.copy()))
        self._num_patches += len(patches)
        if self._num_patches >= COLLECTED:
            self.write()

    def write(self) -> None:
        """Write what there is."""
        if not self._parts:
            return
        patches, features = (np.concatenate(of_parts) for of_parts in zip(*self._parts, strict=True))
        order = np.argsort(patches)
        starts = [0, *(np.flatnonzero(np.diff(patches[order]) != 1) + 1), len(order)]
        for start, stop in pairwise(starts):
            first = patches[order[start]]
            self._dataset[first : first + stop - start] = features[order[start:stop]]
        self._parts, self._num_patches = [], 0


def seal_bank(bank: h5py.File, scales: Sequence[str]) -> None:
    """Store the checksum of each array of an open bank, and of its geometry, for :func:`read_bank` to compare."""
    datasets = bank_datasets(bank, scales)
    for dataset in datasets:
        crc = 0
        for first in range(0, len(dataset), ROWS_AT_ONCE):
            crc = zlib.crc32(dataset[first : first + ROWS_AT_ONCE], crc)
        dataset.attrs["crc32"] = crc
    bank.attrs["crc32"] = geometry_crc32(float(bank.attrs["mpp"]), patch_sides(datasets))
