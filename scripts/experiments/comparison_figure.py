"""The pictures of a comparison: the scores with their spread, and the maps of every method side by side."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scripts.core.errors import SettingsError
from scripts.core.imported import IMPORTED
from scripts.core.repeats import first_names
from scripts.core.tasks import TASKS, Task, get_task
from scripts.datalists.keys import composed
from scripts.datalists.units import slides_in
from scripts.evaluation.metrics import SCORE_TITLES, score_names
from scripts.evaluation.slide_pictures import THUMBNAIL_PX, regions_over_slide
from scripts.experiments.comparison_results import Row
from scripts.experiments.trainings import Experiment
from scripts.experiments.variants import Variant
from scripts.heatmaps.attention_maps import KINDS, PatchMap
from scripts.heatmaps.bag_maps import BagMaps, open_mapped
from scripts.heatmaps.figures import PanelRow, panel
from scripts.heatmaps.images import read_thumbnail
from scripts.networks.methods import attention_maps
from scripts.slides.remote import is_remote
from scripts.slides.slide import Slide

__all__ = ["choose_figure_slides", "draw_panels", "draw_scores"]

# More rows would be too small to see.
MOST_SLIDES = 5

logger = logging.getLogger(__name__)


def draw_scores(rows: Sequence[Row], task: str) -> Figure:
    """A column for each score: every training as a point, the mean as a line; a row for each head."""
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
        axes.set_title(SCORE_TITLES[name], fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    columns[0].set_yticks(range(len(rows)), [row.title for row in rows])
    columns[0].invert_yaxis()
    return figure


def draw_panels(
    tested_by: Sequence[tuple[Variant, Callable[[str], Experiment]]],
    bundle_root: str | Path,
    testing_data: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    region_names: Sequence[str],
    figure_slides: Sequence[str] | None = None,
) -> dict[str, Figure]:
    """Slides beside their annotated regions and every map of every method, for each kind of map.

    Args:
        tested_by: for each variant of a method, the run that tested a slide, by its name; all of them are done.
        bundle_root: the bundle's folder.
        testing_data: the entries of the test slides.
        class_names: the classes that the heads predict.
        region_names: the classes of the annotated regions, in the order of their values.
        figure_slides: see :func:`choose_figure_slides`.
    """
    settings = tested_by[0][1](testing_data[0]["slide"]).settings
    task = get_task(settings["task"])
    map_names = task.logit_names(class_names)
    chosen = choose_figure_slides(testing_data, class_names, figure_slides, task)
    images = {testing_data[i]["slide"]: str(testing_data[i]["image"]) for i, _ in chosen}
    may_miss = settings.get("backbone") == IMPORTED
    missing = [name for name, i in images.items() if (may_miss or is_remote(i)) and not os.path.exists(i)]
    if missing:
        logger.warning("no pictures of slides whose files are not there: %s", first_names(missing))
        chosen = [(i, k) for i, k in chosen if testing_data[i]["slide"] not in missing]
    if not chosen:
        return {}
    entries = [(testing_data[index], k) for index, k in chosen]
    found = [_maps(*of_variant, bundle_root, entries) for of_variant in tested_by]
    slides, maps = found[0][0], [of_kind for _, of_kind in found]
    rows: dict[str, list[PanelRow]] = {kind: [] for kind in KINDS}
    for row, (entry, k) in enumerate(entries):
        slide = slides[row]
        thumbnail, regions = read_thumbnail(slide, THUMBNAIL_PX), regions_over_slide(entry, slide, region_names)
        for kind in KINDS:
            of_slide = [titled for method in maps for titled in method[kind][row]]
            rows[kind].append(PanelRow(entry["slide"], map_names[k], thumbnail, regions, of_slide))
    return {kind: panel(rows[kind], region_names) for kind in KINDS}


def _maps(
    variant: Variant,
    tested_by: Callable[[str], Experiment],
    bundle_root: str | Path,
    entries: Sequence[tuple[Mapping[str, Any], int]],
) -> tuple[list[Slide], dict[str, list[list[tuple[str, PatchMap]]]]]:
    """The slides of some entries; and for each kind and slide, a variant's maps of a class, with their titles."""
    found: dict[str, list[list[tuple[str, PatchMap]]]] = {kind: [] for kind in KINDS}
    slides: list[Slide] = []
    made: dict[Path, list[Any]] = {}
    for entry, k in entries:
        experiment = tested_by(entry["slide"])
        if experiment.folder not in made:
            config = experiment.open("evaluating", bundle_root)
            made[experiment.folder] = [config.get_parsed_content(key) for key in ("network", "dataset", "bag_builder")]
        network, dataset, builder = made[experiment.folder]
        heads = variant.heads(experiment.settings)
        specs = attention_maps(variant.method, experiment.settings["magnifications"])
        bags = [[slide["slide"] for slide in slides_in(bag)] for bag in dataset.data]
        place = next(place for place, of_bag in enumerate(bags) if entry["slide"] in of_bag)
        of_bag = BagMaps(network.eval(), specs, dataset[place])
        slide, maps = open_mapped(builder, entry, of_bag.of_slide(bags[place].index(entry["slide"])))
        slides.append(slide)
        for kind, of_kind in found.items():
            shown = [(m, spec.name.replace("_", " ")) for m, spec in enumerate(specs) if spec.head in heads]
            between = "\n" if variant.settings else " "  # a line for each setting: a column is narrow
            titles = [between.join([*variant.title.split(), name]) for _, name in shown]
            of_kind.append([(title, maps(m, k, kind)) for title, (m, _) in zip(titles, shown, strict=True)])
    return slides, found


def choose_figure_slides(
    testing_data: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    figure_slides: Sequence[str] | None = None,
    task: Task = TASKS["multilabel"],
) -> list[tuple[int, int]]:
    """Which slides are shown, and for which class: (index of the entry, index of the class's maps).

    Args:
        testing_data: the entries of the test slides.
        class_names: the classes that the heads predict.
        figure_slides: names of slides, each shown for its first class. ``None`` takes, for each class, the first slide
            of that class that is not taken yet; slides with annotated regions come first.
        task: which says what maps are of (:meth:`scripts.core.tasks.Task.per_logit`).

    Raises:
        SettingsError: if a name is not that of a test slide.
    """
    names = [entry["slide"] for entry in testing_data]
    labels = [task.per_logit(np.asarray(entry["label"])) for entry in testing_data]
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
        return [(index, int(np.argmax(labels[index]))) for index in indices]
    chosen: dict[int, int] = {}
    order = sorted(range(len(names)), key=lambda i: "regions" not in testing_data[i])
    for k in range(task.num_logits(len(class_names))):
        free = [i for i in order if i not in chosen and labels[i][k] > 0]
        chosen.update((i, k) for i in free[:1])
    return list(chosen.items())[:MOST_SLIDES] or [(0, 0)]
