"""Maps over patches as GeoJSON that QuPath opens: one tile for each patch, with its value as measurements."""

from __future__ import annotations

import json
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
# QuPath itself writes two digits. A thousandth of a pixel is below anything that a slide shows.
DIGITS = 3


def measurement_names(map_name: str, class_name: str, kind: str) -> tuple[str, str]:
    """The names of the percentile and of the value in QuPath.

    They name kind, map and class, so that several files dropped on one slide stay apart: QuPath's measurement maps
    draw the objects alone that have the chosen measurement.
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

    Each patch is a square in pixels of level 0, counted from where the frame starts. The collection's member ``frame``
    states that: RFC 7946 leaves names that it does not use to others, and QuPath passes over them. A patch is not cut
    where it reaches beyond the slide: the network saw it so. Its ring is closed. RFC 7946 wants outer rings
    counterclockwise, and that is what the numbers are (x, y taken as a plane with y upwards, as any validator takes
    them); on the screen, where y goes down, the same ring runs clockwise. QuPath accepts both.

    The squares are QuPath's "tile". As a kind of detection a tile takes part in measurement maps, which
    annotations do not; unlike other detections it is drawn whole in every display mode, without outlines in a map,
    and thousands of them need not be listed or edited as annotations are.

    Args:
        heat: the attention or the contribution of the patches.
        slide: the slide's name; with map, class, kind and place it decides the ids.
        map_name: the map's name.
        class_name: the class; it becomes the tiles' classification.
        colour: of the classification, RGB in 0..255. The tiles have colours of their own, by percentile.
        frame: that of the positions; QuPath's, where the file is for QuPath.

    Returns:
        Plain data whose keys are always in the same order, with finite numbers only.
    """
    percentile_name, value_name = measurement_names(map_name, class_name, heat.kind)
    classification = {"name": class_name, "color": list(colour)}
    colours = shade_colours(heat.shade, heat.kind).tolist()
    corners = frame.from_level0(heat.corners)
    starts = np.round(corners, DIGITS) + 0.0  # no -0.0
    stops = np.round(corners + heat.patch_level0, DIGITS) + 0.0
    features = []
    for patch, ((left, top), (right, bottom)) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        place = repr(heat.corners[patch].tolist())
        features.append(
            {
                "type": "Feature",
                "id": str(uuid5(NAMESPACE, json.dumps([slide, map_name, class_name, heat.kind, place]))),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": "tile",
                    "color": colours[patch],
                    "classification": classification,
                    "measurements": {
                        percentile_name: float(heat.percentile[patch]),
                        value_name: float(heat.values[patch]),
                    },
                },
            }
        )
    return {"type": "FeatureCollection", "frame": frame.stated(), "features": features}


def write_geojson(
    path: str | Path,
    heat: PatchMap,
    slide: str,
    map_name: str,
    class_name: str,
    colour: tuple[int, int, int],
    frame: Frame = LEVEL0,
) -> None:
    """Write :func:`feature_collection`, whose arguments these are; replaces the file in one step.

    Raises:
        SettingsError: if the folder cannot be written to.
    """
    collection = feature_collection(heat, slide, map_name, class_name, colour, frame)
    with replacing(path) as part:
        part.write_text(json.dumps(collection, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
