"""Files of annotations, as QuPath and ASAP write them."""

from __future__ import annotations

import json

import shapely


def feature(shape, class_name=None, **properties):
    """As QuPath 0.4 to 0.6 write one."""
    if class_name is not None:
        properties["classification"] = {"name": class_name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "f1c9a1a4-6a2b-4b0a-9f2e-0e4c9a4c6f11",
        "geometry": json.loads(shapely.to_geojson(shape)),
        "properties": {"objectType": "annotation", **properties},
    }


def collection(*features, **members):
    return {"type": "FeatureCollection", **members, "features": list(features)}


def write(path, data):
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path


def asap(*annotations):
    """As ASAP writes them, from (type, group, points)."""
    text = '<?xml version="1.0"?>\n<ASAP_Annotations>\n\t<Annotations>\n'
    for kind, group, points in annotations:
        text += f'\t\t<Annotation Name="Annotation 0" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">\n'
        lines = [f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points)]
        # Points that were inserted later stand last.
        text += f"\t\t\t<Coordinates>{''.join(reversed(lines))}</Coordinates>\n\t\t</Annotation>\n"
    return text + "\t</Annotations>\n\t<AnnotationGroups />\n</ASAP_Annotations>\n"
