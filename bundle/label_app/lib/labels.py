"""A prediction saved as the label of its slide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .reasons import BAD_REQUEST, RequestError, show

__all__ = ["check_tag", "label_document"]


def check_tag(tag: object, name: str = "label_tag") -> str:
    """The tag under which a label is saved: MONAI Label makes a folder of that name.

    Args:
        tag: what a client gives.
        name: of the parameter.

    Raises:
        RequestError: if it is no plain name.
    """
    if not isinstance(tag, str) or not re.fullmatch(r"\w[\w-]{0,39}", tag):
        remedy = "Give a name of letters, digits, - and _; training uses the tag final."
        raise RequestError(BAD_REQUEST, name, f"got {show(tag)}", remedy)
    return tag


def label_document(reply: Mapping[str, Any]) -> dict[str, Any]:
    """What is saved: a label file that training takes, with what it was made from beside the label.

    Args:
        reply: to the request, with ``slide``, ``prediction``, ``decision``, ``scores``, ``operating_point``, ``model``,
            ``version``, ``weights`` and ``notice``.

    Returns:
        The label is the decision at the operating point or, where the weights have none, of the scores.
    """
    names = [entry["label"] for entry in reply["prediction"]]
    label: dict[str, int] | list[int] = {name: int(name in reply["decision"]) for name in names}
    point = {} if reply["operating_point"] is None else {"operating_point": reply["operating_point"]}
    if isinstance(label, dict) and len(label) == 1:
        # The binary task's one output may be no class of the labels, and a single 0 or 1 is what it trains on.
        label = list(label.values())
    made_by = {
        "slide": reply["slide"],
        "model": {"name": reply["model"], "version": reply["version"], "weights": reply["weights"]},
    }
    return {"label": label, "scores": reply["scores"], **point, **made_by, "notice": reply["notice"]}
