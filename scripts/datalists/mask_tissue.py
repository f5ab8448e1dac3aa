"""Which values of a mask are tissue, as settings and datalists give them."""

from __future__ import annotations

import math
import re

from scripts.core.errors import BundleError, SettingsError

__all__ = ["check_mask_tissue"]

LARGEST_CODE = 2**32 - 1


def check_mask_tissue(
    value: object, subject: object = "mask_tissue", error: type[BundleError] = SettingsError
) -> tuple[int, ...] | None:
    """The values of a mask that are tissue, as they are given.

    Args:
        value: a whole number from 0 up, a list of such, or both as text, as a CSV has them: ``1`` or ``1;2``; ``None``
            for none.
        subject: what it belongs to, to begin an error with.
        error: what is raised.

    Returns:
        Ascending, each once; ``None`` for none.

    Raises:
        BundleError: if it is nothing of that kind.
    """
    if value is None:
        return None
    text = value.strip().removeprefix("[").removesuffix("]") if isinstance(value, str) else None
    parts = re.split("[;,]", text) if text is not None else value if isinstance(value, list | tuple) else [value]
    codes = [_code(part) for part in parts]
    if not codes or any(code is None for code in codes):
        remedy = "Give the values of the mask that are tissue, whole numbers from 0 up: [1, 2], in a CSV 1;2."
        raise error(subject, f"got {value!r}" if subject == "mask_tissue" else f"mask_tissue is {value!r}", remedy)
    return tuple(sorted({code for code in codes if code is not None}))


def _code(value: object) -> int | None:
    # pandas writes whole numbers as 1.0 where a column has gaps.
    try:
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if 0 <= number <= LARGEST_CODE and number.is_integer() else None
