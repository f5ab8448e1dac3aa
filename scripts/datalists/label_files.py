"""Training data as MONAI Label passes it: a slide's path, and the path of a file with its label."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.core.errors import DatalistError
from scripts.datalists.labels import CLASS_NAMES, label_vector
from scripts.datalists.slide_files import slide_names
from scripts.slides.dicom_series import slide_of

__all__ = ["as_entries", "read_label_file"]


def as_entries(
    data: Sequence[Mapping[str, Any]] | None,
    task: str,
    class_names: Sequence[str] = CLASS_NAMES,
    positive_classes: Sequence[str] | None = None,
    apart_from: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Entries of a datalist: as they are, or made from MONAI Label's.

    Args:
        data: entries of :func:`scripts.datalists.datalist.load_partition`; or mappings with ``image``, a path, and
            ``label``, the path of a file (:func:`read_label_file`) or what
            :func:`scripts.datalists.labels.label_vector` takes, as well as the next three.
        apart_from: entries of another list, with which MONAI Label's may have no slide in common.

    Returns:
        For each slide ``image``, ``label`` ``[K]``, ``slide``, ``patient`` and, where given, ``mpp``, ``mask`` and
        ``mask_tissue``. The image of a DICOM slide is the first of its levels by name, whichever file is labelled.

    Raises:
        DatalistError: if there is no slide, one is there twice, or a label cannot be used.
    """
    if not data:
        remedy = "Label more slides; MONAI Label splits those with a final label into the two (`val_split`)."
        raise DatalistError("data", "there is no slide to train or validate on", remedy)
    if all("slide" in item for item in data):
        return [dict(item) for item in data]
    for item in data:
        if not isinstance(item.get("image"), str | Path) or item.get("label") is None:
            raise DatalistError("data", f"{dict(item)!r} lacks image or label", "Give both for each slide.")
    given_paths = [os.path.abspath(str(item["image"])) for item in data]
    # MONAI Label lists each file of a DICOM series as an image of its own.
    paths = [slide_of(path) for path in given_paths]
    seen = {slide_of(path): path for path in (os.path.abspath(str(entry["image"])) for entry in apart_from)}
    for slide, path in zip(paths, given_paths, strict=True):
        if (other := seen.get(slide)) is not None:
            of_series = f"is of the same DICOM series as {other}, which has a label, too"
            raise DatalistError(path, "is there twice" if other == path else of_series, "Give each slide once.")
        seen[slide] = path
    names = slide_names(paths, os.path.commonpath([os.path.dirname(path) for path in paths]))
    entries = []
    for item, path, name in zip(data, paths, names, strict=True):
        label: object = item["label"]
        others: dict[str, float] = {}
        if isinstance(label, Path) or (isinstance(label, str) and (os.path.isfile(label) or label.endswith(".json"))):
            label, others = read_label_file(label)
        vector = label_vector(label, task, class_names, positive_classes, subject=f"slide {name}")
        given = {key: item[key] for key in ("mpp", "mask", "mask_tissue", "mask_excluded") if key in item}
        entries.append({"image": path, "slide": name, "patient": name, "label": vector, **others, **given})
    return entries


def read_label_file(path: str | Path) -> tuple[object, dict[str, float]]:
    """Read a JSON file: ``{"label": {"cancer": 1, ...}, "mpp": 0.25}``, where the resolution is optional, or the label
    alone, in any form that :func:`scripts.datalists.labels.label_vector` takes.

    Returns:
        The label as it is written, and the resolution as ``mpp`` where it is given.

    Raises:
        DatalistError: if it is no such file.
    """
    remedy = 'Write it as {"label": {"cancer": 1, "hgd": 0, ...}}.'
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatalistError(f"label file {path}", f"cannot be read as JSON ({error})", remedy) from error
    if not isinstance(content, Mapping) or "label" not in content:
        return content, {}
    return content["label"], {"mpp": content["mpp"]} if "mpp" in content else {}
