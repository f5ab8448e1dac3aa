"""Which slides a workflow runs on: the user's, or the demonstration's where none are given."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from scripts.core.errors import DatalistError
from scripts.core.imported import needs_slides
from scripts.core.ranks import from_first_rank
from scripts.core.tasks import get_task
from scripts.datalists.classes import FOLDS_REMEDY, warn_of_one_sided
from scripts.datalists.datalist import list_labels, load_datalist, load_partition
from scripts.datalists.folds import Folds, load_folds
from scripts.datalists.label_files import as_entries
from scripts.datalists.labels import output_names, resolve_positive_classes
from scripts.datalists.slide_files import as_on_disk
from scripts.datalists.units import SLIDE, bags_of, check_patients
from scripts.slides.remote import is_remote
from scripts.synthetic.cohort import ensure_cohort

__all__ = ["Cohort", "choose_cohort", "choose_slides"]

DATALISTS = ("datalist.json", "datalist.csv")

logger = logging.getLogger(__name__)


def choose_cohort(
    dataset_dir: str | Path | None, datalist: str | Path | None, bundle_root: str | Path
) -> tuple[Path, Path]:
    """The folder of the slides and the datalist.

    Args:
        dataset_dir: the user's folder of slides; by default the datalist's folder.
        datalist: the user's datalist; by default ``datalist.json`` or ``datalist.csv`` in ``dataset_dir``.
        bundle_root: the bundle's folder. Without both of the above its demonstration is used, in ``data/demo``; its
            synthetic slides are made first if they are not there.

    Raises:
        DatalistError: if ``dataset_dir`` is no folder, or contains no datalist and none is given.
    """
    if dataset_dir is None and datalist is None:
        folder = Path(bundle_root) / "data" / "demo"
        logger.warning("no `dataset_dir` and no `datalist`: using the demonstration's synthetic slides in %s", folder)
        return folder, Path(from_first_rank(lambda: str(ensure_cohort(folder))))
    if dataset_dir is None:
        assert datalist is not None
        return Path(datalist).parent, Path(datalist)
    folder = Path(as_on_disk(os.path.expanduser(dataset_dir)))
    if not os.path.isdir(folder):
        raise DatalistError(f"dataset_dir {dataset_dir}", "no such folder", "Give the folder of the slides.")
    if datalist is not None:
        return folder, Path(datalist)
    for name in DATALISTS:
        if (folder / name).is_file():
            return folder, folder / name
    remedy = "Give the file with the slides' labels as `datalist`."
    raise DatalistError(f"dataset_dir {dataset_dir}", f"contains neither {' nor '.join(DATALISTS)}", remedy)


def choose_slides(
    dataset_dir: str | Path | None, datalist: str | Path | None, bundle_root: str | Path
) -> tuple[str | Path, str | Path | None]:
    """What to predict, as the arguments of :func:`scripts.datalists.datalist.list_slides`.

    Args:
        dataset_dir: a folder of slides, or one slide by its path or address.
        datalist: a list of slides.
        bundle_root: as in :func:`choose_cohort`.

    Raises:
        DatalistError: if there is no ``dataset_dir``.
    """
    if datalist is not None:
        return datalist, dataset_dir
    if dataset_dir is not None:
        if not is_remote(dataset_dir) and not os.path.exists(as_on_disk(os.path.expanduser(dataset_dir))):
            raise DatalistError(f"dataset_dir {dataset_dir}", "no such folder", "Give a folder of slides, or a slide.")
        return dataset_dir, None
    folder, _ = choose_cohort(None, None, bundle_root)
    return folder / "slides", None


class Cohort:
    """The slides of a workflow with their labels; the datalist is looked for, or the demonstration made, when needed.

    Args:
        dataset_dir: see :func:`choose_cohort`.
        datalist: see :func:`choose_cohort`.
        bundle_root: see :func:`choose_cohort`.
        task: one of :data:`scripts.core.tasks.TASKS`.
        class_names: the classes of the labels.
        positive_classes: those that count as 1 in the binary task; ``None`` for the default.
        split_seed: of the split of a datalist without partitions, and of folds.
        leave_out: names of slides that are not used; the split stays as it is.
        backbone: the files of slides need not be there where features are imported.
        unit: what a bag is, see :func:`scripts.datalists.units.bags_of`.

    Attributes:
        positive_classes: as they are used; ``None`` but in the binary task.
        output_names: the K classes of which a network gives probabilities.
        logit_names: what its L logits stand for.

    Raises:
        SettingsError: if the task or the classes cannot be used.
    """

    def __init__(
        self,
        dataset_dir: str | Path | None,
        datalist: str | Path | None,
        bundle_root: str | Path,
        task: str,
        class_names: Sequence[str],
        positive_classes: Sequence[str] | None = None,
        split_seed: int = 0,
        leave_out: Sequence[str] = (),
        backbone: str = "",
        unit: str = SLIDE,
    ) -> None:
        self.positive_classes = resolve_positive_classes(task, class_names, positive_classes)
        self.output_names = output_names(task, class_names, self.positive_classes)
        self.logit_names = get_task(task).logit_names(self.output_names)
        self.task, self.class_names, self.unit = task, class_names, unit
        self._place = (dataset_dir, datalist, bundle_root)
        self._split: dict[str, Any] = {"seed": split_seed, "leave_out": leave_out, "need_files": needs_slides(backbone)}

    @cached_property
    def place(self) -> tuple[Path, Path]:
        """The folder of the slides, and the datalist."""
        return choose_cohort(*self._place)

    @property
    def datalist(self) -> Path:
        """The datalist."""
        return self.place[1]

    def partition(self, *names: str) -> list[dict[str, Any]]:
        """The entries of one or more partitions, see :func:`scripts.datalists.datalist.load_partition`.

        Raises:
            DatalistError: as that; or if a patient cannot be a bag, see
                :func:`scripts.datalists.units.check_patients`.
        """
        return self._checked([entry for name in names for entry in self._read(load_partition, name)])

    def all_partitions(self) -> dict[str, list[dict[str, Any]]]:
        """The entries of each partition that there is, see :func:`scripts.datalists.datalist.load_datalist`."""
        folder, file = self.place
        return load_datalist(file, folder, self.task, self.class_names, **self._options)

    def folds(self, number: int) -> Folds:
        """The slides for cross-validation, see :func:`scripts.datalists.folds.load_folds`.

        Raises:
            DatalistError: as that, or as :meth:`partition`.
        """
        folder, file = self.place
        folds = load_folds(file, folder, number, self.task, self.class_names, **self._options)
        self._checked(folds.entries)
        return folds

    def labels(self, name: str) -> Any:
        """Names and labels of a partition whose files need not be there."""
        return self._read(list_labels, name)

    def entries(self, data: Any, beside: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """Entries of data that may come from MONAI Label: see :func:`scripts.datalists.label_files.as_entries`."""
        return as_entries(data, self.task, self.class_names, self.positive_classes, beside)

    def datalist_of(self, data: Sequence[Mapping[str, Any]]) -> Path | None:
        """The datalist that data comes from; ``None`` for data that was passed in."""
        return self.datalist if all("slide" in entry for entry in data) else None

    def warn_of_one_sided(self, *names: str, **partitions: Sequence[Mapping[str, Any]]) -> None:
        """Warn of classes that no bag, or every bag, of a partition has.

        Args:
            names: partitions of the datalist.
            partitions: others, by name.
        """
        entries = {**{name: self.partition(name) for name in names}, **partitions}
        warn_of_one_sided(self.output_names, entries, unit=self.unit)

    def warn_of_one_sided_folds(self, split: Folds) -> None:
        """The same of folds: of the bags on which the weights of each are trained and chosen."""
        warn_of_one_sided(self.output_names, split.parts("training", "validation"), FOLDS_REMEDY, self.unit)

    @property
    def _options(self) -> dict[str, Any]:
        return {**self._split, "positive_classes": self.positive_classes}

    def _checked(self, entries: Any) -> Any:
        check_patients(bags_of(entries, self.unit), self.task)
        return entries

    def _read(self, reader: Callable[..., Any], name: str) -> Any:
        folder, file = self.place
        return reader(file, folder, name, self.task, self.class_names, **self._options)
