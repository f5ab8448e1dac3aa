"""Importing: the features that another tool extracted become feature banks, linked across magnifications."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.bags.bag import BagBuilder
from scripts.bags.free_links import link_patches
from scripts.core.errors import SettingsError, SlideError
from scripts.core.files import file_sha256, output_folder
from scripts.core.imported import IMPORTED, folders
from scripts.core.magnification import scale_name
from scripts.core.provenance import software
from scripts.core.repeats import Repeats, first_names
from scripts.core.setting_checks import path as any_path
from scripts.datalists.failures import FailedSlides
from scripts.datalists.keys import composed
from scripts.features.bank import bank_path, bank_slides
from scripts.features.bank_settings import is_banked
from scripts.features.bank_writing import ROWS_AT_ONCE, NewBank, NewScale, writing_bank
from scripts.features.given_values import FeaturesAreError, GivenValues, MissingValueError
from scripts.features.imported import WEIGHTS, difference, identity_of, options
from scripts.features.imported_scales import Base, ImportedScale, base_of, identity_of_scales, scale_of
from scripts.features.known_slides import KnownSlides
from scripts.features.layouts.foreign import ForeignFile
from scripts.features.layouts.recognition import recognise

__all__ = ["Importer"]

logger = logging.getLogger(__name__)

REMEDY = "Extract their features again, or leave them out; the same command goes on from here."
# If more of a slide's patches of the highest magnification have no ancestor, the magnifications differ in their tissue.
MOST_ORPHANS = 0.25
# If what is said of features does not fit as many slides, the first of a run, it is taken to fit none.
ENOUGH_UNFIT = 20
MORE = "the same holds for more slides, which are not shown here"
LACKS_ALONE = "Extract its features again, or leave it out. Where slides differ in `mpp`, a datalist may give it."


class Importer:
    """Writes a feature bank of each slide whose features another tool extracted at one or several magnifications.

    The patches of the highest magnification are rows; the ancestor of a row at a lower one is the patch that contains
    its centre (:func:`scripts.bags.free_links.link_patches`). The bank's magnifications, patch size and encoder are
    those of the files, not of the config.

    A slide that fails is recorded, and the run goes on; it ends with an error when all else is done.

    Args:
        features: a folder for each magnification, in any order.
        feature_dir: where the banks are written, one file a slide.
        output_dir: where slides that fail are recorded, in ``failed.csv``.
        features_are: what the files do not say, see :class:`scripts.features.given_values.GivenValues`.
        dataset_dir: the folder of the slides, where they are at hand; resolution, size and checksum are then theirs.
        datalist: the slides, which need not be at hand; their ``mpp`` and ``sha256`` are used.
        bag_builder: opens the slides.
        strict: end the run with the first slide that fails.

    Raises:
        SettingsError: if ``features`` names no folder, or one that is of no known tool.
    """

    def __init__(
        self,
        features: str | Path | Sequence[str | Path] | None,
        feature_dir: str | Path,
        output_dir: str | Path,
        features_are: Mapping[str, Any] | None = None,
        dataset_dir: str | Path | None = None,
        datalist: str | Path | None = None,
        bag_builder: BagBuilder | None = None,
        strict: bool = False,
    ) -> None:
        folders("features", features)
        any_path()("feature_dir", feature_dir)
        if features is None:
            remedy = "Name a folder for each magnification: --features \"['/data/5x','/data/10x']\"."
            raise SettingsError("features", "names no folder", remedy)
        listed = [features] if isinstance(features, str | os.PathLike) else list(features)
        paths = [Path(folder).expanduser().resolve() for folder in listed]
        if twice := [path for path, count in Counter(paths).items() if count > 1]:
            raise SettingsError("features", f"names {twice[0]} twice", "Give one folder for each magnification.")
        if any(Path(feature_dir).expanduser().resolve().is_relative_to(path) for path in paths):
            cause = f"{feature_dir} is in a folder of `features`, whose files are no banks"
            raise SettingsError("feature_dir", cause, "Choose a `feature_dir` of its own.")
        self.folders = [recognise(folder) for folder in listed]
        self.given = GivenValues.of(features_are or {}, len(listed))
        for (layout, _), patches in zip(self.folders, self.given.patches, strict=True):
            if patches is not None and layout.tool != "clam":
                cause = f"is for CLAM, and {layout.tool} has its positions beside the features"
                raise SettingsError("features_are#patches", cause, "Leave it out.")
            if patches is not None and not patches.is_dir():
                raise SettingsError("features_are#patches", f"{patches} is no folder", "Give CLAM's `patches`.")
        self.feature_dir, self.failures = Path(feature_dir), FailedSlides(output_dir, "importing", strict)
        self.known = KnownSlides(dataset_dir, datalist, bag_builder or BagBuilder(), self.given.mpp)
        self._identity: tuple[str, dict[str, Any]] | None = None
        self._slide_of: dict[str, str] = {}  # by the checksum of its features
        self._renamed: dict[str, str] = {}
        self._repeats = Repeats()

    def run(self) -> None:
        """Import what has no bank yet; a second time, nothing.

        Raises:
            FailedSlidesError: at the end, if slides failed.
            SlideError: if a slide failed, and the run is strict.
            SettingsError: if no slide is in all folders, if what the user says of features does not fit the files, or
                if there is a bank of other features.
        """
        self.failures.start()
        output_folder(self.feature_dir)
        slides, counts = self._slides(), Counter[str]()
        # Banks of these slides are looked at when their turn comes; one before, lest others are written beside it.
        names, banks = {self.known.name_of(slide) for slide in slides}, bank_slides(self.feature_dir)
        if first := [path for i, (name, path) in enumerate(banks.items()) if not i or name not in names]:
            self._identity = str(first[0]), identity_of(first)
        unfit: list[str] = []
        for tried, slide in enumerate(tqdm(slides, desc="importing", unit="slide", dynamic_ncols=True), start=1):
            try:
                self._try(slide, counts)
            except FeaturesAreError:
                unfit.append(slide)
                if self.failures.strict or len(unfit) == tried == min(len(slides), ENOUGH_UNFIT):
                    raise
        for slide in unfit:  # Now it is known what the others are.
            try:
                self._try(slide, counts)
            except FeaturesAreError as error:
                remedy = error.remedy
                if isinstance(error, MissingValueError) and self._identity and error.key not in self._identity[1]:
                    remedy = LACKS_ALONE
                self._record(slide, SlideError(error.subject, error.cause, remedy))
        if self._renamed:
            text = "%d slides have files that say that they are of another one, in brackets: %s"
            logger.warning(text, len(self._renamed), first_names(list(self._renamed.values())))
        if counts["there"]:
            logger.info("%d slides were in %s, and are left as they are", counts["there"], self.feature_dir)
        if counts["slides"]:
            logger.info(
                "imported %d slides into %s: %d rows; left out: %d of %d patches of the highest magnification, which "
                "have no ancestor, and %d of lower ones without a row",
                *(counts["slides"], self.feature_dir, counts["rows"]),
                *(counts["orphans"], counts["orphans"] + counts["rows"], counts["unused"]),
            )
        self.failures.end(len(slides), REMEDY)
        if self._identity is not None:
            values = self._identity[1]
            used = {"backbone": IMPORTED, "feature_dir": self.feature_dir}
            used |= {key: values[key] for key in ("magnifications", "patch_size")}
            logger.info("features of %s: use them with %s", values["encoder"], options(used))

    def _slides(self) -> list[str]:
        """The names of the slides that are in all folders."""
        found = [set(slides) for _, slides in self.folders]
        files_of: dict[str, list[str]] = {}
        for slide in sorted(set.union(*found)):
            files_of.setdefault(self.known.name_of(slide).casefold(), []).append(slide)
        if twice := [files for files in files_of.values() if len(files) > 1]:
            cause = f"has {first_names(twice[0])}, which are all slide {self.known.name_of(twice[0][0])} (in any case)"
            remedy = "Give the files of a slide the same name in all folders, and leave one in each."
            raise SettingsError("features", cause, remedy)
        common = sorted(set.intersection(*found))
        if not common:
            folders = " and ".join(f"{layout.tool} ({min(of)}, ...)" for (layout, of) in self.folders)
            cause = f"no slide is in all folders: they have slides of {folders}"
            raise SettingsError("features", cause, "Give folders with features of the same slides.")
        if unknown := [slide for slide in common if self.known and not self.known.has(slide)]:
            text = "%d of %d slides are not in the datalist, and keep their own names: %s"
            logger.warning(text, len(unknown), len(common), first_names(unknown))
        left = sorted(set.union(*found).difference(common))
        if left:
            text = "%d of %d slides are not in all folders, and left out: %s"
            logger.warning(text, len(left), len(left) + len(common), first_names(left))
        return common

    def _try(self, slide: str, counts: Counter[str]) -> None:
        try:
            self._import(slide, counts)
        except SlideError as error:
            self._record(slide, error)

    def _record(self, slide: str, error: SlideError) -> None:
        image = str(self.folders[0][1][slide])
        self.failures.record({"slide": self.known.name_of(slide), "image": image}, error)

    def _import(self, slide: str, counts: Counter[str]) -> None:
        files = [
            layout.read(of_slide[slide], patches)
            for (layout, of_slide), patches in zip(self.folders, self.given.patches, strict=True)
        ]
        for file in files:
            if file.stated.slide is not None and composed(file.stated.slide) != slide:
                self._renamed[slide] = f"{slide} ({file.stated.slide})"
        base = base_of(slide, files, self.given, self.known.look(slide))
        known = {} if self._identity is None else self._identity[1]
        scales = [scale_of(slide, files, self.given, i, base, known) for i in range(len(files))]
        scales.sort(key=lambda scale: scale.magnification)
        identity = self._check_same(slide, scales)
        settings = {
            **identity,
            "feature_dtype": _dtype_of(scales).name,
            "imported_from": " + ".join(dict.fromkeys(layout.tool for layout, _ in self.folders)),
            "base_mpp": base.mpp,
            "patch_level0": [scale.patch_level0 for scale in scales],
            "features_sha256": [file_sha256(scale.file.path) for scale in scales],
            # Positions may be in another file than the features.
            "positions_sha256": [hashlib.sha256(scale.file.positions.tobytes()).hexdigest() for scale in scales],
        }
        if len(set(settings["features_sha256"])) < len(scales):
            cause = f"has the same features at several magnifications: {' and '.join(str(s.file.path) for s in scales)}"
            raise SlideError(f"slide {slide}", cause, "Give the folder of each magnification.")
        for scale, sha256 in zip(scales, settings["features_sha256"], strict=True):
            if (other := self._slide_of.setdefault(sha256, slide)) != slide:
                cause = f"has the same features as {other} ({scale.file.path})"
                raise SlideError(f"slide {slide}", cause, "Leave one of the two out.")
        path = bank_path(self.feature_dir, self.known.name_of(slide))
        if self._is_there(path, settings):
            counts.update(there=1)
            self._keep(slide, identity)
            return
        for scale in scales:
            if scale.doubt is not None:
                self._repeats.log(logger, logging.WARNING, f"slide {slide}: {scale.doubt}", slide, MORE)
        if (of_slide := self.known.sha256(slide)) is not None:
            settings["slide_sha256"] = of_slide
        counts.update(slides=1, **self._write(path, slide, base, scales, settings))
        self._keep(slide, identity)

    @staticmethod
    def _is_there(path: Path, settings: Mapping[str, Any]) -> bool:
        try:
            return is_banked(path, settings)
        except SettingsError as error:  # of this slide alone
            raise SlideError(error.subject, error.cause, error.remedy) from error

    def _keep(self, slide: str, identity: dict[str, Any]) -> None:
        # Not all files say of which weights they are: the first that does is compared with.
        if self._identity is None or (WEIGHTS in identity and WEIGHTS not in self._identity[1]):
            self._identity = slide, identity

    def _check_same(self, slide: str, scales: Sequence[ImportedScale]) -> dict[str, Any]:
        """What the features are, if it is the same at all magnifications of a slide, and as of the slides before."""
        identity = identity_of_scales(slide, scales)
        if self._identity is not None and (text := difference(*self._identity, slide, identity)) is not None:
            raise SlideError(slide, text, "Import it into another `feature_dir`, or extract its features again.")
        return identity

    def _write(
        self, path: Path, slide: str, base: Base, scales: Sequence[ImportedScale], settings: Mapping[str, Any]
    ) -> dict[str, int]:
        """Link and write a slide; returns what is counted."""
        # Positions of whole pixels that were rounded differ by up to one from those that link exactly.
        tolerance = 0.0 if all(scale.is_whole for scale in scales) else 1.0
        links = link_patches([s.corners for s in scales], [s.patch_level0 for s in scales], tolerance)
        if not len(links.rows):
            names = [scale_name(scale.magnification) for scale in scales]
            cause = f"none of its {links.orphans} patches at {names[-1]} has its centre in one at {names[0]}"
            raise SlideError(slide, cause, "Do all folders have the same slide, and is its resolution right?")
        if links.orphans > MOST_ORPHANS * (total := links.orphans + len(links.rows)):
            *lower, highest = (scale_name(scale.magnification) for scale in scales)
            text = f"slide {slide}: {links.orphans} of its {total} patches at {highest} have no ancestor at "
            text += f"{' and '.join(lower)}, and are left out: extract all magnifications over the same tissue area, "
            text += "the lower ones with a lower threshold"
            self._repeats.log(logger, logging.WARNING, text, slide, MORE)
        new = NewBank(
            settings=settings,
            made_by={**software(), "imported": [str(scale.file.path) for scale in scales]},
            slide=slide,
            reader=str(settings["imported_from"]),
            mpp=base.mpp,
            mpp_source=base.source,
            size_level0=base.size,
            rows=links.rows,
            orphans=links.orphans,
            scales=[
                NewScale(scale_name(scale.magnification), scale.corners[patches], scale.patch_level0, {})
                for scale, patches in zip(scales, links.patches, strict=True)
            ],
            num_features=scales[0].file.num_features,
            feature_dtype=_dtype_of(scales),
        )
        with writing_bank(path, new) as (datasets, check):
            for scale, patches, dataset in zip(scales, links.patches, datasets, strict=True):
                _copy(scale.file, patches, dataset, check)
        return {"rows": len(links.rows), "orphans": links.orphans, "unused": links.unused}


def _dtype_of(scales: Sequence[ImportedScale]) -> np.dtype[np.floating]:
    """What a bank of these is stored as: half of the size where all of them are."""
    return np.dtype(np.float16 if all(scale.file.dtype == np.float16 for scale in scales) else np.float32)


def _copy(file: ForeignFile, patches: NDArray[np.int64], dataset: h5py.Dataset, check: Callable[[], None]) -> None:
    """Copy the features of some patches ``[n]`` into a bank; in memory are those of the file once, and a few rows.

    Raises:
        SlideError: if features, of whichever patch, are not finite numbers, or all 0.
    """
    features = file.read_features()
    if features.shape != (len(file.positions), file.num_features):
        raise SlideError(file.path, "was changed while it was read", "Run again once it is complete.")
    for part in _parts(len(features)):
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
            stored = features[part].astype(dataset.dtype, copy=False)
        is_finite = np.isfinite(stored).all(axis=1)
        if not is_finite.all():
            number = part.start + int(np.argmin(is_finite))
            cause = f"its features are not all finite numbers in {dataset.dtype}, such as those of patch {number}"
            raise SlideError(file.path, cause, "Extract the features of this slide again.")
        if not (is_written := stored.any(axis=1)).all():
            cause = f"its features of patch {part.start + int(np.argmin(is_written))} are all 0, as if never written"
            raise SlideError(file.path, cause, "Extract the features of this slide again.")
    for part in _parts(len(patches)):
        dataset[part] = features[patches[part]].astype(dataset.dtype, copy=False)
        check()


def _parts(length: int) -> Iterator[slice]:
    return (slice(first, first + ROWS_AT_ONCE) for first in range(0, length, ROWS_AT_ONCE))
