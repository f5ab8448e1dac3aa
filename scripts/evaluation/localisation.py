"""Whether a map is highest where the pathologist annotated the region: compared patch by patch.

A slide's ``regions`` are a label image of the whole slide, or of its bounds, at any size: 0 for none, else class
index + 1; or annotations (:mod:`scripts.evaluation.annotated_regions`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from scripts.bags.annotation_files import is_annotation_file
from scripts.bags.mask_files import read_image_of_slide
from scripts.bags.mask_values import distinct_values
from scripts.bags.tissue import TissueMask
from scripts.core.errors import SettingsError, SlideError
from scripts.core.tasks import get_task
from scripts.datalists.labels import output_names, resolve_positive_classes
from scripts.evaluation.annotated_regions import AnnotatedRegions, read_annotated_regions
from scripts.evaluation.bootstrap import mean_interval
from scripts.heatmaps.attention_maps import KINDS
from scripts.slides.frames import Rectangle, place_image

__all__ = [
    "LabelImage",
    "Localisation",
    "compare_with_regions",
    "localisation_key",
    "localisation_summary",
    "patch_truth",
    "read_regions",
    "region_values",
]

Floats = NDArray[np.float64]

# Less than a half by what sums in floats may lack.
POSITIVE_FRACTION = 0.5 - 1e-9


@dataclass(frozen=True)
class LabelImage:
    """Where the classes were annotated on a slide.

    Args:
        labels: ``[h, w]``, 0 for none, else class index + 1.
        place: what it covers, in level-0 pixels; elsewhere nothing is annotated.
    """

    labels: NDArray[np.integer[Any]]
    place: Rectangle

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width) in pixels."""
        return self.labels.shape

    @property
    def values(self) -> frozenset[int]:
        """The values of the classes that are annotated."""
        return frozenset(distinct_values(self.labels).tolist()) - {0}

    def fraction(self, corners: Floats, side_level0: float, values: Sequence[int]) -> Floats:
        """The fraction ``[n]`` of squares that has one of the values, exactly; see :func:`patch_truth`."""
        height, width = self.labels.shape
        x, y, across, down = self.place
        pixel_level0 = (across / width, down / height)
        # The areas are computed in pixels: the resolution makes no difference.
        mask = TissueMask(np.isin(self.labels, values), pixel_level0, base_mpp=1.0, origin_level0=(x, y))
        return mask.fraction(corners, side_level0)

    def over_slide(self, size_level0: tuple[int, int]) -> NDArray[np.integer[Any]]:
        """The labels over a slide of (width, height) level-0 pixels, in pixels of the same size, for pictures."""
        if self.place == (0, 0, *size_level0):
            return self.labels
        height, width = self.labels.shape
        pixel_level0 = np.divide(self.place[2:], (width, height))
        columns, rows = np.maximum(np.round(np.divide(size_level0, pixel_level0)), 1).astype(int)
        left, top = np.round(np.divide(self.place[:2], pixel_level0)).astype(int)
        over = np.zeros((rows, columns), self.labels.dtype)
        over[top : top + height, left : left + width] = self.labels[: rows - top, : columns - left]
        return over


@dataclass(frozen=True)
class Localisation:
    """How one map of one slide ranks the patches of one class's regions.

    Args:
        slide: the slide's name.
        map_name: the map's name.
        class_name: the class's name.
        patches: number of patches of the map.
        positive_share: fraction of them that are positive, in 0..1: the average precision of a random ranking.
        roc_auc: of the map's values against the truth, in 0..1; 0.5 is a random ranking. NaN where all patches are
            positive or none is.
        average_precision: the same, in 0..1, NaN likewise.
        kind: one of :data:`scripts.heatmaps.attention_maps.KINDS`.
    """

    slide: str
    map_name: str
    class_name: str
    patches: int
    positive_share: float
    roc_auc: float
    average_precision: float
    kind: str = "attention"

    @property
    def is_defined(self) -> bool:
        """Whether some patches are positive and some are not."""
        return 0 < self.positive_share < 1


def region_values(
    task: str, class_names: Sequence[str], positive_classes: Sequence[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """The pixel values of a label image that are positive for what each logit of a task stands for.

    The classes are those of the label images, in order. In the binary task the one logit has the values of all
    positive classes, see :func:`scripts.datalists.labels.resolve_positive_classes`; in the ordinal task each has those
    of all higher classes.

    Raises:
        SettingsError: as that function; or if the positive classes are not known.
    """
    if task != "binary":
        kind, own = get_task(task), np.eye(len(class_names))  # [K, K]: a slide of each class
        positive_of = kind.per_logit(own).T > 0.5  # [L, K]
        names = kind.logit_names(class_names)
        positive_values = (tuple(int(k) + 1 for k in np.flatnonzero(of_logit)) for of_logit in positive_of)
        return dict(zip(names, positive_values, strict=True))
    values = {name: k + 1 for k, name in enumerate(class_names)}
    positive = resolve_positive_classes(task, class_names, positive_classes)
    if positive is None:
        cause = "not given, and `regions` of which classes are positive in the binary task is not known"
        raise SettingsError("positive_classes", cause, f"Give a list of some of: {', '.join(class_names)}.")
    (name,) = output_names(task, class_names, positive)
    return {name: tuple(values[one] for one in positive)}


def read_regions(
    path: str | Path,
    slide: str,
    slide_size_level0: tuple[int, int],
    class_names: Sequence[str],
    bounds_level0: Rectangle | None = None,
) -> LabelImage | AnnotatedRegions:
    """A slide's annotations, or its label image over the whole slide or its bounds, as
    :func:`scripts.slides.frames.place_image` decides.

    Args:
        path: an image with one channel, or annotations of QuPath or ASAP.
        slide: the slide's name, to begin an error with.
        slide_size_level0: (width, height) of the slide in level-0 pixels.
        class_names: the classes: names of annotations; k + 1 in the image is class k.
        bounds_level0: see :attr:`scripts.slides.slide.Slide.bounds_level0`; ``None`` for the whole slide.

    Raises:
        SlideError: if the image cannot be read, has several channels, other values, or other proportions than
            the slide and its bounds; if annotations cannot be read, or have other classes.
    """
    bounds, num_classes = bounds_level0 or Rectangle(0, 0, *slide_size_level0), len(class_names)
    subject, image = f"slide {slide}", f"`regions` {path}"
    if is_annotation_file(path):
        return read_annotated_regions(path, subject, image, slide_size_level0, class_names, bounds)
    remedy = "Save it as PNG, TIFF or MHA, or remove the key `regions` from the datalist."
    regions, is_lossy = read_image_of_slide(path, subject, image, "regions", remedy)
    if is_lossy:
        cause = f"its {image} has a format that may be lossy, and a value that it changed names another class"
        raise SlideError(subject, cause, remedy)
    if regions.ndim != 2:
        remedy = "Save one channel of 0 for none and class index + 1, without a palette."
        raise SlideError(subject, f"its {image} has the shape {regions.shape}", remedy)
    strange = regions[~np.isin(regions, np.arange(num_classes + 1))]
    if strange.size:
        remedy = f"Write 0 for none and 1 to {num_classes} for the classes in order."
        raise SlideError(subject, f"its {image} contains the value {strange[0]}", remedy)
    height, width = regions.shape
    place = place_image((width, height), slide_size_level0, bounds, subject, image, "regions")
    return LabelImage(np.asarray(regions, np.min_scalar_type(num_classes)), place)


def patch_truth(
    corners: Floats, patch_level0: float, regions: LabelImage | AnnotatedRegions, values: Sequence[Sequence[int]]
) -> Floats:
    """The fraction of each patch that lies in each class's regions.

    The area is exact, parts of label pixels included; beyond the label image there are no regions.

    Args:
        corners: ``[n, 2]`` top left corners (x, y) in level-0 pixels.
        patch_level0: side of the patches in level-0 pixels, not rounded.
        regions: the slide's label image or annotations.
        values: for each of K classes its values in the label image; of annotations, class k has the value k + 1.

    Returns:
        ``[n, K]``, in 0..1.
    """
    return np.stack([regions.fraction(corners, patch_level0, own) for own in values], axis=1)


def compare_with_regions(
    slide: str, map_name: str, class_name: str, values: Floats, fraction: Floats, kind: str = "attention"
) -> Localisation:
    """Rank the patches of a class's map by its values, and see whether those of the regions come first.

    Args:
        slide: the slide's name.
        map_name: the map's name.
        class_name: the class's name.
        values: ``[n]`` of the slide's unique patches; ranks serve as well.
        fraction: ``[n]`` of :func:`patch_truth`; a patch is positive from a half on.
        kind: what the map shows.
    """
    positive = fraction >= POSITIVE_FRACTION
    scores = (np.nan, np.nan)
    if positive.any() and not positive.all():
        scores = (float(roc_auc_score(positive, values)), float(average_precision_score(positive, values)))
    return Localisation(slide, map_name, class_name, len(positive), float(positive.mean()), *scores, kind=kind)


def localisation_summary(
    found: Sequence[Localisation],
    map_names: Sequence[str],
    class_names: Sequence[str],
    seed: int = 0,
    patients: Mapping[str, str] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """The mean over slides, for each map and class, with its 95% interval by a bootstrap over patients.

    Args:
        found: every comparison, at most one a slide, map, kind and class.
        map_names: in order.
        class_names: in order.
        seed: of the bootstrap.
        patients: the patient of each slide, by its name; a slide without one is a patient of its own.

    Returns:
        For each map (:func:`localisation_key`) and each class ``roc_auc`` and ``average_precision`` as
        ``{"value": v, "ci95": (low, high)}``; ``positive_share``, its mean over the same slides; the numbers of these
        ``slides`` and of their ``patients``; and ``undefined``, how many slides were left out because all of their
        patches are positive or none is. ``"all"`` beside the classes is the mean over all pairs of slide and class, its
        ``slides`` those with at least one, its ``undefined`` the pairs left out. A mean over nothing is NaN.
    """
    summary = {}
    for key in (localisation_key(map_name, kind) for map_name in map_names for kind in KINDS):
        of_map = [one for one in found if localisation_key(one.map_name, one.kind) == key]
        chosen = {name: [one for one in of_map if one.class_name == name] for name in class_names} | {"all": of_map}
        summary[key] = {name: _summary(comparisons, seed, patients or {}) for name, comparisons in chosen.items()}
    return summary


def localisation_key(map_name: str, kind: str) -> str:
    """What ``localisation.json`` calls a map: its name alone for attention, else with its kind."""
    return map_name if kind == "attention" else f"{map_name} {kind}"


def _summary(found: Sequence[Localisation], seed: int, patients: Mapping[str, str]) -> dict[str, Any]:
    defined = [one for one in found if one.is_defined]
    slides = {name: i for i, name in enumerate(sorted({one.slide for one in defined}))}
    classes = {name: k for k, name in enumerate(dict.fromkeys(one.class_name for one in defined))}
    own = [patients.get(name, name) for name in slides]

    def table(score: str) -> Floats:  # [slides, classes]
        values = np.full((len(slides), len(classes)), np.nan)
        for one in defined:
            values[slides[one.slide], classes[one.class_name]] = getattr(one, score)
        return values

    def mean(values: Floats) -> float:
        return float(np.nanmean(values)) if defined else np.nan

    ranked = {score: table(score) for score in ("roc_auc", "average_precision")}
    return {
        **{s: {"value": mean(v), "ci95": mean_interval(v, seed=seed, patients=own)} for s, v in ranked.items()},
        "positive_share": mean(table("positive_share")),
        "slides": len(slides),
        "patients": len(set(own)),
        "undefined": len(found) - len(defined),
    }
