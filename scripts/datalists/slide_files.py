"""Slide files on disk: found by path or by id, and given names that are safe for outputs."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from scripts.core.errors import DatalistError
from scripts.core.repeats import first_names
from scripts.datalists.keys import composed
from scripts.slides.dicom_series import dicom_slides, folder_slides, instance_of, may_be_dicom, series_files, slide_of
from scripts.slides.remote import file_name, is_remote, place

__all__ = [
    "CHECK_NAME",
    "NAME_IT",
    "SLIDE_SUFFIXES",
    "SlideFolder",
    "as_on_disk",
    "each_file_once",
    "missing_slide",
    "real_path",
    "safe_name",
    "slide_name",
    "slide_names",
    "without_suffix",
]

# Suffixes that cuCIM or OpenSlide read; a longer one comes before the ones that it ends in.
SLIDE_SUFFIXES = (
    *(".svs", ".ome.tif", ".ome.tiff", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide"),
    *(".czi", ".avs", ".dcm"),
)

NAME_IT = "To have a file opened whatever its name, give it as `dataset_dir` or name it in a datalist."
"""What to do about files that are not looked at."""

CHECK_NAME = "Check the name, and dataset_dir: the folder that paths start from."
"""What to do about a file that is not there."""

SHOWN_FILES = 3

# File systems allow 255 bytes; outputs add the name of a head, a class and a suffix.
LONGEST_NAME_BYTES = 150

# A spreadsheet that opens predictions.csv takes a name with one of the first four for a formula. MONAI takes one with
# one of the last three for an expression: `comparing` puts the names of slides that failed into configs.
LEADING_SIGNS = "=+-@$%"


class SlideFolder:
    """The folder that a datalist's paths start from; absolute paths may lead out of it.

    Raises:
        DatalistError: if it is no folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = as_on_disk(os.path.abspath(os.path.expanduser(folder)))
        if not os.path.isdir(self.folder):
            raise DatalistError(f"dataset_dir {folder}", "no such folder", "Give the folder of the slides.")
        self._unread: dict[str, str] = {}

    def path(self, name: str | Path) -> str:
        """The absolute path of a name as the disk spells it; as it was given, if there is no such file."""
        return as_on_disk(os.path.abspath(os.path.join(self.folder, os.path.expanduser(name))))

    def find(self, name: str | Path) -> str:
        """The absolute path of a slide.

        Args:
            name: a path, or the name of a slide anywhere in the folder without its suffix. A DICOM slide is found by
                any of its files, and by the folder that contains nothing else; its path is that of its first level by
                name. An address is its own path.

        Returns:
            The path, of a file that does not exist if no slide fits.

        Raises:
            DatalistError: if several files fit.
        """
        if is_remote(name):
            return str(name)
        path = self.path(name)
        if os.path.isfile(path):
            return slide_of(path)
        in_folder = folder_slides(path) if os.path.isdir(path) else []
        if len(in_folder) == 1:
            return in_folder[0]
        if in_folder:
            remedy = f"Name a file of the one that is meant, such as {os.path.basename(in_folder[0])}."
            raise DatalistError(f"slide {name}", f"is a folder of {len(in_folder)} DICOM slides", remedy)
        if path != without_suffix(path):
            return path
        end = composed(os.path.join(os.sep, os.path.normpath(name)))
        found = self._by_stem.get(os.path.basename(end), [])
        # An absolute name is the end of one path alone: its own.
        found = [file for file in found if any(stem.endswith(end) for stem in _stems(file))]
        if len(found) > 1:
            remedy = "Write its path from dataset_dir with the suffix."
            raise DatalistError(f"slide {name}", f"could be {found[0]} or {found[1]}", remedy)
        # A link to nothing comes after every slide of its name, and is returned so that an error can name it.
        links = [link for link in self._unread if os.path.islink(link) and any(s.endswith(end) for s in _stems(link))]
        return [*found, *links, path][0]

    @cached_property
    def slides(self) -> list[str]:
        """Absolute paths of all slides in the folder and its subfolders that are not hidden, sorted.

        That of a DICOM slide is the first of its levels by name.
        """
        of_series = dicom_slides(self._files)
        left = [file for file in self._files if file not in of_series and file != without_suffix(file)]
        # A DICOM file that can be read, and is of no series, is of something else.
        return sorted({*of_series.values(), *(f for f in left if not may_be_dicom(f) or instance_of(f) is None)})

    def not_looked_at(self) -> str | None:
        """What is in the folder and not among its slides, in words with the reason; ``None`` if nothing is."""
        of_series, slides = dicom_slides(self._files), set(self.slides)
        left = [file for file in self._files if file not in of_series and file not in slides]
        others = [file for file in left if file == without_suffix(file)]
        no_levels = [file for file in left if file != without_suffix(file)]

        def shown(files: Sequence[str]) -> str:
            return first_names([os.path.relpath(file, self.folder) for file in files], shown=SHOWN_FILES)

        unread = [f"{path} cannot be read ({reason})" for path, reason in sorted(self._unread.items())]
        causes = unread[:SHOWN_FILES]
        if more := len(unread) - len(causes):
            causes.append(f"{more} more cannot be read")
        if others:
            files = "1 file does" if len(others) == 1 else f"{len(others)} files do"
            causes.append(f"{files} not end in {', '.join(SLIDE_SUFFIXES)} ({shown(others)})")
        if no_levels:
            files = "1 DICOM file belongs" if len(no_levels) == 1 else f"{len(no_levels)} DICOM files belong"
            causes.append(f"{files} to no whole slide image ({shown(no_levels)})")
        return "; ".join(causes) or None

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for file in self.slides:
            for stem in _stems(file):
                stems.setdefault(os.path.basename(stem), []).append(file)
        return stems

    @cached_property
    def _files(self) -> list[str]:
        def note(error: OSError) -> None:
            self._unread[str(error.filename)] = str(error.strerror)

        found: list[str] = []
        seen: set[str] = set()
        for root, folders, files in os.walk(self.folder, onerror=note, followlinks=True):
            # A link to a folder above would be followed for ever.
            if (real := os.path.realpath(root)) in seen:
                folders.clear()
                continue
            seen.add(real)
            # The folder a beside a.mrxs holds that slide's data, among them this file.
            of_slides = {os.path.splitext(file)[0] for file in files if file.lower().endswith(".mrxs")}
            of_slides = {name for name in of_slides if os.path.isfile(os.path.join(root, name, "Slidedat.ini"))}
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in of_slides)
            for file in files:
                path = os.path.join(root, file)
                # macOS leaves files like ._a.svs beside a.svs on other file systems.
                if file.startswith("."):
                    continue
                if os.path.islink(path) and not os.path.exists(path):
                    self._unread[path] = f"it links to {os.readlink(path)}, which is not there"
                else:
                    found.append(path)
        return sorted(found)


def slide_names(paths: Sequence[str], folder: str, wanted: Sequence[str | None] | None = None) -> list[str]:
    """Unique names of slides, each safe in the name of a file and unable to lead out of a folder.

    A slide is named after its file, without the suffix; a DICOM slide of several files after the folder that contains
    nothing else. What leads out of a folder or cannot be seen is replaced, and so is a sign at the start by which a
    spreadsheet knows a formula or MONAI an expression. Where that name fits several, they are named after their paths
    from ``folder`` (``a/s1.svs`` becomes ``a__s1``), if need be with suffix, and at last with a hash. Names that differ
    only in case count as equal, since some file systems take them so.

    Args:
        paths: absolute paths and addresses, each once.
        folder: absolute path of the folder that the slides are in.
        wanted: names to prefer to those of the files.

    Raises:
        DatalistError: if two slides cannot be told apart by any of these.
    """
    choices = []
    for path, own in zip(paths, wanted or [None] * len(paths), strict=True):
        if is_remote(path):
            last, named, relative = file_name(path), place(path), place(path)
        else:
            last, relative = os.path.basename(_named(path)), os.path.relpath(path, folder)
            named = os.path.relpath(_named(path), folder)
        names = [own or without_suffix(last), without_suffix(named), relative]
        choices.append([*map(safe_name, names), f"{safe_name(relative)}-{_short_hash(relative)}"])
    level = [0] * len(paths)
    while True:
        names = [choice[i] for choice, i in zip(choices, level, strict=True)]
        count = Counter(name.casefold() for name in names)
        clashing = [i for i, name in enumerate(names) if count[name.casefold()] > 1 and level[i] < 3]
        if not clashing:
            break
        for i in clashing:
            level[i] += 1
    for path, name in zip(paths, names, strict=True):
        # Hashes of eight digits can be made to be equal.
        if count[name.casefold()] > 1:
            raise DatalistError(path, f"would be called {name}, as another slide is", "Rename its file.")
    return names


def slide_name(path: str) -> str:
    """The name of a single slide, see :func:`slide_names`."""
    path = os.path.abspath(path)
    return slide_names([path], os.path.dirname(path))[0]


def each_file_once(slides: Sequence[str]) -> list[str]:
    """Slides of a folder without links to others of them."""
    of_file: dict[str, str] = {}
    for slide in sorted(slides, key=os.path.islink):
        of_file.setdefault(real_path(slide), slide)
    return [slide for slide in slides if of_file[real_path(slide)] == slide]


def real_path(path: str) -> str:
    """A path without links; one that no file can have, as it is."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return path


def without_suffix(path: str) -> str:
    """A path without the suffix of a slide, of which ``.ome.tiff`` is one; other dots in a name stay."""
    for suffix in SLIDE_SUFFIXES:
        if path.lower().endswith(suffix) and len(os.path.basename(path)) > len(suffix):
            return path[: -len(suffix)]
    return path


def missing_slide(path: str) -> tuple[str, str]:
    """What is missing where a slide's file is not there, and what to do."""
    if os.path.islink(path):
        return f"no file {os.readlink(path)}, which {path} links to", CHECK_NAME
    suffixes = f" with a suffix like {', '.join(SLIDE_SUFFIXES)}" if path == without_suffix(path) else ""
    return f"no file {path}{suffixes}", CHECK_NAME


def _named(path: str) -> str:
    """What a slide is named after: its file, or the folder that a DICOM slide of several files has for itself."""
    files = series_files(path) if may_be_dicom(path) else []
    if len(files) < 2:
        return path
    with os.scandir(folder := os.path.dirname(files[0])) as entries:
        others = any(entry.path not in files and _is_of_a_slide(entry.path) for entry in entries)
    return path if others else folder


def _is_of_a_slide(file: str) -> bool:
    instance = instance_of(file) if may_be_dicom(file) else None
    return file != without_suffix(file) if instance is None else instance.is_level


def _stems(file: str) -> set[str]:
    """The paths without suffix by which a slide may be named: ``a.ome.tiff`` is known as ``a`` and as ``a.ome``."""
    return {composed(stem) for stem in (without_suffix(file), os.path.splitext(file)[0], without_suffix(_named(file)))}


def as_on_disk(path: str) -> str:
    """A path whose accents are encoded as the disk has them, where one file alone fits; the path itself elsewhere."""
    if path.isascii() or os.path.exists(path):
        return path
    folder, name = os.path.split(path)
    folder = as_on_disk(folder)
    try:
        found = [entry for entry in os.listdir(folder or os.curdir) if composed(entry) == composed(name)]
    except (OSError, ValueError):  # no name on a disk has a null character
        found = []
    return os.path.join(folder, found[0] if len(found) == 1 else name)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def safe_name(name: str) -> str:
    """A slide's name as that of a file: short enough, and without what :func:`slide_names` replaces."""
    name = composed(name).replace(os.sep, "/").removeprefix("/").replace("../", "")
    name = name.replace("/", "__")
    # Control characters, unusual spaces, and bytes that are not UTF-8 cannot be printed.
    name = "".join(c if c.isprintable() and c not in '\\:*?"<>|' else "_" for c in name)
    name = name.strip(" .") or "slide"
    if name[0] in LEADING_SIGNS:
        name = f"_{name[1:]}"
    data = name.encode()
    if len(data) <= LONGEST_NAME_BYTES:
        return name
    return f"{data[: LONGEST_NAME_BYTES - 9].decode(errors='ignore')}-{_short_hash(name)}"
