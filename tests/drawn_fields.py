"""Drawn fields for the benchmark on slides made of real ones, and where real ones are."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.benchmarks.tissue.fields import Field
from tests.benchmarks.tissue.mosaics import (
    BASE_MPP,
    CELL_PX,
)
from tests.conftest import ROOT

GLAS = ROOT.parent / "shared" / "tissue" / "glas"
SYMMETRIES = range(8)


def picture(seed: int, size: tuple[int, int] = (CELL_PX, CELL_PX)) -> np.ndarray:
    """Smooth stained tissue of (width, height) px, different everywhere."""
    rng = np.random.default_rng(seed)
    grey = cv2.resize(rng.random((16, 16)), size, interpolation=cv2.INTER_CUBIC)
    grey = (grey - grey.min()) / np.ptp(grey)
    stain = np.array([(0.15, 0.55, 0.25), (0.65, 0.75, 0.30)][seed % 2])
    return np.round(255 * 10 ** -((0.2 + grey[..., None]) * stain)).astype(np.uint8)


def write_fields(folder: Path, patients: dict[str, list[str]], mpp: float = BASE_MPP) -> list[Field]:
    """A field for each class of each patient."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = []
    for patient, classes in patients.items():
        for name in classes:
            path = folder / f"{patient}_{name}_{len(fields)}.png"
            Image.fromarray(picture(len(fields))).save(path)
            fields.append(Field(path, patient, name, mpp))
    return fields


def write_list(folder: Path, fields: list[Field], **columns: list[str]) -> Path:
    with open(folder / "fields.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "class", *columns])
        for field, *more in zip(fields, *columns.values(), strict=True):
            writer.writerow([field.image.name, field.patient, field.class_name, *more])
    return folder
