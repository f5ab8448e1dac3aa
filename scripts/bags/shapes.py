"""Areas on a slide as shapes: how much of a square lies in them, and where they are in an image."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray

__all__ = ["Shapes"]

# Cutting a square out of a polygon takes as long as the polygon has points.
MOST_POINTS = 128
RECTANGLES_AT_ONCE = 20_000


class Shapes:
    """An area of polygons.

    Args:
        area: valid polygons, in level-0 pixels; where they overlap the area counts once.
    """

    def __init__(self, area: shapely.Geometry) -> None:
        self.area = area

    @staticmethod
    def union(shapes: list[shapely.Geometry]) -> Shapes:
        """The area of valid shapes, which may overlap."""
        if len(shapes) == 1:
            return Shapes(shapes[0])
        # Most annotations touch no other, and shapely unites those that do.
        return Shapes(shapely.disjoint_subset_union_all(shapes))

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(_cut(shapely.get_parts(self.area)))

    def fraction(self, xy_level0: NDArray[np.float64], side_level0: float) -> NDArray[np.float64]:
        """The fraction of each square that lies in the area, exactly.

        Args:
            xy_level0: ``[n, 2]`` top left corners (x, y) in level-0 pixels.
            side_level0: side of the squares in level-0 pixels.

        Returns:
            ``[n]``, in 0..1.
        """
        areas = self.areas_within(np.concatenate([xy_level0, xy_level0 + side_level0], axis=1))
        return np.clip(areas / side_level0**2, 0.0, 1.0)

    def areas_within(self, rectangles: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much of the area lies in each rectangle, in square level-0 pixels, exactly.

        Args:
            rectangles: ``[n, 4]`` (left, top, right, bottom) in level-0 pixels.

        Returns:
            ``[n]``.
        """
        found = np.zeros(len(rectangles))
        for start in range(0, len(rectangles), RECTANGLES_AT_ONCE):
            boxes = shapely.box(*rectangles[start : start + RECTANGLES_AT_ONCE].T)
            box, piece = self._tree.query(boxes, predicate="intersects")
            areas = shapely.area(shapely.intersection(boxes[box], self._tree.geometries[piece]))
            found[start : start + RECTANGLES_AT_ONCE] = np.bincount(box, areas, len(boxes))
        return found

    def drawn(
        self, shape: tuple[int, int], pixel_level0: tuple[float, float], origin_level0: tuple[float, float] = (0.0, 0.0)
    ) -> NDArray[np.bool_]:
        """An image of the area, true where a pixel's centre lies in it.

        Drawn by the crossings of the outlines with each row of pixels. OpenCV's polygons would also fill every pixel
        that an outline touches, and those of scikit-image take as long as points times pixels.

        Args:
            shape: (height, width) of the image.
            pixel_level0: (x, y) size of a pixel in level-0 pixels.
            origin_level0: (x, y) of the image's top left corner in level-0 pixels.
        """
        height, width = shape
        points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(self.area)), return_index=True)
        points = (points - origin_level0) / pixel_level0 - 0.5  # pixels' centres are whole numbers
        is_edge = ring[1:] == ring[:-1]
        start, stop = points[:-1][is_edge], points[1:][is_edge]
        first = np.clip(np.ceil(np.minimum(start[:, 1], stop[:, 1])), 0, height).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(start[:, 1], stop[:, 1])), 0, height).astype(np.int64)
        count = last - first
        edge = np.repeat(np.arange(len(start)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        along = (row - start[edge, 1]) / (stop[edge, 1] - start[edge, 1])
        x = start[edge, 0] + along * (stop[edge, 0] - start[edge, 0])
        column = np.clip(np.ceil(x), 0, width).astype(np.int64)
        crossings = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
        crossings = crossings.reshape(height, width + 1)[:, :width]
        return np.cumsum(crossings, axis=1) % 2 == 1


def _cut(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """The same area in polygons of few points: those with many are halved, again and again."""
    done = []
    while len(polygons):
        is_small = shapely.get_num_coordinates(polygons) <= MOST_POINTS
        done.append(polygons[is_small])
        large = polygons[~is_small]
        left, top, right, bottom = shapely.bounds(large).T
        is_wide = right - left > bottom - top
        x, y = np.where(is_wide, (left + right) / 2, right), np.where(is_wide, bottom, (top + bottom) / 2)
        halves = [
            shapely.intersection(large, shapely.box(left, top, x, y)),
            shapely.intersection(
                large, shapely.box(np.where(is_wide, x, left), np.where(is_wide, top, y), right, bottom)
            ),
        ]
        polygons = shapely.get_parts(np.concatenate(halves))
        polygons = polygons[shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON]
    return np.concatenate(done) if done else np.empty(0, object)
