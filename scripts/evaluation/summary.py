"""An evaluation in words and tables, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.core.magnification import scale_names
from scripts.core.markdown import markdown_table
from scripts.core.tasks import get_task
from scripts.datalists.units import SLIDE
from scripts.evaluation.bootstrap import UNKNOWN_PATIENTS, few_patients, patients_text
from scripts.evaluation.external_tables import external_tables
from scripts.evaluation.head_report import decided_scores
from scripts.evaluation.metrics import CLASS_SCORE_NAMES, SCORE_TITLES, score_names
from scripts.evaluation.patient_level import POOLED
from scripts.evaluation.score_texts import digits, interval_text
from scripts.weights.record import DEMONSTRATION, is_demonstration

__all__ = ["localisation_tables", "summary"]

DIGITS_OF_SHA256 = 12


def summary(
    metrics: Mapping[str, Any],
    heads: Sequence[str],
    settings: Mapping[str, Any],
    record: Mapping[str, Any],
    left_out: Sequence[str] = (),
) -> str:
    """What was evaluated, how good each head and class is, and what to know before believing it.

    Args:
        metrics: the content of ``metrics.json`` (:class:`scripts.evaluation.reports.EvaluationReport`).
        heads: the heads' names.
        settings: of the evaluation, by name.
        record: of the weights, as :func:`scripts.weights.record.read_record` gives it; empty where they have none.
        left_out: names of slides that failed, and are not part of the scores.
    """
    names = score_names(settings["task"])
    tested = patients_text(metrics["slides"], metrics["patients"])
    rows = [[head, *(interval_text(metrics[head][name]) for name in names)] for head in heads]
    blocks = ["## Scores", f"{tested}; each score with its 95% interval, by a bootstrap over patients."]
    blocks.append(markdown_table(["head", *(SCORE_TITLES[name] for name in names)], rows))
    if "operating_point" in metrics[heads[0]]:
        decided = decided_scores(settings["task"])
        rows = [[head, *(interval_text(metrics[head]["operating_point"][name]) for name in decided)] for head in heads]
        kind = get_task(settings["task"])
        rule = kind.decision if kind.is_exclusive else "decided at the thresholds of the weights"
        blocks += [f"The same at the operating point: calibrated, {rule}."]
        blocks.append(markdown_table(["head", *(SCORE_TITLES[name] for name in decided)], rows))
    if "patients" in metrics[heads[0]]:
        rows = [
            [head, pooling, *(interval_text(scores[name]) for name in names)]
            for head in heads
            for pooling, scores in metrics[head]["patients"].items()
        ]
        blocks += [f"By patient: {POOLED}."]
        blocks.append(markdown_table(["head", "of the slides", *(SCORE_TITLES[name] for name in names)], rows))
    tables = external_tables({head: metrics[head] for head in heads}, metrics.get("internal", {}))
    for table in tables:
        blocks += [f"{table['caption']}.", markdown_table(table["head"], table["rows"])]
    if warnings := _warnings(metrics, heads, record, left_out):
        blocks += ["## Warnings", "\n".join(f"- {text}" for text in warnings)]
    for head in heads:
        rows = [
            [name, str(scores["slides"]), *(interval_text(scores[score]) for score in CLASS_SCORE_NAMES)]
            for name, scores in metrics[head]["classes"].items()
        ]
        columns = ["class", f"{settings.get('unit', SLIDE)}s", *(SCORE_TITLES[score] for score in CLASS_SCORE_NAMES)]
        blocks += [f"## Classes, head {head}", markdown_table(columns, rows)]
    blocks += ["## Weights", _weights(metrics, heads, settings, record)]
    return "\n\n".join(blocks) + "\n"


def localisation_tables(metrics: Mapping[str, Any]) -> str:
    """How well maps find the annotated regions, as Markdown.

    Args:
        metrics: as :func:`scripts.evaluation.localisation.localisation_summary` gives it.
    """
    rows = [
        [key, name, str(scores["slides"]), interval_text(scores["roc_auc"]), *_precision(scores)]
        for key, classes in metrics.items()
        for name, scores in classes.items()
        if scores["slides"]
    ]
    columns = ["map", "class", "slides", SCORE_TITLES["roc_auc"], SCORE_TITLES["average_precision"], "chance"]
    text = "Patches against annotated regions: mean over slides, with its 95% interval by a bootstrap over patients."
    return f"{text}\n\n{markdown_table(columns, rows)}\n"


def _precision(scores: Mapping[str, Any]) -> list[str]:
    return [interval_text(scores["average_precision"]), digits(scores["positive_share"])]


def _weights(
    metrics: Mapping[str, Any],
    heads: Sequence[str],
    settings: Mapping[str, Any],
    record: Mapping[str, Any],
) -> str:
    sums = metrics.get("made_by", {}).get("weights_sha256", {})
    rows = [
        ["method", str(settings["method"])],
        ["task", f"{settings['task']}: {', '.join(metrics[heads[0]]['classes'])}"],
        ["magnifications", ", ".join(scale_names(settings["magnifications"]))],
        ["backbone", str(settings["backbone"])],
    ]
    if data := record.get("data"):
        numbers = f"{data['training_slides']} training, {data['validation_slides']} validation"
        if members := record.get("members"):
            rows.append(["ensemble", f"the mean of {len(members)} trainings; below, the most slides of any of them"])
        rows.append(["trained on", f"{numbers} slides, of which {data['drawn_slides']} synthetic"])
        rows.append(["trained by", f"version {record['version']} of the bundle"])
    else:
        rows.append(["trained on", "not known: the weights have no record"])
    for head in heads:
        rows.append([f"SHA-256 of head {head}", f"`{sums[head][:DIGITS_OF_SHA256]}...`" if head in sums else "-"])
    return markdown_table(["setting", "value"], rows)


def _warnings(
    metrics: Mapping[str, Any], heads: Sequence[str], record: Mapping[str, Any], left_out: Sequence[str]
) -> list[str]:
    found = [DEMONSTRATION] if is_demonstration(record) else []
    found += metrics.get("internal", {}).get("warnings", [])
    if metrics["patients"] is None:
        found.append(f"Patients: {UNKNOWN_PATIENTS}")
    if (few := few_patients(metrics["slides"] if metrics["patients"] is None else metrics["patients"])) is not None:
        found.append(f"Few patients: {few}")
    absent = [name for name, scores in metrics[heads[0]]["classes"].items() if not scores["slides"]]
    if absent:
        found.append(f"No slide has {_names(absent)}: most scores of it are not defined, and macro-F1 counts it as 0.")
    if left_out:
        count = f"{len(left_out)} slide{'s' if len(left_out) > 1 else ''}"
        found.append(f"Left out, because they failed: {count}, {_names(left_out)}. `failed.csv` has the reasons.")
    return found


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
