"""The folder of slides that a server is given."""

from __future__ import annotations

import fnmatch
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from .reasons import BAD_REQUEST, SERVER_FAULT, RequestError

__all__ = ["check_ids", "find_mask", "find_slide_file"]


def check_ids(studies: str, patterns: Sequence[str]) -> None:
    """Refuse slides that share an id: MONAI Label would keep one of them, and give it the other's label.

    Args:
        studies: the folder; an address of another kind of datastore is not looked at.
        patterns: of the names of slides, such as ``*.svs``.

    Raises:
        RequestError: if two files differ in their suffix alone.
    """
    folder = Path(studies)
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    files: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            files[Path(name).stem].append(name)
    for same in files.values():
        if len(same) > 1:
            cause = f"{' and '.join(sorted(same))} would have the same id"
            raise RequestError(SERVER_FAULT, studies, cause, "Rename one, or move it out.")


def find_slide_file(image: str, folders: Iterable[str]) -> str | None:
    """The path of a slide that is asked for by its file instead of its id.

    Nothing is looked for in the folder that the server happens to run in, and nothing else on its disks is opened.

    Args:
        image: what a client gives as the slide.
        folders: those that slides may lie in, such as the studies.

    Returns:
        The path; ``None`` unless it is absolute, and of a file in one of the folders or of one that MONAI Label
        uploaded to a temporary file of its own.
    """
    if not os.path.isabs(image):
        return None
    path = os.path.normpath(image)
    allowed = _is_upload(path) or any(_is_in(path, folder) for folder in folders)
    return path if allowed and os.path.exists(path) else None


def find_mask(mask: object, studies: str) -> str:
    """The path of a tissue mask.

    Args:
        mask: what a client gives: a path in the studies, absolute or from there.
        studies: the folder of slides.

    Raises:
        RequestError: if it is elsewhere, of which nothing is told, or there is no such file.
    """
    remedy = "Give the path of a file in the server's folder of slides, or leave it out."
    if not isinstance(mask, str) or not mask:
        raise RequestError(BAD_REQUEST, "mask", f"got {mask!r}", remedy)
    path = os.path.normpath(os.path.join(os.path.abspath(studies), mask))
    if not _is_in(path, studies):
        raise RequestError(BAD_REQUEST, "mask", f"{mask} is not in the server's folder of slides", remedy)
    if not os.path.isfile(path):
        raise RequestError(BAD_REQUEST, "mask", f"there is no file {mask}", remedy)
    return path


def _is_upload(path: str) -> bool:
    """Whether a file has the kind of name under which MONAI Label keeps an upload while it is predicted."""
    folder, name = os.path.split(path)
    return folder == tempfile.gettempdir() and name.startswith(tempfile.gettempprefix()) and not os.path.islink(path)


def _is_in(path: str, folder: str) -> bool:
    """Whether a path lies in a folder by its name: what a link in there leads to, its keeper has put there."""
    return path.startswith(os.path.join(os.path.abspath(folder), ""))
