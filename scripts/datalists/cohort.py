"""Which slides a workflow runs on: the user's, or the demonstration's where none are given."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from scripts.core.errors import DatalistError
from scripts.core.ranks import from_first_rank
from scripts.datalists.slide_files import as_on_disk
from scripts.synthetic.cohort import ensure_cohort

__all__ = ["choose_cohort", "choose_slides"]

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
        dataset_dir: a folder of slides, or one slide.
        datalist: a list of slides.
        bundle_root: as in :func:`choose_cohort`.

    Raises:
        DatalistError: if there is no ``dataset_dir``.
    """
    if datalist is not None:
        return datalist, dataset_dir
    if dataset_dir is not None:
        if not os.path.exists(as_on_disk(os.path.expanduser(dataset_dir))):
            raise DatalistError(f"dataset_dir {dataset_dir}", "no such folder", "Give a folder of slides, or a slide.")
        return dataset_dir, None
    folder, _ = choose_cohort(None, None, bundle_root)
    return folder / "slides", None
