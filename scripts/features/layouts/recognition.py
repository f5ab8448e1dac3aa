"""Whose features a folder contains."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from scripts.core.errors import SettingsError
from scripts.core.repeats import first_names
from scripts.features.layouts.clam import CLAM
from scripts.features.layouts.foreign import Layout, files_of
from scripts.features.layouts.h5_kinds import h5_names
from scripts.features.layouts.slideflow import SLIDEFLOW
from scripts.features.layouts.stamp import STAMP
from scripts.features.layouts.trident import TRIDENT

__all__ = ["LAYOUTS", "recognise"]

LAYOUTS = (TRIDENT, CLAM, STAMP, SLIDEFLOW)
# Folders may have thousands of files, and a message has one line.
MOST_ENDINGS = 5


def recognise(folder: str | Path) -> tuple[Layout, dict[str, Path]]:
    """The layout of a folder, and the file of each slide by the slide's name.

    Raises:
        SettingsError: if there is no such folder, or it is of no known tool, or of several.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise SettingsError("features", f"{folder} is no folder", "Give the folder in which a tool wrote features.")
    found = _layouts(path)
    if len(found) > 1:
        tools = " and of ".join(f"{layout.tool} ({len(slides)} slides)" for layout, slides in found.items())
        raise SettingsError("features", f"{path} has features of {tools}", "Put them into a folder each.")
    inner = {} if found else {one: of for one in sorted(path.glob("*")) if one.is_dir() and (of := _layouts(one))}
    if inner:
        tools = first_names([f"{one.name} ({', '.join(layout.tool for layout in of)})" for one, of in inner.items()])
        cause = f"{path} has no features itself, and folders that have: {tools}"
        # Folders of encoders are beside each other, and each of a run's magnifications has such a folder.
        shown = [*inner][: 1 if all(one.name.startswith("features_") for one in inner) else MOST_ENDINGS]
        remedy = f'Give those of one encoder: --features "{[str(one) for one in shown]}".'
        raise SettingsError("features", cause, remedy)
    if not found:
        expected = "; ".join(f"{layout.tool}: {layout.expects}" for layout in LAYOUTS)
        cause = f"{path} is of no known tool: it has {_contents(path)}"
        raise SettingsError("features", cause, f"Expected is one of: {expected}.")
    return next(iter(found.items()))


def _layouts(folder: Path) -> dict[Layout, dict[str, Path]]:
    """The layouts of which a folder has features, with the file of each slide."""
    return {layout: slides for layout in LAYOUTS if (slides := layout.find(folder))}


def _contents(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    endings = Counter(os.path.splitext(path.name)[1] or path.name for path in files).most_common(MOST_ENDINGS)
    if not endings:
        return "no files"
    text = ", ".join(f"{count} {ending}" for ending, count in endings)
    names = h5_names(files_of(folder, ".h5", is_deep=True))
    if names is None and ".h5" in dict(endings):
        return f"{text}, of which no .h5 can be read"
    return text if names is None else f"{text}, the .h5 with {', '.join(names) or 'nothing'}"
