"""Maps over patches as GeoJSON that QuPath opens: one tile for each patch, with its value as measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np

from scripts.core.files import replacing
from scripts.heatmaps.attention_maps import PatchMap
from scripts.heatmaps.images import shade_colours
from scripts.slides.frames import LEVEL0, Frame

__all__ = ["feature_collection", "measurement_names", "write_geojson"]

# Any fixed value would do: it keeps the ids apart from those that others derive from the same names.
NAMESPACE = UUID("6f1b9a52-7c0e-4a3d-9a55-2f0a9f3c1d8e")
# QuPath itself writes two. A thousandth of a pixel cannot be seen.
DIGITS = 3
# A colour has 256 steps, so that a tenth of a percentile cannot be seen, and more than four digits of a value say
# nothing about tissue; `patches.csv` has six.
PERCENTILE_DIGITS, VALUE_DIGITS = 1, 4


def measurement_names(map_name: str, class_name: str, kind: str) -> tuple[str, str]:
    """The names of the percentile and of the value in QuPath.

    They name kind, map and class, so that several files on one slide stay apart: QuPath's measurement maps show only
    the objects that have the chosen measurement.
    """
    return f"{kind} percentile ({map_name}, {class_name})", f"{kind} ({map_name}, {class_name})"


def feature_collection(
    heat: PatchMap,
    slide: str,
    map_name: str,
    class_name: str,
    colour: tuple[int, int, int],
    frame: Frame = LEVEL0,
) -> dict[str, Any]:
    """The map as a GeoJSON FeatureCollection in the form that QuPath reads and writes since 0.4.

    Each patch is a square in pixels of level 0, counted from where the frame starts. The member ``frame`` states that:
    RFC 7946 leaves unused names to others, and QuPath ignores them. A patch is not cut where it reaches beyond the
    slide: the network saw it so. RFC 7946 wants closed outer rings, counterclockwise with y upwards; on the screen,
    where y goes down, they run clockwise. QuPath accepts both.

    The squares are QuPath's "tile". As a kind of detection a tile takes part in measurement maps, which annotations do
    not; unlike other detections it is filled in every display mode, without outlines in a map.

    Args:
        heat: the attention or the contribution of the patches.
        slide: the slide's name; with map, class, kind and place it decides the ids.
        map_name: the map's name.
        class_name: the class; it becomes the tiles' classification.
        colour: of the classification, RGB in 0..255. The tiles have colours of their own, by shade.
        frame: that of the positions.

    Returns:
        Plain data whose keys are always in the same order.
    """
    percentile_name, value_name = measurement_names(map_name, class_name, heat.kind)
    classification = {"name": class_name, "color": list(colour)}
    corners = frame.from_level0(heat.corners)
    # Adding 0.0 turns -0.0 into 0.0.
    starts, stops = (np.round(ends, DIGITS) + 0.0 for ends in (corners, corners + heat.patch_level0))
    features = [
        {
            "type": "Feature",
            "id": str(uuid5(NAMESPACE, json.dumps([slide, map_name, class_name, heat.kind, repr(corner)]))),
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]],
            },
            "properties": {
                "objectType": "tile",
                "color": own_colour,
                "classification": classification,
                "measurements": {percentile_name: percentile, value_name: value},
            },
        }
        for (left, top), (right, bottom), corner, own_colour, percentile, value in zip(
            starts.tolist(), stops.tolist(), heat.corners.tolist(), shade_colours(heat.shade, heat.kind).tolist(),
            np.round(heat.percentile, PERCENTILE_DIGITS).tolist(), map(_short, heat.values.tolist()), strict=True,
        )
    ]  # fmt: skip
    return {"type": "FeatureCollection", "frame": frame.stated(), "features": features}


def write_geojson(path: str | Path, collection: Mapping[str, Any]) -> None:
    """Write a :func:`feature_collection`, in one step.

    Raises:
        SettingsError: if the folder cannot be written to.
    """
    with replacing(path) as part:
        # Without the spaces after commas and colons, a seventh of the file.
        text = json.dumps(collection, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        part.write_text(text + "\n", encoding="utf-8")


def _short(value: float) -> float:
    return float(f"{value:.{VALUE_DIGITS}g}")
