"""The Ignite handler that writes the heatmaps of every slide that is predicted."""

from __future__ import annotations

import contextlib
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from numpy.typing import NDArray

from scripts.core.background import in_background
from scripts.core.errors import SettingsError, SlideError
from scripts.core.files import write_csv
from scripts.core.imported import IMPORTED
from scripts.core.magnification import scale_name
from scripts.core.settings import check_settings
from scripts.core.tasks import THRESHOLD, get_task
from scripts.datalists.failures import FailedSlides
from scripts.heatmaps.attention_maps import KINDS, PatchMap
from scripts.heatmaps.geojson import feature_collection, write_geojson
from scripts.heatmaps.images import Thumbnail, class_colour, overlay, read_thumbnail, write_patch_image, write_png
from scripts.heatmaps.legend import Title, heatmap_with_legend, legend_colours
from scripts.heatmaps.mapped_slides import MappedSlides
from scripts.heatmaps.patch_table import patch_columns, patch_table
from scripts.slides.frames import check_coordinates, frame_of

__all__ = ["FORMATS", "HeatmapWriter", "class_file_names", "predicted_classes"]

FORMATS = {"png": ".png", "plain": "_plain.png", "geojson": ".geojson", "mha": ".mha"}
"""What ``heatmap_formats`` can name, and how the files of each end."""
DEFAULT_FORMATS = ("png", "geojson", "mha")
GALLERY = "top"
PATCHES = "patches.csv"
# In bytes it is at most four times as much; file systems allow 255.
LONGEST_CLASS = 40


class HeatmapWriter:
    """Writes the heatmaps of each slide into ``heatmaps/<slide>``, with top patches and a table of all patches.

    ``<map>_<class>`` shows the attention for a class, and ``<map>_<class>_contribution`` what each patch adds to the
    class's logit: where the network looks, and what it concludes there. The two need not agree; see
    :meth:`scripts.networks.bag_network.BagNetwork.explain`. ``<map>_<class>_top.png`` shows the patches with the
    highest values of these kinds, and ``patches.csv`` has every patch, map and class, whatever is chosen for pictures.

    Attach to an evaluator whose postprocessing makes probabilities ``[heads, K]`` and whose batch has what
    :class:`scripts.inference.transforms.EncodeSlided` makes. When the run starts, what an earlier one left
    of these slides, classes and outputs is removed, whatever this one writes: otherwise maps of other weights would
    remain beside the new scores.

    Of a patient each slide has its folder. The probabilities are the patient's, and ranks and colours those among the
    patches of all slides of the patient.

    Args:
        output_dir: where the folder ``heatmaps`` is made.
        mapped: the slides with their maps.
        heads: the heads' names.
        class_names: the names of a head's K classes. In the ordinal task maps are of its logits, ``"above <class>"``.
        heatmaps: False writes none.
        heatmap_classes: the classes that are shown, or one; by default heatmaps of those that the map's head predicts
            (:func:`predicted_classes`), and top patches of all.
        heatmap_kinds: ``"attention"``, ``"contribution"``, or a list of these.
        heatmap_formats: one of :data:`FORMATS`, or a list of these: ``"png"`` has a legend, ``"plain"`` has none.
        top_patches: how many patches a gallery shows of each kind; 0 writes no galleries.
        coordinates: the frame of the ``.geojson``, and of positions in galleries and ``patches.csv``, see
            :mod:`scripts.slides.frames`: ``"qupath"``, for QuPath as it opens slides by itself, or ``"level0"``.
            ``.mha`` files are in the frame of level 0.
        key: of the probabilities in the evaluator's output.
        failures: where slides are written down that cannot be read again; ``None`` ends the run with the first.
        backbone: the encoder's name. Slides of imported features that are not there are named in a warning.
        task: one of :data:`scripts.core.tasks.TASKS`.

    Raises:
        SettingsError: if ``heatmaps`` is no switch, ``top_patches`` no such number, or there is no such class, kind,
            format or frame.
    """

    def __init__(
        self,
        output_dir: str | Path,
        mapped: MappedSlides,
        heads: Sequence[str],
        class_names: Sequence[str],
        heatmaps: bool = True,
        heatmap_classes: Sequence[str] | str | None = None,
        heatmap_kinds: Sequence[str] | str = KINDS,
        heatmap_formats: Sequence[str] | str = DEFAULT_FORMATS,
        top_patches: int = 5,
        coordinates: str = "qupath",
        key: str = CommonKeys.PRED,
        failures: FailedSlides | None = None,
        backbone: str = "",
        task: str = "multilabel",
    ) -> None:
        check_settings(heatmaps=heatmaps, top_patches=top_patches)
        self.folder, self.heatmaps = Path(output_dir) / "heatmaps", heatmaps
        self.kind = get_task(task)
        self.mapped, self.class_names = mapped, self.kind.logit_names(class_names)
        self.head_of_map = [list(heads).index(spec.head) for spec in mapped.maps]
        self.key, self.failures, self.is_imported = key, failures, backbone == IMPORTED
        self.chosen = _class_indices(heatmap_classes, self.class_names)
        self.kinds = _chosen("heatmap_kinds", heatmap_kinds, KINDS)
        self.formats = _chosen("heatmap_formats", heatmap_formats, tuple(FORMATS))
        self.top_patches = top_patches
        self.coordinates = check_coordinates(coordinates)
        self.file_names = class_file_names(self.class_names)

    def attach(self, engine: Engine) -> None:
        """Remove what an earlier run left of these slides, and write after every iteration.

        A slide's heatmaps are written while the next slide is encoded; the last ones before the run is complete. Of a
        method without maps nothing is written, and the log says so.
        """
        engine.add_event_handler(Events.STARTED, self._remove)
        if self.heatmaps and not self.mapped.maps:
            engine.add_event_handler(Events.STARTED, self._say_none)
        elif self.heatmaps:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)
            engine.add_event_handler(Events.COMPLETED, self.mapped.wait)

    @staticmethod
    def _say_none(engine: Engine) -> None:
        engine.logger.info("no heatmaps are written: the method has no maps")

    def __call__(self, engine: Engine) -> None:
        """Begin to write the heatmaps of the slides of the batch; errors are raised at the next call, or at the end.

        Raises:
            SlideError: if a slide cannot be read, and failures are not written down, or strict.
            SettingsError: if ``output_dir`` cannot be written to.
        """
        self.mapped.show(engine, partial(self._write_item, engine.logger))

    def _write_item(self, logger: logging.Logger, item: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        for index, slide in enumerate(self.mapped.slides_of(item)):
            if self.is_imported and self.mapped.is_missing(slide):
                continue
            try:
                written = self._write(slide, item, index, output[self.key].float().cpu().numpy())
            except SlideError as error:
                if self.failures is None:
                    raise
                self.failures.record(self.mapped.entries[slide], error)
                continue
            logger.info("wrote %d heatmaps and galleries of %s to %s", len(written), slide, self.folder / slide)

    def _write(self, slide: str, item: Mapping[str, Any], index: int, probabilities: NDArray[Any]) -> set[str]:
        """Write all files of a slide, and return the names of its heatmaps and galleries."""
        shown, specs, probabilities = self.mapped(item, index), self.mapped.maps, self.kind.per_logit(probabilities)
        opened, maps = shown.opened, shown.maps
        thumbnail, frame = read_thumbnail(opened), frame_of(self.coordinates, opened.bounds_level0)
        folder, written, heading = self.folder / slide, set(), self.mapped.title_of(item, slide)
        shown_classes = self.chosen if self.chosen is not None else range(len(self.class_names))
        with in_background() as background:
            for (m, spec), k in product(enumerate(specs), shown_classes):
                of_head, heats = probabilities[self.head_of_map[m]], [maps(m, k, kind) for kind in self.kinds]
                title = Title(heading, spec.name, spec.head, self.class_names[k], float(of_head[k]))
                for heat in heats if self.chosen is not None or k in predicted_classes(of_head) else ():
                    stem = _stem(spec.name, self.file_names[k], heat.kind)
                    # The ending is added to the name, which may have a dot.
                    paths = {form: folder / f"{stem}{FORMATS[form]}" for form in self.formats}
                    written |= {path.name for path in paths.values()}
                    self._write_map(background, paths, heat, thumbnail, title)
                    if "geojson" in paths:
                        of_class = title.class_name, class_colour(k)
                        write_geojson(paths["geojson"], feature_collection(heat, slide, spec.name, *of_class, frame))
                if self.top_patches:
                    path = folder / f"{_stem(spec.name, self.file_names[k], GALLERY)}.png"
                    background(write_png, path, shown.gallery(m, k, self.kinds, self.top_patches, title, frame))
                    written.add(path.name)
            columns = patch_columns(specs, self.class_names)
            names = [scale_name(m) for m in self.mapped.bag_builder.magnifications]
            lines = patch_table(maps, specs, len(self.class_names), names, frame)
            write_csv(folder / PATCHES, columns, lines)
        return written

    @staticmethod
    def _write_map(
        background: Callable[..., None], paths: Mapping[str, Path], heat: PatchMap, thumbnail: Thumbnail, title: Title
    ) -> None:
        """Write the pictures and the image of a map; pictures in the background."""
        if "png" in paths or "plain" in paths:
            overlaid = overlay(thumbnail, heat)
            if "png" in paths:
                picture = heatmap_with_legend(overlaid, heat, title, thumbnail.mpp)
                background(write_png, paths["png"], picture, thumbnail.mpp, legend_colours(heat.kind))
            if "plain" in paths:
                background(write_png, paths["plain"], overlaid, thumbnail.mpp)
        if "mha" in paths:
            write_patch_image(paths["mha"], heat, thumbnail.size_um)

    def _remove(self) -> None:
        kinds = [*product(KINDS, FORMATS.values()), (GALLERY, ".png")]
        heatmaps = product(self.mapped.maps, self.file_names, kinds)
        names = {_stem(spec.name, name, kind) + ending for spec, name, (kind, ending) in heatmaps} | {PATCHES}
        for slide in self.mapped.entries:
            folder = self.folder / slide
            if folder.is_dir():
                for path in folder.iterdir():
                    if path.name in names:
                        path.unlink()
                with contextlib.suppress(OSError):  # it contains other files
                    folder.rmdir()


def predicted_classes(probabilities: NDArray[Any]) -> list[int]:
    """The indices of the classes with a probability of 0.5 or more; of the most probable one, if there is none."""
    predicted = np.flatnonzero(probabilities >= THRESHOLD)
    return [int(k) for k in predicted] if len(predicted) else [int(np.argmax(probabilities))]


def class_file_names(class_names: Sequence[str]) -> list[str]:
    """The classes' names for file names: unique in any case, and no file of one has the name of another's.

    Letters of any script, digits, ``-`` and ``_`` stay; whatever leads out of a folder or needs quoting does not.
    """
    names: list[str] = []
    taken: set[str] = set()
    for class_name in class_names:
        plain = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", class_name))[:LONGEST_CLASS] or "_"
        name, number = plain, 2
        while not taken.isdisjoint(_endings(name)):
            name, number = f"{plain}-{number}", number + 1
        names.append(name)
        taken |= _endings(name)
    return names


def _endings(class_file_name: str) -> set[str]:
    """What the files of a class can end in. Some file systems ignore case."""
    plain = {_stem("", class_file_name, kind).casefold() for kind in (*KINDS, GALLERY)}
    return plain | {f"{stem}_plain" for stem in plain}


def _stem(map_name: str, class_file_name: str, kind: str) -> str:
    """The name of the files of a heatmap or gallery without their ending; attention needs no word."""
    return f"{map_name}_{class_file_name}" + ("" if kind == "attention" else f"_{kind}")


def _chosen(key: str, wanted: Sequence[str] | str, known: Sequence[str]) -> list[str]:
    """Those of the known values that are wanted, in their order."""
    chosen = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(chosen, list | tuple) or not chosen or any(one not in known for one in chosen):
        remedy = f"Give {' or '.join(known)}, or a list of these; heatmaps=False writes none."
        raise SettingsError(key, f"got {wanted!r}", remedy)
    return [one for one in known if one in chosen]


def _class_indices(wanted: Sequence[str] | str | None, class_names: Sequence[str]) -> list[int] | None:
    if wanted is None:
        return None
    remedy = f"Give a list of {', '.join(class_names)}; or null for the classes that are predicted."
    names = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(names, list | tuple) or not names:
        raise SettingsError("heatmap_classes", f"got {wanted!r}", remedy)
    for name in names:
        if name not in class_names:
            raise SettingsError("heatmap_classes", f"there is no class {name!r}", remedy)
    return sorted({list(class_names).index(name) for name in names})
