"""Reading what an evaluation wrote: predictions.csv again as arrays, and the internal test beside an external one."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import SettingsError
from scripts.core.files import file_sha256
from scripts.datalists.units import PATIENT, SLIDE
from scripts.evaluation.external import Predictions
from scripts.evaluation.label_texts import label_of_text
from scripts.evaluation.metrics import check_predictions
from scripts.evaluation.reports import PATIENT_NUMBER
from scripts.weights.checkpoints import HeadwiseNetwork

__all__ = ["internal_test", "read_predictions"]

METRICS, PREDICTIONS = "metrics.json", "predictions.csv"

logger = logging.getLogger(__name__)


def read_predictions(path: str | Path, heads: Sequence[str], class_names: Sequence[str]) -> Predictions:
    """Read a ``predictions.csv`` with labels, as :class:`scripts.evaluation.reports.EvaluationReport` writes it.

    Args:
        path: the file.
        heads: the H heads' names.
        class_names: the K classes' names.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged.
        LookupError: if it has no slides, or lacks a column.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    unit = PATIENT if PATIENT in lines[0] else SLIDE
    # The bootstrap resamples rows, so the order of the datalist must not matter.
    lines.sort(key=lambda line: line[unit])
    slides = list(dict.fromkeys(line[unit] for line in lines))
    if len(lines) != len(slides) * len(heads):
        raise ValueError(f"predictions.csv has {len(lines)} lines for {len(slides)} slides")
    of_head = {head: [line for line in lines if line["head"] == head] for head in heads}
    first = of_head[heads[0]]
    labels = np.array([label_of_text(line["label"], class_names) for line in first])

    def numbers(names: Sequence[str]) -> Any:
        return np.stack([[[float(line[name]) for name in names] for line in own] for own in of_head.values()], axis=1)

    probabilities = numbers(class_names)  # [n, H, K]
    for h in range(len(heads)):
        check_predictions(probabilities[:, h], labels, class_names=class_names)
    calibrated = [f"{name}_calibrated" for name in class_names]
    has_decisions = "decision" in lines[0]  # else it is of version 0.3
    decided = [
        [label_of_text(line["decision"], class_names) for line in own] for own in of_head.values() if has_decisions
    ]
    known = PATIENT_NUMBER in lines[0]
    return Predictions(
        slides=slides,
        patients=[line[PATIENT_NUMBER] for line in first] if known else slides,
        labels=labels,
        probabilities=probabilities,
        calibrated=numbers(calibrated) if calibrated[0] in lines[0] else None,
        patients_known=known,
        unit=unit,
        decided=np.stack(decided, axis=1) if decided else None,
    )


def internal_test(
    internal: str | Path | None,
    output_dir: str | Path,
    class_names: Sequence[str],
    network: HeadwiseNetwork,
    heads: Sequence[str],
) -> Predictions | None:
    """The evaluation on the internal test, of the weights with which slides from elsewhere are to be evaluated.

    Args:
        internal: its ``output_dir``, or a file in it; ``None`` without one.
        output_dir: of the evaluation on slides from elsewhere.
        class_names: the classes of the weights.
        network: with the weights.
        heads: its heads' names, in order.

    Raises:
        SettingsError: if it contains no evaluation, a damaged one, or one with other heads, classes, weights or another
            operating point; or if it would be overwritten.
    """
    if internal is None:
        return None
    folder = Path(internal).parent if Path(internal).is_file() else Path(internal)
    subject = f"internal {internal}"
    remedy = "Name the `output_dir` of an `evaluating` on the internal test, with the same weights."
    if folder.resolve() == Path(output_dir).resolve():
        raise SettingsError(subject, "this evaluation would replace it", "Give another `output_dir`.")
    if not (folder / METRICS).is_file():
        raise SettingsError(subject, f"there is no {METRICS}", remedy)
    try:
        metrics = json.loads((folder / METRICS).read_text("utf-8"))
        found = {key: list(of["classes"]) for key, of in metrics.items() if isinstance(of, dict) and "classes" in of}
        for what, theirs, ours in (
            ("heads", list(found), list(heads)),
            ("classes", found.get(heads[0]), list(class_names)),
        ):
            if theirs != ours:
                raise SettingsError(subject, f"its {what} are {theirs}, and those of the weights {ours}", remedy)
        made_by = metrics.get("made_by", {})
        _check_weights(made_by.get("weights_sha256"), network.weights_sha256(heads), subject, remedy)
        path = folder / PREDICTIONS
        read = read_predictions(path, heads, class_names)
        points = network.points_sha256(heads)
        if read.calibrated is not None or any(points.values()):
            _check_points(made_by.get("operating_point_sha256"), points, subject)
        return replace(read, sha256=file_sha256(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SettingsError(subject, f"does not contain the results of an evaluation ({error!r})", remedy) from error


def _check_weights(theirs: Mapping[str, str] | None, ours: Mapping[str, str], subject: str, remedy: str) -> None:
    if theirs is None:
        logger.warning("%s: it does not say of which weights it is: whether they are these is not known", subject)
        return
    for head, sha256 in ours.items():
        if theirs.get(head) != sha256:
            both = f"{str(theirs.get(head))[:12]}..., now {sha256[:12]}..."
            raise SettingsError(subject, f"is of other weights (SHA-256 of head {head}: {both})", remedy)


def _check_points(theirs: Mapping[str, str | None] | None, ours: Mapping[str, str | None], subject: str) -> None:
    """Calibrated probabilities of one operating point say nothing at the thresholds of another."""
    if theirs is None:
        logger.warning("%s: it does not say at which operating point it decided: whether at this is not known", subject)
    elif dict(theirs) != dict(ours):
        cause = "it decided at another operating point of these weights than they have now, or at none"
        raise SettingsError(subject, cause, "Run `evaluating` on the internal test again, and name its `output_dir`.")
