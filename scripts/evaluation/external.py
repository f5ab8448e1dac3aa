"""External validation: how a network does on slides from elsewhere, beside how it does on the internal test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.datalists.units import SLIDE
from scripts.evaluation.bootstrap import (
    difference_interval,
    few_patients,
    resampled_class_scores,
    resampled_scores,
)
from scripts.evaluation.drift import find_drift
from scripts.evaluation.head_report import of_decisions
from scripts.evaluation.metrics import CLASS_SCORE_NAMES, class_scores, head_scores

__all__ = ["EXTERNAL", "Predictions", "compare_with_internal", "external_warnings"]

Floats = NDArray[np.float64]

EXTERNAL = "external"
"""The key of the comparison in what ``metrics.json`` has of a head."""
LEVEL = 0.05
# A p that many tests share needs a finer grid than the level of each.
PERMUTATIONS, PERMUTATIONS_OF_A_TEST = 2000, 40


@dataclass(frozen=True)
class Predictions:
    """What the H heads of a network give a test set of n slides, sorted by name, with K classes.

    Args:
        slides: their names.
        patients: the patient of each slide; a slide whose patient is not known is a patient of its own.
        labels: ``[n, K]``, 0 or 1.
        probabilities: ``[n, H, K]``, as the network gives them.
        calibrated: ``[n, H, K]``, those at the operating point; ``None`` where the weights have none.
        patients_known: whether any slide's patient is known.
        sha256: of the file from which they were read; empty where they were not.
        unit: what each of the n is: ``"slide"`` or ``"patient"``.
        decided: ``[n, H, K]``, 1 for what is decided, at the operating point if there is one, and 0; ``None`` where
            that is not known.
    """

    slides: Sequence[str]
    patients: Sequence[str]
    labels: Floats
    probabilities: Floats
    calibrated: Floats | None
    patients_known: bool
    sha256: str = ""
    unit: str = SLIDE
    decided: Floats | None = None

    @property
    def num_patients(self) -> int | None:
        """How many there are; ``None`` where they are not known."""
        return len(set(self.patients)) if self.patients_known else None

    def decided_at_point(self, head: int) -> Floats | None:
        """The decisions ``[n, K]`` of a head at its operating point; ``None`` where these are not known."""
        return None if self.calibrated is None or self.decided is None else self.decided[:, head]


def compare_with_internal(
    external: Predictions,
    internal: Predictions,
    heads: Sequence[str],
    class_names: Sequence[str],
    task: str,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The scores of each head on both test sets, their differences, and how the test sets differ.

    Args:
        external: on the slides from elsewhere.
        internal: on the internal test, of the same weights.
        heads: the H heads' names.
        class_names: the K classes' names.
        task: see :mod:`scripts.core.tasks`.
        seed: of bootstrap and permutations.

    Returns:
        For each head each score as ``internal``, ``external`` and ``difference``, external minus internal, with the
        interval of two independent bootstraps over patients; and ``operating_point``, the same of what was decided
        there, if both test sets have one. Both have ``classes``, the same of each class; those of the first have,
        besides, ``frequency``, of the class among the slides of both, with the ``p_value`` of the difference, and
        ``probabilities``, the ``distance`` of their distributions with its ``p_value``
        (:mod:`scripts.evaluation.drift`). Undefined values are NaN.
    """
    tests = len(class_names) * (1 + len(heads))
    drift = find_drift(
        np.concatenate([internal.labels, external.labels]),
        np.concatenate([internal.probabilities, external.probabilities]),
        np.repeat([False, True], [len(internal.slides), len(external.slides)]),
        [*((0, patient) for patient in internal.patients), *((1, patient) for patient in external.patients)],
        max(PERMUTATIONS, PERMUTATIONS_OF_A_TEST * tests),
        seed,
    )
    frequency = {name: of.labels.mean(axis=0) for name, of in (("internal", internal), ("external", external))}
    report = {}
    for h, head in enumerate(heads):
        given = class_names, task, seed
        found = _differences(external, internal, external.probabilities[:, h], internal.probabilities[:, h], *given)
        for k, of_class in enumerate(found["classes"].values()):
            both = {name: float(values[k]) for name, values in frequency.items()}
            of_class["frequency"] = {**both, "p_value": float(drift.frequency[k])}
            distance, p_value = float(drift.distance[h, k]), float(drift.probability[h, k])
            of_class["probabilities"] = {"distance": distance, "p_value": p_value}
        inside, outside = internal.decided_at_point(h), external.decided_at_point(h)
        if inside is not None and outside is not None:
            # The scores decide once more, on decisions.
            at_point = _differences(external, internal, outside, inside, *given)
            at_point["classes"] = {name: of_decisions(scores) for name, scores in at_point["classes"].items()}
            found["operating_point"] = of_decisions(at_point)
        report[head] = found
    return report


def external_warnings(
    report: Mapping[str, Mapping[str, Any]], external: Predictions, internal: Predictions
) -> list[str]:
    """What to know before scores of the internal test are believed of slides from elsewhere.

    A class or probability drifts if its p is below :data:`LEVEL` over the number of tests (Bonferroni): of all test
    sets without drift, 5% at most are warned of.

    Args:
        report: as :func:`compare_with_internal` gives it.
        external: what it was made of.
        internal: what it was made of.
    """
    first, *_ = report.values()
    level = LEVEL / (len(first["classes"]) * (1 + len(report)))
    found, remedy = [], "Scores and thresholds of the internal test need not hold here."
    units = f"{external.unit}s"
    frequencies = [
        f"`{name}` {of['external']:.0%} of the {units}, {of['internal']:.0%} internally (p {of['p_value']:.2g})"
        for name, of in ((name, of_class["frequency"]) for name, of_class in first["classes"].items())
        if of["p_value"] < level
    ]
    if frequencies:
        found.append(f"Class frequencies drift from the internal test: {', '.join(frequencies)}. {remedy}")
    moved = [
        f"`{name}` by head {head} (distance {of['distance']:.2f}, p {of['p_value']:.2g})"
        for head, scores in report.items()
        for name, of in ((name, of_class["probabilities"]) for name, of_class in scores["classes"].items())
        if of["p_value"] < level
    ]
    if moved:
        found.append(f"Probabilities drift from the internal test: {', '.join(moved)}. {remedy}")
    if shared := sorted({*external.slides} & {*internal.slides}):
        some = ", ".join(f"`{name}`" for name in shared[:3]) + (", ..." if len(shared) > 3 else "")
        cause = f"{len(shared)} {units} have a name of the internal test ({some})"
        found.append(f"{cause}. If they are the same {units}, this is no external validation.")
    for name, of in (("internal test", internal), ("external slides", external)):
        if (few := few_patients(len(set(of.patients)))) is not None:
            found.append(f"Differences to the internal test, {name}: {few}")
    if not internal.patients_known:
        cause = "which patients the slides of the internal test are of is not known, so each counts as a patient"
        found.append(f"Differences to the internal test: {cause}. Evaluate it again, with `patient` in its datalist.")
    return found


def _differences(
    external: Predictions,
    internal: Predictions,
    p_external: Floats,
    p_internal: Floats,
    class_names: Sequence[str],
    task: str,
    seed: int,
) -> dict[str, Any]:
    """The scores of one head from its probabilities ``[n, K]``."""
    # The resamples of one test set say nothing of those of the other.
    both = ((internal, p_internal, (seed, 2)), (external, p_external, (seed,)))
    scores = [head_scores(p, of.labels, task) for of, p, _ in both]
    drawn = [resampled_scores(p, of.labels, task, seed=stream, patients=of.patients) for of, p, stream in both]
    of_classes = [class_scores(p, of.labels, class_names, task) for of, p, _ in both]
    drawn_of_classes = [
        resampled_class_scores(p, of.labels, class_names, seed=stream, patients=of.patients, task=task)
        for of, p, stream in both
    ]
    classes = {
        name: {
            score: _difference([of[name][score] for of in of_classes], [of[score][:, k] for of in drawn_of_classes])
            for score in CLASS_SCORE_NAMES
        }
        for k, name in enumerate(class_names)
    }
    own = {name: _difference([of[name] for of in scores], [of[name] for of in drawn]) for name in scores[0]}
    return {**own, "classes": classes}


def _difference(scores: Sequence[float], drawn: Sequence[Floats]) -> dict[str, Any]:
    """A score of the internal test and of the external slides, from both and from the resamples of both."""
    internal, external = scores
    difference = {"value": external - internal, "ci95": list(difference_interval(drawn[1], drawn[0]))}
    return {"internal": internal, "external": external, "difference": difference}
