"""What is wrong with a slide, and what it contains: looked at once, before anything is computed from it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bags.annotation_files import is_annotation_file
from scripts.bags.bag import Bag, BagBuilder
from scripts.bags.blocks import plan_blocks
from scripts.checking.problems import BLOCKS, WARNS, Problem, Problems
from scripts.core.errors import SlideError
from scripts.core.magnification import MPP_RTOL, squeezed_levels
from scripts.core.settings import check_settings
from scripts.datalists.slide_files import missing_slide
from scripts.evaluation.localisation import read_regions
from scripts.slides.checksums import content_sha256, given_sha256
from scripts.slides.dicom_series import slide_parts
from scripts.slides.frames import doubt
from scripts.slides.opened import CONVERT
from scripts.slides.remote import is_remote
from scripts.slides.resolution import POWER_SOURCE, Resolution, ResolutionError
from scripts.slides.slide import PixelError, Slide

__all__ = ["SlideChecker", "SlideFacts", "find_duplicates", "find_unsummed"]

# Sources of the resolution that differ by more contradict each other.
RESOLUTION_RTOL = 0.05
# A level that is reduced along one side so much more than along the other puts patches beside their place.
PYRAMID_RTOL = 0.02
# Low magnifications of a longer slide without a pyramid are read slowly.
LONGEST_FLAT_PX = 20_000
# Of a slide's tissue; less is warned of.
LEAST_COVERED = 0.5
LEAVE_OUT = "Copy it again, or leave the slide out."


@dataclass
class SlideFacts:
    """What is known of a slide; ``None`` where a problem was in the way.

    Args:
        problems: what is wrong with it.
        num_bytes: size of its files.
        sha256: see :func:`scripts.slides.checksums.content_sha256`.
        resolution: of level 0.
        size_level0: (width, height) of level 0 in pixels.
        num_levels: levels of its pyramid.
        num_rows: N, the rows of its bag.
        num_patches: unique patches of each scale, from low to high.
        tissue_mm2: area of its tissue.
        covered_mm2: area of the tissue that patches of the highest magnification cover.
    """

    problems: Problems = field(default_factory=Problems)
    num_bytes: int | None = None
    sha256: str | None = None
    resolution: Resolution | None = None
    size_level0: tuple[int, int] | None = None
    num_levels: int | None = None
    num_rows: int | None = None
    num_patches: tuple[int, ...] | None = None
    tissue_mm2: float | None = None
    covered_mm2: float | None = None

    @property
    def is_usable(self) -> bool:
        """Whether a run could use the slide."""
        return bool(self.num_rows) and not any(problem.blocks for problem in self.problems)


class SlideChecker:
    """Looks at slides, one at a time; several threads may call it.

    Args:
        bag_builder: makes a slide's bag, as the run will.
        class_names: the classes that a slide's ``regions`` may contain.
        min_rows: fewer rows are almost no tissue, which is a warning.
        read_all: read every patch once, to find tiles that cannot be decoded; it takes as long as reading takes in
            ``extracting``. Otherwise a corner of each level and the tissue's overview are read.

    Raises:
        SettingsError: if ``min_rows`` or ``read_all`` has no such value.
    """

    def __init__(
        self, bag_builder: BagBuilder, class_names: Sequence[str], min_rows: int = 10, read_all: bool = False
    ) -> None:
        check_settings(min_rows=min_rows, read_all=read_all)
        self.bag_builder, self.class_names = bag_builder, list(class_names)
        self.min_rows, self.read_all = min_rows, read_all

    def __call__(self, entry: Mapping[str, Any], where: str = "") -> SlideFacts:
        """What is known of a slide, after as many steps as its problems allow.

        Args:
            entry: ``image`` and ``slide``; optionally ``mpp``, ``mask``, ``mask_tissue``, ``mask_excluded``,
                ``regions`` and ``sha256``.
            where: the line that lists it, to begin the error of a file that is not there.
        """
        facts = SlideFacts(Problems(entry["image"], entry["slide"]))
        staging = self.bag_builder.staging
        if is_remote(entry["image"]) or os.path.exists(entry["image"]):
            with staging.holding(entry):
                facts.problems.attempt("file", lambda: self._look(staging.local(entry), facts))
        else:
            facts.problems.where = where or entry["image"]
            facts.problems.add(BLOCKS, "file", *missing_slide(entry["image"]))
        return facts

    def _look(self, entry: Mapping[str, Any], facts: SlideFacts) -> None:
        path, problems = Path(entry["image"]), facts.problems
        if path.is_file():
            facts.num_bytes = sum(map(os.path.getsize, slide_parts(path)))
            facts.sha256 = content_sha256(path)
            _check_sha256(entry, facts)
        try:
            slide = self.bag_builder.open_slide(entry)
            facts.resolution = slide.resolution
        except PixelError as error:
            problems.add(BLOCKS, "colour", error.cause, error.remedy)
            return
        except ResolutionError as error:
            problems.append(Problem.of(error, "resolution", slide=problems.slide))
            # A slide opens with any resolution, and its other problems are found as well.
            slide = self.bag_builder.open_slide({**entry, "mpp": 1.0})
        facts.size_level0, facts.num_levels = slide.size_level0, len(slide.level_sizes)
        _check_pyramid(slide, problems)
        regions = entry.get("regions")
        if regions is not None:
            read = problems.attempt(
                "regions",
                lambda: read_regions(regions, entry["slide"], slide.size_level0, self.class_names, slide.bounds_level0),
            )
            if read is not None:
                _check_mask("regions", regions, read, read.shape, slide, problems)
        if facts.resolution is not None:
            problems.attempt("resolution", lambda: _check_resolution(slide, facts))
            self._check_bag(entry, slide, facts)

    def _check_bag(self, entry: Mapping[str, Any], slide: Slide, facts: SlideFacts) -> None:
        builder, problems = self.bag_builder, facts.problems
        scales = [
            problems.attempt("magnification", lambda m=m: slide.scale(m, builder.patch_size))  # type: ignore[misc]
            for m in builder.magnifications
        ]
        for scale in scales:
            if scale is not None and scale.mpp < slide.base_mpp / (1 + MPP_RTOL):
                what = f"{scale.name} is upsampled: the slide has {slide.base_mpp:g} um/px, asked for are {scale.mpp:g}"
                problems.add(WARNS, "magnification", what, "`read_level` asks for it; else leave the slide out.")
        mask = entry.get("mask")
        wanted = [scale for scale in scales if scale is not None]
        if mask is None and len(wanted) < len(scales):
            return
        tissue = problems.attempt("tissue" if mask is None else "mask", lambda: builder.tissue_of(entry, slide))
        if tissue is not None and mask is not None:
            _check_mask("mask", mask, tissue, tissue.tissue.shape, slide, problems)
        if tissue is None or len(wanted) < len(scales):
            return
        bag = problems.attempt("tissue", lambda: builder.link(slide, wanted, tissue))
        if bag is None:
            return
        facts.tissue_mm2, facts.num_rows = bag.tissue.area_mm2, bag.grid.num_rows
        facts.covered_mm2 = bag.covered_mm2
        facts.num_patches = tuple(len(coords) for coords in bag.grid.coords)
        if problems.attempt("tissue", lambda: builder.check(bag)) is None:
            return
        for check, message in (("tissue", bag.tissue.doubt()), ("ink", bag.tissue.ink())):
            if message is not None and bag.tissue.is_found:
                problems.add(WARNS, check, *message)
        if facts.num_rows < self.min_rows:
            what = f"almost no tissue: {facts.num_rows} rows ({facts.tissue_mm2:.3g} mm2), fewer than {self.min_rows}"
            problems.add(WARNS, "tissue", what, "Look at it with `inspecting`; give a `mask`, or leave the slide out.")
        elif bag.covered_fraction < LEAST_COVERED:
            what = f"its patches cover {facts.covered_mm2:.3g} of {facts.tissue_mm2:.3g} mm2 of tissue"
            remedies = [] if builder.grid_origin == "tissue" else ["set `grid_origin` to tissue"]
            remedy = " or ".join([*remedies, "lower `min_tissue`"])
            what = f"{what} ({bag.covered_fraction:.0%})"
            problems.add(WARNS, "tissue", what, f"To cover more {remedy}; look at it with `inspecting`.")
        if self.read_all:
            _read_all(bag, problems)


def find_duplicates(facts: Sequence[SlideFacts], partitions: Sequence[str | None]) -> list[Problem]:
    """Slides with the same content: across partitions they block, else they warn; both arguments are by slide."""
    first: dict[str, int] = {}
    problems = []
    for i, fact in enumerate(facts):
        j = i if fact.sha256 is None else first.setdefault(fact.sha256, i)
        if j == i:
            continue
        what = f"has the same content as {facts[j].problems.where}"
        severity, what_to_do = WARNS, "Keep one of the two, or the slide counts twice."
        if partitions[i] != partitions[j]:
            what += f", {partitions[j] or 'no partition'} and {partitions[i] or 'no partition'}"
            severity = BLOCKS
            what_to_do = "Keep one of the two: a slide in two partitions makes the results optimistically biased."
        problems.append(Problem(severity, "duplicate", fact.problems.where, what, what_to_do, fact.problems.slide))
    return problems


def find_unsummed(entries: Sequence[Mapping[str, Any]], where: str) -> list[Problem]:
    """A warning if slides have no ``sha256``: nothing else reveals damage that can still be decoded."""
    unsummed = sum(given_sha256(entry) is None for entry in entries)
    if not unsummed:
        return []
    what = f"{unsummed} of {len(entries)} slides have no `sha256`, and damage that can still be decoded is not seen"
    remedy = "If their files are as the scanner wrote them, use slides.csv, which has the checksums, as the datalist."
    return [Problem(WARNS, "sha256", where, what, remedy)]


def _check_sha256(entry: Mapping[str, Any], facts: SlideFacts) -> None:
    given, sha256 = entry.get("sha256"), given_sha256(entry)
    if sha256 in (None, facts.sha256):
        return
    what = f"its SHA-256 is {facts.sha256}, the datalist says {given}"
    remedy = "Copy it again, or correct `sha256`."
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        what, remedy = f"the datalist's sha256 is {given!r}, not 64 hexadecimal digits", "Correct it, or leave it out."
    facts.problems.add(BLOCKS, "sha256", what, remedy)


def _check_resolution(slide: Slide, facts: SlideFacts) -> None:
    used = facts.resolution
    assert used is not None
    for source in slide.stated_resolutions:
        if abs(source.mpp - used.mpp) <= RESOLUTION_RTOL * max(source.mpp, used.mpp):
            continue
        what = f"{used.mpp:g} um/px ({used.source}) is contradicted by {source.mpp:g} um/px ({source.source})"
        # Users set `mpp` for this case, and an objective's power is hardly a measurement.
        given = used.source.startswith("datalist")
        if given or source.source.startswith(POWER_SOURCE):
            remedy = "Look at it with `inspecting`" + ("." if given else "; if it is wrong, set `mpp` in the datalist.")
            facts.problems.add(WARNS, "resolution", what, remedy)
        else:
            remedy = "Set the true one as `mpp` of this slide in the datalist."
            facts.problems.add(BLOCKS, "resolution", what, remedy)


def _check_pyramid(slide: Slide, problems: Problems) -> None:
    width, height = slide.size_level0
    if slide.doubt is not None:
        problems.add(WARNS, "pyramid", *slide.doubt)
    if slide.unseen_levels:
        what = f"{slide.unseen_levels} of its levels are SubIFDs, which {slide.backend} does not see"
        problems.add(WARNS, "pyramid", what, f"Leave `reader` at auto, or convert it: {CONVERT}.")
    elif len(slide.level_sizes) == 1 and max(width, height) > LONGEST_FLAT_PX:
        what = f"has one level of {width} x {height} px: every magnification is read from it, slowly"
        problems.add(WARNS, "pyramid", what, f"Convert it to a pyramid: {CONVERT}.")
    for level, across, down in squeezed_levels(slide.level_sizes, PYRAMID_RTOL):
        what = f"its level {level} is {across:.4g} times narrower and {down:.4g} times lower than level 0"
        remedy = "Its patches lie beside their place: convert the slide again, or set `read_level` to highest."
        problems.add(WARNS, "pyramid", what, remedy)


def _check_place(key: str, image: str, shape: tuple[int, ...], slide: Slide, problems: Problems) -> None:
    doubtful = doubt((shape[1], shape[0]), slide.size_level0, slide.bounds_level0)
    if doubtful is not None:
        problems.add(WARNS, key, f"its {key} {image} {doubtful[0]}", doubtful[1])


def _check_mask(key: str, path: str, read: Any, shape: tuple[int, ...], slide: Slide, problems: Problems) -> None:
    """Warn of annotations that may be wrong, or of an image that may lie elsewhere."""
    if not is_annotation_file(path):
        _check_place(key, path, shape, slide, problems)
        return
    for what, what_to_do in read.warnings:
        problems.add(WARNS, key, what, what_to_do)


def _read_all(bag: Bag, problems: Problems) -> None:
    blocks, failures = plan_blocks(bag.grid), []
    for block in blocks:
        try:
            bag.read_block(block)
        except SlideError as error:
            failures.append(error)
    if failures:
        what = f"{len(failures)} of {len(blocks)} regions cannot be read; the first: {failures[0].cause}"
        problems.add(BLOCKS, "tiles", what, LEAVE_OUT)
