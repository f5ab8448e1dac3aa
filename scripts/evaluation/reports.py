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
from scripts.core.ranks import is_first_rank, rank
from scripts.core.shards import gather_results
from scripts.core.tasks import get_task
from scripts.datalists.patients import patients_known, patients_of
from scripts.datalists.units import SLIDE, bags_of, slides_in
from scripts.evaluation.bootstrap import patients_text, warn_of_few, warn_of_unknown
from scripts.evaluation.external import EXTERNAL, Predictions, compare_with_internal, external_warnings
from scripts.evaluation.head_report import head_report, operating_point_report
from scripts.evaluation.label_texts import label_text
from scripts.evaluation.score_texts import interval_text
from scripts.evaluation.spread import spread_report

if TYPE_CHECKING:
    # The board draws slides with their labels, which are written here.
    from scripts.evaluation.board import EvaluationBoard
    from scripts.evaluation.figures import HeadFigure

__all__ = [
    "PATIENT_NUMBER",
    "EvaluationReport",
    "PredictionReport",
    "without_nan",
]

PREDICTIONS = "predictions"
PATIENT_NUMBER = "patient_number"
"""The column of predictions.csv that is the same for the slides of a patient; it does not say who that is."""


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
    on these, at the thresholds of the weights where the task has some; of an ensemble, each class has the spread of its
    members. Attach to an evaluator whose postprocessing makes probabilities ``[H, K]``, with
    :class:`scripts.inference.decisions.Decided` before it. Of several ranks the first writes the predictions of all, in
    the order of the dataset.

    Args:
        output_dir: where the file is written.
        heads: the H heads' names.
        class_names: the K classes' names.
        task: one of :data:`scripts.core.tasks.TASKS`, which says what is decided.
        key: of the probabilities in the evaluator's output.
        write_seconds: how often at most the file is written meanwhile, 0 after every slide, and also when the run
            fails; ranks other than the first then write ``predictions.rank1.csv`` and so on, until the run is complete.
            ``None`` writes when it is.
        unit: what a line is of, and what its column is called: ``"slide"`` or ``"patient"``.
    """

    files: ClassVar[tuple[str, ...]] = ("predictions.csv",)

    def __init__(
        self,
        output_dir: str | Path,
        heads: Sequence[str],
        class_names: Sequence[str],
        task: str = "multilabel",
        key: str = CommonKeys.PRED,
        write_seconds: float | None = None,
        unit: str = SLIDE,
    ) -> None:
        self.unit = unit
        self.output_dir, self.key, self.write_seconds = Path(output_dir), key, write_seconds
        self.kind = get_task(task)
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
        self._remove_parts()

    def _remove_parts(self) -> None:
        """Remove what ranks wrote of their own slides meanwhile."""
        for path in self.output_dir.glob(f"{PREDICTIONS}.rank*.csv"):
            path.unlink(missing_ok=True)

    def _clear(self) -> None:
        self.slides: list[str] = []
        self.probabilities: list[NDArray[np.float32]] = []
        # Empty where the weights have no operating point.
        self.calibrated: list[NDArray[np.float64]] = []
        # None there, and where the task has none.
        self.thresholds: NDArray[np.float64] | None = None
        # Empty where the weights are no ensemble.
        self.spread: list[NDArray[np.float64]] = []
        self.labels: list[NDArray[np.float32]] = []
        self._written_at, self._pause = time.monotonic(), self.write_seconds or 0.0

    def _collect(self, engine: Engine) -> None:
        state: Any = engine.state
        for item, output in zip(state.batch, state.output, strict=True):
            self.slides.append(str(item["slide"]))
            self.probabilities.append(output[self.key].float().cpu().numpy())
            if (calibrated := output.get("calibrated")) is not None:
                self.calibrated.append(calibrated.double().cpu().numpy())
                self.thresholds = output["threshold"].double().cpu().numpy() if "threshold" in output else None
            if (spread := output.get("spread")) is not None:
                self.spread.append(spread.cpu().numpy())
            if output.get(CommonKeys.LABEL) is not None:
                self.labels.append(output[CommonKeys.LABEL].float().cpu().numpy())
        if self.write_seconds is not None and time.monotonic() - self._written_at >= self._pause:
            start = time.monotonic()
            self._write_predictions()
            self._written_at = time.monotonic()
            # Of many slides a file takes long to write, and a hundredth of the run is enough.
            self._pause = self.write_seconds and max(self.write_seconds, 100 * (self._written_at - start))

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._write_predictions()
        # Ignite leaves it to its handlers to raise the error again.
        raise error

    def _end(self, engine: Engine) -> None:
        own = self.slides
        self.slides = gather_results(own, own, engine)
        collected: list[list[Any]] = [self.probabilities, self.calibrated, self.spread, self.labels]
        for values in collected:
            values[:] = gather_results(values if len(values) == len(own) else [], own, engine)
        if is_first_rank():
            self._write(engine)
            self._remove_parts()

    def _write(self, engine: Engine) -> None:
        self._write_predictions()
        engine.logger.info("wrote %s (%d %ss)", self.output_dir / "predictions.csv", len(self.slides), self.unit)

    def _write_predictions(self) -> None:
        has_labels = len(self.labels) == len(self.slides) > 0
        lines, numbers = [], self._patient_numbers()
        for index, (slide, probabilities) in enumerate(zip(self.slides, self.probabilities, strict=True)):
            label = [label_text(self.labels[index], self.class_names)] if has_labels else []
            last = [*label, *([numbers[slide]] if numbers else [])]
            decided = self._decided(index)
            for h, (head, row) in enumerate(zip(self.heads, probabilities, strict=True)):
                calibrated, spread = (of[index][h] if of else () for of in (self.calibrated, self.spread))
                decision = label_text(decided[h], self.class_names)
                lines.append([slide, head, *(f"{p:.9g}" for p in (*row, *calibrated, *spread)), decision, *last])
        of_weights = {"calibrated": self.calibrated, "spread": self.spread}
        columns = [
            self.unit,
            "head",
            *self.class_names,
            *(f"{name}_{what}" for what, found in of_weights.items() if found for name in self.class_names),
            "decision",
            *(["label"] if has_labels else []),
            *([PATIENT_NUMBER] if numbers else []),
        ]
        # Until the end each rank has its own slides.
        name = f"{PREDICTIONS}.csv" if is_first_rank() else f"{PREDICTIONS}.rank{rank()}.csv"
        write_csv(self.output_dir / name, columns, lines)

    def _patient_numbers(self) -> dict[str, int]:
        """The number of each slide's patient, by the slide's name; empty where patients are not known."""
        return {}

    def _decided(self, index: int) -> NDArray[np.bool_]:
        """The decisions ``[H, K]`` on a slide."""
        probabilities = self.calibrated[index] if self.calibrated else self.probabilities[index]
        return self.kind.decided(probabilities, self.thresholds)


class EvaluationReport(PredictionReport):
    """Writes ``predictions.csv``, ``metrics.json`` and TensorBoard events of an evaluation.

    ``metrics.json`` contains for each head each metric as ``{"value": v, "ci95": [low, high]}``, the interval by a
    bootstrap over patients; a metric that is not defined (a ROC-AUC of one class only) is null. ``classes`` beside them
    has the same of each class alone, and as ``slides`` how many have it. Beside the heads are the numbers of ``slides``
    and ``patients`` (null where no slide has a patient), and ``made_by`` (:func:`scripts.core.provenance.made_by`).
    Of an ensemble each head has ``spread`` (:func:`scripts.evaluation.spread.spread_report`).

    Beside an internal test each head has ``external``, as :func:`scripts.evaluation.external.compare_with_internal`
    gives it, and ``internal`` beside the heads has the internal test's numbers of ``slides`` and ``patients``, the
    checksum of its predictions, and ``warnings``, which are logged.

    Args:
        output_dir: where the files are written.
        heads: the heads' names.
        class_names: the K classes' names.
        task: see :class:`PredictionReport`.
        board: writes the TensorBoard events; without it, there are none.
        seed: seed of the bootstrap.
        made_by: see above; without it, it is left out.
        data: the datalist's entries, which name the patients; a slide that is not among them is a patient of its own.
        internal_test: what the same weights give the internal test, if the slides are from elsewhere.
        unit: see :class:`PredictionReport`.

    Attributes:
        report: the heads' content of ``metrics.json``, once it is written, undefined values as NaN.
        internal: its ``internal``; empty without an internal test.
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
        internal_test: Predictions | None = None,
        unit: str = SLIDE,
    ) -> None:
        super().__init__(output_dir, heads, class_names, task, unit=unit)
        bags = bags_of(data, unit)
        self.slides_of = {str(bag["slide"]): len(slides_in(bag)) for bag in bags}
        self.patients, self.patients_known = patients_of(bags), patients_known(data)
        self.report: dict[str, Any] = {}
        self.internal_test, self.internal = internal_test, dict[str, Any]()
        self.num_slides = 0
        self.num_patients: int | None = None
        self.task, self.names, self.seed, self.board = task, self.kind.scores, seed, board
        self.made_by = {} if made_by is None else {"made_by": dict(made_by)}

    def _clear(self) -> None:
        super()._clear()
        self._figures: dict[str, list[HeadFigure]] = {}

    def _patient_numbers(self) -> dict[str, int]:
        if not self.patients_known:
            return {}
        own = {slide: self.patients.get(slide, slide) for slide in sorted(self.slides)}
        number = {patient: i for i, patient in enumerate(dict.fromkeys(own.values()), start=1)}
        return {slide: number[patient] for slide, patient in own.items()}

    def _write(self, engine: Engine) -> None:
        super()._write(engine)
        # The bootstrap resamples rows: their order must not depend on the datalist's.
        order = np.argsort(self.slides)
        probabilities, labels = (np.stack(rows)[order].astype(np.float64) for rows in (self.probabilities, self.labels))
        patients = [self.patients.get(self.slides[i], self.slides[i]) for i in order]
        decided = np.stack([self._decided(i) for i in order]).astype(np.float64)  # [n, H, K]
        self.report = report = {}
        for h, head in enumerate(self.heads):
            given = labels, self.class_names, self.task, self.seed, patients
            report[head] = head_report(probabilities[:, h], *given)
            if self.calibrated:
                calibrated = np.stack(self.calibrated)[order, h]
                thresholds = None if self.thresholds is None else self.thresholds[h]
                report[head]["operating_point"] = operating_point_report(calibrated, decided[:, h], *given, thresholds)
            if self.spread:
                of_head = np.stack(self.spread)[order, h]
                report[head]["spread"] = spread_report(of_head, decided[:, h], labels, self.seed, patients)
        calibrated = np.stack(self.calibrated)[order] if self.calibrated else None
        slides = [self.slides[i] for i in order]
        known = self.patients_known
        own = slides, patients, labels, probabilities, calibrated, known
        self._compare(Predictions(*own, unit=self.unit, decided=decided))
        path, num_patients = self.output_dir / "metrics.json", len(set(patients))
        self.num_patients = num_patients if self.patients_known else None
        self.num_slides = sum(self.slides_of.get(name, 1) for name in self.slides)
        numbers = {"slides": self.num_slides, "patients": self.num_patients}
        internal = {"internal": self.internal} if self.internal else {}
        metrics = {**without_nan(report), **numbers, **internal, **self.made_by}
        write_json(path, metrics)
        engine.logger.info("wrote %s: %s", path, patients_text(self.num_slides, self.num_patients))
        for head, scores in report.items():
            shown = ("{} {:.3f} [{:.3f}, {:.3f}]".format(n, scores[n]["value"], *scores[n]["ci95"]) for n in self.names)
            engine.logger.info("%s: %s", head, ", ".join(shown))
            if EXTERNAL in scores:
                moved = (f"{name} {interval_text(scores[EXTERNAL][name]['difference'])}" for name in self.names)
                engine.logger.info("%s, less the internal test's: %s", head, ", ".join(moved))
        for text in self.internal.get("warnings", ()):
            engine.logger.warning("%s: %s", path, text)
        warn_of_few(num_patients, path)
        if not self.patients_known:
            warn_of_unknown(path)
        if self.board is not None:
            self.board.write(metrics, slides, probabilities, labels, self.figures)

    def _compare(self, external: Predictions) -> None:
        """Put the internal test beside what was written, if there is one."""
        if (internal := self.internal_test) is None:
            return
        found = compare_with_internal(external, internal, self.heads, self.class_names, self.task, self.seed)
        for head, of_head in found.items():
            self.report[head][EXTERNAL] = of_head
        self.internal = {
            "slides": len(internal.slides),
            "patients": internal.num_patients,
            "predictions_sha256": internal.sha256,
            "warnings": external_warnings(found, external, internal),
        }

    def figures(self) -> dict[str, list[HeadFigure]]:
        """The figures of each head, drawn once for all who show them, after the scores were written."""
        if not self._figures:
            # The predictions of `inferring` need no plotting.
            from scripts.evaluation.figures import head_figures

            labels, probabilities = np.stack(self.labels), np.stack(self.probabilities)
            for index, head in enumerate(self.heads):
                given = probabilities[:, index], labels, self.class_names, self.task
                self._figures[head] = head_figures(head, *given)
        return self._figures
