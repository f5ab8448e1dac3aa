"""A prediction saved as the label of its slide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .reasons import BAD_REQUEST, RequestError

__all__ = ["check_tag", "label_document"]

THRESHOLD = 0.5


def check_tag(tag: object) -> str:
    """The tag under which a label is saved: MONAI Label makes a folder of that name.

    Raises:
        RequestError: if it is no plain name.
    """
    if not isinstance(tag, str) or not re.fullmatch(r"\w[\w-]{0,39}", tag):
        remedy = "Give a name of letters, digits, - and _; training uses the tag final."
        raise RequestError(BAD_REQUEST, "label_tag", f"got {tag!r}", remedy)
    return tag


def label_document(
    prediction: Mapping[str, float], scores: Mapping[str, Mapping[str, float]], model: Mapping[str, Any]
) -> dict[str, Any]:
    """What is saved: a label file that training takes, with what it was made from beside the label.

    Args:
        prediction: a score for each class, of the output that is served.
        scores: the same of every output, by its name.
        model: what made the scores, in plain values.
    """
    label: dict[str, int] | list[int] = {name: int(score >= THRESHOLD) for name, score in prediction.items()}
    if isinstance(label, dict) and len(label) == 1:
        # The binary task's one output, high_risk, is no class of the labels, and a single 0 or 1 is what it trains on.
        label = list(label.values())
    return {"label": label, "threshold": THRESHOLD, "scores": {h: dict(s) for h, s in scores.items()}, "model": model}
