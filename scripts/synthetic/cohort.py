"""Synthetic slides to try the bundle on: ``python -m scripts.synthetic.cohort --dataset_dir data/demo``.

They imitate stained tissue closely enough for every part of the software to work on them. They demonstrate and test
the software. They are no evidence about tissue, or about a method's accuracy on patients.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.core.errors import SettingsError
from scripts.core.files import file_sha256, replacing, write_json
from scripts.synthetic.marker import SOFTWARE
from scripts.synthetic.shapes import BASE_MPP
from scripts.synthetic.tissue import CLASSES, MASK_STEP_PX, background, draw_tissue, sample_stain

__all__ = ["CLASSES", "PARTITIONS", "SlidePlan", "ensure_cohort", "make_cohort", "make_slides", "plan_cohort"]

PARTITIONS = ("training", "validation", "testing")
LEVEL_STEP = 4
LEVELS = 3
TILE_PX = 256
JPEG_QUALITY = 85

# The fraction of slides with each class, and how often a slide has 1, 2 or 3 classes.
CLASS_FRACTIONS = (0.44, 0.31, 0.37, 0.36, 0.46)
CLASS_COUNT_WEIGHTS = (0.32, 0.44, 0.24)
PARTITION_FRACTIONS = (0.6, 0.16, 0.24)
# One patient in ten has a second slide.
SECOND_SLIDE_FRACTION = 0.1
# Labels are sampled this often; the most even ones are taken.
LABEL_SAMPLES = 2000
# Mask value of the last class that is visible without its surroundings.
LAST_DETAILED = CLASSES.index("lgd") + 1

# (top, left, bottom, right) in pixels of the masks.
Box = tuple[int, int, int, int]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlidePlan:
    """What one slide will show."""

    name: str  # stem of its files
    partition: str
    patient: str
    label: tuple[int, ...]  # 0 or 1 for each of CLASSES

    def entry(self, dataset_dir: Path) -> dict[str, object]:
        """The slide's entry in the datalist; its file must exist."""
        image = f"slides/{self.name}.tiff"
        return {
            "image": image,
            "label": list(self.label),
            "patient": self.patient,
            "regions": f"masks/{self.name}.png",
            "sha256": file_sha256(dataset_dir / image),
        }


def plan_cohort(num_slides: int = 40, seed: int = 0) -> list[SlidePlan]:
    """Labels, patients and partitions of a cohort, in the order of the slides' names.

    Every partition has slides with and without every class, where the number of slides allows it.

    Raises:
        SettingsError: if ``num_slides`` is below 1, or ``seed`` below 0.
    """
    for key, value, least in (("num_slides", num_slides, 1), ("seed", seed, 0)):
        if value < least:
            raise SettingsError(key, f"got {value}", f"Give {least} or more.")
    rng = np.random.default_rng(np.random.SeedSequence([seed, num_slides]))
    patients = _sample_patients(num_slides, rng)
    partitions = _sample_partitions(patients, rng)
    labels = min((_sample_labels(num_slides, rng) for _ in range(LABEL_SAMPLES)), key=lambda y: _gaps(y, partitions))
    return [
        SlidePlan(f"demo_{i:03d}", PARTITIONS[partitions[i]], f"P{patients[i]:03d}", tuple(labels[i].tolist()))
        for i in range(num_slides)
    ]


def make_cohort(dataset_dir: str | Path, num_slides: int = 40, seed: int = 0, num_workers: int = 2) -> Path:
    """Make a planned cohort (:func:`plan_cohort`, :func:`make_slides`); returns the path of its datalist.

    Args:
        dataset_dir: gets the files.
        num_slides: at least 1.
        seed: of everything that is random.
        num_workers: processes that make slides.

    Raises:
        SettingsError: if ``num_slides`` or ``num_workers`` is below 1, ``seed`` below 0, or the folder cannot be
            written to.
    """
    return make_slides(dataset_dir, plan_cohort(num_slides, seed), seed, num_workers)


def make_slides(dataset_dir: str | Path, plans: Sequence[SlidePlan], seed: int = 0, num_workers: int = 2) -> Path:
    """Make the slides of plans, their ground-truth regions and their datalist, whose path is returned.

    The datalist is written last, so a folder that has one contains a complete cohort. The same plans and ``seed`` give
    the same files, byte by byte.

    Args:
        dataset_dir: gets ``slides/*.tiff``, ``masks/*.png`` (8 um/px; 0 for none, class index + 1) and
            ``datalist.json``.
        plans: of slides whose names differ, each with one to three classes.
        seed: of everything that is random in a slide.
        num_workers: processes that make slides.

    Raises:
        SettingsError: if ``num_workers`` is below 1, or the folder cannot be written to.
    """
    if num_workers < 1:
        raise SettingsError("num_workers", f"got {num_workers}", "Give 1 or more.")
    root = Path(dataset_dir)
    datalist = root / "datalist.json"
    datalist.unlink(missing_ok=True)
    jobs = [(root, plan, seed, index) for index, plan in enumerate(plans)]
    # A fresh process each, because a forked one may inherit locked threads of OpenCV or torch.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for _ in tqdm(pool.map(_make_slide, jobs), total=len(plans), desc="making slides", unit="slide"):
            pass
    entries = {name: [plan.entry(root) for plan in plans if plan.partition == name] for name in PARTITIONS}
    write_json(datalist, entries)
    return datalist


def ensure_cohort(dataset_dir: str | Path, num_slides: int = 40, seed: int = 0, num_workers: int = 2) -> Path:
    """The datalist of a folder; a folder without one gets a cohort (:func:`make_cohort`), with a warning."""
    datalist = Path(dataset_dir) / "datalist.json"
    if not datalist.exists():
        logger.warning("No datalist in %s: making %d synthetic demonstration slides there.", dataset_dir, num_slides)
        make_cohort(dataset_dir, num_slides, seed, num_workers)
    return datalist


def _sample_patients(num_slides: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Patient number of each slide."""
    seconds = round(num_slides * SECOND_SLIDE_FRACTION)
    patients = num_slides - seconds
    owners = rng.choice(patients, seconds, replace=False)
    return np.sort(np.concatenate([np.arange(patients), owners]))


def _sample_partitions(patients: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Partition number of each slide; a patient's slides share theirs."""
    room = np.array(PARTITION_FRACTIONS) * len(patients)
    partitions = np.zeros(len(patients), np.int64)
    for patient in rng.permutation(np.unique(patients)):
        mine = patients == patient
        # The emptiest for its size, so that three patients are enough for all partitions.
        partition = int(np.argmax(room / PARTITION_FRACTIONS))
        partitions[mine] = partition
        room[partition] -= mine.sum()
    return partitions


def _sample_labels(num_slides: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``[num_slides, 5]`` of 0 and 1, one to three classes a slide."""
    counts = rng.choice(3, (num_slides, 1), p=CLASS_COUNT_WEIGHTS) + 1
    # Gumbel's trick: the largest keys are a sample without replacement, in proportion to the fractions.
    keys = np.log(CLASS_FRACTIONS) + rng.gumbel(size=(num_slides, len(CLASSES)))
    ranks = np.argsort(np.argsort(-keys, axis=1), axis=1)
    return (ranks < counts).astype(np.int64)


def _gaps(labels: NDArray[np.int64], partitions: NDArray[np.int64]) -> tuple[int, float]:
    """How far a cohort is from one that can be learned and tested: (missing slides, unevenness)."""
    missing, uneven = 0, 0.0
    for partition in range(len(PARTITIONS)):
        mine = labels[partitions == partition]
        for present in (mine.sum(axis=0), (1 - mine).sum(axis=0)):
            missing += int((present == 0).sum())
        if len(mine):
            uneven += float(np.abs(mine.mean(axis=0) - CLASS_FRACTIONS).sum())
    return missing, uneven


def _make_slide(job: tuple[Path, SlidePlan, int, int]) -> None:
    root, plan, seed, index = job
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    tissue, labels, boxes = _lay_out(plan.label, rng)
    stain = sample_stain(rng)
    rows, columns = labels.shape
    image = background(columns * MASK_STEP_PX, rows * MASK_STEP_PX, stain, rng)
    for top, left, bottom, right in boxes:
        glass = image[top * MASK_STEP_PX : bottom * MASK_STEP_PX, left * MASK_STEP_PX : right * MASK_STEP_PX]
        draw_tissue(glass, tissue[top:bottom, left:right], labels[top:bottom, left:right], stain, rng)
    with replacing(root / "masks" / f"{plan.name}.png") as part:
        if not cv2.imwrite(str(part), labels):  # OpenCV raises nothing
            raise OSError(f"{part.name} was not written")
    _write_pyramid(root / "slides" / f"{plan.name}.tiff", image)


def _lay_out(
    label: tuple[int, ...], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8], list[Box]]:
    """Tissue (above 0.5), labels (0, or class index + 1), both ``[rows, columns]`` at 8 um/px, each piece's box."""
    rows, columns = (int(side_um / (MASK_STEP_PX * BASE_MPP)) for side_um in rng.uniform(2600, 3100, 2))
    present = rng.permutation(np.flatnonzero(label)) + 1
    # Classes that are visible only in their surroundings get the long piece.
    present = present[np.argsort(present <= LAST_DETAILED, kind="stable")]
    boxes = _boxes(rows, columns, len(present), rng)
    tissue = np.zeros((rows, columns), np.float32)
    labels = np.zeros((rows, columns), np.uint8)
    values = [*present.tolist(), 0]
    for (top, left, bottom, right), value in zip(boxes, values, strict=False):
        piece = _blob(bottom - top, right - left, 0.46 if value else 0.35, rng)
        tissue[top:bottom, left:right] = piece
        # A border of about 30 um of plain stroma around each region.
        depth = cv2.distanceTransform((piece > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
        labels[top:bottom, left:right][depth > 4] = value
    return tissue, labels, boxes


def _boxes(rows: int, columns: int, classes: int, rng: np.random.Generator) -> list[Box]:
    """A box for each class, the first one a long strip; one more for plain stroma if there is one class."""
    cut_row, cut_column = (int(side * rng.uniform(0.47, 0.53)) for side in (rows, columns))
    if rng.integers(2):
        first, second = (0, 0, cut_row, columns), (cut_row, 0, rows, columns)
        parts = [(cut_row, 0, rows, cut_column), (cut_row, cut_column, rows, columns)]
    else:
        first, second = (0, 0, rows, cut_column), (0, cut_column, rows, columns)
        parts = [(0, cut_column, cut_row, columns), (cut_row, cut_column, rows, columns)]
    return {1: [first, parts[0]], 2: [first, second], 3: [first, *parts]}[classes]


def _blob(rows: int, columns: int, reach: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A field above 0.5 in one smooth, irregular piece, which reaches this fraction of the box around its centre."""
    y, x = np.mgrid[0:rows, 0:columns]
    v, u = (y - rows / 2) / rows, (x - columns / 2) / columns
    phi = np.arctan2(v, u)
    edge = np.ones_like(phi)
    for wave in range(2, 8):
        edge += rng.normal(0, 0.07 / (wave - 1)) * np.cos(wave * phi + rng.uniform(0, 2 * np.pi))
    edge += 0.10 * np.cos(4 * phi + np.pi)
    edge *= reach / edge.max()
    # 0.5 at the edge, with a slope of one in 16 px of the mask.
    return (0.5 + (edge - np.hypot(u, v)) * min(rows, columns) / 16).clip(0, 1).astype(np.float32)


def _write_pyramid(path: Path, image: NDArray[np.uint8]) -> None:
    """Write RGB ``[height, width, 3]`` at 0.5 um/px as a pyramid of tiled JPEG levels, coarse ones as reduced pages."""
    with replacing(path) as part, tifffile.TiffWriter(part) as tiff:
        mpp = BASE_MPP
        for level in range(LEVELS):
            tiff.write(
                image,
                tile=(TILE_PX, TILE_PX),
                # Tifffile converts to YCbCr by itself; with "ycbcr" it would store the RGB values unconverted.
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": JPEG_QUALITY},
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
                software=SOFTWARE,
                maxworkers=1,
            )
            height_px, width_px = image.shape[:2]
            size_px = (width_px // LEVEL_STEP, height_px // LEVEL_STEP)
            image = np.asarray(cv2.resize(image, size_px, interpolation=cv2.INTER_AREA), np.uint8)
            mpp *= LEVEL_STEP


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Synthetic slides, their regions and their datalist.")
    parser.add_argument("--dataset_dir", default="data/demo", help="folder that gets them")
    parser.add_argument("--num_slides", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=2, help="processes that make slides")
    print(make_cohort(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
