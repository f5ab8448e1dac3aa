"""Slides that are made of fields: which field lies where, and the files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.core.errors import SettingsError
from scripts.core.files import replacing
from tests.benchmarks.tissue.fields import Field
from tests.pyramids import write_pyramid

__all__ = [
    "BASE_MPP", "CELL_PX", "CELL_UM", "LEAST_FIELD_UM", "MARGIN_CELLS",
    "Cell", "Mosaic", "cell_image", "plan_mosaics", "write_mosaics",
]  # fmt: skip

CELL_UM = 448.0
"""The side of a cell: a patch of 224 pixels at 5x, in which lie four of 10x."""
BASE_MPP = 0.7
"""The resolution of the slides, in micrometres per pixel, at which patches of both scales are whole pixels."""
CELL_PX = 640
LEAST_FIELD_UM = CELL_UM / 2
"""The side that a field needs: less would have to be mirrored more than once."""
MARGIN_CELLS = 1
"""The glass around the tissue, in cells, so that the tissue lies on the grid."""

# A patch of 10x is one tile, so that JPEG mixes no two fields.
TILE_PX = CELL_PX // 2
DOWNSAMPLES = (1, 2, 4)
GLASS = 243
# Pixels of the label images a cell: 8 um each, as in the demonstration.
REGION_PX = 56
# Of the slides that could have another class beside their background, how many have it,
EXTRA_FRACTION = 0.25
# and how many of these have it in one cell alone.
ALONE_FRACTION = 0.4
THREADS = 2


@dataclass(frozen=True)
class Cell:
    """How a field lies in a cell.

    Args:
        field: its number.
        turn: one of the eight symmetries of a square: so many quarters, and from 4 on mirrored as well.
        start: where along (x, y) the part of a longer field begins, as a fraction of what it is longer, in 0..1.
    """

    field: int
    turn: int
    start: tuple[float, float]


@dataclass(frozen=True)
class Mosaic:
    """What one slide shows.

    Args:
        name: the stem of its files.
        group: of the patients whose fields it has, counted from 0.
        columns: the cells in a row.
        cells: row by row, from the top left.
    """

    name: str
    group: int
    columns: int
    cells: tuple[Cell, ...]

    def classes(self, fields: Sequence[Field], class_names: Sequence[str]) -> list[str]:
        """The classes that it shows, in order: its label."""
        shown = {fields[cell.field].class_name for cell in self.cells}
        return [name for name in class_names if name in shown]

    def places(self) -> Iterator[tuple[Cell, int, int]]:
        """Each cell with its row and column on the slide, the margin included."""
        for place, cell in enumerate(self.cells):
            row, column = divmod(place, self.columns)
            yield cell, row + MARGIN_CELLS, column + MARGIN_CELLS

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of the slide in cells, the margin included."""
        return -(-len(self.cells) // self.columns) + 2 * MARGIN_CELLS, self.columns + 2 * MARGIN_CELLS


def plan_mosaics(
    groups: Sequence[dict[str, list[int]]],
    background: Sequence[str],
    num_slides: int = 20,
    num_cells: tuple[int, int] = (9, 30),
    seed: int = 0,
) -> list[Mosaic]:
    """Plan the slides of all groups.

    A slide has one class as its background, each of ``background`` in turn, in half of its cells or more. Each other
    class lies on a quarter of the slides that have another background, in some of their cells, often in one alone. The
    fields of a group's class are dealt like cards: none is used again before all others are.

    Args:
        groups: for each, by class, the numbers of its fields (:func:`tests.benchmarks.tissue.groups.fields_of_groups`).
        background: the classes that can be the background.
        num_slides: of each group.
        num_cells: the least and the most cells of a slide.
        seed: of everything that is random.

    Raises:
        SettingsError: if a number is out of range.
    """
    if num_slides < 1:
        raise SettingsError("num_slides", f"got {num_slides}", "Give 1 or more.")
    least, most = num_cells
    class_names = list(groups[0])
    if not 2 * (len(class_names) - 1) <= least <= most:
        remedy = f"Give two numbers, the first of {2 * (len(class_names) - 1)} or more, so that each class has room."
        raise SettingsError("num_cells", f"got {least} {most}", remedy)
    mosaics: list[Mosaic] = []
    for group, fields in enumerate(groups):
        rng = np.random.default_rng([seed, group])
        decks = {name: _dealt(numbers, rng) for name, numbers in fields.items()}
        backgrounds = rng.permutation([background[i % len(background)] for i in range(num_slides)]).tolist()
        extras = _extras(backgrounds, class_names, rng)
        for own, others in zip(backgrounds, extras, strict=True):
            size = int(rng.integers(least, most + 1))
            room = size // 2 // max(len(others), 1)
            shown = [name for name in others for _ in range(_cells_of_extra(room, rng))]
            shown += [own] * (size - len(shown))
            cells = tuple(
                Cell(next(decks[name]), int(rng.integers(8)), (float(rng.random()), float(rng.random())))
                for name in rng.permutation(shown).tolist()
            )
            columns = max(1, round(math.sqrt(size) * rng.uniform(0.7, 1.4)))
            mosaics.append(Mosaic(f"tissue_{len(mosaics):03d}", group, columns, cells))
    return mosaics


def cell_image(field: NDArray[np.uint8], mpp: float, cell: Cell) -> NDArray[np.uint8]:
    """A field as it lies in a cell: RGB ``[640, 640, 3]`` at :data:`BASE_MPP`.

    It is resampled; what is longer than the cell is cut off, what is shorter is mirrored at both ends; it is turned.

    Args:
        field: RGB ``[H, W, 3]``.
        mpp: its resolution in micrometres per pixel.
        cell: how it lies.
    """
    height, width = (max(1, round(side * mpp / BASE_MPP)) for side in field.shape[:2])
    method = cv2.INTER_AREA if mpp < BASE_MPP else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(field, (width, height), interpolation=method))
    left, top = (round(at * max(0, side - CELL_PX)) for at, side in zip(cell.start, (width, height), strict=True))
    image = image[top : top + CELL_PX, left : left + CELL_PX]
    down, across = (CELL_PX - side for side in image.shape[:2])
    lacking = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    image = np.rot90(np.pad(image, lacking, mode="symmetric"), cell.turn % 4)
    return np.ascontiguousarray(image[:, ::-1] if cell.turn >= 4 else image)


def write_mosaics(folder: Path, mosaics: Sequence[Mosaic], fields: Sequence[Field], class_names: Sequence[str]) -> None:
    """Write ``slides/*.tiff``, and ``masks/*.png``, their label images (0 for none, class index + 1).

    Slides that are there are kept.
    """
    values = [class_names.index(field.class_name) + 1 for field in fields]

    @lru_cache(maxsize=256)
    def pixels(number: int) -> NDArray[np.uint8]:
        return fields[number].read()

    def write(mosaic: Mosaic) -> None:
        path = folder / "slides" / f"{mosaic.name}.tiff"
        if path.is_file():
            return
        rows, columns = mosaic.size
        image = np.full((rows * CELL_PX, columns * CELL_PX, 3), GLASS, np.uint8)
        labels = np.zeros((rows, columns), np.uint8)
        for cell, row, column in mosaic.places():
            y, x = row * CELL_PX, column * CELL_PX
            image[y : y + CELL_PX, x : x + CELL_PX] = cell_image(pixels(cell.field), fields[cell.field].mpp, cell)
            labels[row, column] = values[cell.field]
        with replacing(folder / "masks" / f"{mosaic.name}.png") as part:
            if not cv2.imwrite(str(part), labels.repeat(REGION_PX, axis=0).repeat(REGION_PX, axis=1)):
                raise OSError(f"{part.name} was not written")  # OpenCV raises nothing
        with replacing(path) as part:
            write_pyramid(part, image, BASE_MPP, DOWNSAMPLES, compression="jpeg", tile=TILE_PX)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in tqdm(pool.map(write, mosaics), total=len(mosaics), desc="making slides", unit="slide"):
            pass


def _extras(backgrounds: Sequence[str], class_names: Sequence[str], rng: np.random.Generator) -> list[list[str]]:
    """For each slide of a group its classes beside the background."""
    found: list[list[str]] = [[] for _ in backgrounds]
    for name in class_names:
        others = [i for i, background in enumerate(backgrounds) if background != name]
        for i in rng.permutation(others)[: max(1, round(EXTRA_FRACTION * len(others)))].tolist():
            found[i].append(name)
    return found


def _cells_of_extra(room: int, rng: np.random.Generator) -> int:
    return 1 if room < 2 or rng.random() < ALONE_FRACTION else int(rng.integers(2, room + 1))


def _dealt(numbers: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """The numbers in random order, again and again."""
    while True:
        yield from rng.permutation(numbers).tolist()
