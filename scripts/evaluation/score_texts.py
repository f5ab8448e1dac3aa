"""Scores as tables show them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["digits", "interval_text", "mean_sd_text"]


def digits(value: float | None, places: int = 3) -> str:
    """A number with so many decimal places; a dash for what is not defined (null or NaN)."""
    return "-" if value is None or math.isnan(value) else f"{value:.{places}f}"


def interval_text(score: Mapping[str, Any]) -> str:
    """A score with its interval in three digits; a dash where it is not defined (null or NaN)."""
    low, high = (digits(bound) for bound in score["ci95"])
    return value if (value := digits(score["value"])) == "-" else f"{value} [{low}, {high}]"


def mean_sd_text(mean: float, sd: float, places: int = 3) -> str:
    """A mean with its standard deviation, without this where it is NaN; a dash where the mean is."""
    return digits(mean, places) + ("" if math.isnan(sd) else f" ± {digits(sd, places)}")
