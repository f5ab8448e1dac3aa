"""The tables of an external validation, for TensorBoard's text and for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.evaluation.bootstrap import patients_text
from scripts.evaluation.external import EXTERNAL
from scripts.evaluation.metrics import SCORE_TITLES
from scripts.evaluation.score_texts import digits, interval_text

__all__ = ["external_tables"]

OF_CLASSES = ("roc_auc", "recall", "specificity")


def external_tables(heads: Mapping[str, Mapping[str, Any]], internal: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each table as ``caption``, ``head`` (the names of its columns) and ``rows``; none without an internal test.

    Args:
        heads: what ``metrics.json`` has of each head.
        internal: what it has as ``internal``; empty without one.
    """
    if not internal:
        return []
    tested = patients_text(internal["slides"], internal["patients"])
    rows = []
    for head, scores in heads.items():
        found = scores[EXTERNAL]
        for where, of in (("", found), (", operating point", found.get("operating_point", {}))):
            for name, score in of.items():
                if name in SCORE_TITLES:
                    values = digits(score["internal"]), digits(score["external"]), interval_text(score["difference"])
                    rows.append([head, f"{SCORE_TITLES[name]}{where}", *values])
    tables = [
        {
            "caption": f"Against the internal test ({tested}): external minus internal, with its 95% interval",
            "head": ["head", "score", "internal", "external", "difference"],
            "rows": rows,
        }
    ]
    for head, scores in heads.items():
        found = scores[EXTERNAL]
        decided = found.get("operating_point", found)["classes"]
        where = "at the operating point" if "operating_point" in found else "at 0.5"
        rows = []
        for name, of_class in found["classes"].items():
            frequency, moved = of_class["frequency"], of_class["probabilities"]
            differences = [(decided[name] if score in decided[name] else of_class)[score] for score in OF_CLASSES]
            rows.append([
                name, f"{frequency['internal']:.1%}", f"{frequency['external']:.1%}", f"{frequency['p_value']:.2g}",
                digits(moved["distance"]), f"{moved['p_value']:.2g}",
                *(interval_text(score["difference"]) for score in differences),
            ])  # fmt: skip
        columns = ["of internal slides", "of external slides", "p", "distance of probabilities", "p"]
        tables.append(
            {
                "caption": f"Against the internal test, each class by the head {head}: frequency, drift of the "
                f"probabilities, and external minus internal, {where}",
                "head": ["class", *columns, *(SCORE_TITLES[score] for score in OF_CLASSES)],
                "rows": rows,
            }
        )
    return tables
