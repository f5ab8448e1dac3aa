"""`checking`: every problem of a cohort at once, before a long run pays for it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.bags.bag import BagBuilder
from scripts.checking.cost import Rate, bank_bytes, measure_rate
from scripts.checking.datalist import CheckedList, check_datalist
from scripts.checking.problems import WARNS, Problem, Problems
from scripts.checking.report import shown_duration, shown_problems, shown_size, write_problems, write_slides
from scripts.checking.slides import SlideChecker, SlideFacts, find_duplicates, find_unsummed
from scripts.core.errors import BundleError, SlideError
from scripts.core.files import output_folder
from scripts.core.imported import IMPORTED
from scripts.core.magnification import scale_names
from scripts.core.ranks import is_first_rank, wait_for_ranks
from scripts.core.setting_checks import path as any_path
from scripts.core.shards import gather_shards
from scripts.core.turns import Turns
from scripts.datalists.cohort import DATALISTS, choose_cohort
from scripts.datalists.labels import CLASS_NAMES
from scripts.datalists.partitions import PARTITIONS
from scripts.datalists.slide_files import as_on_disk
from scripts.datalists.units import SLIDE
from scripts.features.augmentation import count_views
from scripts.features.encoding import Encoder
from scripts.features.imported import refuse_imported

__all__ = ["CheckingError", "CohortChecker", "choose_source"]

logger = logging.getLogger(__name__)


class CheckingError(BundleError):
    """A cohort with problems that block a run."""


def choose_source(
    dataset_dir: str | Path | None, datalist: str | Path | None, bundle_root: str | Path
) -> tuple[Path, Path | None]:
    """What to check: a datalist and the folder that its paths start from, or the slides of a folder, unlabelled.

    Args:
        dataset_dir: a folder of slides, or one slide.
        datalist: the datalist; by default that in ``dataset_dir``, if there is one.
        bundle_root: see :func:`scripts.datalists.cohort.choose_cohort`.

    Returns:
        The folder (or slide) and the datalist; ``None`` instead of a datalist for the slides in the folder.

    Raises:
        DatalistError: if ``dataset_dir`` is not there.
    """
    if dataset_dir is not None and datalist is None:
        path = Path(as_on_disk(os.path.expanduser(dataset_dir)))
        if path.is_file() or (path.is_dir() and not any((path / name).is_file() for name in DATALISTS)):
            return path, None
    return choose_cohort(dataset_dir, datalist, bundle_root)


class CohortChecker:
    """Looks at a datalist and all of its slides, and reports what would stop or spoil a run.

    Args:
        source: the folder and the datalist, see :func:`choose_source`.
        bag_builder: makes a slide's bag, as the run will.
        make_encoder: builds the encoder of the run, whose rate is measured.
        output_dir: where ``checking.csv`` and ``slides.csv`` are written.
        feature_dir: where the run will write its banks.
        task: one of :data:`scripts.core.tasks.TASKS`.
        class_names: the classes in order.
        positive_classes: as in :func:`scripts.datalists.datalist.load_partition`.
        split_seed: of the split of a datalist without partitions.
        leave_out: names of slides that no run uses.
        views: see :func:`scripts.features.augmentation.count_views`.
        min_rows: see :class:`scripts.checking.slides.SlideChecker`.
        read_all: see :class:`scripts.checking.slides.SlideChecker`.
        num_workers: slides that are looked at at the same time; 0 is one.
        backbone: the encoder's name.
        unit: what a bag of the run will be.

    Raises:
        SettingsError: if a setting has no such value.
    """

    def __init__(
        self,
        source: tuple[Path, Path | None],
        bag_builder: BagBuilder,
        make_encoder: Callable[[], Encoder],
        output_dir: str | Path,
        feature_dir: str | Path,
        task: str = "multilabel",
        class_names: Sequence[str] = CLASS_NAMES,
        positive_classes: Sequence[str] | None = None,
        split_seed: int = 0,
        leave_out: Sequence[str] = (),
        views: int = 0,
        min_rows: int = 10,
        read_all: bool = False,
        num_workers: int = 2,
        backbone: str = "",
        unit: str = SLIDE,
    ) -> None:
        if backbone == IMPORTED:
            raise refuse_imported("`checking` looks at slides for an encoder", "`importing` checks imported features.")
        self.dataset_dir, self.datalist = source
        self.bag_builder, self.make_encoder = bag_builder, make_encoder
        any_path()("feature_dir", feature_dir)
        self.output_dir, self.feature_dir = Path(output_dir), Path(feature_dir)
        self.task, self.class_names, self.positive_classes = task, class_names, positive_classes
        self.split_seed, self.leave_out = split_seed, leave_out
        self.views, self.num_workers, self.unit = views, num_workers, unit
        self.check_slide = SlideChecker(bag_builder, class_names, min_rows, read_all)

    def run(self) -> list[Problem]:
        """Check, print the problems, and write ``checking.csv`` and ``slides.csv``.

        Returns:
            The problems, none of which blocks.

        Raises:
            CheckingError: if a problem blocks, after everything was written.
            DatalistError: if the folder is not there.
            SettingsError: if a setting has no such value, or ``output_dir`` cannot be written to.
        """
        output_folder(self.output_dir)
        checked = check_datalist(
            self.datalist,
            self.dataset_dir,
            self.task,
            self.class_names,
            self.positive_classes,
            self.split_seed,
            leave_out=self.leave_out,
            unit=self.unit,
        )
        facts = self._look_at_slides(checked)
        if not is_first_rank():
            # The first rank reports for all, and ends this wait if a problem blocks.
            wait_for_ranks()
            return []
        problems = self._report(checked, facts)
        wait_for_ranks()
        return problems

    def _report(self, checked: CheckedList, facts: Sequence[SlideFacts]) -> list[Problem]:
        """Measure the encoder, print and write; returns and raises as :meth:`run`."""
        duplicates = find_duplicates(facts, [slide.partition for slide in checked.slides])
        general = Problems(where=self.feature_dir)
        encoder = general.attempt("backbone", self.make_encoder)
        rate = None if encoder is None else self._measure(encoder, checked, facts, general)
        feature_bytes = None if encoder is None else encoder.feature_bytes
        print(self._summary(checked, facts))
        if feature_bytes is not None:
            print(self._cost(checked, facts, feature_bytes, rate, general))
        # The measurement may have added one to the slides' own.
        problems = [*checked.problems, *(p for fact in facts for p in fact.problems), *duplicates]
        problems += [*find_unsummed(checked.entries(), checked.source), *general]
        problems.sort(key=lambda problem: not problem.blocks)
        path = self.output_dir / "checking.csv"
        write_problems(path, problems)
        magnifications = self.bag_builder.magnifications
        slides_path = self.output_dir / "slides.csv"
        write_slides(slides_path, checked, facts, problems, magnifications, self.class_names, feature_bytes)
        print(f"{shown_problems(problems, path) if problems else f'no problems: {path}'}\nslides: {slides_path}")
        blocking = sum(problem.blocks for problem in problems)
        if blocking:
            what = "1 problem blocks a run" if blocking == 1 else f"{blocking} problems block a run"
            raise CheckingError("checking", what, f"{path} lists each with what to do about it.")
        return problems

    def _look_at_slides(self, checked: CheckedList) -> list[SlideFacts]:
        """The facts of all slides, in order, on each rank; the ranks take slides from one queue."""
        slides = list(zip(checked.entries(), checked.slides, strict=True))
        count, hidden = max(1, self.num_workers), not is_first_rank()
        found: dict[int, SlideFacts] = {}
        with (
            ThreadPoolExecutor(count) as threads,
            tqdm(total=len(slides), unit="slide", desc="checking", dynamic_ncols=True, disable=hidden) as bar,
        ):
            looks: dict[Future[SlideFacts], int] = {}
            try:
                for index in Turns(range(len(slides))):
                    # As many as there are threads: another rank may have time for the next.
                    while len(looks) >= count:
                        self._collect(looks, found)
                    bar.update(index - bar.n)
                    entry, slide = slides[index]
                    looks[threads.submit(self.check_slide, entry, slide.row.subject)] = index
                while looks:
                    self._collect(looks, found)
                bar.update(len(slides) - bar.n)
            except BaseException:
                # An interrupt does not wait for slides that are not begun.
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [fact for _, fact in sorted(gather_shards(list(found.items())), key=lambda pair: pair[0])]

    def _collect(self, looks: dict[Future[SlideFacts], int], found: dict[int, SlideFacts]) -> None:
        for look in wait(looks, return_when=FIRST_COMPLETED).done:
            found[looks.pop(look)] = look.result()

    def _measure(
        self, encoder: Encoder, checked: CheckedList, facts: Sequence[SlideFacts], general: Problems
    ) -> Rate | None:
        """The rate on the first slide that can be used."""
        for entry, fact in zip(checked.entries(), facts, strict=True):
            if not fact.is_usable:
                continue
            staging = self.bag_builder.staging
            with staging.holding(entry):
                # Warnings were logged when the slide was looked at.
                bag = fact.problems.attempt("tissue", lambda entry=entry: self.bag_builder.look(entry))  # type: ignore[misc]
                if bag is None:
                    continue
                logger.info("measuring how fast %s is encoded", fact.problems.slide)
                try:
                    if encoder.int8 is not None:
                        encoder.int8.make_for(encoder.backbone, bag)
                    return measure_rate(encoder, bag)
                except BundleError as error:
                    own = staging.named(error) if isinstance(error, SlideError) else error
                    # Unless the file is at fault, another slide would not be encoded either.
                    if str(own.subject) != str(entry["image"]):
                        general.append(Problem.of(own, "backbone"))
                        return None
                    fact.problems.append(Problem.of(own, "tiles", slide=fact.problems.slide))
        return None

    def _summary(self, checked: CheckedList, facts: Sequence[SlideFacts]) -> str:
        of_partition = {name: sum(slide.partition == name for slide in checked.slides) for name in PARTITIONS}
        parts = ", ".join(f"{name} {number}" for name, number in of_partition.items() if number)
        # A run cannot use a slide whose line in the datalist has a problem either.
        faulty = {problem.slide for problem in checked.problems if problem.blocks}
        usable = [fact for fact in facts if fact.is_usable and fact.problems.slide not in faulty]
        names = scale_names(self.bag_builder.magnifications)
        counts = np.sum([fact.num_patches for fact in usable if fact.num_patches is not None], axis=0, dtype=int)
        patches = ", ".join(f"{name} {n}" for name, n in zip(names, np.broadcast_to(counts, len(names)), strict=True))
        return (
            f"{checked.source}: {len(facts)} slide{'' if len(facts) == 1 else 's'}{f' ({parts})' if parts else ''}, "
            f"{shown_size(sum(fact.num_bytes or 0 for fact in facts))}; {len(usable)} can be used: "
            f"{sum(fact.num_rows or 0 for fact in usable)} rows, patches {patches}, "
            f"{sum(fact.tissue_mm2 or 0 for fact in usable):.4g} mm2 of tissue"
        )

    def _cost(
        self,
        checked: CheckedList,
        facts: Sequence[SlideFacts],
        feature_bytes: int,
        rate: Rate | None,
        general: Problems,
    ) -> str:
        pairs = [(f, 1 + n) for f, n in zip(facts, self._views(checked), strict=True) if f.is_usable]
        disk = sum(bank_bytes(f.num_patches or (), f.num_rows or 0, feature_bytes) * n for f, n in pairs)
        patches = sum(sum(f.num_patches or ()) * n for f, n in pairs)
        free = shutil.disk_usage(_existing(self.feature_dir)).free
        if disk > free:
            what = f"the feature banks need about {shown_size(disk)}, and {shown_size(free)} are free"
            general.add(WARNS, "disk", what, "Make room, or choose another `feature_dir`; banks that are there count.")
        how = "no slide can be measured"
        if rate is not None:
            how = (
                f"about {shown_duration(patches / rate.per_second)} for {patches} patches ({rate.per_second:.3g} "
                f"patches/s, measured just now on {rate.patches} of {rate.slide}; slower if the machine is busy)"
            )
        return f"extracting: {how}; {shown_size(disk)} in {self.feature_dir} ({shown_size(free)} are free)"

    def _views(self, checked: CheckedList) -> list[int]:
        """The number of augmented views of each slide; only training slides with known labels have any."""
        chosen = [i for i, s in enumerate(checked.slides) if s.partition == "training" and s.label is not None]
        views = [0] * len(checked.slides)
        if chosen:
            counts = count_views(np.stack([np.asarray(checked.slides[i].label) for i in chosen]), self.views)
            for i, count in zip(chosen, counts, strict=True):
                views[i] = count
        return views


def _existing(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
