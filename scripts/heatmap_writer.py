"""The Ignite handler that writes the heatmaps of every slide that is predicted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from numpy.typing import NDArray

from scripts.attention_maps import AttentionMap, gather_attention
from scripts.bags import BagBuilder
from scripts.errors import SettingsError
from scripts.geojson import write_geojson
from scripts.heatmaps import Thumbnail, class_colour, overlay, read_thumbnail, write_attention_image, write_png
from scripts.methods import MapSpec

__all__ = ["HeatmapWriter", "class_file_names"]

SUFFIXES = (".png", ".geojson", ".mha")
THRESHOLD = 0.5
# In bytes it is at most four times as much; file systems allow 255.
LONGEST_CLASS = 40


class HeatmapWriter:
    """Writes ``heatmaps/<slide>/<map>_<class>`` as ``.png``, ``.geojson`` and ``.mha`` for each slide.

    Attach to an evaluator whose postprocessing makes ``pred`` probabilities ``[heads, K]`` and whose batch has
    what :class:`scripts.transforms.EncodeSlided` makes: ``image``, ``corners``, ``patch_level0`` and ``base_mpp``.
    Each slide passes the heads once more, alone, which costs next to nothing beside its encoding.

    Heatmaps that an earlier run left for the same slide, and that this one does not write, are removed: they
    would show the attention of other weights beside these.

    Args:
        output_dir: where the folder ``heatmaps`` is made.
        maps: the network's attention maps, in the order of its ``attend``.
        heads: the outputs' names.
        class_names: what the K logits of an output stand for.
        network: has ``attend``.
        inferer: called as ``inferer(inputs, network.attend)``.
        bag_builder: opens the slides as they were opened for their bags.
        data: the datalist's entries, whose ``slide`` the batches name.
        heatmaps: False writes none.
        heatmap_classes: the classes that are drawn, or one; by default those that the map's output predicts
            (probability of 0.5 or more), or the most probable one where it predicts none.

    Raises:
        SettingsError: if ``heatmaps`` is no switch, or there is no such class.
        ValueError: if a map explains an output that there is not.
    """

    def __init__(
        self,
        output_dir: str | Path,
        maps: Sequence[MapSpec],
        heads: Sequence[str],
        class_names: Sequence[str],
        network: torch.nn.Module,
        inferer: Callable[..., Any],
        bag_builder: BagBuilder,
        data: Sequence[Mapping[str, Any]],
        heatmaps: bool = True,
        heatmap_classes: Sequence[str] | str | None = None,
    ) -> None:
        if not isinstance(heatmaps, bool):
            raise SettingsError("heatmaps", f"got {heatmaps!r}", "Give True or False.")
        self.folder, self.heatmaps = Path(output_dir) / "heatmaps", heatmaps
        self.maps, self.class_names = list(maps), list(class_names)
        self.head_of_map = [list(heads).index(spec.head) for spec in self.maps]
        self.network, self.inferer, self.bag_builder = network, inferer, bag_builder
        self.entries = {str(entry["slide"]): entry for entry in data}
        self.chosen = _class_indices(heatmap_classes, self.class_names)
        self.file_names = class_file_names(self.class_names)

    def attach(self, engine: Engine) -> None:
        """Write after every iteration."""
        if self.heatmaps:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the heatmaps of the slides of the batch.

        Raises:
            SlideError: if a slide cannot be read.
            SettingsError: if ``output_dir`` cannot be written to.
        """
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            slide = str(item["slide"])
            written = self._write(slide, item, _array(output[CommonKeys.PRED].float()))
            engine.logger.info("wrote %d heatmaps of %s to %s", len(written), slide, self.folder / slide)

    def _write(self, slide: str, item: Mapping[str, Any], probabilities: NDArray[Any]) -> list[str]:
        attention = self._attend(item[CommonKeys.IMAGE])  # [N, M, K]
        corners, patch_level0 = _array(item["corners"]), _array(item["patch_level0"])  # [N, S, 2], [S]
        base_mpp = float(_array(item["base_mpp"]))
        thumbnail = read_thumbnail(self.bag_builder.open_slide(self.entries[slide]))
        written = []
        for m, (spec, head) in enumerate(zip(self.maps, self.head_of_map, strict=True)):
            s = spec.scale_index
            for k in self.chosen if self.chosen is not None else predicted_classes(probabilities[head]):
                heat = gather_attention(attention[:, m, k], corners[:, s], float(patch_level0[s]), base_mpp)
                stem = f"{spec.name}_{self.file_names[k]}"
                self._write_one(self.folder / slide / stem, heat, thumbnail, slide, spec.name, k)
                written.append(stem)
        self._remove_others(self.folder / slide, written)
        return written

    def _write_one(
        self, path: Path, heat: AttentionMap, thumbnail: Thumbnail, slide: str, map_name: str, k: int
    ) -> None:
        # The suffix is added, not put in the place of another: a class or a scale may have a dot in its name.
        png, geojson, mha = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
        write_png(png, overlay(thumbnail, heat), thumbnail.mpp)
        write_geojson(geojson, heat, slide, map_name, self.class_names[k], class_colour(k))
        write_attention_image(mha, heat, thumbnail.size_um)

    def _remove_others(self, folder: Path, written: Sequence[str]) -> None:
        every = {f"{spec.name}_{name}" for spec in self.maps for name in self.file_names}
        for stem in every.difference(written):
            for suffix in SUFFIXES:
                (folder / f"{stem}{suffix}").unlink(missing_ok=True)

    def _attend(self, image: torch.Tensor) -> NDArray[Any]:
        """The attention ``[N, M, K]`` of one slide."""
        device = next(self.network.parameters()).device
        with torch.no_grad():
            _, attention = self.inferer(image.unsqueeze(0).to(device), self.network.attend)
        if attention.shape[2] != len(self.maps):
            raise ValueError(f"the network has {attention.shape[2]} attention maps, and {len(self.maps)} were named")
        return _array(attention[0].float())


def predicted_classes(probabilities: NDArray[Any]) -> list[int]:
    """The indices of the classes with a probability of 0.5 or more; of the most probable one, if there is none."""
    predicted = np.flatnonzero(probabilities >= THRESHOLD)
    return [int(k) for k in predicted] if len(predicted) else [int(np.argmax(probabilities))]


def class_file_names(class_names: Sequence[str]) -> list[str]:
    """The classes' names as parts of file names: each unique, without what leads out of a folder or needs quoting.

    Letters of any script, digits, ``-`` and ``_`` stay. Names that differ in case alone count as equal, since some
    file systems take them so.
    """
    names: list[str] = []
    for class_name in class_names:
        plain = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", class_name))[:LONGEST_CLASS] or "_"
        name, number = plain, 2
        while name.casefold() in {taken.casefold() for taken in names}:
            name, number = f"{plain}-{number}", number + 1
        names.append(name)
    return names


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


def _array(value: Any) -> NDArray[Any]:
    return torch.as_tensor(value).detach().cpu().numpy()
