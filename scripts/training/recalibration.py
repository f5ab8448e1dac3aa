"""Deciding the operating point of trained weights again, with other rules or on other validation slides."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.engines import SupervisedEvaluator
from numpy.typing import NDArray

from scripts.core.errors import SettingsError
from scripts.core.provenance import cohort_fingerprint
from scripts.core.sums import unlist
from scripts.core.tasks import get_task
from scripts.datalists.classes import balanced_weights
from scripts.datalists.cohort import Cohort
from scripts.datalists.units import SLIDE, bags_of
from scripts.networks.state_record import sign
from scripts.training.operating_points import OperatingPoints
from scripts.weights.calibration import prior_shift
from scripts.weights.checkpoints import HeadwiseNetwork, save_checkpoint
from scripts.weights.operating_point import OPERATING_POINT, RECALIBRATED, point_text
from scripts.weights.paths import weights_path

__all__ = ["Recalibration", "refuse_others"]

logger = logging.getLogger(__name__)


def refuse_others(cohort: Cohort, data: Sequence[Mapping[str, Any]]) -> None:
    """Refuse slides that may decide nothing: the weights were fitted to training slides, and test slides judge.

    Args:
        cohort: the datalist.
        data: the entries of the slides that are to decide.

    Raises:
        SettingsError: if one of them is no validation slide of the datalist.
    """
    wrong = sorted({entry["slide"] for entry in data} - {entry["slide"] for entry in cohort.labels("validation")})
    if wrong:
        some = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        cause = f"{len(wrong)} of {len(data)} are no validation slides of the datalist ({some})"
        remedy = "Leave `data` as it is: test and training slides decide nothing."
        raise SettingsError("slides", cause, remedy)


class Recalibration:
    """Decides the operating point of trained weights again, and stores it with them; the weights themselves stay.

    Each file gets the points of the outputs for which training stored one, found as training finds them, with the
    file's own logits on the validation slides. Its origin then has, under ``recalibrated``, ``before``, the points of
    the training, and ``made_by``, what decided again (:func:`scripts.core.provenance.made_by`). In a packed bundle the
    list of checksums no longer names it.

    Args:
        ckpt_dir: the folder of the weights.
        network: has loaded them, a file for each head.
        heads: the H heads' names.
        class_names: the K classes' names.
        cohort: the datalist.
        made_by: what decides again.
        prior_correction: whether the balanced draws of the training are taken back.
        task: one of :data:`scripts.core.tasks.TASKS`.
        unit: what a bag is: ``"slide"`` or ``"patient"``.

    Attributes:
        shift: ``[K]``, the correction of the prior: that which the weights record or, where they record none, that of
            the datalist's training slides; of an ensemble, whose members have their own, 0.

    Raises:
        SettingsError: if the correction of the prior is not known.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: HeadwiseNetwork,
        heads: Sequence[str],
        class_names: Sequence[str],
        cohort: Cohort,
        made_by: Mapping[str, Any],
        prior_correction: bool = True,
        task: str = "multilabel",
        unit: str = SLIDE,
    ) -> None:
        self.network, self.heads, self.class_names, self.made_by = network, list(heads), list(class_names), made_by
        self.kind, self.unit = get_task(task), unit
        self.paths = [weights_path(ckpt_dir, head) for head in heads]
        self.shift = self._shift(cohort) if prior_correction else np.zeros(len(self.class_names))

    def run(self, evaluator: SupervisedEvaluator, operating_points: OperatingPoints) -> None:
        """Decide for all files, then store: a run that fails leaves files that agree.

        Args:
            evaluator: runs a network on the slides.
            operating_points: is attached to it, and has this object's ``shift``.
        """
        origins = []
        for member, path in zip(self.network.copies, self.paths, strict=True):
            evaluator.network = member
            evaluator.run()
            origin: dict[str, Any] = member.origin  # type: ignore[assignment]
            before = origin.get(OPERATING_POINT, {})
            found = operating_points.find()
            points = {head: point for head, point in found.items() if head in before or not before}
            self._log_before(path, before)
            operating_points.log(points)
            again = {"before": _of_training(origin), "made_by": dict(self.made_by)}
            origins.append({**origin, OPERATING_POINT: {**before, **points}, RECALIBRATED: again})
        for member, path, origin in zip(self.network.copies, self.paths, origins, strict=True):
            sign(member, member.record, origin)  # type: ignore[arg-type]
            # First, so that a run that is killed between the two leaves a file that loads.
            unlist(path)
            save_checkpoint(member.state_dict(), path)
            logger.info("stored the operating point in %s; its weights are as they were", path)

    def _log_before(self, path: Path, before: Mapping[str, Any]) -> None:
        for head in self.heads:
            if head in before:
                given = path.name, head, before[head]["slides"], self.unit, point_text(before[head])
                logger.info("before, %s, head %s on %d validation %ss: %s", *given)
        if not before:
            rule = self.kind.decision if self.kind.is_exclusive else "decisions were at 0.5"
            logger.info("before, %s had no operating point: %s", path.name, rule)

    def _shift(self, cohort: Cohort) -> NDArray[np.float64]:
        origin: dict[str, Any] = self.network.copies[0].origin  # type: ignore[assignment]
        trained = origin.get("made_by", {})
        if "members" in self.network.copies[0].record:  # type: ignore[operator]
            if not _of_training(origin) or not trained.get("configuration", {}).get("prior_correction", True):
                remedy = "Run `calibrating` on each member, then `ensembling`; or give --prior_correction False."
                raise SettingsError("prior_correction", "the ensemble's members were calibrated without it", remedy)
            return np.zeros(len(self.class_names))  # each member's is in its calibration
        again = origin.get(RECALIBRATED, {}).get("made_by", {})
        for made_by, points in ((trained, _of_training(origin)), (again, origin.get(OPERATING_POINT, {}))):
            if points and made_by.get("configuration", {}).get("prior_correction"):
                classes = next(iter(points.values()))["classes"]
                return np.array([classes[name]["shift"] for name in self.class_names])
        listed = cohort.labels("training")
        wanted = trained.get("data", {}).get("training")
        if not listed or wanted is None or cohort_fingerprint(training=listed)["training"] != wanted:
            cause = "the weights do not record it, and the datalist does not have their training slides"
            remedy = (
                "Give the datalist, `split_seed`, `leave_out` and `task` of the training; or --prior_correction False."
            )
            raise SettingsError("prior_correction", cause, remedy)
        labels = np.stack([np.asarray(bag["label"]) for bag in bags_of(listed, self.unit)])
        return prior_shift(labels, balanced_weights(labels), self.kind.is_exclusive)


def _of_training(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The points that the training found, whatever was decided since."""
    points: dict[str, Any] = origin.get(RECALIBRATED, {}).get("before", origin.get(OPERATING_POINT, {}))
    return points
