"""What a report shows of an evaluation: tables of scores with their intervals, and figures of each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.core.tasks import Task
from scripts.evaluation.bootstrap import UNKNOWN_PATIENTS, few_patients, patients_text
from scripts.evaluation.external_tables import external_tables
from scripts.evaluation.head_report import RANKING_SCORES
from scripts.evaluation.metrics import CLASS_SCORE_NAMES, SCORE_TITLES
from scripts.evaluation.patient_level import POOLED
from scripts.evaluation.reports import EvaluationReport
from scripts.evaluation.score_texts import interval_text
from scripts.reports.page import figure_url

__all__ = ["evaluation_content"]

DECIDED = tuple(name for name in CLASS_SCORE_NAMES if name not in RANKING_SCORES)


def evaluation_content(evaluation: EvaluationReport) -> dict[str, Any]:
    """The ``tables``, the ``figures`` and the ``warnings`` of a page.

    Args:
        evaluation: a handler that has written its scores.
    """
    report, names = evaluation.report, [*evaluation.names, "brier"]
    caption = f"Scores with 95% intervals, on {patients_text(evaluation.num_slides, evaluation.num_patients)}"
    rows = [[head, *(interval_text(scores[name]) for name in names)] for head, scores in report.items()]
    tables = [{"caption": caption, "head": ["head", *(SCORE_TITLES[name] for name in names)], "rows": rows}]
    if any("patients" in scores for scores in report.values()):
        rows = [
            [f"{head}, {pooling}", *(interval_text(of_patients[name]) for name in names)]
            for head, scores in report.items()
            for pooling, of_patients in scores["patients"].items()
        ]
        columns = ["head, of the slides", *(SCORE_TITLES[name] for name in names)]
        tables.append({"caption": f"By patient: {POOLED}", "head": columns, "rows": rows})
    for head, scores in report.items():
        rows = [
            [name, str(of_class["slides"]), *(interval_text(of_class[score]) for score in CLASS_SCORE_NAMES)]
            for name, of_class in scores["classes"].items()
        ]
        columns = ["class", f"{evaluation.unit}s", *(SCORE_TITLES[name] for name in CLASS_SCORE_NAMES)]
        tables.append({"caption": f"Each class by the head {head}", "head": columns, "rows": rows})
    tables += [
        _operating_point_table(head, scores["operating_point"], evaluation.kind)
        for head, scores in report.items()
        if "operating_point" in scores
    ]
    tables += external_tables(report, evaluation.internal)
    figures = [
        {"alt": text, "src": figure_url(figure)}
        for of_head in evaluation.figures().values()
        for _, text, figure in of_head
    ]
    few = UNKNOWN_PATIENTS if evaluation.num_patients is None else few_patients(evaluation.num_patients)
    warnings = [*evaluation.internal.get("warnings", []), *([] if few is None else [f"Scores: {few}"])]
    return {"tables": tables, "figures": figures, "warnings": warnings}


def _operating_point_table(head: str, point: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """What is decided on the calibrated probabilities, class by class; exclusive classes have no threshold."""
    rule, column = (task.decision, []) if task.is_exclusive else ("decided at the thresholds", ["threshold"])
    rows = [
        [name, *(f"{of_class[key]:.3f}" for key in column), *(interval_text(of_class[score]) for score in DECIDED)]
        for name, of_class in point["classes"].items()
    ]
    caption = f"At the operating point, by the head {head}: calibrated, {rule}"
    return {"caption": caption, "head": ["class", *column, *(SCORE_TITLES[name] for name in DECIDED)], "rows": rows}
