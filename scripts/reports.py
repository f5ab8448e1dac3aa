"""What evaluation and inference leave behind: metrics.json, predictions.csv, TensorBoard events."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from scripts.files import replacing
from scripts.metrics import bootstrap_interval, head_scores

__all__ = ["EvaluationReport", "PredictionReport", "label_text"]


def label_text(label: NDArray[Any], class_names: Sequence[str]) -> str:
    """A label ``[K]`` as the names of its classes, joined by ``;`` - as a datalist's CSV has it."""
    return ";".join(name for name, value in zip(class_names, label, strict=True) if value > 0.5)


class PredictionReport:
    """Writes ``predictions.csv``: slide, head, one probability a class, and the label where there is one.

    Attach to an evaluator whose postprocessing makes ``pred`` probabilities ``[1 + S, K]``.

    Args:
        output_dir: where the file is written.
        heads: the outputs' names.
        class_names: the classes' names, K of them.
    """

    def __init__(self, output_dir: str | Path, heads: Sequence[str], class_names: Sequence[str]) -> None:
        self.output_dir = Path(output_dir)
        self.heads, self.class_names = list(heads), list(class_names)
        self._clear()

    def attach(self, engine: Engine) -> None:
        """Collect every iteration, write when the run is complete."""
        engine.add_event_handler(Events.STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _clear(self) -> None:
        self.slides: list[str] = []
        self.probabilities: list[NDArray[np.float32]] = []
        self.labels: list[NDArray[np.float32]] = []

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            self.slides.append(str(item["slide"]))
            self.probabilities.append(_array(output[CommonKeys.PRED]))
            if output.get(CommonKeys.LABEL) is not None:
                self.labels.append(_array(output[CommonKeys.LABEL]))

    def _write(self, engine: Engine) -> None:
        has_labels = len(self.labels) == len(self.slides)
        header = ["slide", "head", *self.class_names, *(["label"] if has_labels else [])]
        path = self.output_dir / "predictions.csv"
        with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for index, (slide, probabilities) in enumerate(zip(self.slides, self.probabilities, strict=True)):
                label = [label_text(self.labels[index], self.class_names)] if has_labels else []
                for head, row in zip(self.heads, probabilities, strict=True):
                    writer.writerow([slide, head, *(f"{p:.9g}" for p in row), *label])
        engine.logger.info("wrote %s (%d slides)", path, len(self.slides))


class EvaluationReport(PredictionReport):
    """Writes ``predictions.csv``, ``metrics.json`` and TensorBoard events of an evaluation.

    ``metrics.json`` holds for each output each metric as ``{"value": v, "ci95": [low, high]}``, the interval by
    a bootstrap over slides; a metric that is not defined (a ROC-AUC of one class only) is null.

    Args:
        output_dir: where the files are written.
        heads: the outputs' names.
        class_names: the classes' names, K of them.
        task: ``"multilabel"`` or ``"binary"``.
        summary_writer: the TensorBoard writer.
        seed: seed of the bootstrap.
    """

    def __init__(
        self,
        output_dir: str | Path,
        heads: Sequence[str],
        class_names: Sequence[str],
        task: str,
        summary_writer: SummaryWriter,
        seed: int = 0,
    ) -> None:
        super().__init__(output_dir, heads, class_names)
        self.task, self.seed, self.summary_writer = task, seed, summary_writer

    def _write(self, engine: Engine) -> None:
        super()._write(engine)
        probabilities, labels = np.stack(self.probabilities), np.stack(self.labels)
        report: dict[str, dict[str, Any]] = {}
        for index, head in enumerate(self.heads):
            scores = head_scores(probabilities[:, index], labels, self.task)
            intervals = bootstrap_interval(probabilities[:, index], labels, self.task, seed=self.seed)
            report[head] = {
                name: {"value": _number(value), "ci95": [_number(v) for v in intervals[name]]}
                for name, value in scores.items()
            }
            self._show(head, scores, probabilities[:, index], labels)
        self.summary_writer.flush()
        path = self.output_dir / "metrics.json"
        with replacing(path) as part:
            part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        engine.logger.info("wrote %s", path)

    def _show(self, head: str, scores: dict[str, float], probabilities: NDArray[Any], labels: NDArray[Any]) -> None:
        for name, value in scores.items():
            if math.isfinite(value):
                self.summary_writer.add_scalar(f"evaluation/{head}_{name}", value, 0)
        for k, class_name in enumerate(self.class_names):
            tag = f"{head}/{class_name}"
            self.summary_writer.add_pr_curve(tag, labels[:, k], probabilities[:, k], 0)
            self.summary_writer.add_histogram(f"probability/{tag}", probabilities[:, k], 0)


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().float().cpu().numpy(), dtype=np.float32)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
