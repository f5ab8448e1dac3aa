"""Fields: pictures of tissue of one class each, and whose they are."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from scripts.core.errors import DatalistError, SettingsError, reason_of
from scripts.core.files import file_sha256
from scripts.datalists.labels import resolve_positive_classes
from scripts.datalists.values import number_in

__all__ = ["LIST", "Field", "Fields", "read_fields"]

LIST = "fields.csv"
NEEDED = ("image", "patient", "class")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Coarser ones do not show what 10x shows.
COARSEST_MPP = 1.0
HOW = f"Give a folder with {LIST} (columns {', '.join(NEEDED)}), or with pictures in folders CLASS/PATIENT."


@dataclass(frozen=True)
class Field:
    """A picture of tissue of one class.

    Args:
        image: the file.
        patient: whose tissue it is.
        class_name: what it shows.
        mpp: its resolution, in micrometres per pixel.
    """

    image: Path
    patient: str
    class_name: str
    mpp: float

    def read(self) -> NDArray[np.uint8]:
        """Its pixels, RGB ``[H, W, 3]``."""
        with _opened(self.image) as image:
            return np.asarray(image.convert("RGB"))

    @property
    def size_um(self) -> tuple[float, float]:
        """(width, height) in micrometres."""
        with _opened(self.image) as image:
            return image.width * self.mpp, image.height * self.mpp


@dataclass(frozen=True)
class Fields:
    """The fields of a folder.

    Args:
        fields: all of them, in the order of their files' names.
        class_names: in the order of the alphabet.
        positive_classes: those that are malignant, in the same order.
    """

    fields: tuple[Field, ...]
    class_names: tuple[str, ...]
    positive_classes: tuple[str, ...]

    def sha256(self) -> str:
        """A checksum of all that decides the slides made of them.

        Raises:
            DatalistError: if two files have the same content: two patients would share it.
        """
        first: dict[str, Field] = {}
        lines = [str(self.class_names), str(self.positive_classes)]
        for field in self.fields:
            content = file_sha256(field.image)
            if (other := first.setdefault(content, field)) is not field:
                cause = f"has the same content as {other.image.name}"
                raise DatalistError(field.image, cause, "Keep one of the two.")
            lines.append(f"{content} {field.patient} {field.class_name} {field.mpp!r}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_fields(
    folder: Path, mpp: float | None = None, positive_classes: Sequence[str] | None = None, least_um: float = 0.0
) -> Fields:
    """Read which fields a folder has.

    Args:
        folder: has ``fields.csv`` with the columns ``image`` (a path from there), ``patient``, ``class`` and, if known,
            ``mpp`` and ``malignant`` (0 or 1); or pictures in folders ``CLASS/PATIENT``.
        mpp: the resolution of the fields that have none in the list, in micrometres per pixel.
        positive_classes: those that are malignant; ``None`` for what the list says.
        least_um: the sides that a field needs at least, in micrometres.

    Raises:
        DatalistError: if the list or a field cannot be used.
        SettingsError: if the folder, the resolution or the malignant classes are missing or wrong.
    """
    if not folder.is_dir():
        raise SettingsError(folder, "is no folder", HOW)
    rows = list(_listed(folder) if (folder / LIST).is_file() else _in_folders(folder))
    if not rows:
        raise DatalistError(folder, "has no fields", HOW)
    fields = tuple(sorted((_field(folder, row, mpp) for row in rows), key=lambda field: str(field.image)))
    for field in fields:
        if min(field.size_um) < least_um:
            width, height = field.size_um
            cause = f"covers {width:.0f} x {height:.0f} um, and {least_um:g} um are needed each way"
            raise DatalistError(field.image, cause, "Leave it out, or correct `mpp`.")
    class_names = sorted({field.class_name for field in fields})
    listed = _malignant(rows) if positive_classes is None else list(positive_classes)
    positive = resolve_positive_classes("binary", class_names, listed)
    if positive is None or len(positive) == len(class_names):
        cause = "which classes are malignant is not known" if positive is None else "every class is malignant"
        remedy = f"Name some, and not all, of: {', '.join(class_names)}."
        raise SettingsError("positive_classes", cause, remedy)
    return Fields(fields, tuple(class_names), tuple(positive))


def _listed(folder: Path) -> Iterator[dict[str, str]]:
    path = folder / LIST
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatalistError(path, f"is not UTF-8 ({error.reason})", "Save it as UTF-8.") from error
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in NEEDED if name not in (reader.fieldnames or ())]:
            raise DatalistError(path, f"has no column {missing[0]}", HOW)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise DatalistError(path, f"is no CSV ({error})", "Is a quotation mark left open?") from error
        for number, row in enumerate(rows, start=2):
            if empty := [name for name in NEEDED if not (row[name] or "").strip()]:
                raise DatalistError(f"{path}, line {number}", f"has no {empty[0]}", "Fill it in, or remove the line.")
            yield {name: (value or "").strip() for name, value in row.items() if name is not None}


def _in_folders(folder: Path) -> Iterator[dict[str, str]]:
    for path in sorted(folder.glob("*/*/*")):
        if path.suffix.lower() in SUFFIXES:
            yield {
                "image": str(path.relative_to(folder)),
                "patient": path.parent.name,
                "class": path.parent.parent.name,
            }


def _field(folder: Path, row: Mapping[str, str], mpp: float | None) -> Field:
    path = folder / row["image"]
    if not path.is_file():
        raise DatalistError(path, "no such file", f"Correct `image` in {LIST}, or remove the line.")
    own = row.get("mpp") or mpp
    remedy = "Give the micrometres per pixel as --mpp, or as a column `mpp`; those of GlaS are 0.62."
    if own is None:
        raise SettingsError("mpp", f"the resolution of {path.name} is not known", remedy)
    value = number_in(own)
    if value is None or not 0 < value <= COARSEST_MPP:
        raise SettingsError("mpp", f"{path.name} has {own!r}, no number up to {COARSEST_MPP:g}", remedy)
    return Field(path, row["patient"], row["class"], value)


def _malignant(rows: Sequence[Mapping[str, str]]) -> list[str] | None:
    """The classes whose fields all have 1 as ``malignant``; ``None`` without such a column."""
    if "malignant" not in rows[0]:
        return None
    values: dict[str, set[str]] = {}
    for row in rows:
        values.setdefault(row["class"], set()).add(row["malignant"])
    for name, found in values.items():
        if found not in ({"0"}, {"1"}):
            cause = f"class {name} has {', '.join(map(repr, sorted(found)))} as `malignant`"
            raise DatalistError(LIST, cause, "Give all fields of a class 0, or all 1.")
    return [name for name, found in values.items() if found == {"1"}]


def _opened(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()  # else a picture that is cut off would be found when slides are made
        return picture
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        cause = f"cannot be read as a picture ({reason_of(error)})"
        raise DatalistError(path, cause, "Replace it, or leave it out.") from error
