"""Values of datalists and settings that are numbers, written as numbers or as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from scripts.core.errors import BundleError, DatalistError, SettingsError
from scripts.datalists.keys import composed

__all__ = ["check_mask_excluded", "check_mask_tissue", "check_mpp", "number_in"]

LARGEST_CODE = 2**32 - 1


def number_in(value: object) -> float | None:
    """The number that a value is or, as text, contains; ``None`` if there is none."""
    # Python reads 0_5 as 5.
    if isinstance(value, str | int | float | np.generic) and "_" not in str(value):
        with suppress(TypeError, ValueError, OverflowError):
            return float(value)
    return None


def check_mpp(value: object, subject: str) -> float | None:
    """Micrometres per pixel at full resolution, as a datalist gives them; ``None`` for none.

    Raises:
        DatalistError: if they are no positive number.
    """
    mpp = None if isinstance(value, bool) else number_in(value)
    if value is not None and (mpp is None or not math.isfinite(mpp) or mpp <= 0):
        remedy = "Give micrometres per pixel at full resolution, for example 0.25, or leave it out."
        raise DatalistError(subject, f"mpp is {value!r}, not a positive number", remedy)
    return mpp


def check_mask_tissue(
    value: object, subject: object = "mask_tissue", error: type[BundleError] = SettingsError
) -> tuple[int | str, ...] | None:
    """What is tissue of masks: values of images, then classes of annotations, ascending, each once; ``None`` for none.

    Args:
        value: a whole number from 0 up, the name of a class, a list of such, or all as text, as a CSV has them: ``1``,
            ``1;2`` or ``Tissue;Tumor``; or None.
        subject: what it belongs to, to begin an error with.
        error: what is raised.

    Raises:
        BundleError: if it is nothing of that kind.
    """
    remedy = "Give the values of the mask that are tissue, whole numbers from 0 up: [1, 2], in a CSV 1;2; of "
    remedy += "annotations the names of the classes: ['Tissue'], in a CSV Tissue."
    parts = _parts(value)
    found = None if parts is None else [_code(part) if _is_number(part) else _name(part) for part in parts]
    return _each_once("mask_tissue", value, found, subject, error, remedy)


def check_mask_excluded(
    value: object, subject: object = "mask_excluded", error: type[BundleError] = SettingsError
) -> tuple[str, ...] | None:
    """The classes of annotations that are cut out of the tissue, each once; ``None`` for none.

    Args:
        value: the name of a class, a list of such, or both as text, as a CSV has them: ``Pen;Fold``; or None.
        subject: what it belongs to, to begin an error with.
        error: what is raised.

    Raises:
        BundleError: if it is nothing of that kind.
    """
    remedy = "Give the names of classes: ['Pen', 'Fold'], in a CSV Pen;Fold."
    parts = _parts(value)
    found = None if parts is None else [_name(part) for part in parts]
    names = _each_once("mask_excluded", value, found, subject, error, remedy)
    return None if names is None else tuple(map(str, names))


def _parts(value: object) -> list[object] | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return list(value) if isinstance(value, list | tuple) else [value]
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return [part.strip().strip("'\"") for part in re.split("[;,]", text)]


def _each_once(
    key: str,
    value: object,
    found: Sequence[int | str | None] | None,
    subject: object,
    error: type[BundleError],
    remedy: str,
) -> tuple[int | str, ...] | None:
    if found is None:
        return None
    if not found or None in found:
        raise error(subject, f"got {value!r}" if subject == key else f"{key} is {value!r}", remedy)
    return tuple(sorted({one for one in found if one is not None}, key=lambda one: (isinstance(one, str), one)))


def _is_number(part: object) -> bool:
    return not isinstance(part, str) or number_in(part) is not None


def _name(part: object) -> str | None:
    return composed(part.strip()) or None if isinstance(part, str) else None


def _code(value: object) -> int | None:
    # pandas writes whole numbers as 1.0 where a column has gaps.
    number = None if isinstance(value, bool) else number_in(value)
    return int(number) if number is not None and 0 <= number <= LARGEST_CODE and number.is_integer() else None
