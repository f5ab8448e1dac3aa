"""Regions that were annotated in QuPath or ASAP, class by class, as shapes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.bags.annotations import read_annotations
from scripts.bags.shapes import Shapes
from scripts.core.errors import SlideError
from scripts.core.repeats import Repeats, first_names
from scripts.datalists.keys import spelling
from scripts.slides.frames import Rectangle

__all__ = ["AnnotatedRegions", "read_annotated_regions"]

# The longer side of a picture of regions.
PICTURE_PX = 2048
NO_MORE_SHOWN = "more slides have `regions` without an annotation, which are not shown here"

logger = logging.getLogger(__name__)
_repeats = Repeats()


@dataclass(frozen=True)
class AnnotatedRegions:
    """Where the classes were annotated on a slide; classes may overlap.

    Args:
        classes: by class index + 1, the values of a label image, the area in level-0 pixels.
        shape: (height, width) of the slide in level-0 pixels.
        warnings: what may be wrong, and what to do, as one line each.
    """

    classes: Mapping[int, Shapes]
    shape: tuple[int, ...]
    warnings: tuple[tuple[str, str], ...] = ()

    @property
    def values(self) -> frozenset[int]:
        """The values of the classes that are annotated."""
        return frozenset(self.classes)

    def fraction(self, corners: NDArray[np.float64], side_level0: float, values: Sequence[int]) -> NDArray[np.float64]:
        """The fraction ``[n]`` of squares that lies in one of the classes, exactly.

        Args:
            corners: ``[n, 2]`` top left corners (x, y) in level-0 pixels.
            side_level0: side of the squares in level-0 pixels.
            values: of the classes.
        """
        wanted = [self.classes[value] for value in values if value in self.classes]
        area = wanted[0] if len(wanted) == 1 else Shapes.union([one.area for one in wanted])
        return area.fraction(corners, side_level0)

    def over_slide(self, size_level0: tuple[int, int]) -> NDArray[np.integer[Any]]:
        """A label image over a slide of (width, height) level-0 pixels, for pictures; the later class lies on top."""
        pixel = max(1.0, max(size_level0) / PICTURE_PX)
        height, width = (max(1, round(side / pixel)) for side in reversed(size_level0))
        labels = np.zeros((height, width), np.min_scalar_type(max(self.classes, default=1)))
        for value, area in sorted(self.classes.items()):
            labels[area.drawn((height, width), (size_level0[0] / width, size_level0[1] / height))] = value
        return labels


def read_annotated_regions(
    path: str | Path,
    subject: object,
    image: str,
    size_level0: tuple[int, int],
    class_names: Sequence[str],
    bounds_level0: Rectangle,
) -> AnnotatedRegions:
    """Read annotated regions; see :func:`scripts.bags.annotations.read_annotations`.

    A file without any annotation is right where a slide has no region; of the first few one line is logged.

    Args:
        path: of the file.
        subject: the slide, to begin an error with.
        image: what the file is called in an error.
        size_level0: (width, height) of the slide in level-0 pixels.
        class_names: the classes of the task.
        bounds_level0: of the slide.

    Raises:
        SlideError: as that function, and if the file has other classes.
    """
    found = read_annotations(path, subject, image, "regions", size_level0, bounds_level0, may_be_empty=True)
    if not found.classes:
        text = f"{subject}: its {image} has no annotation: nothing counts as a region"
        _repeats.log(logger, logging.INFO, text, str(subject), NO_MORE_SHOWN)
    classes = found.without_ignored(subject, image, class_names)
    values = {spelling(name): k + 1 for k, name in enumerate(class_names)}
    if unknown := [name for name in classes if spelling(name) not in values]:
        cause = (
            f"its {image} has {first_names([*map(repr, unknown)])}, no classes of the task ({', '.join(class_names)})"
        )
        remedy = "Rename these classes, remove their annotations, or end their names in *, which QuPath ignores."
        raise SlideError(subject, cause, remedy)
    areas = {values[spelling(name)]: area for name, area in classes.items()}
    return AnnotatedRegions(areas, (size_level0[1], size_level0[0]), found.warnings)
