"""Images of linked patches in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from scripts.bags.bag import BagBuilder
from scripts.bags.linked_patches import linked_patches

__all__ = ["LinkedPatchImages"]


class LinkedPatchImages:
    """Shows, when a training starts, a few linked patches as images: what a row of a bag is.

    Args:
        summary_writer: the TensorBoard writer.
        data: entries of the datalist; the first slides are shown.
        bag_builder: makes a slide's bag.
        num_slides: how many slides.
        num_rows: how many rows of each, spread evenly over the bag.
    """

    def __init__(
        self,
        summary_writer: SummaryWriter,
        data: Sequence[Mapping[str, Any]],
        bag_builder: BagBuilder,
        num_slides: int = 3,
        num_rows: int = 4,
    ) -> None:
        self.summary_writer, self.bag_builder = summary_writer, bag_builder
        self.data, self.num_rows = data[:num_slides], num_rows

    def attach(self, engine: Engine) -> None:
        """Write the images once, when the training starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the images."""
        for entry in self.data:
            image = linked_patches(self.bag_builder(entry), self.num_rows)
            self.summary_writer.add_image(f"linked patches/{entry['slide']}", image, 0, dataformats="HWC")
        self.summary_writer.flush()
