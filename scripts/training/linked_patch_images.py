"""Images of linked patches in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.bag import Bag, BagBuilder
from scripts.bags.linked_patches import linked_patches
from scripts.core.imported import IMPORTED
from scripts.slides.remote import is_remote

__all__ = ["LinkedPatchImages", "captioned_patches"]

DPI = 100
# Of the caption above the patches, and of the least width that it needs.
CAPTION_PX, LEAST_WIDTH_PX = 76, 448


class LinkedPatchImages:
    """Shows, when a training starts, a few linked patches as images: what a row of a bag is.

    Args:
        summary_writer: the TensorBoard writer.
        data: entries of the datalist; the first slides are shown that are not behind addresses.
        bag_builder: makes a slide's bag.
        num_slides: how many slides.
        num_rows: how many rows of each, spread evenly over the bag.
        backbone: the encoder's name; of imported features, whose patches were cut by another tool, nothing is shown.
    """

    def __init__(
        self,
        summary_writer: SummaryWriter,
        data: Sequence[Mapping[str, Any]],
        bag_builder: BagBuilder,
        num_slides: int = 3,
        num_rows: int = 4,
        backbone: str = "",
    ) -> None:
        self.summary_writer, self.bag_builder = summary_writer, bag_builder
        here = [] if backbone == IMPORTED else [entry for entry in data if not is_remote(str(entry["image"]))]
        self.data, self.num_rows = here[:num_slides], num_rows

    def attach(self, engine: Engine) -> None:
        """Write the images once, when the training starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the images."""
        for entry in self.data:
            figure = captioned_patches(self.bag_builder(entry), str(entry["slide"]), self.num_rows)
            self.summary_writer.add_figure(f"linked patches/{entry['slide']}", figure, 0)
        self.summary_writer.flush()


def captioned_patches(bag: Bag, slide: str, num_rows: int) -> Figure:
    """A figure of :func:`scripts.bags.linked_patches.linked_patches`, pixel by pixel, with a caption above.

    Args:
        bag: of the slide.
        slide: its name.
        num_rows: how many rows at most.
    """
    pixels, scales = linked_patches(bag, num_rows), bag.grid.scales
    height, width = pixels.shape[:2]
    size = (max(width, LEAST_WIDTH_PX), height + CAPTION_PX)
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    figure.figimage(pixels, xo=0, yo=0, origin="upper")
    frames = "a frame: the area of the patch beside it" if len(scales) > 1 else ""
    text = f"{slide}: a few of its {bag.grid.num_rows} rows of linked patches\n{frames}"
    figure.text(4 / size[0], 1 - 4 / size[1], text, va="top", fontsize=8, parse_math=False)
    for s, scale in enumerate(scales):
        um = scale.patch_level0 * bag.slide.base_mpp
        place = ((s + 0.5) * width / len(scales) / size[0], (height + 6) / size[1])
        figure.text(*place, f"{scale.name}, {um:.0f} µm", ha="center", fontsize=9)
    return figure
