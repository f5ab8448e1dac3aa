"""What imported features are: resolution, patch size, magnification and encoder, from what files say and users give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import SlideError
from scripts.core.imported import IMPORTED
from scripts.core.magnification import MPP_RTOL, magnification_of, mpp_of, scale_name
from scripts.features.given_values import FeaturesAreError, GivenValues, MissingValueError
from scripts.features.imported import WEIGHTS
from scripts.features.layouts.foreign import ForeignFile
from scripts.slides.resolution import LEVEL0_MAGNIFICATION_SOURCE, is_rounded

__all__ = [
    "GIVEN_MPP",
    "Base",
    "ImportedScale",
    "base_of",
    "identity_of_scales",
    "scale_of",
]

T = TypeVar("T")

# Magnifications of objectives and of what is made of their pixels: resolutions within 5% of one have its name.
USUAL = (0.3125, 0.625, 1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
# Tools that know magnifications alone call a scan of 0.22 um/px 40x. What is nearer to another magnification, each
# being twice the one before, is another.
MOST_OFF = math.sqrt(2)
# Fewer patches may lie apart by chance, of which each is a small piece of tissue.
FEWEST_SPACED = 9
# Two exact resolutions of one slide, of which one may have been written with fewer digits.
SAME_MPP_RTOL = 0.01
GIVEN_MPP = "features_are: mpp"


@dataclass(frozen=True)
class Base:
    """Level 0 of a slide.

    Args:
        mpp: micrometres per pixel.
        source: where that was found, in words.
        size: (width, height) in pixels; ``None`` where it is not known.
    """

    mpp: float
    source: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class ImportedScale:
    """The patches of a slide at one magnification.

    Args:
        magnification: its name in the bank.
        patch_size: side of a patch in pixels at it.
        patch_level0: side of a patch in level-0 pixels.
        corners: ``[n, 2]``, (x, y) of the patches' top left corners in level-0 pixels.
        encoder: what made the features.
        file: they are in.
        doubt: what a user should know of its resolution; or ``None``.
    """

    magnification: float
    patch_size: int
    patch_level0: float
    corners: NDArray[np.float64]
    encoder: str
    file: ForeignFile
    doubt: str | None

    @property
    def is_whole(self) -> bool:
        """Whether positions and side are whole pixels, so that nothing was rounded."""
        is_whole = float(self.patch_level0).is_integer() and bool((self.corners % 1 == 0).all())
        return is_whole and not self.file.stated.is_rounded


def base_of(slide: str, files: Sequence[ForeignFile], given: GivenValues, at_hand: Base | None) -> Base:
    """Level 0 of a slide: exact where a file or the slide says it, else as the user gives it, else rounded.

    Args:
        slide: its name, to begin an error with.
        files: its features at each magnification.
        given: by the user.
        at_hand: as the slide itself or the datalist says it, where it is there.

    Raises:
        SlideError: if two of these contradict each other.
        MissingValueError: if nobody knows the resolution.
    """
    size = _same(slide, "level-0 size in pixels", files, "size_level0")
    if at_hand is not None and at_hand.size is not None:
        if size not in (None, at_hand.size):
            cause = f"its features are of a slide of {size[0]} x {size[1]} px, and the slide has {at_hand.size[0]} x "
            raise SlideError(slide, f"{cause}{at_hand.size[1]} px", "Give the slide that the features are of.")
        size = at_hand.size
    stated = _same(slide, "um/px of level 0", files, "mpp", SAME_MPP_RTOL)
    magnification = _same(slide, "magnification of level 0", files, "level0_magnification")
    known: list[tuple[float, str]] = []
    if stated is not None:
        known.append((stated, f"file: level0_mpp of {files[0].path.name}"))
    if at_hand is not None:
        known.append((at_hand.mpp, at_hand.source))
    if given.mpp is not None:
        known.append((given.mpp, GIVEN_MPP))
    if magnification is not None:
        known.append((mpp_of(magnification), f"{LEVEL0_MAGNIFICATION_SOURCE} {magnification:g}, rounded"))
    if not known:
        raise MissingValueError(files[0], "the resolution of level 0, in micrometres per pixel", given, mpp=0.25)
    known.sort(key=lambda one: is_rounded(one[1]))
    mpp, source = known[0]
    for other, where in known[1:]:
        # Of a rounded magnification the scale is compared when patches are (`_check_resolution`).
        if where.startswith(LEVEL0_MAGNIFICATION_SOURCE):
            continue
        tolerance = MOST_OFF - 1 if is_rounded(where) else MPP_RTOL if where == GIVEN_MPP else SAME_MPP_RTOL
        if max(mpp / other, other / mpp) > 1 + tolerance:
            cause = f"its level 0 has {mpp:g} um/px ({source}), and {other:g} um/px ({where})"
            raise SlideError(slide, cause, "Correct `mpp`, or give the slide that the features are of.")
    return Base(mpp, source, size)


def scale_of(
    slide: str, files: Sequence[ForeignFile], given: GivenValues, folder: int, base: Base, known: Mapping[str, Any]
) -> ImportedScale:
    """The patches of a slide in one of the folders.

    Args:
        slide: its name, to begin an error with.
        files: its features at each magnification.
        given: by the user.
        folder: the number of the folder.
        base: level 0 of the slide.
        known: what features of other slides are, for the examples of an error.

    Raises:
        SlideError: if patches are not at the magnification that they are said to be, or not on the slide.
        FeaturesAreError: if the user gives another value than the file says, or nobody knows a value.
    """
    file, stated = files[folder], files[folder].stated

    def example(name: str, other: Any) -> Any:
        return next((said for f in files if (said := getattr(f.stated, name)) is not None), known.get(name, other))

    encoder = _one_of(file, "encoder", stated.encoder, given.encoder)
    if encoder is None:
        raise MissingValueError(file, "which encoder made it", given, encoder=example("encoder", "uni"))
    patch_size = _one_of(file, "patch_size", stated.patch_size, given.patch_size)
    if patch_size is None:
        raise MissingValueError(file, "the side of a patch in pixels", given, patch_size=example("patch_size", 256))
    magnification = _one_of(file, "magnifications", stated.magnification, given.magnifications[folder])
    side = _one_of(file, "patch_size_level0", stated.patch_level0, given.patch_size_level0[folder])
    if side is None and stated.patch_um is not None:
        side = stated.patch_um / base.mpp
        # slideflow leaves out what follows the point.
        side = float(int(side)) if file.is_centre else side
    if side is not None and side < 1:
        cause = f"its patches have a side of {side:g} px of level 0"
        raise SlideError(file.path, cause, "Give the resolution as it is, or extract the features of this slide again.")
    exact = stated.patch_um / patch_size if stated.patch_um is not None else None
    if magnification is None:
        magnification = _named(None if side is None else side * base.mpp / patch_size, exact)
    if magnification is None:
        found = "" if side is None else f" ({side * base.mpp / patch_size:.4g} um/px is no usual one)"
        what, all_of_them = f"at which magnification its patches are{found}", _example_magnifications(files, given)
        raise MissingValueError(file, what, given, magnifications=all_of_them)
    corners = file.positions / base.mpp if file.is_um else file.positions
    doubt = None
    if side is None:
        side = patch_size * mpp_of(magnification) / base.mpp
        side = float(int(side)) if file.is_centre else side
        shown = f"{patch_size} px at {scale_name(magnification)} and {base.mpp:g} um/px are {side:g} px"
        doubt = _check_spacing(file, corners, side, shown)
    doubt = doubt or _check_resolution(slide, side * base.mpp / patch_size, magnification)
    # Positions are rounded to whole pixels of level 0, an overlap to those of a patch.
    closest = np.min(_spacings(corners)[0], initial=np.inf)
    if stated.is_apart and closest < side - 1 - side / patch_size / 2:
        cause = f"its patches of {side:g} px of level 0 do not overlap, it says, and some lie {closest:g} apart"
        raise SlideError(file.path, cause, "Extract the features of this slide again, or leave it out.")
    if file.is_centre:
        corners = corners - side // 2
        # The side follows from um/px, which need not be exact.
        corners = np.where((corners < 0) & (corners >= -MPP_RTOL * side), 0.0, corners)
    _check_corners(file, corners, base)
    return ImportedScale(float(magnification), patch_size, float(side), corners, encoder, file, doubt)


def identity_of_scales(slide: str, scales: Sequence[ImportedScale]) -> dict[str, Any]:
    """What the features of a slide are, by the settings of its bank that all banks of a run share.

    Args:
        slide: its name, to begin an error with.
        scales: from low to high magnification.

    Raises:
        SlideError: if they are not the same at all magnifications.
        FeaturesAreError: if two are at one magnification.
    """
    names = [scale_name(scale.magnification) for scale in scales]
    for name, one, other in zip(names[1:], scales, scales[1:], strict=False):
        if name == scale_name(one.magnification):
            cause = f"{one.file.path} and {other.file.path} are both at {name}"
            raise FeaturesAreError("features", cause, "Give one folder for each magnification.")
    first = scales[0]
    for name, scale in zip(names[1:], scales[1:], strict=True):
        for what, values in {
            "encoders": (first.encoder, scale.encoder),
            "feature lengths": (first.file.num_features, scale.file.num_features),
            "patch sizes": (first.patch_size, scale.patch_size),
        }.items():
            if values[0] != values[1]:
                cause = f"has different {what}: {values[0]} at {names[0]}, {values[1]} at {name}"
                raise SlideError(slide, cause, "Extract both magnifications in the same way.")
    weights = {sha256: scale.file.path for scale in scales if (sha256 := scale.file.stated.weights_sha256)}
    if len(weights) > 1:
        shown = ", ".join(f"{sha256} of {path}" for sha256, path in weights.items())
        cause = f"has features of different weights: {WEIGHTS} {shown}"
        raise SlideError(slide, cause, "Extract both magnifications in the same way.")
    return {
        "backbone": IMPORTED,
        "encoder": first.encoder,
        "num_features": first.file.num_features,
        "magnifications": [scale.magnification for scale in scales],
        "patch_size": first.patch_size,
        **({WEIGHTS: next(iter(weights))} if weights else {}),
    }


def _named(mpp: float | None, exact: float | None) -> float | None:
    """The magnification of patches with so many um/px: a usual one, or what the tool was asked for; ``None``: none."""
    if mpp is not None:
        nearest = min(USUAL, key=lambda usual: abs(math.log(mpp / mpp_of(usual))))
        if abs(mpp - mpp_of(nearest)) <= MPP_RTOL * mpp_of(nearest):
            return nearest
    return None if exact is None else float(f"{magnification_of(exact):.4g}")


def _example_magnifications(files: Sequence[ForeignFile], given: GivenValues) -> list[float]:
    """One for each folder: what is known, and others in the place of the rest."""
    known = [f.stated.magnification or value for f, value in zip(files, given.magnifications, strict=True)]
    others = (m for m in (10, 5, 20, *USUAL) if m not in known)
    listed = [next(others) if value is None else float(value) for value in known]
    return [int(value) if value == int(value) else value for value in listed]


def _spacings(positions: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How far neighbours in a row or column lie apart, ascending, and how many lie so."""
    gaps = []
    for along, across in ((0, 1), (1, 0)):
        ordered = positions[np.lexsort((positions[:, along], positions[:, across]))]
        steps = np.diff(ordered, axis=0)
        gaps.append(steps[(steps[:, across] == 0) & (steps[:, along] > 0), along])
    return np.unique(np.concatenate(gaps), return_counts=True)


def _check_spacing(file: ForeignFile, positions: NDArray[np.float64], side: float, shown: str) -> str | None:
    """Refuse patches of which no two touch, although they are many: they are larger than their side is said to be.

    Returns:
        that they overlap, which a tool may have been asked for; or ``None``.
    """
    spacings, counts = _spacings(positions)
    if len(positions) < FEWEST_SPACED or not len(spacings):
        return None
    if spacings[0] > MOST_OFF * side:
        cause = f"its patches lie {spacings[0]:g} px of level 0 apart or more, and {shown}"
        remedy = "Correct `magnifications`, `patch_size` or `mpp`; if the patches have gaps, give `patch_size_level0`."
        raise SlideError(file.path, cause, remedy)
    # Grids that start at each contour may lie anywhere to each other.
    usual = spacings[np.argmax(counts)]
    text = f"most of its patches lie {usual:g} px of level 0 apart, and {shown}: they overlap, if that is right"
    return text if usual * MOST_OFF < side else None


def _check_resolution(slide: str, mpp: float, magnification: float) -> str | None:
    wanted = mpp_of(magnification)
    off = max(mpp / wanted, wanted / mpp)
    text = f"its patches at {scale_name(magnification)} have {mpp:.4g} um/px, and {scale_name(magnification)} is "
    if off > MOST_OFF:
        remedy = "Correct the magnification or the um/px of level 0, or leave the slide out."
        raise SlideError(slide, f"{text}{wanted:g} um/px", remedy)
    return f"{text}{wanted:g}: used as they are" if off > 1 + MPP_RTOL else None


def _check_corners(file: ForeignFile, corners: NDArray[np.float64], base: Base) -> None:
    remedy = "Extract the features of this slide again, or leave it out."
    if not np.isfinite(corners).all():
        raise SlideError(file.path, "has positions that are no numbers", remedy)
    if (corners < 0).any():
        x, y = corners[(corners < 0).any(axis=1)][0]
        raise SlideError(file.path, f"has a patch at ({x:g}, {y:g}), outside of the slide", remedy)
    if base.size is not None and (corners >= base.size).any():
        x, y = corners[(corners >= base.size).any(axis=1)][0]
        cause = f"has a patch at ({x:g}, {y:g}) px of level 0, outside of the slide of {base.size[0]} x {base.size[1]}"
        raise SlideError(file.path, cause, remedy)
    unique, counts = np.unique(corners, axis=0, return_counts=True)
    if (counts > 1).any():
        x, y = unique[counts > 1][0]
        cause = f"has {int((counts - 1).sum())} patches twice, such as that at ({x:g}, {y:g})"
        raise SlideError(file.path, cause, remedy)


def _one_of(file: ForeignFile, key: str, stated: T | None, given: T | None) -> T | None:
    """A value that the file says or the user gives."""
    if stated is not None and given is not None and stated != given:
        cause = f"got {given!r}, and {file.path} says {stated!r}"
        raise FeaturesAreError(f"features_are#{key}", cause, "Leave it out: what files say is taken from them.")
    return given if stated is None else stated


def _same(slide: str, what: str, files: Sequence[ForeignFile], name: str, rtol: float = 0.0) -> Any:
    """What the files of a slide say of level 0; ``None`` if none of them says it."""
    said = [(file.path, value) for file in files if (value := getattr(file.stated, name)) is not None]
    for path, value in said[1:]:
        first = said[0][1]
        if value != first and (isinstance(value, tuple) or abs(value - first) > rtol * first):
            cause = f"{said[0][0]} and {path} have another {what}: {_shown(first)} and {_shown(value)}"
            raise SlideError(slide, cause, "Give features of the same scan of the slide.")
    return said[0][1] if said else None


def _shown(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"
