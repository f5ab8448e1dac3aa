"""Annotations of a slide by class, in its level-0 pixels, and the tissue that they make."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from scripts.bags.annotation_files import AnnotationFile, read_annotation_file
from scripts.bags.mask_files import read_file_of_slide
from scripts.bags.shapes import Shapes
from scripts.bags.tissue import TissueMask
from scripts.bags.tissue_settings import TissueSettings
from scripts.core.errors import SlideError
from scripts.core.repeats import Repeats, first_names
from scripts.datalists.keys import spelling
from scripts.slides.frames import Rectangle, frame_of
from scripts.slides.slide import Slide

__all__ = ["AnnotatedTissue", "Annotations", "read_annotated_tissue", "read_annotations"]

# A contour around tissue at the border may leave the slide a little. More is of another slide.
MOST_OUTSIDE = 0.1
# Rounding and small loops of a hand change less of an area when it is made valid.
MOST_CHANGED = 0.01
LIST_BOTH = (
    "List those that are tissue as `mask_tissue`, and those to cut out as `mask_excluded`, settings or keys of the "
    "datalist."
)
# With `grid_origin: tissue` 81 grids are tried for each piece; exact areas of more shapes than these take minutes.
MANY_SHAPES = 5000
# QuPath does not count what has such a class, as its `Ignore*`.
IGNORED_SUFFIX = "*"

logger = logging.getLogger(__name__)
_repeats = Repeats()


@dataclass(frozen=True)
class Annotations:
    """The annotated areas of a slide.

    Args:
        classes: the area of each class, by its name as it stands first in the file; valid, within the slide.
        warnings: what may be wrong, and what to do, as one line each.
    """

    classes: dict[str, Shapes]
    warnings: tuple[tuple[str, str], ...] = ()

    def without_ignored(self, subject: object, image: str, named: Sequence[str] = ()) -> dict[str, Shapes]:
        """The classes but those that QuPath ignores, of which one line is logged, unless they are ``named``."""
        wanted = {spelling(name) for name in named}
        ignored = [n for n in self.classes if n.endswith(IGNORED_SUFFIX) and spelling(n) not in wanted]
        if ignored:
            text = f"{subject}: of its {image}, {first_names(ignored)} is left out, as QuPath ignores classes with *"
            _repeats.log(logger, logging.INFO, text, str(subject))
        return {name: area for name, area in self.classes.items() if name not in ignored}


@dataclass(frozen=True)
class AnnotatedTissue(TissueMask):
    """Tissue in shapes, whose fractions and area are exact; the pixels of ``tissue`` are for pictures.

    Args:
        shapes: the tissue, in level-0 pixels.
    """

    shapes: Shapes = field(kw_only=True)

    def fraction(self, xy_level0: NDArray[np.float64], side_level0: float) -> NDArray[np.float64]:
        """As :meth:`scripts.bags.tissue.TissueMask.fraction`, of the shapes."""
        return self.shapes.fraction(xy_level0, side_level0)

    def quick_fraction(self, xy_level0: NDArray[np.float64], side_level0: float) -> NDArray[np.float64]:
        """The same, of very many shapes by their pixels."""
        is_slow = shapely.get_num_geometries(self.shapes.area) > MANY_SHAPES
        fraction = super().fraction if is_slow else self.fraction
        return fraction(xy_level0, side_level0)

    def pieces_level0(self) -> NDArray[np.float64]:
        """``[n, 4]``: (left, top, right, bottom) of each shape, in level-0 pixels."""
        parts = shapely.get_parts(self.shapes.area)
        return np.asarray(shapely.bounds(parts[~shapely.is_empty(parts)])).reshape(-1, 4)

    @property
    def area_mm2(self) -> float:
        """Area of the shapes in square millimetres."""
        return float(self.shapes.area.area * self.base_mpp**2 * 1e-6)

    def _mm2_within(self, rectangles: NDArray[np.float64]) -> float:
        return float(self.shapes.areas_within(rectangles).sum() * self.base_mpp**2 * 1e-6)


def read_annotations(
    path: str | Path,
    subject: object,
    image: str,
    key: str,
    size_level0: tuple[int, int],
    bounds_level0: Rectangle,
    may_be_empty: bool = False,
) -> Annotations:
    """Read annotations of QuPath or ASAP, and place them on their slide.

    QuPath counts positions from the slide's bounds, ASAP from the corner of level 0. GeoJSON with a member ``frame``,
    as the bundle writes it, states its own.

    Args:
        path: of the file.
        subject: the slide, to begin an error with.
        image: what the file is called in an error.
        key: of the datalist, which names it.
        size_level0: (width, height) of the slide in level-0 pixels.
        bounds_level0: of the slide.
        may_be_empty: whether a file without any object is right, as where a slide has nothing to annotate.

    Raises:
        SlideError: if the file cannot be read, contains no area, or is of another slide.
    """
    remedy = f"Export it again from QuPath as GeoJSON or save it in ASAP, or remove the key `{key}` from the datalist."
    file = read_file_of_slide(path, subject, image, key, remedy, read_annotation_file)
    origin = frame_of(file.coordinates, bounds_level0).origin_level0
    if file.origin_level0 not in (None, origin):
        cause = f"its {image} states a frame that starts at {file.origin_level0}, and the slide's starts at {origin}"
        raise SlideError(subject, cause, f"Give the annotations of this slide as `{key}`.")
    shapes, names, warnings = _valid(file)
    warnings += [
        (f"{count} annotations are {what}, and are left out", "If they should count, draw areas.")
        for what, count in file.left_out.items()
    ]
    if may_be_empty and not file.shapes and not file.left_out:
        return Annotations({})
    if not len(shapes):
        beside = ", ".join(f"{count} {what}" for what, count in file.left_out.items())
        cause = f"its {image} contains no area" + (f" (but {beside})" if beside else "")
        raise SlideError(subject, cause, f"Annotate areas, or remove the key `{key}` from the datalist.")
    shapes = shapely.transform(shapes, lambda points: points + origin)
    shapes, outside = _within(shapes, size_level0, subject, image, key)
    if outside > MOST_CHANGED:
        warnings.append(
            (
                f"{outside:.0%} of the annotated area is outside of the slide",
                "If it is another slide's, correct the datalist.",
            )
        )
    warned = tuple((f"in its {image} {what}", what_to_do) for what, what_to_do in warnings)
    for what, what_to_do in warned:
        _repeats.log(logger, logging.WARNING, f"{subject}: {what}. {what_to_do}", str(subject))
    same: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        same.setdefault(spelling(name), []).append(i)
    return Annotations({names[own[0]]: Shapes.union(list(shapes[own])) for own in same.values()}, warned)


def read_annotated_tissue(
    path: str | Path,
    slide: Slide,
    mask_tissue: Sequence[int | str] | None,
    mask_excluded: Sequence[str] | None,
    find: Callable[[], TissueMask],
) -> TissueMask:
    """The tissue of a slide with annotations as its mask.

    Args:
        path: of the annotations.
        slide: the slide that they belong to.
        mask_tissue: the classes that are tissue; by default the only one that is not excluded, of which one line is
            logged.
        mask_excluded: the classes that are cut out of it.
        find: finds the tissue if all classes are excluded; what they cover is then left out to the pixel.

    Raises:
        SlideError: as :func:`read_annotations`, and if it is not certain of each class whether it is tissue.
    """
    image = f"mask {path}"
    found = read_annotations(path, slide.path, image, "mask", slide.size_level0, slide.bounds_level0)
    known = {spelling(name) for name in found.classes}
    # A number is a value of the cohort's mask images, unless a class is called so.
    tissue_names = {
        spelling(str(name)) for name in mask_tissue or () if isinstance(name, str) or spelling(str(name)) in known
    }
    excluded_names = {spelling(name) for name in mask_excluded or ()}
    if both := tissue_names & excluded_names:
        cause = f"`mask_tissue` and `mask_excluded` both name {min(both)!r}"
        raise SlideError(slide.path, cause, "Name each class in one of them.")
    classes = found.without_ignored(slide.path, image, (*tissue_names, *excluded_names))
    excluded = {name: area for name, area in classes.items() if spelling(name) in excluded_names}
    rest = {name: area.area for name, area in classes.items() if name not in excluded}
    neither = [name for name in rest if spelling(name) not in tissue_names]
    if neither and (tissue_names or len(rest) > 1):
        cause = f"its {image} has the classes {first_names([*map(repr, classes)])}, and "
        cause += f"{neither[0]!r} is neither tissue nor excluded" if tissue_names else "not all of them need be tissue"
        raise SlideError(slide.path, cause, LIST_BOTH)
    if neither and excluded_names and not excluded:
        # Misspelt it would be what should be cut out.
        cause = f"its {image} has the class {neither[0]!r}, which `mask_excluded` does not name, and no other class"
        raise SlideError(slide.path, cause, LIST_BOTH)
    if neither:
        text = f"{slide.path}: the only class of its {image}, {neither[0]!r}, counts as tissue"
        _repeats.log(logger, logging.INFO, text, str(slide.path))
    if not rest:
        if not excluded:
            cause = f"all classes of its {image} are ignored, as QuPath ignores those that end in *"
            raise SlideError(slide.path, cause, "Name one as `mask_tissue` or `mask_excluded`.")
        seen = find()
        drawn = {
            f"{name} (annotated)" if name in seen.exclusions else name: area.drawn(
                seen.tissue.shape, seen.pixel_level0, seen.origin_level0
            )
            for name, area in excluded.items()
        }
        tissue = seen.tissue & ~np.logical_or.reduce([*drawn.values()])
        return replace(seen, tissue=tissue, warnings=found.warnings, exclusions={**seen.exclusions, **drawn})
    shapes = Shapes.union(list(rest.values()))
    if excluded:
        shapes = Shapes(shapely.difference(shapes.area, Shapes.union([area.area for area in excluded.values()]).area))
    pixel = max(TissueSettings().mpp / slide.base_mpp, 1.0)
    width, height = slide.size_level0
    shape = (math.ceil(height / pixel), math.ceil(width / pixel))
    pixels = shapes.drawn(shape, (pixel, pixel))
    exclusions = {name: area.drawn(shape, (pixel, pixel)) for name, area in excluded.items()}
    return AnnotatedTissue(
        pixels, (pixel, pixel), slide.base_mpp, warnings=found.warnings, exclusions=exclusions, shapes=shapes
    )


def _valid(file: AnnotationFile) -> tuple[NDArray[np.object_], list[str], list[tuple[str, str]]]:
    """The shapes that have an area, made valid, with their classes, and what there is to warn of."""
    shapes, warnings = np.array(file.shapes, dtype=object), []
    invalid = ~shapely.is_valid(shapes)
    if invalid.any():
        before = shapely.area(shapes[invalid])
        shapes[invalid] = _filled(shapes[invalid])
        after = shapely.area(shapes[invalid])
        what = f"{invalid.sum()} annotations cross themselves, and were made valid"
        changed = np.abs(after - before).sum() / max(after.sum(), before.sum(), 1e-9)
        if changed > MOST_CHANGED:
            what += f", by which {changed:.0%} of their area changed"
        warnings.append((what, "Look at them in the program that made them."))
    has_area = shapely.area(shapes) > 0
    if not has_area.all():
        warnings.append(
            (
                f"{(~has_area).sum()} annotations have no area, and are left out",
                "If they should count, draw them again.",
            )
        )
    names = [name for name, is_kept in zip(file.class_names, has_area, strict=True) if is_kept]
    return shapes[has_area], names, warnings


def _filled(shapes: NDArray[np.object_]) -> NDArray[np.object_]:
    """Shapes made valid, as a self-crossing outline is filled: everything that it goes around, but for its holes."""
    polygons, shape = shapely.get_parts(shapes, return_index=True)
    outlines = shapely.multipolygons(shapely.polygons(shapely.get_exterior_ring(polygons)), indices=shape)
    filled, within = (shapely.make_valid(s, method="structure", keep_collapsed=False) for s in (shapes, outlines))
    # A hole that lies outside of its outline would become an area.
    return np.asarray(shapely.intersection(filled, within))


def _within(
    shapes: NDArray[np.object_], size_level0: tuple[int, int], subject: object, image: str, key: str
) -> tuple[NDArray[np.object_], float]:
    """The shapes cut at the slide's border, and the fraction of their area that was beyond it."""
    width, height = size_level0
    left, top, right, bottom = shapely.bounds(shapes).T
    reaches = np.flatnonzero((left < 0) | (top < 0) | (right > width) | (bottom > height))
    if not len(reaches):
        return shapes, 0.0
    total, shapes = float(shapely.area(shapes).sum()), shapes.copy()
    before = shapely.area(shapes[reaches])
    shapes[reaches] = shapely.intersection(shapes[reaches], shapely.box(0, 0, width, height))
    after = shapely.area(shapes[reaches])
    outside, gone = float((before - after).sum()) / total, int((after == 0).sum())
    if gone or outside > MOST_OUTSIDE:
        what = f"{gone} of {len(shapes)} annotations lie" if gone else f"{outside:.0%} of the annotated area lies"
        cause = f"of its {image} {what} outside of the slide ({width} x {height} px): they reach from ({left.min():g}, "
        cause += f"{top.min():g}) to ({right.max():g}, {bottom.max():g})"
        remedy = f"Give the annotations of this slide as `{key}`; where another program counted from the corner of "
        raise SlideError(subject, cause, remedy + 'level 0, add `"frame": {"coordinates": "level0"}` to the GeoJSON.')
    return shapes, outside
