"""What an evaluation tells of the maps where regions are known: localisation.json and localisation.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.networks.utils import eval_mode
from monai.utils import CommonKeys
from numpy.typing import NDArray
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.bag import BagBuilder
from scripts.core.files import replacing
from scripts.core.ranks import dataset_size, gather_shards, is_first_rank
from scripts.datalists.patients import patients_known, patients_of
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
from scripts.heatmaps.attention_maps import gather_rows
from scripts.networks.methods import MapSpec

__all__ = ["LocalisationReport"]

COLUMNS = ("slide", "map", "kind", "class", "patches", "positive_share", "roc_auc", "average_precision")


class LocalisationReport:
    """Compares the maps with the regions of those slides whose entry in the datalist has ``regions``.

    The attention of each map, and its contribution (:meth:`scripts.networks.bag_network.BagNetwork.explain`), is
    compared for each class that the slide is labelled with: whether the patches that lie in the class's regions, by
    half of their area or more, got the highest values. Writes ``localisation.json`` (see
    :func:`scripts.evaluation.localisation.localisation_summary`; what is not defined is null), ``localisation.csv`` (a
    line for each slide, map, kind and class) and TensorBoard scalars. Does nothing if no entry has ``regions``.

    Attach to an evaluator that decollates its batches, of a bag dataset. Of several ranks the first writes, what all
    have found.

    Args:
        output_dir: where the files are written.
        network: gives ``explain(x [B, N, ...], log_weight [B, N, S])`` -> logits, and attention and contribution
            ``[B, N, M, K]``.
        maps: the M maps, in order.
        class_names: the classes of the label images, in order; value k + 1 is class k.
        data: the datalist's entries, which say whose slides they are.
        bag_builder: opens the slides, to learn their size and bounds.
        summary_writer: the TensorBoard writer; ``None`` on other ranks than the first.
        task: ``"multilabel"`` or ``"binary"``.
        positive_classes: those whose regions are positive in the binary task.
        seed: seed of the bootstrap.

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
    ) -> None:
        self.output_dir, self.summary_writer, self.seed = Path(output_dir), summary_writer, seed
        self.network, self.maps, self.bag_builder = network, list(maps), bag_builder
        self.num_region_classes = len(class_names)
        self.entries = {str(entry["slide"]): entry for entry in data if entry.get("regions")}
        self.patients, self.patients_known = patients_of(list(self.entries.values())), patients_known(data)
        self.values = region_values(task, class_names, positive_classes) if self.entries else {}
        self._clear()

    def attach(self, engine: Engine) -> None:
        """Compare after every iteration, write when the run is complete."""
        if self.entries:
            engine.add_event_handler(Events.STARTED, self._clear)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._compare)
            engine.add_event_handler(Events.COMPLETED, self._end)
        elif is_first_rank():
            engine.add_event_handler(Events.STARTED, self._remove)

    def _remove(self) -> None:
        # What an earlier evaluation left is not this one's.
        for name in ("localisation.json", "localisation.csv"):
            (self.output_dir / name).unlink(missing_ok=True)

    def _clear(self) -> None:
        # Of each slide in turn, also of those of which nothing is known.
        self.found: list[list[Localisation]] = []

    def _compare(self, engine: Engine) -> None:
        state: Any = engine.state
        for item in state.batch:
            self.found.append([])
            entry = self.entries.get(str(item["slide"]))
            if entry is not None and np.any(np.asarray(entry[CommonKeys.LABEL]) > 0.5):
                self._compare_slide(item, entry, self._explain(item, state.device))

    def _explain(self, item: Mapping[str, Any], device: torch.device) -> dict[str, NDArray[np.float64]]:
        """The attention and the contribution ``[N, M, K]`` of a slide's rows, padding included."""
        x, log_weight = (torch.as_tensor(item[key])[None].to(device) for key in (CommonKeys.IMAGE, "log_weight"))
        # The engine has put the network back into the mode that it had before the iteration.
        with eval_mode(self.network):
            _, attention, contribution = self.network.explain(x, log_weight)  # type: ignore[operator]
        of_kind = {"attention": attention, "contribution": contribution}
        return {kind: np.asarray(rows[0].float().cpu().numpy(), np.float64) for kind, rows in of_kind.items()}

    def _compare_slide(
        self, item: Mapping[str, Any], entry: Mapping[str, Any], of_kind: Mapping[str, NDArray[np.float64]]
    ) -> None:
        name, slide = str(entry["slide"]), self.bag_builder.open_slide(entry)
        regions = read_regions(entry["regions"], name, slide.size_level0, self.num_region_classes, slide.bounds_level0)
        corners, sides = (np.asarray(item[key], np.float64) for key in ("corners", "patch_level0"))
        labelled = np.flatnonzero(np.asarray(entry[CommonKeys.LABEL]) > 0.5)
        classes = [(int(k), list(self.values)[k]) for k in labelled]
        for m, spec in enumerate(self.maps):
            places, side = corners[:, spec.scale_index], float(sides[spec.scale_index])  # [N, 2]
            heats = {
                kind: [gather_rows(rows[:, m, k], places, side, slide.base_mpp, kind) for k, _ in classes]
                for kind, rows in of_kind.items()
            }
            values = [self.values[class_name] for _, class_name in classes]
            patches = heats["attention"][0].corners  # of any: all have the same
            shares = patch_truth(patches, side, regions, values)  # [n, labelled]
            for kind, of_classes in heats.items():
                for (_, class_name), heat, share in zip(classes, of_classes, shares.T, strict=True):
                    # The percentile ranks as the value does, but equal values are equal in it to the last bit.
                    rank = heat.percentile
                    self.found[-1].append(compare_with_regions(name, spec.name, class_name, rank, share, kind))

    def _end(self, engine: Engine) -> None:
        found = [one for of_slide in gather_shards(self.found, dataset_size(engine)) for one in of_slide]
        if is_first_rank():
            self._write(engine, found)

    def _write(self, engine: Engine, found: Sequence[Localisation]) -> None:
        assert self.summary_writer is not None
        summary = localisation_summary(
            found, [spec.name for spec in self.maps], list(self.values), self.seed, self.patients
        )
        for key, classes in summary.items():
            for class_name, of_class in classes.items():
                for score in ("roc_auc", "average_precision"):
                    value = of_class[score]["value"]
                    if np.isfinite(value):
                        tag = f"localisation/{key.replace(' ', '_')}_{class_name}_{score}"
                        self.summary_writer.add_scalar(tag, value, 0)
        self.summary_writer.flush()
        if not self.patients_known:
            for of_class in (one for classes in summary.values() for one in classes.values()):
                of_class["patients"] = None
        path = self.output_dir / "localisation.json"
        with replacing(path) as part:
            part.write_text(json.dumps(without_nan(summary), indent=2) + "\n", encoding="utf-8")
        with (
            replacing(path.with_suffix(".csv")) as part,
            open(part, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(_line(one) for one in found)
        slides = {one.slide for one in found}
        patients = {self.patients[slide] for slide in slides}
        known = len(patients) if self.patients_known else None
        engine.logger.info("wrote %s: %s", path, patients_text(len(slides), known))
        warn_of_few(len(patients), path)


def _line(one: Localisation) -> list[object]:
    scores = (one.positive_share, one.roc_auc, one.average_precision)
    return [
        one.slide,
        one.map_name,
        one.kind,
        one.class_name,
        one.patches,
        *("" if np.isnan(score) else f"{score:.9g}" for score in scores),
    ]
