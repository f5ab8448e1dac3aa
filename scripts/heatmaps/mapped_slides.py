"""Slides with the maps of their bags, made once for all handlers that show them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from numpy.typing import NDArray

from scripts.bags.bag import BagBuilder
from scripts.core.background import OneBehind
from scripts.core.errors import reason_of
from scripts.core.magnification import MPP_RTOL, Scale, mpp_of
from scripts.core.repeats import Repeats
from scripts.core.stopping import finishing_slides
from scripts.datalists.failures import STOPPED
from scripts.datalists.units import SLIDE, bags_of, is_patient, slides_in
from scripts.heatmaps.bag_maps import BagMaps, open_mapped
from scripts.heatmaps.legend import Title
from scripts.heatmaps.top_patches import gallery
from scripts.networks.methods import MapSpec
from scripts.slides.frames import Frame
from scripts.slides.slide import Slide

__all__ = ["MappedSlide", "MappedSlides"]

logger = logging.getLogger(__name__)


class MappedSlide:
    """One slide with its maps. A patch that several galleries show is read once.

    Args:
        opened: the slide.
        maps: of its bag.
        specs: their names, in order.
        bag_builder: made the bag.

    Raises:
        SlideError: if the slide is too coarse for the magnifications.
    """

    def __init__(self, opened: Slide, maps: BagMaps, specs: Sequence[MapSpec], bag_builder: BagBuilder) -> None:
        self.opened, self.maps, self._specs = opened, maps, list(specs)
        self._scales = [
            _scale(opened, m, bag_builder.patch_size, side)
            for m, side in zip(bag_builder.magnifications, maps.sides_level0, strict=True)
        ]
        self._read = cache(lambda s, corner: opened.read_patch(self._scales[s], corner))

    def gallery(
        self, m: int, class_index: int, kinds: Sequence[str], count: int, title: Title, frame: Frame
    ) -> NDArray[np.uint8]:
        """The top patches of the m-th map for a class, RGB ``[h, w, 3]``: see :func:`top_patches.gallery`.

        Raises:
            SlideError: if a patch cannot be read.
        """
        heats = [self.maps(m, class_index, kind) for kind in kinds]
        corners, scale_index = self.maps.corners, self._specs[m].scale_index
        return gallery(heats, count, title, corners, self._scales, scale_index, self._read, frame)


class MappedSlides:
    """The slides of a run, by the items of its batches.

    Handlers show the slides of a batch in a thread (:meth:`show`), while the next batch is made.

    Args:
        network: has ``explain``.
        maps: the network's maps, in its order.
        bag_builder: opens the slides as they were opened for their bags.
        data: the datalist's entries; the items' ``slide`` names one, or a patient of theirs.
        unit: what a bag is, see :func:`scripts.datalists.units.bags_of`.

    Attributes:
        entries: those of the slides, by name.
        bags: those of the bags, by name.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        maps: Sequence[MapSpec],
        bag_builder: BagBuilder,
        data: Sequence[Mapping[str, Any]],
        unit: str = SLIDE,
    ) -> None:
        self.network, self.maps, self.bag_builder = network, list(maps), bag_builder
        self.entries = {str(entry["slide"]): entry for entry in data}
        self.bags = {str(bag["slide"]): bag for bag in bags_of(data, unit)}
        self._explained: tuple[Mapping[str, Any], BagMaps] | None = None
        self._last: tuple[Mapping[str, Any], int, MappedSlide] | None = None
        self._repeats, self._behind = Repeats(), OneBehind()

    def run(self, engine: Engine) -> None:
        """Run an engine; what its handlers show of a slide is whole when this ends, also with an error or Ctrl-C.

        When the process ends, no thread can begin another, so nothing could be finished then.
        """
        # The engine and the thread that explains would each set the mode back while the other computes.
        self.network.eval()
        try:
            engine.run()
        except BaseException:
            try:
                self.wait()
            except Exception as error:  # of two errors the first is raised
                logger.warning("not all heatmaps that were begun are written: %s", reason_of(error))
            raise

    def show(self, engine: Engine, function: Callable[[Mapping[str, Any], Mapping[str, Any]], None]) -> None:
        """Call a function with each item of the engine's batch and its output, in the thread of all handlers.

        It is done by the time at which a handler shows the next batch; of slides that are copied before they are read
        it is done at once, because their copies are removed before the next batch.

        Raises:
            as :meth:`wait`, of the batch before; what the function raises, if it is called at once.
        """
        state: Any = engine.state
        batch, output = state.batch, state.output

        def show_all() -> None:
            for item, of_item in zip(batch, output, strict=True):
                function(item, of_item)

        slides = [self.entries[slide] for item in batch for slide in self.slides_of(item)]
        if any(map(self.bag_builder.staging.takes, slides)):
            self.wait()
            show_all()
        else:
            self._behind(batch, show_all)

    def wait(self) -> None:
        """Wait until everything is shown; SIGTERM waits as well.

        Raises:
            the first error of a function that shows.
            StoppedError: if SIGTERM came meanwhile.
        """
        with finishing_slides("drawing", STOPPED) as check_signal:
            self._behind.wait()
            check_signal()

    def is_missing(self, slide: str) -> bool:
        """Whether the file of a slide is not there, as of imported features it need not be; the first time a warning.

        All handlers ask the same object, so that what they do not show is said once.
        """
        if os.path.exists(image := self.entries[slide]["image"]):
            return False
        text = f"no pictures of slide {slide}: its file {image} is not there"
        self._repeats.log(logger, logging.WARNING, text, slide, "more slides are not there")
        return True

    def slides_of(self, item: Mapping[str, Any]) -> list[str]:
        """The names of an item's slides, in the order of its rows."""
        return [str(slide["slide"]) for slide in slides_in(self.bags[str(item["slide"])])]

    def title_of(self, item: Mapping[str, Any], slide: str) -> str:
        """What a picture of a slide of an item is headed by: its name, and the patient's where the bag is theirs."""
        return f"{slide}, patient {item['slide']}" if is_patient(self.bags[str(item["slide"])]) else slide

    def __call__(self, item: Mapping[str, Any], index: int = 0) -> MappedSlide:
        """A slide of an item, by its place in :meth:`slides_of`; the last is kept for the next handler that asks.

        Raises:
            SlideError: if it cannot be read.
        """
        if self._last is None or self._last[0] is not item or self._last[1] != index:
            self._last = None  # Two slides with their patches need not be in memory.
            entry = self.entries[self.slides_of(item)[index]]
            opened, maps = open_mapped(self.bag_builder, entry, self._maps(item).of_slide(index))
            self._last = item, index, MappedSlide(opened, maps, self.maps, self.bag_builder)
        return self._last[2]

    def _maps(self, item: Mapping[str, Any]) -> BagMaps:
        """The maps of a bag, which handlers show slide by slide, one handler after the other."""
        if self._explained is None or self._explained[0] is not item:
            self._explained = None
            self._explained = item, BagMaps(self.network, self.maps, item)
        return self._explained[1]


def _scale(opened: Slide, magnification: float, patch_size: int, side_level0: float) -> Scale:
    """How patches of a slide are read whose side was so many level-0 pixels when they were encoded.

    Of imported features the magnification may be nominal: a patch is shown as it was cut.

    Raises:
        SlideError: if the slide is too coarse.
    """
    if abs(patch_size * mpp_of(magnification) / opened.base_mpp - side_level0) < 1e-6 * side_level0:
        return opened.scale(magnification, patch_size)
    fine = [level for level, d in enumerate(opened.downsamples) if d <= side_level0 / patch_size * (1 + MPP_RTOL)]
    level = max(fine, key=lambda level: opened.downsamples[level], default=0)
    # The resolution with which the patch has this magnification.
    base_mpp = patch_size * mpp_of(magnification) / side_level0
    return Scale(magnification, patch_size, base_mpp, level, opened.downsamples[level])
