"""The cohort that is compared: its slides on disk, its datalists, and a picture of some slides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide
from matplotlib.figure import Figure

from scripts.core.errors import SettingsError
from scripts.core.files import replacing, write_csv, write_json
from tests.benchmarks.tissue.fields import Fields
from tests.benchmarks.tissue.groups import fields_of_groups
from tests.benchmarks.tissue.mosaics import Mosaic, plan_mosaics, write_mosaics

__all__ = ["Cohort", "make_cohort", "permuted"]

MADE_FROM = "made_from.json"
SHEET_SLIDES, SHEET_COLUMNS, THUMBNAIL_PX = 8, 4, 480


class Cohort(NamedTuple):
    """Slides of fields.

    Args:
        folder: has ``slides``, ``masks``, the datalists ``datalist.csv``, ``without_regions.csv`` and
            ``permuted.csv``, and ``contact_sheet.png``.
        mosaics: the slides, in the order of the datalist.
        labels: their classes.
        groups: the group of each patient of the fields.
    """

    folder: Path
    mosaics: Sequence[Mosaic]
    labels: Sequence[Sequence[str]]
    groups: Mapping[str, int]


def make_cohort(
    folder: Path,
    fields: Fields,
    groups: Mapping[str, int],
    num_slides: int,
    num_cells: tuple[int, int],
    seed: int,
) -> Cohort:
    """Plan the slides, and write what is not there; the same arguments give the same cohort.

    Args:
        folder: gets the files.
        fields: what slides are made of.
        groups: the group of each patient.
        num_slides: of each group.
        num_cells: the least and the most cells of a slide.
        seed: of everything that is random.

    Raises:
        SettingsError: if the folder has slides that were made otherwise.
    """
    made_from: dict[str, Any] = {
        "fields": fields.sha256(),
        "groups": dict(sorted(groups.items())),
        "num_slides": num_slides,
        "num_cells": list(num_cells),
        "seed": seed,
    }
    background = [name for name in fields.class_names if name not in fields.positive_classes]
    in_groups = fields_of_groups(fields.fields, fields.class_names, groups)
    mosaics = plan_mosaics(in_groups, background, num_slides, num_cells, seed)
    note = folder / MADE_FROM
    if note.is_file():
        _refuse_others(note, made_from)
    write_json(note, made_from)
    write_mosaics(folder, mosaics, fields.fields, fields.class_names)
    labels = [mosaic.classes(fields.fields, fields.class_names) for mosaic in mosaics]
    names = [f"group_{mosaic.group + 1}" for mosaic in mosaics]
    rows = [
        [f"slides/{mosaic.name}.tiff", ";".join(label), group]
        for mosaic, label, group in zip(mosaics, labels, names, strict=True)
    ]
    columns = ["image", "label", "patient"]
    regions = [f"masks/{mosaic.name}.png" for mosaic in mosaics]
    with_regions = ([*row, own] for row, own in zip(rows, regions, strict=True))
    write_csv(folder / "datalist.csv", [*columns, "regions"], with_regions)
    # A control asks whether slides are classified. Beside permuted labels regions would contradict them.
    write_csv(folder / "without_regions.csv", columns, rows)
    others = permuted([row[1] for row in rows], names, seed)
    write_csv(folder / "permuted.csv", columns, ([row[0], own, row[2]] for row, own in zip(rows, others, strict=True)))
    _write_contact_sheet(folder, mosaics, labels)
    return Cohort(folder, mosaics, labels, groups)


def permuted(labels: Sequence[str], groups: Sequence[str], seed: int = 0) -> list[str]:
    """The labels, permuted within each group: nothing of a slide tells its label any more."""
    rng = np.random.default_rng([seed, 1])
    found, own = list(labels), np.asarray(groups)
    for group in dict.fromkeys(groups):
        places = np.flatnonzero(own == group)
        for place, other in zip(places, rng.permutation(places), strict=True):
            found[place] = labels[other]
    return found


def _refuse_others(note: Path, made_from: Mapping[str, Any]) -> None:
    remedy = "Choose another `output_dir`, or delete this one."
    try:
        found = dict(json.loads(note.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SettingsError(note, f"is damaged ({error})", remedy) from error
    if differs := [key for key in made_from if found.get(key) != made_from[key]]:
        raise SettingsError(note.parent, f"has slides that were made with other {', '.join(differs)}", remedy)


def _write_contact_sheet(folder: Path, mosaics: Sequence[Mosaic], labels: Sequence[Sequence[str]]) -> None:
    """Write ``contact_sheet.png``: slides from all groups, with their classes."""
    chosen = np.unique(np.linspace(0, len(mosaics) - 1, SHEET_SLIDES).astype(int))
    rows = -(-len(chosen) // SHEET_COLUMNS)
    figure = Figure(figsize=(4.5 * SHEET_COLUMNS, 5 * rows), dpi=100, layout="constrained")
    places = figure.subplots(rows, SHEET_COLUMNS, squeeze=False).ravel()
    for axes in places:
        axes.axis("off")
    for axes, i in zip(places, chosen.tolist(), strict=False):
        with openslide.OpenSlide(folder / "slides" / f"{mosaics[i].name}.tiff") as slide:
            axes.imshow(np.asarray(slide.get_thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))))
        title = f"{mosaics[i].name}, group {mosaics[i].group + 1}, {len(mosaics[i].cells)} cells"
        axes.set_title("\n".join([title, *labels[i]]), fontsize="small")
    with replacing(folder / "contact_sheet.png") as part:
        figure.savefig(part)
