"""The annotations in a file of QuPath (GeoJSON) or ASAP (XML): a class and a shape each, as the file has them.

What the programs write: QuPath's ``QuPathTypeAdapters`` (0.2 to 0.6) and ASAP's ``XmlRepository`` (1.8 to 2.2).
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import shapely
from numpy.typing import NDArray

from scripts.datalists.keys import composed

__all__ = ["ANNOTATION_SUFFIXES", "UNCLASSIFIED", "AnnotationFile", "is_annotation_file", "read_annotation_file"]

ASAP_SUFFIXES = (".xml", ".xml.gz")
# QuPath packs with ZIP what its dialog calls compressed; its scripts write .gz as well.
GEOJSON_SUFFIXES = (".geojson", ".json", ".geojson.gz", ".json.gz", ".zip")
ANNOTATION_SUFFIXES = (*GEOJSON_SUFFIXES, *ASAP_SUFFIXES)
# What QuPath shows of an annotation without a class.
UNCLASSIFIED = "Unclassified"
# QuPath's objects of a hierarchy that nobody annotated as a region: also what programs found, as the bundle's heatmaps.
NO_REGIONS = ("cell", "detection", "tile", "tmaCore", "tma_core", "root")
# How QuPath 0.2 named the type of an object.
OLD_TYPES = {
    "PathCellObject": "cell",
    "PathDetectionObject": "detection",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
# No slide is so large; areas of coordinates far beyond it would overflow.
MOST_PX = 1e9
# ASAP draws a spline through its points, and makes masks of the polygon between them, as here.
ASAP_AREAS = ("Polygon", "Rectangle", "Spline")


@dataclass
class AnnotationFile:
    """The annotations of a file.

    Args:
        coordinates: the frame of the positions, ``"qupath"`` or ``"level0"``.
        origin_level0: (x, y) in level-0 pixels of where the frame starts, if the file states it.
        class_names: of each annotation.
        shapes: of each annotation a polygon or several, valid or not, in level-0 pixels from where the frame starts.
        left_out: what the file has beside areas, in words, and how often.
    """

    coordinates: str
    origin_level0: tuple[float, float] | None = None
    class_names: list[str] = field(default_factory=list)
    shapes: list[shapely.Geometry] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, class_name: str, polygons: list[shapely.Geometry]) -> None:
        """Add an annotation of one polygon or several."""
        self.class_names.append(class_name)
        self.shapes.append(polygons[0] if len(polygons) == 1 else shapely.multipolygons(polygons))


def is_annotation_file(path: str | Path) -> bool:
    """Whether a mask or regions are annotations and no image, by the file's name."""
    return str(path).lower().endswith(ANNOTATION_SUFFIXES)


def read_annotation_file(path: Path) -> AnnotationFile:
    """Read GeoJSON or ASAP's XML.

    Raises:
        ValueError: if it is neither, or has an area that cannot be understood.
        OSError: if it cannot be read.
    """
    name = path.name.lower()
    if name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            names = [entry for entry in archive.namelist() if _is_geojson(entry)]
            if len(names) != 1:
                raise ValueError(f"it contains {len(names)} files of GeoJSON, and must contain one")
            content = archive.read(names[0])
    else:
        content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    return _read_asap(content) if name.endswith(ASAP_SUFFIXES) else _read_geojson(content)


def _is_geojson(entry: str) -> bool:
    # Beside each file macOS packs one of its own, whose name starts with "._".
    name = entry.rpartition("/")[2].lower()
    return name.endswith((".geojson", ".json")) and not name.startswith("._")


def _read_geojson(content: bytes) -> AnnotationFile:
    data = json.loads(content.decode("utf-8-sig"))
    file = AnnotationFile("qupath")
    if isinstance(data, dict) and data.get("frame") is not None:
        _read_frame(data["frame"], file)
    for feature in _features(data):
        properties = _properties(feature)
        kind = str(properties.get("objectType") or properties.get("object_type") or feature.get("id"))
        kind = OLD_TYPES.get(kind, kind)
        geometry = feature.get("geometry")
        if kind in NO_REGIONS:
            file.left_out[f"of QuPath's type {kind}"] += 1
        elif not isinstance(geometry, dict):
            file.left_out["without a geometry"] += 1
        elif geometry.get("type") in ("Polygon", "MultiPolygon"):
            many = geometry["type"] == "MultiPolygon"
            rings = geometry.get("coordinates")
            polygons = [_polygon(one) for one in (_list(rings) if many else [rings])]
            if polygons:
                file.add(_geojson_class(properties), polygons)
            else:
                file.left_out["without a geometry"] += 1
        else:
            file.left_out[f"{geometry.get('type')}, which has no area"] += 1
    return file


def _read_frame(frame: Any, file: AnnotationFile) -> None:
    # The bundle's own GeoJSON states it, see scripts/slides/frames.py.
    if not isinstance(frame, dict) or frame.get("coordinates") not in ("qupath", "level0"):
        raise ValueError(f"its `frame` is {frame!r}, and its `coordinates` must be qupath or level0")
    file.coordinates = frame["coordinates"]
    if frame.get("origin_level0") is not None:
        x, y = _points([frame["origin_level0"]])[0].tolist()
        file.origin_level0 = (x, y)


def _features(data: Any) -> Iterator[dict[str, Any]]:
    """Every feature of a collection, a list, a single feature or a bare geometry, with those nested in features."""
    if isinstance(data, list):
        for one in data:
            yield from _features(one)
        return
    kind = data.get("type") if isinstance(data, dict) else None
    if kind == "FeatureCollection":
        yield from _features(_list(data.get("features")))
    elif kind == "Feature":
        yield data
        properties = _properties(data)
        yield from _features(properties.get("childObjects") or properties.get("children") or [])
    elif kind == "GeometryCollection":
        yield from _features(_list(data.get("geometries")))
    elif isinstance(kind, str) and "coordinates" in data:
        yield {"type": "Feature", "geometry": data}
    else:
        raise ValueError("it is no GeoJSON: expected are a FeatureCollection, features, or geometries")


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise ValueError(f"the `properties` of a feature are a {type(properties).__name__}, and no object")
    return properties


def _geojson_class(properties: dict[str, Any]) -> str:
    """The class as QuPath shows it, ``"Tumor: Positive"``; without one the annotation's own name."""
    given = properties.get("classification")
    names: list[Any] = [given] if isinstance(given, str) else []
    if isinstance(given, dict):
        names = _list(given["names"]) if given.get("names") else [given.get("name")]
        # Up to 0.3 a derived class is written within the one that it is derived from.
        while isinstance(given := given.get("parentClass"), dict):
            names.insert(0, given.get("name"))
    names = [name for name in names if name] or [properties.get("name") or UNCLASSIFIED]
    return composed(": ".join(map(str, names)).strip())


def _read_asap(content: bytes) -> AnnotationFile:
    parser = ElementTree.XMLParser(target=cast(Any, _WithoutDoctype()))
    try:
        parser.feed(content)
        root = parser.close()
    except ElementTree.ParseError as error:
        raise ValueError(f"it is no XML: {error}") from error
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"its root is {root.tag}, and that of ASAP's files ASAP_Annotations")
    file = AnnotationFile("level0")
    for annotation in root.iterfind("Annotations/Annotation"):
        kind = annotation.get("Type", "None")
        if kind not in ASAP_AREAS:
            file.left_out[f"{kind}, which has no area"] += 1
            continue
        found = annotation.findall("Coordinates/Coordinate")
        # The order of the lines is not that of the points, once some were inserted.
        found.sort(key=lambda one: float(one.get("Order", "0")))
        group = annotation.get("PartOfGroup", "None")
        class_name = UNCLASSIFIED if group == "None" else composed(group.strip())
        file.add(class_name, [_polygon([[[one.get("X"), one.get("Y")] for one in found]])])
    return file


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Refuses a document type, in which entities would be defined that fill the memory."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError(f"it has a document type ({name}), which ASAP does not write")


def _polygon(rings: Any) -> shapely.Geometry:
    outer, *holes = [_points(ring) for ring in _list(rings)] or [np.empty((0, 2))]
    if any(len(ring) < 3 for ring in (outer, *holes)):
        # No area; it is counted later, with those whose points lie on a line.
        holes = [ring for ring in holes if len(ring) >= 3]
        if len(outer) < 3:
            return shapely.Polygon()
    return shapely.Polygon(outer, holes)


def _points(ring: Any) -> NDArray[np.float64]:
    try:
        points = np.array([[one[0], one[1]] for one in _list(ring)], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"a position in it is no pair of numbers ({error})") from error
    if not (np.abs(points) <= MOST_PX).all():  # also where they are not a number
        raise ValueError(f"some of its coordinates are not finite, or beyond {MOST_PX:g} px")
    return points


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"it has {type(value).__name__} where GeoJSON has a list")
    return value
