"""What is known of the slides of imported features: by the datalist, and by the slides themselves, where they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from scripts.bags.bag import BagBuilder
from scripts.core.errors import DatalistError, SlideError
from scripts.datalists.cohort import DATALISTS
from scripts.datalists.keys import composed
from scripts.datalists.listed import list_file, list_folder
from scripts.datalists.problems import raise_first
from scripts.datalists.slide_files import as_on_disk, safe_name, without_suffix
from scripts.features.imported_scales import GIVEN_MPP, Base
from scripts.slides.checksums import slide_sha256
from scripts.slides.resolution import ResolutionError
from scripts.slides.slide import Slide

__all__ = ["KnownSlides"]


class KnownSlides:
    """The slides of a datalist or folder, found by the names that other tools give them: the file's without suffix.

    Args:
        dataset_dir: the folder of the slides, or ``None``.
        datalist: the datalist, by default that in ``dataset_dir``; labels are not looked at, and files need not exist.
            Without both, nothing is known.
        bag_builder: opens the slides.
        mpp: micrometres per pixel of level 0, for slides whose files do not say it.

    Raises:
        DatalistError: if the datalist or the folder cannot be used.
    """

    def __init__(
        self,
        dataset_dir: str | Path | None,
        datalist: str | Path | None,
        bag_builder: BagBuilder,
        mpp: float | None = None,
    ) -> None:
        self.bag_builder, self.mpp = bag_builder, mpp
        self._entries: dict[str, dict[str, Any]] = {}
        self._opened: Slide | None = None
        listed = _listed(dataset_dir, datalist)
        for entry in listed:
            self._entries[composed(str(entry["slide"]))] = entry
        # The name of a file may be that of two slides in two folders, or another slide's own name.
        by_file: dict[str, list[dict[str, Any]]] = {}
        for entry in listed:
            image = os.path.basename(str(entry["image"]))
            for name in {composed(without_suffix(image)), composed(os.path.splitext(image)[0])}:
                by_file.setdefault(name, []).append(entry)
        for name, of_name in by_file.items():
            if name in self._entries and self._entries[name] not in of_name:
                of_name.append(self._entries[name])
        self._ambiguous = {name: of for name, of in by_file.items() if len(of) > 1}
        self._entries = {name: of[0] for name, of in by_file.items() if len(of) == 1} | self._entries

    def __bool__(self) -> bool:
        return bool(self._entries)

    def has(self, slide: str) -> bool:
        """Whether a slide is in the datalist."""
        return composed(slide) in self._entries or composed(slide) in self._ambiguous

    def name_of(self, slide: str) -> str:
        """The datalist's name of a slide; one that is not in it gets the name that a datalist would give it."""
        entry = self._entries.get(composed(slide))
        return safe_name(slide) if entry is None else str(entry["slide"])

    def look(self, slide: str) -> Base | None:
        """Level 0 of a slide; ``None`` where nothing is known of it.

        Raises:
            SlideError: if its file is there and cannot be read, or two slides of the datalist have its name.
        """
        if (several := self._ambiguous.get(composed(slide))) is not None:
            cause = f"is the name of {' and '.join(str(entry['image']) for entry in several)}"
            raise SlideError(slide, cause, "Rename the slide and its features.")
        entry, self._opened = self._entries.get(composed(slide)), None
        if entry is None:
            return None
        if not os.path.exists(entry["image"]):
            return None if entry.get("mpp") is None else Base(float(entry["mpp"]), "datalist: mpp", None)
        try:
            opened, source = self.bag_builder.open_slide(entry), None
        except ResolutionError:
            if self.mpp is None or entry.get("mpp") is not None:
                raise
            opened, source = self.bag_builder.open_slide(entry, self.mpp), GIVEN_MPP
        self._opened = opened
        return Base(opened.base_mpp, source or opened.resolution.source, opened.size_level0)

    def sha256(self, slide: str) -> str | None:
        """The SHA-256 of the file of the slide that was looked at last; ``None`` if it is not there. Reads all of it.

        Raises:
            SlideError: if it is not the one that the datalist means, or was changed since.
        """
        if self._opened is None:
            return None
        found, stamp = slide_sha256(self._entries[composed(slide)])
        self._opened.check_unchanged(since=stamp)
        return found


def _listed(dataset_dir: str | Path | None, datalist: str | Path | None) -> list[dict[str, Any]]:
    if dataset_dir is None and datalist is None:
        return []
    if dataset_dir is not None:
        folder = Path(as_on_disk(os.path.expanduser(dataset_dir)))
        if not folder.is_dir():
            raise DatalistError(f"dataset_dir {dataset_dir}", "no such folder", "Give the folder of the slides.")
        datalist = datalist or next((folder / name for name in DATALISTS if (folder / name).is_file()), None)
        if datalist is None:
            listing = list_folder(folder)
            raise_first(listing.problems)
            return [slide.entry(listing.folder) for slide in listing.slides]
    assert datalist is not None
    listing = list_file(Path(datalist).expanduser(), dataset_dir, labelled=False)
    raise_first(listing.problems)
    return [slide.entry(listing.folder) for slide in listing.slides]
