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
from scripts.heatmaps.attention_maps import KINDS, PatchMap, gather_rows
from scripts.heatmaps.geojson import write_geojson
from scripts.heatmaps.images import Thumbnail, class_colour, overlay, read_thumbnail, write_patch_image, write_png
from scripts.networks.methods import MapSpec
from scripts.slides.frames import Frame, check_coordinates, frame_of

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

    Attach to an evaluator whose postprocessing makes probabilities ``[heads, K]`` and whose batch has
    what :class:`scripts.inference.transforms.EncodeSlided` makes: ``image``, ``corners``, ``patch_level0`` and
    ``base_mpp``. Each slide passes the heads once more, alone, which costs next to nothing beside its encoding.

    Heatmaps that an earlier run left for the same slide, and that this one does not write, are removed: they
    would show what other weights make of it beside these.

    Args:
        output_dir: where the folder ``heatmaps`` is made.
        maps: the network's maps, in the order of its ``explain``.
        heads: the outputs' names.
        class_names: what the K logits of an output stand for.
        network: has ``explain``.
        bag_builder: opens the slides as they were opened for their bags.
        data: the datalist's entries, whose ``slide`` the batches name.
        heatmaps: False writes none.
        heatmap_classes: the classes that are drawn, or one; by default those that the map's output predicts
            (probability of 0.5 or more), or the most probable one where it predicts none.
        heatmap_kinds: ``"attention"``, ``"contribution"``, or a list of these.
        coordinates: the frame of the ``.geojson``, see :mod:`scripts.slides.frames`: ``"qupath"``, for QuPath as it
            opens slides by itself, or ``"level0"``. ``.mha`` files are in the frame of level 0.
        key: of the probabilities in the evaluator's output.
        failures: where slides are written down that cannot be read again; ``None`` ends the run with the first.

    Raises:
        SettingsError: if ``heatmaps`` is no switch, or there is no such class, kind or frame.
        ValueError: if a map explains an output that there is not.
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
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            slide = str(item["slide"])
            try:
                written = self._write(slide, item, _array(output[self.key].float()))
            except SlideError as error:
                if self.failures is None:
                    raise
                self.failures.record(self.entries[slide], error)
                continue
            engine.logger.info("wrote %d heatmaps of %s to %s", len(written), slide, self.folder / slide)

    def _write(self, slide: str, item: Mapping[str, Any], probabilities: NDArray[Any]) -> list[str]:
        of_kind = self._explain(item[CommonKeys.IMAGE])  # of [N, M, K]
        corners, patch_level0 = _array(item["corners"]), _array(item["patch_level0"])  # [N, S, 2], [S]
        base_mpp = float(_array(item["base_mpp"]))
        opened = self.bag_builder.open_slide(self.entries[slide])
        thumbnail, frame = read_thumbnail(opened), frame_of(self.coordinates, opened.bounds_level0)
        written = []
        for m, (spec, head) in enumerate(zip(self.maps, self.head_of_map, strict=True)):
            s = spec.scale_index
            for k in self.chosen if self.chosen is not None else predicted_classes(probabilities[head]):
                for kind in self.kinds:
                    rows = of_kind[kind][:, m, k]
                    heat = gather_rows(rows, corners[:, s], float(patch_level0[s]), base_mpp, kind)
                    stem = _stem(spec.name, self.file_names[k], kind)
                    self._write_one(self.folder / slide / stem, heat, thumbnail, frame, slide, spec.name, k)
                    written.append(stem)
        self._remove_others(self.folder / slide, written)
        return written

    def _write_one(
        self, path: Path, heat: PatchMap, thumbnail: Thumbnail, frame: Frame, slide: str, map_name: str, k: int
    ) -> None:
        # The suffix is added, not put in the place of another: a class or a scale may have a dot in its name.
        png, geojson, mha = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
        write_png(png, overlay(thumbnail, heat), thumbnail.mpp)
        write_geojson(geojson, heat, slide, map_name, self.class_names[k], class_colour(k), frame)
        write_patch_image(mha, heat, thumbnail.size_um)

    def _remove_others(self, folder: Path, written: Sequence[str]) -> None:
        every = {_stem(spec.name, name, kind) for spec in self.maps for name in self.file_names for kind in KINDS}
        for stem in every.difference(written):
            for suffix in SUFFIXES:
                (folder / f"{stem}{suffix}").unlink(missing_ok=True)

    def _explain(self, image: torch.Tensor) -> dict[str, NDArray[Any]]:
        """The attention and the contribution of one slide, ``[N, M, K]`` each."""
        device = next(self.network.parameters()).device
        with torch.no_grad():
            _, attention, contribution = self.network.explain(image.unsqueeze(0).to(device))  # type: ignore[operator]
        if attention.shape[2] != len(self.maps):
            raise ValueError(f"the network has {attention.shape[2]} attention maps, and {len(self.maps)} were named")
        return {"attention": _array(attention[0].float()), "contribution": _array(contribution[0].float())}


def predicted_classes(probabilities: NDArray[Any]) -> list[int]:
    """The indices of the classes with a probability of 0.5 or more; of the most probable one, if there is none."""
    predicted = np.flatnonzero(probabilities >= THRESHOLD)
    return [int(k) for k in predicted] if len(predicted) else [int(np.argmax(probabilities))]


def class_file_names(class_names: Sequence[str]) -> list[str]:
    """The classes' names as parts of file names: each unique, without what leads out of a folder or needs quoting.

    Letters of any script, digits, ``-`` and ``_`` stay. Names that differ in case alone count as equal, since some
    file systems take them so. No name is another with the ending of a contribution.
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
    """What the files of a class can end in, without regard to case."""
    return {_stem("", class_file_name, kind).casefold() for kind in KINDS}


def _stem(map_name: str, class_file_name: str, kind: str) -> str:
    """The name of a heatmap's files without their suffix; attention is what a plain heatmap shows."""
    return f"{map_name}_{class_file_name}" + ("" if kind == "attention" else f"_{kind}")


def _known_kinds(wanted: Sequence[str] | str) -> list[str]:
    """The kinds asked for, each once and in the order of :data:`KINDS`."""
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


def _array(value: Any) -> NDArray[Any]:
    return torch.as_tensor(value).detach().cpu().numpy()
