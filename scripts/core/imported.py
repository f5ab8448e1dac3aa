"""Features that another tool extracted, in the place of a backbone's."""

from __future__ import annotations

__all__ = ["IMPORTED"]

IMPORTED = "imported"
"""The ``backbone`` of a run whose features ``importing`` wrote into the feature bank."""
