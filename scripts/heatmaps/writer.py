"""The Ignite handler that writes the heatmaps of every slide that is predicted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from numpy.typing import NDArray

from scripts.bags.bag import BagBuilder
from scripts.core.errors import SettingsError, SlideError
from scripts.datalists.failures import FailedSlides
from scripts.heatmaps.attention_maps import KINDS
from scripts.heatmaps.bag_maps import BagMaps
from scripts.heatmaps.geojson import feature_collection, write_geojson
from scripts.heatmaps.images import class_colour, overlay, read_thumbnail, write_patch_image, write_png
from scripts.networks.methods import MapSpec
from scripts.slides.frames import check_coordinates, frame_of

__all__ = ["HeatmapWriter", "class_file_names", "predicted_classes"]

SUFFIXES = (".png", ".geojson", ".mha")
THRESHOLD = 0.5
# In bytes it is at most four times as much; file systems allow 255.
LONGEST_CLASS = 40


class HeatmapWriter:
    """Writes the heatmaps of each slide into ``heatmaps/<slide>``, as ``.png``, ``.geojson`` and ``.mha``.

    ``<map>_<class>`` shows the attention for a class, and ``<map>_<class>_contribution`` what each patch adds to the
    class's logit: where the network looks, and what it concludes there. The two need not agree; see
    :meth:`scripts.networks.bag_network.BagNetwork.explain`.

    Attach to an evaluator whose postprocessing makes probabilities ``[heads, K]`` and whose batch has what
    :class:`scripts.inference.transforms.EncodeSlided` makes. Heatmaps of the same slide that an earlier run left and
    this one does not write are removed: they would show beside these what other weights make of it.

    Args:
        output_dir: where the folder ``heatmaps`` is made.
        maps: the network's maps, in the order of its ``explain``.
        heads: the heads' names.
        class_names: the names of a head's K logits.
        network: has ``explain``.
        bag_builder: opens the slides as they were opened for their bags.
        data: the datalist's entries, whose ``slide`` the batches name.
        heatmaps: False writes none.
        heatmap_classes: the classes that are shown, or one; by default those that the map's head predicts
            (:func:`predicted_classes`).
        heatmap_kinds: ``"attention"``, ``"contribution"``, or a list of these.
        coordinates: the frame of the ``.geojson``, see :mod:`scripts.slides.frames`: ``"qupath"``, for QuPath as it
            opens slides by itself, or ``"level0"``. ``.mha`` files are in the frame of level 0.
        key: of the probabilities in the evaluator's output.
        failures: where slides are written down that cannot be read again; ``None`` ends the run with the first.

    Raises:
        SettingsError: if ``heatmaps`` is no switch, or there is no such class, kind or frame.
    """

    def __init__(
        self,
        output_dir: str | Path,
        maps: Sequence[MapSpec],
        heads: Sequence[str],
        class_names: Sequence[str],
        network: torch.nn.Module,
        bag_builder: BagBuilder,
        data: Sequence[Mapping[str, Any]],
        heatmaps: bool = True,
        heatmap_classes: Sequence[str] | str | None = None,
        heatmap_kinds: Sequence[str] | str = KINDS,
        coordinates: str = "qupath",
        key: str = CommonKeys.PRED,
        failures: FailedSlides | None = None,
    ) -> None:
        if not isinstance(heatmaps, bool):
            raise SettingsError("heatmaps", f"got {heatmaps!r}", "Give True or False.")
        self.folder, self.heatmaps = Path(output_dir) / "heatmaps", heatmaps
        self.maps, self.class_names = list(maps), list(class_names)
        self.head_of_map = [list(heads).index(spec.head) for spec in self.maps]
        self.network, self.bag_builder, self.key, self.failures = network, bag_builder, key, failures
        self.entries = {str(entry["slide"]): entry for entry in data}
        self.chosen = _class_indices(heatmap_classes, self.class_names)
        self.kinds = _known_kinds(heatmap_kinds)
        self.coordinates = check_coordinates(coordinates)
        self.file_names = class_file_names(self.class_names)

    def attach(self, engine: Engine) -> None:
        """Write after every iteration."""
        if self.heatmaps:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the heatmaps of the slides of the batch.

        Raises:
            SlideError: if a slide cannot be read, and failures are not written down, or strict.
            SettingsError: if ``output_dir`` cannot be written to.
        """
        state: Any = engine.state
        for item, output in zip(state.batch, state.output, strict=True):
            slide = str(item["slide"])
            try:
                written = self._write(slide, item, output[self.key].float().cpu().numpy())
            except SlideError as error:
                if self.failures is None:
                    raise
                self.failures.record(self.entries[slide], error)
                continue
            engine.logger.info("wrote %d heatmaps of %s to %s", len(written), slide, self.folder / slide)

    def _write(self, slide: str, item: Mapping[str, Any], probabilities: NDArray[Any]) -> list[str]:
        maps = BagMaps(self.network, self.maps, item)
        opened = self.bag_builder.open_slide(self.entries[slide])
        thumbnail, frame = read_thumbnail(opened), frame_of(self.coordinates, opened.bounds_level0)
        written = []
        for m, (spec, head) in enumerate(zip(self.maps, self.head_of_map, strict=True)):
            for k in self.chosen if self.chosen is not None else predicted_classes(probabilities[head]):
                for kind in self.kinds:
                    heat, name = maps(m, k, kind), self.class_names[k]
                    stem = _stem(spec.name, self.file_names[k], kind)
                    # The suffix is added to the name, which may have a dot.
                    png, geojson, mha = (self.folder / slide / f"{stem}{suffix}" for suffix in SUFFIXES)
                    write_png(png, overlay(thumbnail, heat), thumbnail.mpp)
                    write_geojson(geojson, feature_collection(heat, slide, spec.name, name, class_colour(k), frame))
                    write_patch_image(mha, heat, thumbnail.size_um)
                    written.append(stem)
        every = {_stem(spec.name, name, kind) for spec in self.maps for name in self.file_names for kind in KINDS}
        for stem in every.difference(written):
            for suffix in SUFFIXES:
                (self.folder / slide / f"{stem}{suffix}").unlink(missing_ok=True)
        return written


def predicted_classes(probabilities: NDArray[Any]) -> list[int]:
    """The indices of the classes with a probability of 0.5 or more; of the most probable one, if there is none."""
    predicted = np.flatnonzero(probabilities >= THRESHOLD)
    return [int(k) for k in predicted] if len(predicted) else [int(np.argmax(probabilities))]


def class_file_names(class_names: Sequence[str]) -> list[str]:
    """The classes' names for file names: unique in any case, and no name is that of another's contribution.

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
    return {_stem("", class_file_name, kind).casefold() for kind in KINDS}


def _stem(map_name: str, class_file_name: str, kind: str) -> str:
    """The name of a heatmap's files without their suffix; attention is what a plain heatmap shows."""
    return f"{map_name}_{class_file_name}" + ("" if kind == "attention" else f"_{kind}")


def _known_kinds(wanted: Sequence[str] | str) -> list[str]:
    kinds = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(kinds, list | tuple) or not kinds or any(kind not in KINDS for kind in kinds):
        remedy = f"Give {' or '.join(KINDS)}, or a list of these; heatmaps=False writes none."
        raise SettingsError("heatmap_kinds", f"got {wanted!r}", remedy)
    return [kind for kind in KINDS if kind in kinds]


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
