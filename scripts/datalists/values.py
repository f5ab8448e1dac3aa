"""Values of datalists and settings that are numbers, written as numbers or as text."""

from __future__ import annotations

import math
import re
from contextlib import suppress

import numpy as np

from scripts.core.errors import BundleError, DatalistError, SettingsError

__all__ = ["check_mask_tissue", "check_mpp", "number_in"]

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
) -> tuple[int, ...] | None:
    """The values of a mask that are tissue, ascending, each once; ``None`` for none.

    Args:
        value: a whole number from 0 up, a list of such, or both as text, as a CSV has them: ``1`` or ``1;2``; or None.
        subject: what it belongs to, to begin an error with.
        error: what is raised.

    Raises:
        BundleError: if it is nothing of that kind.
    """
    if value is None:
        return None
    text = value.strip().removeprefix("[").removesuffix("]") if isinstance(value, str) else None
    parts = re.split("[;,]", text) if text is not None else value if isinstance(value, list | tuple) else [value]
    codes = [_code(part) for part in parts]
    if not codes or None in codes:
        remedy = "Give the values of the mask that are tissue, whole numbers from 0 up: [1, 2], in a CSV 1;2."
        raise error(subject, f"got {value!r}" if subject == "mask_tissue" else f"mask_tissue is {value!r}", remedy)
    return tuple(sorted({code for code in codes if code is not None}))


def _code(value: object) -> int | None:
    # pandas writes whole numbers as 1.0 where a column has gaps.
    number = None if isinstance(value, bool) else number_in(value)
    return int(number) if number is not None and 0 <= number <= LARGEST_CODE and number.is_integer() else None
