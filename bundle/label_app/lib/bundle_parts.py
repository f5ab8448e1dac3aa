"""What the app takes from the bundle that it serves: from that bundle's own ``scripts``, of its own version."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigParser

from .choices import Offer

__all__ = ["BundleParts", "bundle_scripts", "read_parts"]

# All bundles are called `scripts`: one at a time may be on the path and among the modules.
BUNDLE_LOCK = threading.RLock()

THRESHOLD = 0.5

# What the app takes from a bundle's code, each with its name up to 0.4.0.
MODULES = (
    ("networks.methods", "methods"),
    ("datalists.labels", "datalist"),
    ("heatmaps.attention_maps", "attention_maps"),
    ("heatmaps.images", "heatmaps"),
    ("heatmaps.writer", "heatmap_writer"),
    ("weights.record", "weights_record"),
    ("networks.state_record", "weights_record"),
)


@dataclass(frozen=True)
class BundleParts:
    """Parts of one bundle. They stay as they are when its modules are unloaded.

    Args:
        offer: what its network has.
        scale_indices: for each map, whose patches it lies on; 0 is the lowest magnification.
        gather_rows: from values of rows to a map over patches.
        class_colour: RGB of a class by its index.
        shade_colours: RGB of shades in 0..100 of a kind.
        predicted_classes: the indices of the classes that scores of maps predict.
        per_logit: from the scores of classes to those of what maps are of.
        decided: from the scores of an output to whether each class is decided.
        check_weights: refuses a network that was not loaded whole, or was trained with other settings.
        weights_sha256: the checksum of a state dict.
        check_sum: refuses a file of weights that is not the one that was packed.
        settings: those of the bundle, which its weights have to have.
        is_demonstration: whether synthetic slides were among those that the weights' record counts.
        demonstration: what such weights are called.
        origin_of: (x, y) in level-0 pixels of where a frame starts, from its name and what QuPath shows of a slide.
        stamp_of: the stamp of a slide's files, which is another when one of them is replaced.
    """

    offer: Offer
    scale_indices: tuple[int, ...]
    gather_rows: Callable[..., Any]
    class_colour: Callable[[int], tuple[int, int, int]]
    shade_colours: Callable[..., Any]
    predicted_classes: Callable[[Any], list[int]]
    per_logit: Callable[[Any], Any]
    decided: Callable[[Any], Any]
    check_weights: Callable[..., None]
    weights_sha256: Callable[[Any], str]
    check_sum: Callable[[str], None]
    settings: Mapping[str, Any]
    is_demonstration: Callable[[Any], bool]
    demonstration: str
    origin_of: Callable[[str, Any], tuple[float, float]]
    stamp_of: Callable[[str], tuple[int, ...]]


@contextmanager
def bundle_scripts(bundle_path: str) -> Iterator[None]:
    """Let ``scripts`` be that of a bundle, for one thread at a time, and leave the path as it was, come what may."""
    with BUNDLE_LOCK:
        before = list(sys.path)
        sys.path.insert(0, bundle_path)
        for name in [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]:
            del sys.modules[name]
        try:
            yield
        finally:
            sys.path[:] = before


def _module(name: str, name_before: str, is_optional: bool = False) -> Any:
    """A module of a bundle's ``scripts``, by its name and by that which it had up to 0.4.0."""
    for module in (f"scripts.{name}", f"scripts.{name_before}"):
        try:
            if importlib.util.find_spec(module) is not None:
                return importlib.import_module(module)
        except ModuleNotFoundError:  # where its room is missing
            continue
    if is_optional:
        return None
    raise ModuleNotFoundError(f"No module named 'scripts.{name}'")


def read_parts(bundle_path: str, config: ConfigParser) -> BundleParts:
    """Take the parts out of a bundle.

    Args:
        bundle_path: its folder.
        config: its ``inference.json``.
    """
    method, magnifications, task, names = (
        config.get_parsed_content(key) for key in ("method", "magnifications", "task", "class_names")
    )
    # Bundles up to 0.3.0 have none.
    positive = [config.get_parsed_content("positive_classes")] if "positive_classes" in config else []
    with bundle_scripts(bundle_path):
        # Bundles before 0.3.0 have none.
        settings = config.get_parsed_content("settings") if config.get("settings") else {}
        methods, datalist, maps, heatmaps, writer, weights, states = (_module(*names) for names in MODULES)
        # Nor do they have sums.
        sums = _module("core.sums", "sums", is_optional=True)
        check_sum = sums.check_sum if sums else lambda path: None
        # Up to 0.3.0 they know level 0's frame alone.
        frames = _module("slides.frames", "frames", is_optional=True)
        # Up to 0.4.0 each class has a logit and is decided at 0.5.
        tasks = _module("core.tasks", "tasks", is_optional=True)
        kind = tasks.get_task(task) if tasks else None
        # Nor do they know of slides of several files, or some of them of stamps.
        stamps = _module("slides.checksums", "slide_stamp", is_optional=True)
        stamp_of = stamps.stamp_of if stamps else _file_stamp
    specs = methods.attention_maps(method, magnifications)
    class_names = tuple(datalist.output_names(task, names, *positive))
    return BundleParts(
        offer=Offer(
            heads=tuple(methods.result_heads(method, magnifications)),
            maps=tuple((spec.name, spec.head) for spec in specs),
            class_names=class_names,
            map_classes=class_names if kind is None else tuple(kind.logit_names(class_names)),
            coordinates=("level0",) if frames is None else tuple(frames.COORDINATES),
        ),
        scale_indices=tuple(spec.scale_index for spec in specs),
        gather_rows=maps.gather_rows,
        class_colour=heatmaps.class_colour,
        shade_colours=heatmaps.shade_colours,
        predicted_classes=writer.predicted_classes,
        per_logit=kind.per_logit if kind else lambda scores: scores,
        decided=kind.decided if kind else lambda scores: scores >= THRESHOLD,
        check_weights=weights.check_weights,
        weights_sha256=states.weights_sha256,
        check_sum=check_sum,
        settings=settings,
        is_demonstration=weights.is_demonstration,
        demonstration=weights.DEMONSTRATION,
        origin_of=lambda name, bounds: (0.0, 0.0) if frames is None else frames.frame_of(name, bounds).origin_level0,
        stamp_of=stamp_of,
    )


def _file_stamp(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size
