"""Scores as tables show them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["digits", "interval_text"]


def digits(value: float | None) -> str:
    """Three digits; a dash for what is not defined (null or NaN)."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def interval_text(score: Mapping[str, Any]) -> str:
    """A score with its interval in three digits; a dash where it is not defined (null or NaN)."""
    low, high = (digits(bound) for bound in score["ci95"])
    return value if (value := digits(score["value"])) == "-" else f"{value} [{low}, {high}]"
