"""All maps of a slide as one table of its patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scripts.heatmaps.attention_maps import KINDS
from scripts.heatmaps.bag_maps import BagMaps
from scripts.networks.methods import MapSpec
from scripts.slides.frames import LEVEL0, Frame

__all__ = ["patch_columns", "patch_table"]

POSITION = ["scale", "x_level0", "y_level0", "x", "y", "side_level0"]
MEASURES = ("attention", "attention_percentile", "contribution")


def patch_columns(specs: Sequence[MapSpec], class_names: Sequence[str]) -> list[str]:
    """The columns: position, then ``<map>_<class>_<measure>`` for each map, class and measure, in this order."""
    return POSITION + [
        f"{spec.name}_{name}_{measure}" for spec in specs for name in class_names for measure in MEASURES
    ]


def patch_table(
    maps: BagMaps,
    specs: Sequence[MapSpec],
    num_classes: int,
    scale_names: Sequence[str],
    frame: Frame = LEVEL0,
) -> list[list[str]]:
    """A line for each unique patch of each scale, from low to high, in the grid's order.

    Positions and sides are in level-0 pixels: (x_level0, y_level0) is the upper left corner from that of level 0, and
    (x, y) the same in the frame. Cells of maps that lie on another scale are empty.

    Args:
        maps: of the slide.
        specs: the maps, in their order.
        num_classes: how many classes they have.
        scale_names: of each scale, from low to high.
        frame: of x and y.
    """
    lines = []
    for s, scale_name in enumerate(scale_names):
        corners, side = maps.patches(s)
        # A hundredth of a pixel cannot be seen. Adding 0.0 turns -0.0 into 0.0.
        columns = [[scale_name] * len(corners)]
        places = np.round([*corners.T, *frame.from_level0(corners).T], 2)
        columns += [_column(place, ".2f") for place in places]
        columns.append([f"{side:.2f}"] * len(corners))
        for m, spec in enumerate(specs):
            for k in range(num_classes):
                if spec.scale_index != s:
                    columns += [[""] * len(corners)] * len(MEASURES)
                    continue
                attention, contribution = (maps(m, k, kind) for kind in KINDS)
                # Six digits are what float32 has, so that sums stay true.
                columns += [_column(attention.values, ".6g"), _column(attention.percentile, ".6g")]
                columns.append(_column(contribution.values, ".6g"))
        lines += [list(line) for line in zip(*columns, strict=True)]
    return lines


def _column(values: NDArray[np.float64], form: str) -> list[str]:
    return [format(v, form) for v in (values + 0.0).tolist()]
