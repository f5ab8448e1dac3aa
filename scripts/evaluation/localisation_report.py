"""What an evaluation reports of the maps where regions are known: localisation.json and localisation.csv."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SlideError
from scripts.core.files import write_csv, write_json
from scripts.core.ranks import is_first_rank
from scripts.core.repeats import Repeats, first_names
from scripts.core.shards import dataset_size, gather_shards
from scripts.core.tasks import get_task
from scripts.datalists.patients import patients_known, patients_of
from scripts.datalists.units import SLIDE, bags_of, slides_in
from scripts.evaluation.bootstrap import patients_text, warn_of_few
from scripts.evaluation.localisation import (
    Localisation,
    compare_with_regions,
    localisation_summary,
    patch_truth,
    read_regions,
    region_values,
)
from scripts.evaluation.reports import without_nan
from scripts.evaluation.summary import localisation_tables
from scripts.heatmaps.attention_maps import KINDS
from scripts.heatmaps.bag_maps import BagMaps
from scripts.networks.methods import MapSpec

__all__ = ["FILES", "LocalisationReport", "read_localisation", "write_localisation"]

FILES = ("localisation.json", "localisation.csv")

COLUMNS = ("slide", "map", "kind", "class", "patches", "positive_share", "roc_auc", "average_precision")

logger = logging.getLogger(__name__)


class LocalisationReport:
    """Compares the maps with the regions of those slides whose entry in the datalist has ``regions``.

    For each class that a slide is labelled with, and each map of either kind
    (:meth:`scripts.networks.bag_network.BagNetwork.explain`): do the patches that lie in the class's regions, by half
    of their area or more, have the highest values? Writes ``localisation.json`` (see
    :func:`scripts.evaluation.localisation.localisation_summary`; what is not defined is null), ``localisation.csv`` (a
    line for each slide, map, kind and class) and a table in TensorBoard's Text tab. Does nothing if no entry has
    ``regions``, or the network no maps. A slide that can no longer be opened is left out, with a warning.

    Attach to an evaluator that decollates its batches, of a bag dataset. Of several ranks the first writes, for all.

    Args:
        output_dir: where the files are written.
        network: has ``explain``.
        maps: the network's maps, in order.
        class_names: the classes of the label images, in order; value k + 1 is class k.
        data: the datalist's entries.
        bag_builder: opens the slides, to learn their size and bounds.
        summary_writer: the TensorBoard writer; ``None`` on other ranks than the first.
        task: one of :data:`scripts.core.tasks.TASKS`; in the ordinal one maps and regions are of what is above a class.
        positive_classes: those whose regions are positive in the binary task.
        seed: seed of the bootstrap.
        unit: what a bag is, see :func:`scripts.datalists.units.bags_of`.

    Raises:
        SettingsError: if there are regions, and which are positive in the binary task is not known.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        maps: Sequence[MapSpec],
        class_names: Sequence[str],
        data: Sequence[Mapping[str, Any]],
        bag_builder: BagBuilder,
        summary_writer: SummaryWriter | None,
        task: str = "multilabel",
        positive_classes: Sequence[str] | None = None,
        seed: int = 0,
        unit: str = SLIDE,
    ) -> None:
        self.output_dir, self.summary_writer, self.seed = Path(output_dir), summary_writer, seed
        self.network, self.maps, self.bag_builder = network, list(maps), bag_builder
        self.region_classes, self.kind = list(class_names), get_task(task)
        self.entries = {str(entry["slide"]): entry for entry in data if entry.get("regions")}
        self.bags = {str(bag["slide"]): bag for bag in bags_of(data, unit)}
        self.patients, self.patients_known = patients_of(list(self.entries.values())), patients_known(data)
        self.values = region_values(task, class_names, positive_classes) if self.entries else {}
        self._repeats = Repeats()
        self._clear()

    def attach(self, engine: Engine) -> None:
        """Compare after every iteration, write when the run is complete."""
        if is_first_rank():
            engine.add_event_handler(Events.STARTED, self._remove)
        if self.entries and self.maps:
            engine.add_event_handler(Events.STARTED, self._clear)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._compare)
            engine.add_event_handler(Events.COMPLETED, self._end)

    def _remove(self) -> None:
        # Files of an earlier evaluation do not belong to this one.
        for name in FILES:
            (self.output_dir / name).unlink(missing_ok=True)

    def _clear(self) -> None:
        # One list for each bag in turn, also for those without regions.
        self.found: list[list[Localisation]] = []

    def _compare(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        for item in batch:
            explained = cache(partial(BagMaps, self.network, self.maps, item))
            slides = slides_in(self.bags.get(str(item["slide"]), item))
            found = [
                self._compare_slide(explained, index, self.entries[str(slide["slide"])])
                for index, slide in enumerate(slides)
                if str(slide["slide"]) in self.entries
            ]
            self.found.append([one for of_slide in found for one in of_slide])

    def _compare_slide(
        self, explained: Callable[[], BagMaps], index: int, entry: Mapping[str, Any]
    ) -> list[Localisation]:
        """Compare the maps of a slide of a bag, by its place there."""
        labelled = [int(k) for k in np.flatnonzero(self.kind.per_logit(np.asarray(entry[CommonKeys.LABEL])) > 0.5)]
        if not labelled:
            return []
        name = str(entry["slide"])
        try:
            slide = self.bag_builder.open_slide(entry)
            regions = read_regions(entry["regions"], name, slide.size_level0, self.region_classes, slide.bounds_level0)
        except SlideError as error:
            # The scores of all slides are not lost for one that has gone since its features were made, or for regions
            # that cannot be read.
            self._repeats.log(logger, logging.WARNING, f"no localisation of slide {name}: {error}", name)
            return []
        maps, classes, found = explained().of_slide(index), list(self.values.items()), []
        annotated = regions.values
        others = [n for k, (n, values) in enumerate(classes) if k not in labelled and annotated & {*values}]
        if others:
            contained = first_names(others)
            text = f"slide {name}: its regions contain {contained}, which its label does not: these are not evaluated"
            self._repeats.log(logger, logging.WARNING, f"{text}. If one is wrong, correct it.", name)
        for m, spec in enumerate(self.maps):
            any_map = maps(m, labelled[0], KINDS[0])  # All maps of a scale have the same patches.
            values = [classes[k][1] for k in labelled]
            fractions = patch_truth(any_map.corners, any_map.patch_level0, regions, values)  # [n, labelled]
            for kind in KINDS:
                for k, fraction in zip(labelled, fractions.T, strict=True):
                    # The percentile ranks as the value does, but equal values are equal in it to the last bit.
                    rank = maps(m, k, kind).percentile
                    found.append(compare_with_regions(name, spec.name, classes[k][0], rank, fraction, kind))
        return found

    def _end(self, engine: Engine) -> None:
        found = [one for of_slide in gather_shards(self.found, dataset_size(engine)) for one in of_slide]
        if is_first_rank():
            self._write(engine, found)

    def _write(self, engine: Engine, found: Sequence[Localisation]) -> None:
        assert self.summary_writer is not None
        of_patients = self.patients if self.patients_known else None
        summary = write_localisation(self.output_dir, found, self.maps, list(self.values), self.seed, of_patients)
        self.summary_writer.add_text("localisation", localisation_tables(summary), 0)
        self.summary_writer.flush()
        path = self.output_dir / FILES[0]
        slides = {one.slide for one in found}
        num_patients = len({self.patients[slide] for slide in slides})
        known = num_patients if self.patients_known else None
        engine.logger.info("wrote %s: %s", path, patients_text(len(slides), known))
        warn_of_few(num_patients, path)


def write_localisation(
    output_dir: Path,
    found: Sequence[Localisation],
    maps: Sequence[MapSpec],
    class_names: Sequence[str],
    seed: int,
    patients: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Write ``localisation.json`` and ``localisation.csv``.

    Args:
        output_dir: the folder.
        found: of all slides.
        maps: of the network.
        class_names: what its maps are of.
        seed: of the bootstrap.
        patients: of the slides, by name; ``None`` where they are not known.

    Returns:
        What the first contains, undefined values as NaN.
    """
    summary = localisation_summary(found, [spec.name for spec in maps], class_names, seed, patients)
    if patients is None:
        for of_class in (of_class for classes in summary.values() for of_class in classes.values()):
            of_class["patients"] = None
    write_json(output_dir / FILES[0], without_nan(summary))
    write_csv(output_dir / FILES[1], COLUMNS, map(_cells, found))
    return summary


def read_localisation(path: Path) -> list[Localisation]:
    """Read a ``localisation.csv``.

    Raises:
        OSError: if it cannot be read.
        LookupError: if it lacks a column.
        ValueError: if it is damaged.
    """

    def number(cell: str) -> float:
        return float(cell or "nan")

    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [
        Localisation(
            line["slide"],
            line["map"],
            line["class"],
            int(line["patches"]),
            number(line["positive_share"]),
            number(line["roc_auc"]),
            number(line["average_precision"]),
            line["kind"],
        )
        for line in lines
    ]


def _cells(one: Localisation) -> list[object]:
    scores = (one.positive_share, one.roc_auc, one.average_precision)
    cells = ("" if np.isnan(score) else f"{score:.9g}" for score in scores)
    return [one.slide, one.map_name, one.kind, one.class_name, one.patches, *cells]
