"""The pictures of a comparison: the scores with their spread, and the attention of every method side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from scripts.core.errors import SettingsError
from scripts.datalists.keys import composed
from scripts.evaluation.localisation import read_regions
from scripts.evaluation.metrics import score_names
from scripts.experiments.comparison_results import Row
from scripts.experiments.comparison_tables import TITLES
from scripts.experiments.trainings import Experiment
from scripts.heatmaps.attention_maps import KINDS, PatchMap, gather_rows
from scripts.heatmaps.figures import PanelRow, panel
from scripts.heatmaps.images import read_thumbnail
from scripts.networks.methods import attention_maps, method_title

__all__ = ["choose_figure_slides", "draw_panels", "draw_scores"]

# More rows would be too small to see in one figure.
MOST_SLIDES = 5
THUMBNAIL_PX = 800


def draw_scores(rows: Sequence[Row], task: str) -> Figure:
    """A column for each score: every training as a point, the mean as a line, one row for each output."""
    names = score_names(task)
    figure = Figure(figsize=(3.2 * len(names) + 1.5, 0.42 * len(rows) + 1.2), dpi=120, layout="constrained")
    columns = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    methods = list(dict.fromkeys(row.method for row in rows))
    for axes, name in zip(columns, names, strict=True):
        for place, row in enumerate(rows):
            values = row.scores[name]
            colour = f"C{methods.index(row.method)}"
            axes.plot(values, np.full(len(values), place), "o", color=colour, alpha=0.5, markersize=5)
            mean = np.nanmean(values) if np.isfinite(values).any() else np.nan
            axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, linewidth=2)
        axes.set_title(TITLES[name], fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    columns[0].set_yticks(range(len(rows)), [row.title for row in rows])
    columns[0].invert_yaxis()
    return figure


def draw_panels(
    experiments: Sequence[Experiment],
    bundle_root: str | Path,
    testing_data: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    region_names: Sequence[str],
    figure_slides: Sequence[str] | None = None,
) -> dict[str, Figure]:
    """The slides, their true regions, and every map of every method beside each other.

    Args:
        experiments: one run of each method, that are done.
        bundle_root: the bundle's folder.
        testing_data: the entries that were tested.
        class_names: the outputs' classes.
        region_names: the classes of the drawn regions, in the order of their values.
        figure_slides: see :func:`choose_figure_slides`.

    Returns:
        A figure for each kind of map: ``"attention"`` and ``"contribution"``.

    Raises:
        SettingsError: if a slide is not tested.
    """
    chosen = choose_figure_slides(testing_data, class_names, figure_slides)
    builder = experiments[0].open("evaluating", bundle_root).get_parsed_content("bag_builder")
    slides = [builder.open_slide(testing_data[index]) for index, _ in chosen]
    thumbnails = [read_thumbnail(slide, THUMBNAIL_PX) for slide in slides]
    regions = [
        read_regions(
            entry["regions"], entry["slide"], slide.size_level0, len(region_names), slide.bounds_level0
        ).over_slide(slide.size_level0)
        if entry.get("regions") is not None
        else None
        for slide, entry in zip(slides, (testing_data[index] for index, _ in chosen), strict=True)
    ]
    maps = [_maps(experiment, bundle_root, chosen) for experiment in experiments]
    figures = {}
    for kind in KINDS:
        rows = [
            PanelRow(
                testing_data[index]["slide"],
                class_names[k],
                thumbnails[row],
                regions[row],
                [titled for method in maps for titled in method[kind][row]],
            )
            for row, (index, k) in enumerate(chosen)
        ]
        figures[kind] = panel(rows, region_names)
    return figures


def _maps(
    experiment: Experiment, bundle_root: str | Path, chosen: Sequence[tuple[int, int]]
) -> dict[str, list[list[tuple[str, PatchMap]]]]:
    """For each kind and slide, the method's maps with their titles."""
    config = experiment.open("evaluating", bundle_root)
    network, dataset = config.get_parsed_content("network").eval(), config.get_parsed_content("dataset")
    method, device = experiment.settings["method"], next(network.parameters()).device
    specs = attention_maps(method, experiment.settings["magnifications"])
    found: dict[str, list[list[tuple[str, PatchMap]]]] = {kind: [] for kind in KINDS}
    for index, k in chosen:
        bag = dataset[index]
        with torch.inference_mode():
            # Logits, attention and contribution [1, N, M, K]
            _, *explained = network.explain(bag["image"][None].to(device), bag["log_weight"][None].to(device))
        for kind, rows in zip(KINDS, explained, strict=True):
            found[kind].append([
                (
                    f"{method_title(method)} {spec.name.replace('_', ' ')}",
                    gather_rows(
                        rows[0, :, m, k].cpu().numpy(),
                        bag["corners"][:, spec.scale_index].numpy(),
                        float(bag["patch_level0"][spec.scale_index]),
                        float(bag["base_mpp"]),
                        kind,
                    ),
                )
                for m, spec in enumerate(specs)
            ])  # fmt: skip
    return found


def choose_figure_slides(
    testing_data: Sequence[Mapping[str, Any]], class_names: Sequence[str], figure_slides: Sequence[str] | None = None
) -> list[tuple[int, int]]:
    """Which slides are shown, and for which class: (index of the entry, index of the class).

    Args:
        testing_data: the entries that were tested.
        class_names: the outputs' classes.
        figure_slides: names of slides, each shown for its first class; ``None`` takes for each class the first
            slide that has it and is not taken, one with drawn regions before one without.

    Raises:
        SettingsError: if a slide is not tested.
    """
    names = [entry["slide"] for entry in testing_data]
    if figure_slides is not None:
        listed = isinstance(figure_slides, Sequence) and not isinstance(figure_slides, str)
        if not listed or not all(isinstance(name, str) for name in figure_slides):
            raise SettingsError("figure_slides", f"got {figure_slides!r}", "Give a list of slides' names.")
        unknown = [name for name in figure_slides if composed(name) not in names]
        if unknown or not figure_slides:
            raise SettingsError(
                "figure_slides",
                f"{', '.join(unknown) or 'an empty list'} is not among the test slides",
                f"Name some of: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}.",
            )
        indices = [names.index(composed(name)) for name in figure_slides]
        return [(index, int(np.argmax(np.asarray(testing_data[index]["label"])))) for index in indices]
    chosen: list[tuple[int, int]] = []
    order = sorted(range(len(names)), key=lambda i: "regions" not in testing_data[i])
    for k in range(len(class_names)):
        taken = {index for index, _ in chosen}
        free = [i for i in order if i not in taken and testing_data[i]["label"][k] > 0]
        chosen += [(i, k) for i in free[:1]]
    return chosen[:MOST_SLIDES] or [(0, 0)]
