"""Slide files on disk: found by path or by id, and given names that are safe for outputs."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from scripts.errors import DatalistError

__all__ = ["SLIDE_SUFFIXES", "SlideFolder", "slide_names", "without_suffix"]

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms")

# File systems allow 255 bytes; outputs add the name of a head, a class and a suffix.
LONGEST_NAME_BYTES = 150

# By the first four a spreadsheet that opens predictions.csv knows a formula, by the last three MONAI a text of a config
# that it runs or looks up: `comparing` puts the names of slides that failed into configs.
LEADING_SIGNS = "=+-@$%"

# Devices on Windows, whatever suffix follows.
DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[1-9¹²³]) *(\..*)?", re.IGNORECASE)


class SlideFolder:
    """The folder that a datalist's paths start from.

    Args:
        folder: the folder; absolute paths may lead out of it.

    Raises:
        DatalistError: if it is no folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = os.path.abspath(os.path.expanduser(folder))
        if not os.path.isdir(self.folder):
            raise DatalistError(f"dataset_dir {folder}", "no such folder", "Give the folder of the slides.")

    def path(self, name: str | Path) -> str:
        """The absolute path of a name, whether the file exists or not."""
        return os.path.abspath(os.path.join(self.folder, os.path.expanduser(name)))

    def find(self, name: str | Path) -> str:
        """The absolute path of a slide.

        Args:
            name: a path, or the name of a slide anywhere in the folder without its suffix.

        Returns:
            The path; of a file that does not exist, if there is none.

        Raises:
            DatalistError: if several files fit.
        """
        path = self.path(name)
        if os.path.isfile(path) or path != without_suffix(path):
            return path
        end = os.path.join(os.sep, os.path.normpath(name))
        found = [
            file
            for file in self._by_stem.get(os.path.basename(path), [])
            if without_suffix(file) == path or without_suffix(file).endswith(end)
        ]
        if len(found) > 1:
            raise DatalistError(
                f"slide {name}",
                f"could be {found[0]} or {found[1]}",
                "Write its path from dataset_dir with the suffix.",
            )
        return found[0] if found else path

    @cached_property
    def slides(self) -> list[str]:
        """Absolute paths of all slides in the folder and its subfolders, sorted, hidden ones left out."""
        return sorted(self._walk())

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for file in self.slides:
            stems.setdefault(os.path.basename(without_suffix(file)), []).append(file)
        return stems

    def _walk(self) -> Iterator[str]:
        seen: set[str] = set()
        for root, folders, files in os.walk(self.folder, followlinks=True):
            # A link to a folder above would be followed for ever.
            if (real := os.path.realpath(root)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            for file in files:
                # macOS leaves files like ._a.svs beside a.svs on other file systems.
                if not file.startswith(".") and file != without_suffix(file):
                    yield os.path.join(root, file)


def slide_names(paths: Sequence[str], folder: str, wanted: Sequence[str | None] | None = None) -> list[str]:
    """Unique names of slides, each fit to be a part of a file name and unable to lead out of a folder.

    A slide is named after its file, without the suffix. What leads out of a folder or cannot be seen is replaced, and
    so is a sign at the start by which a spreadsheet knows a formula or MONAI an expression; the name of a device on
    Windows (``CON``) becomes ``_CON``. Where that name fits several, they are named after their paths from ``folder``
    (``a/s1.svs`` becomes ``a__s1``), if need be with suffix, and at last with a hash. Names that differ in case alone
    count as equal, since some file systems take them so.

    Args:
        paths: absolute paths, each once.
        folder: absolute path of the folder that the slides are in.
        wanted: names to prefer to those of the files.

    Raises:
        DatalistError: if two slides cannot be told apart by any of these.
    """
    relative = [os.path.relpath(path, folder) for path in paths]
    choices = [
        [
            _safe((wanted[i] if wanted else None) or os.path.basename(without_suffix(path))),
            _safe(without_suffix(relative[i])),
            _safe(relative[i]),
            f"{_safe(relative[i])}-{_short_hash(relative[i])}",
        ]
        for i, path in enumerate(paths)
    ]
    level = [0] * len(paths)
    while True:
        names = [choice[i] for choice, i in zip(choices, level, strict=True)]
        count = Counter(name.casefold() for name in names)
        clashing = [i for i, name in enumerate(names) if count[name.casefold()] > 1 and level[i] < 3]
        if not clashing:
            break
        for i in clashing:
            level[i] += 1
    taken: dict[str, str] = {}
    for path, name in zip(paths, names, strict=True):
        # Hashes of eight digits can be made to be equal.
        if (other := taken.setdefault(name.casefold(), path)) != path:
            raise DatalistError(path, f"would be called {name}, as {other} is", "Rename one of the two files.")
    return names


def without_suffix(path: str) -> str:
    """A path without the suffix of a slide; dots within a name stay."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in SLIDE_SUFFIXES else path


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def _safe(name: str) -> str:
    name = unicodedata.normalize("NFC", name).replace(os.sep, "/").removeprefix("/").replace("../", "")
    name = name.replace("/", "__")
    # What cannot be printed is a control character, an unusual space, or cannot be written as UTF-8.
    name = "".join(c if c.isprintable() and c not in '\\:*?"<>|' else "_" for c in name)
    name = name.strip(" .") or "slide"
    if name[0] in LEADING_SIGNS:
        name = f"_{name[1:]}"
    if DEVICE.fullmatch(name):
        name = f"_{name}"
    data = name.encode()
    if len(data) <= LONGEST_NAME_BYTES:
        return name
    return f"{data[: LONGEST_NAME_BYTES - 9].decode(errors='ignore')}-{_short_hash(name)}"
