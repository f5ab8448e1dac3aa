"""Whether a map is highest where the pathologist drew the region: compared patch by patch.

A slide's ``regions`` are a label image of the whole slide, or of its bounds, at any size: 0 for none, else class
index + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from scripts.bags.mask_files import read_mask_pixels
from scripts.bags.tissue import TissueMask
from scripts.core.errors import SettingsError, SlideError
from scripts.datalists.labels import output_names, resolve_positive_classes
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

POSITIVE_SHARE = 0.5
# A patch that is half region to the last pixel is positive, however its area was summed in floats.
SHARE_SLACK = 1e-9


@dataclass(frozen=True)
class LabelImage:
    """Where the classes were annotated on a slide.

    Args:
        labels: ``[h, w]``, 0 for none, else class index + 1.
        place: what it covers, in level-0 pixels; elsewhere nothing is annotated.
    """

    labels: NDArray[np.integer[Any]]
    place: Rectangle

    def over_slide(self, size_level0: tuple[int, int]) -> NDArray[np.integer[Any]]:
        """The labels over the whole slide, in pixels of the same size: for looking at.

        Args:
            size_level0: (width, height) of the slide in level-0 pixels.
        """
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
        positive_share: share of them that are positive, in 0..1: the average precision of a random ranking.
        roc_auc: of the map's values against the truth, in 0..1; 0.5 is a random ranking. NaN where all patches
            are positive or none is.
        average_precision: the same, in 0..1, NaN likewise.
        kind: what the map holds, one of :data:`scripts.heatmaps.attention_maps.KINDS`.
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
    def key(self) -> str:
        """What the summary calls the map: see :func:`localisation_summary`."""
        return localisation_key(self.map_name, self.kind)

    @property
    def is_defined(self) -> bool:
        """Whether there are both kinds of patches, so that they can be told apart."""
        return 0 < self.positive_share < 1


def region_values(
    task: str, class_names: Sequence[str], positive_classes: Sequence[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """The pixel values of a label image that are positive for each output of a task.

    Args:
        task: ``"multilabel"`` or ``"binary"``.
        class_names: the classes that the label images have, in order.
        positive_classes: those that count as 1 in the binary task, see
            :func:`scripts.datalists.labels.resolve_positive_classes`.

    Returns:
        For each class its value; in the binary task the one output, with the values of all positive classes.

    Raises:
        SettingsError: as that function; or if the positive classes are not known.
    """
    values = {name: k + 1 for k, name in enumerate(class_names)}
    if task != "binary":
        return {name: (value,) for name, value in values.items()}
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
    num_classes: int,
    bounds_level0: Rectangle | None = None,
) -> LabelImage:
    """A slide's label image, over the whole slide or its bounds, as :func:`scripts.slides.frames.place_image` decides.

    Args:
        path: an image that ITK can read, with one channel.
        slide: the slide's name, to begin an error with.
        slide_size_level0: (width, height) of the slide in level-0 pixels.
        num_classes: the highest value that the image may hold.
        bounds_level0: the part of the slide that QuPath shows, as :attr:`scripts.slides.slide.Slide.bounds_level0`
            gives it; ``None`` for the whole slide.

    Raises:
        SlideError: if the image cannot be read, has several channels, other values, or other proportions than
            the slide and its bounds.
    """
    subject, image = f"slide {slide}", f"`regions` {path}"
    if not isinstance(path, str | Path):
        raise SlideError(subject, f"its {image} is no path", "Give the path of a label image, or remove the key.")
    if not Path(path).is_file():
        raise SlideError(subject, f"its {image} does not exist", "Correct the key `regions` in the datalist.")
    try:
        regions, is_lossy = read_mask_pixels(Path(path))
        if is_lossy:
            raise ValueError("its format may be lossy, and a value that it changed names another class")
    # Each library raises its own kinds of error for a file that it cannot read; none is lost.
    except Exception as error:
        reason = next(iter(reversed(str(error).strip().splitlines())), type(error).__name__)
        remedy = "Save it as PNG, TIFF or MHA, or remove the key `regions` from the datalist."
        raise SlideError(subject, f"its {image} cannot be read ({reason})", remedy) from error
    if regions.ndim != 2:
        remedy = "Save one channel of 0 for none and class index + 1, without a palette."
        raise SlideError(subject, f"its {image} has the shape {regions.shape}", remedy)
    strange = ~np.isin(regions, np.arange(num_classes + 1))
    if strange.any():
        remedy = f"Write 0 for none and 1 to {num_classes} for the classes in order."
        raise SlideError(subject, f"its {image} holds the value {regions[strange][0]}", remedy)
    height, width = regions.shape
    bounds = bounds_level0 or Rectangle(0, 0, *slide_size_level0)
    place = place_image((width, height), slide_size_level0, bounds, subject, image, "regions")
    return LabelImage(np.asarray(regions, np.min_scalar_type(num_classes)), place)


def patch_truth(
    corners: Floats,
    patch_level0: float,
    regions: LabelImage,
    values: Sequence[Sequence[int]],
) -> Floats:
    """The share of each patch that lies in each class's regions.

    The area is exact, parts of label pixels included; beyond the label image there are no regions.

    Args:
        corners: ``[n, 2]`` top left corners (x, y) in level-0 pixels.
        patch_level0: side of the patches in level-0 pixels, not rounded.
        regions: the slide's label image.
        values: for each of K classes the values of the label image that are its own.

    Returns:
        ``[n, K]``, in 0..1.
    """
    height, width = regions.labels.shape
    x, y, across, down = regions.place
    # The arithmetic of the tissue mask. It counts in pixels, so its resolution makes no difference.
    masks = [
        TissueMask(np.isin(regions.labels, own), (across / width, down / height), base_mpp=1.0, origin_level0=(x, y))
        for own in values
    ]
    return np.stack([mask.fraction(corners, patch_level0) for mask in masks], axis=1)


def compare_with_regions(
    slide: str, map_name: str, class_name: str, values: Floats, share: Floats, kind: str = "attention"
) -> Localisation:
    """Rank the patches by a map's values, and see whether those of the regions come first.

    Args:
        slide: the slide's name.
        map_name: the map's name.
        class_name: the class's name.
        values: ``[n]`` of the slide's unique patches; a rank serves as well.
        share: ``[n]`` of :func:`patch_truth`; a patch is positive from a half on.
        kind: what the map holds.

    Raises:
        ValueError: if the arrays do not fit, or are empty.
    """
    if values.shape != share.shape or values.ndim != 1 or not values.size:
        raise ValueError(f"wanted {kind} and share [n], got {list(values.shape)} and {list(share.shape)}")
    positive = share >= POSITIVE_SHARE - SHARE_SLACK
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
        map_names: the maps' names, in order.
        class_names: the classes' names, in order.
        seed: of the bootstrap.
        patients: the patient of each slide, by its name; a slide without one is a patient of its own.

    Returns:
        For each map, as ``"<map>"`` its attention and as ``"<map> contribution"`` its contribution, and for each
        class ``roc_auc`` and ``average_precision`` as ``{"value": v, "ci95": (low, high)}``;
        ``positive_share``, its mean over the same slides; ``slides``, how many these are; ``patients``, of how many
        patients; and ``undefined``, how many were left out because all of their patches are positive or none is.
        ``"all"`` beside the classes is the mean over all pairs of slide and class, its ``slides`` those with at least
        one, and its ``undefined`` the pairs left out. A mean over nothing is NaN.
    """
    summary = {}
    for key in (localisation_key(map_name, kind) for map_name in map_names for kind in KINDS):
        of_map = [one for one in found if one.key == key]
        chosen = {name: [one for one in of_map if one.class_name == name] for name in class_names} | {"all": of_map}
        summary[key] = {name: _summary(comparisons, seed, patients or {}) for name, comparisons in chosen.items()}
    return summary


def localisation_key(map_name: str, kind: str) -> str:
    """What ``localisation.json`` calls a map: its name alone for attention, else with its kind."""
    return map_name if kind == "attention" else f"{map_name} {kind}"


def _summary(found: Sequence[Localisation], seed: int, patients: Mapping[str, str]) -> dict[str, Any]:
    defined = [one for one in found if one.is_defined]
    slides = {name: i for i, name in enumerate(sorted({one.slide for one in defined}))}
    own = [patients.get(name, name) for name in slides]
    columns = {name: k for k, name in enumerate(dict.fromkeys(one.class_name for one in defined))}
    tables: Mapping[str, Floats] = {
        score: np.full((len(slides), len(columns)), np.nan)
        for score in ("roc_auc", "average_precision", "positive_share")
    }
    for one in defined:
        for score, table in tables.items():
            table[slides[one.slide], columns[one.class_name]] = getattr(one, score)
    means = {score: float(np.nanmean(table)) if defined else np.nan for score, table in tables.items()}
    ranked = {
        score: {"value": means[score], "ci95": mean_interval(tables[score], seed=seed, patients=own)}
        for score in ("roc_auc", "average_precision")
    }
    counts = {"slides": len(slides), "patients": len(set(own)), "undefined": len(found) - len(defined)}
    return {**ranked, "positive_share": means["positive_share"], **counts}
