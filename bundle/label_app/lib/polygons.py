"""Maps over patches as the polygons that MONAI Label hands to QuPath and to the Digital Slide Archive."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .choices import Choice

__all__ = ["ClassMap", "annotate", "escape_labels"]

# As the bundle's own GeoJSON has it.
DIGITS = 3


class Heat(Protocol):
    """What is needed of ``scripts.heatmaps.attention_maps.PatchMap``, which comes from the bundle that is served."""

    corners: NDArray[np.float64]  # [n, 2], (x, y) in level-0 pixels
    patch_level0: float
    values: NDArray[np.float64]  # [n]
    kind: str

    @property
    def percentile(self) -> NDArray[np.float64]:
        """``[n]``, in (0, 100]."""

    @property
    def shade(self) -> NDArray[np.float64]:
        """``[n]``, in 0..100."""


@dataclass(frozen=True)
class ClassMap:
    """The map of one class.

    Args:
        class_name: what the polygons are called.
        colour: of the class, RGB in 0..255.
        heat: the patches and their values.
    """

    class_name: str
    colour: tuple[int, int, int]
    heat: Heat


def annotate(
    maps: Sequence[ClassMap],
    choice: Choice,
    shade_colours: Callable[..., Any],
    origin_level0: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Any]:
    """The patches that were chosen, as an annotation of MONAI Label: a square for each, in pixels of level 0.

    One share, or a threshold, gives the patches the name and the colour of their class; several shares give each
    band a name of its own, such as ``cancer top 2%``, and the colour that its patches have in the bundle's heatmaps.
    Like there, squares are not cut where they reach beyond the slide.

    Args:
        maps: the classes to draw.
        choice: how much of them.
        shade_colours: the bundle's, from a shade in 0..100 and a kind to RGB.
        origin_level0: (x, y) of where the frame of the polygons and of the choice's region starts, in level-0 pixels.

    Returns:
        ``labels``, a colour by name, and ``elements``, each with ``label``, ``contours`` (four corners, clockwise on
        the screen from the top left, the ring not closed) and, in the same order, ``values`` and ``percentiles``.
    """
    labels: dict[str, list[int]] = {}
    elements: list[dict[str, Any]] = []
    for one in maps:
        heat = one.heat
        corners = heat.corners - origin_level0
        inside = _inside(corners, heat.patch_level0, choice.region)
        for name, chosen in _bands(one.class_name, heat, choice):
            drawn = chosen & inside
            if not drawn.any():
                continue
            colour = (
                one.colour
                if name == one.class_name
                else shade_colours(heat.shade[chosen].mean(keepdims=True), heat.kind)[0]
            )
            labels[name] = [int(part) for part in colour]
            elements.append(
                {
                    "label": name,
                    "contours": _squares(corners[drawn], heat.patch_level0),
                    "values": heat.values[drawn].tolist(),
                    "percentiles": heat.percentile[drawn].tolist(),
                }
            )
    return {"labels": labels, "elements": elements}


def escape_labels(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """The same annotation for ASAP: MONAI Label writes names into XML as they are."""
    elements = [{**element, "label": html.escape(element["label"])} for element in annotation["elements"]]
    return {"labels": {html.escape(name): rgb for name, rgb in annotation["labels"].items()}, "elements": elements}


def _bands(class_name: str, heat: Heat, choice: Choice) -> list[tuple[str, NDArray[np.bool_]]]:
    """The name and the patches ``[n]`` of each band, the smallest share first."""
    if choice.threshold is not None:
        return [(class_name, heat.values >= choice.threshold)]
    # What argues against a class is not shown as if it argued for it, however large the share.
    left = heat.values > 0 if heat.kind == "contribution" else np.ones(len(heat.values), dtype=np.bool_)
    bands = []
    for share in choice.shares:
        name = class_name if len(choice.shares) == 1 else f"{class_name} top {100 * share:g}%"
        chosen = left & _top(heat.percentile, share)
        left = left & ~chosen
        bands.append((name, chosen))
    return bands


def _top(percentile: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """The patches ``[n]`` with the highest values: that share of them, at least one, and all that tie with the last."""
    # 0.7 * 10 is a hair above 7: the hair must not make it 8.
    count = max(int(np.ceil(round(share * len(percentile), 9))), 1)
    return np.asarray(percentile >= np.sort(percentile)[-count], dtype=np.bool_)


def _inside(
    corners: NDArray[np.float64], side: float, region: tuple[float, float, float, float] | None
) -> NDArray[np.bool_]:
    """The patches ``[n]`` whose centre lies in the region: QuPath's plugin replaces what is centred there."""
    if region is None:
        return np.ones(len(corners), dtype=np.bool_)
    start = np.asarray(region[:2])
    centre = corners + side / 2
    return np.asarray(((centre >= start) & (centre < start + region[2:])).all(axis=1), dtype=np.bool_)


def _squares(corners: NDArray[np.float64], side: float) -> list[list[list[float]]]:
    starts, stops = (np.round(edge, DIGITS) + 0.0 for edge in (corners, corners + side))  # no -0.0
    return [
        [[left, top], [right, top], [right, bottom], [left, bottom]]
        for (left, top), (right, bottom) in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
