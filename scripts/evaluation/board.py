"""What TensorBoard shows of an evaluation: a summary, headline scores, figures, and a line of the HParams tab."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.data import Dataset
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.bag import BagBuilder
from scripts.core.events import add_hparams
from scripts.evaluation.figures import HeadFigure
from scripts.evaluation.metrics import score_names
from scripts.evaluation.slide_pictures import SlidePictures, extreme_slides
from scripts.evaluation.summary import summary
from scripts.networks.methods import attention_maps
from scripts.weights.checkpoints import HeadwiseNetwork

__all__ = ["MOST_SCALARS", "EvaluationBoard"]

# More charts of one dot each hide what matters; metrics.json has every number.
MOST_SCALARS = 20


class EvaluationBoard:
    """Writes the TensorBoard events of an evaluation.

    - Text: :func:`scripts.evaluation.summary.summary`.
    - Scalars ``evaluation/<head>/<score>``, at most :data:`MOST_SCALARS`, also the metrics of the HParams tab.
    - Images: ROC and precision-recall curves, confusion and calibration of each head; the slides on which the first
      head is most wrong and most right, with every map.
    - A precision-recall curve of each head and class.
    - HParams: the settings of the training and of the evaluation, so that runs compare in one table.

    Without ``report`` in the settings there are no images: they are most of the time that the evaluation of a small
    test set takes, and a comparison has hundreds of them.

    Args:
        writer: ``None`` on other ranks than the first, which write nothing.
        network: that is evaluated.
        dataset: the test slides.
        bag_builder: opens slides for pictures.
        left_out: names of slides that failed, without which the evaluation goes on.
        settings: of the evaluation, by name.
    """

    def __init__(
        self,
        writer: SummaryWriter | None,
        network: HeadwiseNetwork,
        dataset: Dataset,
        bag_builder: BagBuilder,
        left_out: Sequence[str],
        settings: Mapping[str, Any],
    ) -> None:
        self.writer, self.settings, self.left_out = writer, settings, list(left_out)
        self.network, self.dataset, self.bag_builder = network, dataset, bag_builder

    def write(
        self,
        metrics: Mapping[str, Any],
        slides: Sequence[str],
        probabilities: NDArray[Any],
        labels: NDArray[Any],
        figures: Callable[[], Mapping[str, Sequence[HeadFigure]]],
    ) -> None:
        """Write everything.

        Args:
            metrics: the content of ``metrics.json`` (:class:`scripts.evaluation.reports.EvaluationReport`).
            slides: n names.
            probabilities: ``[n, H, K]``.
            labels: ``[n, K]``, 0 or 1.
            figures: draws those of each head.
        """
        assert self.writer is not None, "the first rank writes"
        writer, first = self.writer, self.network.copies[0]
        heads = [key for key, value in metrics.items() if isinstance(value, Mapping) and "classes" in value]
        class_names, record = list(metrics[heads[0]]["classes"]), dict(first.record)  # type: ignore[arg-type]
        writer.add_text("evaluation", summary(metrics, heads, self.settings, record, self.left_out), 0)
        add_hparams(writer, self._settings(metrics), _headline(metrics, heads, self.settings["task"]))
        for h, head in enumerate(heads):
            for k, class_name in enumerate(class_names):
                writer.add_pr_curve(f"{head}/{class_name}", labels[:, k], probabilities[:, h, k], 0)
        if self.settings["report"]:
            self._draw(slides, probabilities, labels, class_names, figures())
        writer.flush()

    def _draw(
        self,
        slides: Sequence[str],
        probabilities: NDArray[Any],
        labels: NDArray[Any],
        class_names: Sequence[str],
        figures: Mapping[str, Sequence[HeadFigure]],
    ) -> None:
        assert self.writer is not None, "the first rank writes"
        for head, of_head in figures.items():
            for name, _, figure in of_head:
                self.writer.add_figure(f"figures/{head}/{name}", figure, 0)
        maps = attention_maps(self.settings["method"], self.settings["magnifications"])
        names = class_names, self.settings["class_names"], self.settings["task"]
        pictures = SlidePictures(self.network, maps, self.dataset, self.bag_builder, *names)
        chosen = zip(("most_wrong", "most_right"), extreme_slides(probabilities[:, 0], labels), strict=True)
        for name, indices in chosen:
            found = pictures.draw([slides[i] for i in indices], probabilities[indices, 0], labels[indices])
            for kind, figure in found.items():
                self.writer.add_figure(f"slides/{name}/{kind}", figure, 0)

    def _settings(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Of the evaluation, and of the training, where its weights say, which come first where both have one."""
        training = dict(self.network.copies[0].origin).get("made_by", {})  # type: ignore[arg-type]
        made_by = metrics.get("made_by", {})
        seeds = {"training_seed": training["seed"]} if "seed" in training else {}
        return {**made_by.get("configuration", {}), **training.get("configuration", {}), **seeds}


def _headline(metrics: Mapping[str, Any], heads: Sequence[str], task: str) -> dict[str, float]:
    """The scores that are defined, of as many kinds as :data:`MOST_SCALARS` allows for each head."""
    names = score_names(task)[: max(MOST_SCALARS // len(heads), 1)]
    scores = {f"evaluation/{head}/{name}": metrics[head][name]["value"] for head in heads for name in names}
    defined = {tag: value for tag, value in scores.items() if value is not None and math.isfinite(value)}
    return dict(list(defined.items())[:MOST_SCALARS])
