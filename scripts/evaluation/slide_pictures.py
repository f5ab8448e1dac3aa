"""Pictures of the test slides that are most wrong and most right: what a head saw where."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.data import Dataset
from numpy.typing import ArrayLike, NDArray

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SlideError
from scripts.core.tasks import get_task
from scripts.datalists.units import is_patient, slides_in
from scripts.evaluation.label_texts import classes_text
from scripts.evaluation.localisation import read_regions
from scripts.evaluation.metrics import check_predictions
from scripts.heatmaps.attention_maps import KINDS
from scripts.heatmaps.bag_maps import BagMaps, open_mapped
from scripts.heatmaps.figures import PanelRow, panel
from scripts.heatmaps.images import read_thumbnail
from scripts.networks.methods import MapSpec
from scripts.slides.slide import Slide

__all__ = ["THUMBNAIL_PX", "SlidePictures", "extreme_slides", "regions_over_slide"]

# More rows would be too small to see.
MOST_SLIDES = 3
THUMBNAIL_PX = 800
# Less than a figure's for print, so that an event file stays at a few megabytes.
DPI = 100

logger = logging.getLogger(__name__)


def extreme_slides(
    probabilities: ArrayLike, labels: ArrayLike, number: int = MOST_SLIDES
) -> tuple[list[int], list[int]]:
    """The slides that are most wrong, and those that are most right, by their cross-entropy over the classes.

    Args:
        probabilities: ``[n, K]`` within 0 to 1.
        labels: ``[n, K]``, 0 or 1.
        number: of each; fewer if there are not twice as many slides, and none is both.

    Returns:
        Indices of the most wrong, the worst first, and of the most right, the best first; ties in their order.

    Raises:
        ValueError: if the arrays do not fit, or contain other values.
    """
    p, y = check_predictions(probabilities, labels)
    likelihood = np.where(y == 1, p, 1 - p)
    loss = -np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean(axis=1)
    wrong = [int(i) for i in np.argsort(-loss, kind="stable")[:number]]
    right = [int(i) for i in np.argsort(loss, kind="stable")[:number]]
    num_wrong = min(number, (len(loss) + 1) // 2)
    return wrong[:num_wrong], right[: min(number, len(loss) - num_wrong)]


def regions_over_slide(
    entry: Mapping[str, Any], slide: Slide, class_names: Sequence[str]
) -> NDArray[np.integer] | None:
    """The label image of an entry's regions over its whole slide; ``None`` if it has none.

    Raises:
        SlideError: if they cannot be used (:func:`scripts.evaluation.localisation.read_regions`).
    """
    if entry.get("regions") is None:
        return None
    size = slide.size_level0
    return read_regions(entry["regions"], entry["slide"], size, class_names, slide.bounds_level0).over_slide(size)


class SlidePictures:
    """Draws slides beside their annotated regions and every map of a network, for each kind of map.

    Args:
        network: has ``explain``.
        maps: the network's maps, in order.
        dataset: bags, with the datalist's entries as ``data``.
        bag_builder: opens the slides.
        class_names: the classes that the heads predict.
        region_names: the classes of the annotated regions, in the order of their values.
        task: one of :data:`scripts.core.tasks.TASKS`, which says what the maps are of.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        maps: Sequence[MapSpec],
        dataset: Dataset,
        bag_builder: BagBuilder,
        class_names: Sequence[str],
        region_names: Sequence[str],
        task: str = "multilabel",
    ) -> None:
        self.network, self.maps, self.dataset, self.bag_builder = network, list(maps), dataset, bag_builder
        self.class_names, self.region_names = list(class_names), list(region_names)
        self.kind = get_task(task)
        self.map_names = self.kind.logit_names(class_names)
        self.places = {str(entry["slide"]): index for index, entry in enumerate(dataset.data)}

    def draw(self, slides: Sequence[str], probabilities: NDArray[Any], labels: NDArray[Any]) -> dict[str, Figure]:
        """A figure of these slides for each kind of map; none without maps, or with a warning if no slide can be read.

        A slide is shown for the class on which it is most wrong; one that is right, for the most probable class. Of a
        patient the slide is shown that has most of the attention of the first map.

        Args:
            slides: their names, or those of patients.
            probabilities: ``[n, K]`` of the head that is shown.
            labels: ``[n, K]``, 0 or 1.
        """
        if not self.maps:
            return {}
        rows: dict[str, list[PanelRow]] = {kind: [] for kind in KINDS}
        for name, p, y in zip(slides, probabilities, labels, strict=True):
            of_maps, truth = self.kind.per_logit(p), self.kind.per_logit(y)
            error = np.abs(of_maps - truth)
            k = int(error.argmax() if error.max() > 0.5 else of_maps.argmax())
            text = f"label {classes_text(y, self.class_names)}, {self.map_names[k]} {of_maps[k]:.2f}"
            try:
                row = self._row(name, k, text)
            except SlideError as problem:
                logger.warning("no picture of slide %s: %s", name, problem)
                continue
            for kind, of_kind in row.items():
                rows[kind].append(of_kind)
        figures = {kind: panel(of_kind, self.region_names) for kind, of_kind in rows.items() if of_kind}
        for figure in figures.values():
            figure.set_dpi(DPI)
        return figures

    def _row(self, name: str, k: int, text: str) -> dict[str, PanelRow]:
        index = self.places[name]
        bag: Any = self.dataset.data[index]
        of_bag, entries = BagMaps(self.network, self.maps, self.dataset[index]), slides_in(bag)
        shown = max(range(len(entries)), key=lambda place: of_bag.of_slide(place).share)
        entry = entries[shown]
        if is_patient(bag):
            name = f"{entry['slide']}, patient {name}"
        slide, found = open_mapped(self.bag_builder, entry, of_bag.of_slide(shown))
        thumbnail = read_thumbnail(slide, THUMBNAIL_PX)
        regions = regions_over_slide(entry, slide, self.region_names)
        return {
            kind: PanelRow(
                f"{name}\n{text}",
                self.map_names[k],
                thumbnail,
                regions,
                [(spec.name.replace("_", " "), found(m, k, kind)) for m, spec in enumerate(self.maps)],
            )
            for kind in KINDS
        }
