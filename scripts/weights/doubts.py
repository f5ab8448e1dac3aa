"""What speaks against the scores of a head: it was not trained, or ranks slides no better than chance does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.networks.methods import untrained_heads
from scripts.weights.operating_point import OPERATING_POINT
from scripts.weights.ranking import doubt_of_ranking

__all__ = ["doubt_of_head"]


def doubt_of_head(origin: Mapping[str, Any], head: str) -> str | None:
    """Why the scores of a head may mean nothing; ``None`` where nothing says so.

    Args:
        origin: what made its weights (:mod:`scripts.networks.state_record`).
        head: its name.
    """
    trained = origin.get("made_by", {}).get("configuration", {})
    if head in untrained_heads(trained):
        return f"its training, with alpha {trained['alpha']:g} and beta {trained['beta']:g}, did not train it"
    return doubt_of_ranking(origin.get(OPERATING_POINT, {}).get(head, {}))
