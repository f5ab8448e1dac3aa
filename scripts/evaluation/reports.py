"""What evaluation and inference write: metrics.json and predictions.csv."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from numpy.typing import NDArray

from scripts.core.files import write_csv, write_json
from scripts.core.ranks import is_first_rank
from scripts.core.shards import dataset_size, gather_shards
from scripts.datalists.patients import patients_known, patients_of
from scripts.datalists.units import SLIDE, bags_of, slides_in
from scripts.evaluation.bootstrap import patients_text, warn_of_few, warn_of_unknown
from scripts.evaluation.head_report import head_report, operating_point_report
from scripts.evaluation.metrics import THRESHOLD, score_names

if TYPE_CHECKING:
    # The board draws slides with their labels, which are written here.
    from scripts.evaluation.board import EvaluationBoard
    from scripts.evaluation.figures import HeadFigure

__all__ = ["EvaluationReport", "PredictionReport", "classes_text", "label_of_text", "label_text", "without_nan"]


def label_text(label: NDArray[Any], class_names: Sequence[str]) -> str:
    """A label ``[K]`` as a datalist's CSV has it: the names of its classes joined by ``;``, or a 0 for each class.

    Of one class, or of the binary task's one output, it is 0 or 1.
    """
    names = [name for name, value in zip(class_names, label, strict=True) if value > 0.5]
    if len(class_names) == 1:
        return str(len(names))
    return ";".join(names or ["0"] * len(class_names))


def classes_text(values: NDArray[Any], class_names: Sequence[str]) -> str:
    """Probabilities or a label ``[K]`` in words: classes with 0.5 or more; else ``none``, of one class ``not ...``."""
    names = [name for name, value in zip(class_names, values, strict=True) if value >= 0.5]
    return ", ".join(names) or ("none" if len(class_names) > 1 else f"not {class_names[0]}")


def label_of_text(text: str, class_names: Sequence[str]) -> list[float]:
    """The label ``[K]`` that :func:`label_text` wrote; up to version 0.3.0 that was names alone, or nothing."""
    words = text.split(";")
    return [float(name in words or (len(class_names) == 1 and text == "1")) for name in class_names]


def without_nan(value: Any) -> Any:
    """The same dictionaries, lists and numbers, with null for what JSON has no number for: NaN and infinity."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class PredictionReport:
    """Writes ``predictions.csv``: slide or patient, head, a probability a class, the decision, and a label if known.

    Where the weights have an operating point, each class has a calibrated probability as well, and the decision is that
    at its threshold, else at 0.5. Attach to an evaluator whose postprocessing makes probabilities ``[H, K]``, with
    :class:`scripts.inference.decisions.Decided` before it. Of several ranks the first writes the predictions of all, in
    the order of the dataset.

    Args:
        output_dir: where the file is written.
        heads: the H heads' names.
        class_names: the K classes' names.
        key: of the probabilities in the evaluator's output.
        write_seconds: how often the file is written meanwhile, and also when the run fails, for one rank alone;
            ``None`` writes when the run is complete.
        unit: what a line is of, and what its column is called: ``"slide"`` or ``"patient"``.
    """

    files: ClassVar[tuple[str, ...]] = ("predictions.csv",)

    def __init__(
        self,
        output_dir: str | Path,
        heads: Sequence[str],
        class_names: Sequence[str],
        key: str = CommonKeys.PRED,
        write_seconds: float | None = None,
        unit: str = SLIDE,
    ) -> None:
        self.unit = unit
        self.output_dir, self.key, self.write_seconds = Path(output_dir), key, write_seconds
        self.heads, self.class_names = list(heads), list(class_names)
        self._clear()

    def attach(self, engine: Engine) -> None:
        """Collect every iteration, write when the run is complete, or as ``write_seconds`` says."""
        if is_first_rank():
            engine.add_event_handler(Events.STARTED, self._remove)
        engine.add_event_handler(Events.STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._end)
        if self.write_seconds is not None:
            engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _remove(self) -> None:
        # Should this run fail, those of an earlier one are not taken for its own.
        for name in self.files:
            (self.output_dir / name).unlink(missing_ok=True)

    def _clear(self) -> None:
        self.slides: list[str] = []
        self.probabilities: list[NDArray[np.float32]] = []
        # Empty where the weights have no operating point.
        self.calibrated: list[NDArray[np.float64]] = []
        self.thresholds: NDArray[np.float64] | None = None
        self.labels: list[NDArray[np.float32]] = []
        self._written_at = time.monotonic()

    def _collect(self, engine: Engine) -> None:
        state: Any = engine.state
        for item, output in zip(state.batch, state.output, strict=True):
            self.slides.append(str(item["slide"]))
            self.probabilities.append(output[self.key].float().cpu().numpy())
            if (calibrated := output.get("calibrated")) is not None:
                self.calibrated.append(calibrated.double().cpu().numpy())
                self.thresholds = output["threshold"].double().cpu().numpy()
            if output.get(CommonKeys.LABEL) is not None:
                self.labels.append(output[CommonKeys.LABEL].float().cpu().numpy())
        if self.write_seconds is not None and time.monotonic() - self._written_at >= self.write_seconds:
            self._write_predictions()
            self._written_at = time.monotonic()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._write_predictions()
        # Ignite leaves it to its handlers to raise the error again.
        raise error

    def _end(self, engine: Engine) -> None:
        total = dataset_size(engine)
        self.slides = gather_shards(self.slides, total)
        self.probabilities = gather_shards(self.probabilities, total)
        self.calibrated = gather_shards(self.calibrated, total)
        self.labels = gather_shards(self.labels, total)
        if is_first_rank():
            self._write(engine)

    def _write(self, engine: Engine) -> None:
        self._write_predictions()
        engine.logger.info("wrote %s (%d %ss)", self.output_dir / "predictions.csv", len(self.slides), self.unit)

    def _write_predictions(self) -> None:
        has_labels = len(self.labels) == len(self.slides) > 0
        lines = []
        for index, (slide, probabilities) in enumerate(zip(self.slides, self.probabilities, strict=True)):
            label = [label_text(self.labels[index], self.class_names)] if has_labels else []
            decided = self._decided(index)
            for h, (head, row) in enumerate(zip(self.heads, probabilities, strict=True)):
                calibrated = self.calibrated[index][h] if self.calibrated else ()
                decision = label_text(decided[h], self.class_names)
                lines.append([slide, head, *(f"{p:.9g}" for p in (*row, *calibrated)), decision, *label])
        calibrated_names = [f"{name}_calibrated" for name in self.class_names if self.calibrated]
        columns = [
            self.unit,
            "head",
            *self.class_names,
            *calibrated_names,
            "decision",
            *(["label"] if has_labels else []),
        ]
        write_csv(self.output_dir / "predictions.csv", columns, lines)

    def _decided(self, index: int) -> NDArray[np.bool_]:
        """The decisions ``[H, K]`` on a slide."""
        if self.thresholds is None:
            return self.probabilities[index] >= THRESHOLD
        return self.calibrated[index] >= self.thresholds


class EvaluationReport(PredictionReport):
    """Writes ``predictions.csv``, ``metrics.json`` and TensorBoard events of an evaluation.

    ``metrics.json`` contains for each head each metric as ``{"value": v, "ci95": [low, high]}``, the interval by a
    bootstrap over patients; a metric that is not defined (a ROC-AUC of one class only) is null. ``classes`` beside them
    has the same of each class alone, and as ``slides`` how many have it. Beside the heads are the numbers of ``slides``
    and ``patients`` (null where no slide has a patient), and ``made_by`` (:func:`scripts.core.provenance.made_by`).

    Args:
        output_dir: where the files are written.
        heads: the heads' names.
        class_names: the K classes' names.
        task: ``"multilabel"`` or ``"binary"``.
        board: writes the TensorBoard events; without it, there are none.
        seed: seed of the bootstrap.
        made_by: see above; without it, it is left out.
        data: the datalist's entries, which name the patients; a slide that is not among them is a patient of its own.
        unit: see :class:`PredictionReport`.

    Attributes:
        report: the heads' content of ``metrics.json``, once it is written, undefined values as NaN.
        num_slides: how many the scores rest on.
        num_patients: how many there are; ``None`` where they are not known.
    """

    files: ClassVar[tuple[str, ...]] = ("predictions.csv", "metrics.json")

    def __init__(
        self,
        output_dir: str | Path,
        heads: Sequence[str],
        class_names: Sequence[str],
        task: str,
        board: EvaluationBoard | None = None,
        seed: int = 0,
        made_by: Mapping[str, Any] | None = None,
        data: Sequence[Mapping[str, Any]] = (),
        unit: str = SLIDE,
    ) -> None:
        super().__init__(output_dir, heads, class_names, unit=unit)
        bags = bags_of(data, unit)
        self.slides_of = {str(bag["slide"]): len(slides_in(bag)) for bag in bags}
        self.patients, self.patients_known = patients_of(bags), patients_known(data)
        self.report: dict[str, Any] = {}
        self.num_slides = 0
        self.num_patients: int | None = None
        self.task, self.names, self.seed, self.board = task, score_names(task), seed, board
        self.made_by = {} if made_by is None else {"made_by": dict(made_by)}

    def _clear(self) -> None:
        super()._clear()
        self._figures: dict[str, list[HeadFigure]] = {}

    def _write(self, engine: Engine) -> None:
        super()._write(engine)
        # The bootstrap resamples rows: their order must not depend on the datalist's.
        order = np.argsort(self.slides)
        probabilities, labels = (np.stack(rows)[order].astype(np.float64) for rows in (self.probabilities, self.labels))
        patients = [self.patients.get(self.slides[i], self.slides[i]) for i in order]
        self.report = report = {}
        for h, head in enumerate(self.heads):
            given = labels, self.class_names, self.task, self.seed, patients
            report[head] = head_report(probabilities[:, h], *given)
            if self.thresholds is not None:
                calibrated = np.stack(self.calibrated)[order, h]
                report[head]["operating_point"] = operating_point_report(calibrated, self.thresholds[h], *given)
        path, num_patients = self.output_dir / "metrics.json", len(set(patients))
        self.num_patients = num_patients if self.patients_known else None
        self.num_slides = sum(self.slides_of.get(name, 1) for name in self.slides)
        numbers = {"slides": self.num_slides, "patients": self.num_patients}
        metrics = {**without_nan(report), **numbers, **self.made_by}
        write_json(path, metrics)
        engine.logger.info("wrote %s: %s", path, patients_text(self.num_slides, self.num_patients))
        for head, scores in report.items():
            shown = ("{} {:.3f} [{:.3f}, {:.3f}]".format(n, scores[n]["value"], *scores[n]["ci95"]) for n in self.names)
            engine.logger.info("%s: %s", head, ", ".join(shown))
        warn_of_few(num_patients, path)
        if not self.patients_known:
            warn_of_unknown(path)
        if self.board is not None:
            slides = [self.slides[i] for i in order]
            self.board.write(metrics, slides, probabilities, labels, self.figures())

    def figures(self) -> dict[str, list[HeadFigure]]:
        """The figures of each head, drawn once for all who show them, after the scores were written."""
        if not self._figures:
            # The predictions of `inferring` need no plotting.
            from scripts.evaluation.figures import head_figures

            labels, probabilities = np.stack(self.labels), np.stack(self.probabilities)
            for index, head in enumerate(self.heads):
                self._figures[head] = head_figures(head, probabilities[:, index], labels, self.class_names)
        return self._figures
