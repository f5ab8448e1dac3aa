"""What belongs into the distributable: its name, and which files of the repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from scripts.core.errors import SettingsError, printable
from scripts.core.sums import SUMS
from scripts.encoders.int8_networks import INT8_FILES

__all__ = ["FORBIDDEN", "NAME", "NECESSARY", "base_config", "belongs", "is_repository", "shared_files"]

NAME = "pathology_mustmil_classification"
"""The name of the bundle's folder. MONAI Label takes the kind of task from it: it must contain ``classification``."""

NECESSARY = ("configs/metadata.json", "LICENSE", "configs/inference.json")
"""The files that the Model Zoo asks of every bundle."""

FORBIDDEN = "\\:\0"
"""What the name of no file in a bundle has: elsewhere it leads to another folder or drive, or ends the name."""

SUFFIXES = {
    "configs": (".json", ".yaml", ".yml", ".conf"),
    "scripts": (".py", ".html"),
    "docs": (".md", ".txt", ".svg", ".png", ".jpg"),
}
SINGLE = ("LICENSE", "large_files.yml", "models/README.md")
# The Model Zoo names so what several GPUs change: multi_gpu_train.json is laid over train.json.
MULTI_GPU = "multi_gpu_"
# Others that are laid over a config.
OVERLAYS = {"paper.json": "train.json", "ablations.json": "compare.json"}


def belongs(name: str | PurePosixPath) -> bool:
    """Whether a file, named from the bundle's root, has a place in the distributable; its list of checksums has."""
    path = PurePosixPath(name)
    if not path.parts:
        return False
    if str(path) in (*SINGLE, SUMS):
        return True
    if any(part.startswith(".") or part == "__pycache__" for part in path.parts):
        return False
    if path.parts[0] == "models":
        return len(path.parts) == 2 and (path.match("model*.pt") or path.match(INT8_FILES))
    return len(path.parts) > 1 and path.suffix in SUFFIXES.get(path.parts[0], ())


def base_config(name: str) -> str | None:
    """The config that another one is laid over, as the second file of `--config_file`.

    Args:
        name: of the config's file, without its folder.

    Returns:
        The name of the other's file; ``None`` for a config that stands alone.
    """
    return OVERLAYS.get(name, name.removeprefix(MULTI_GPU) if name.startswith(MULTI_GPU) else None)


def is_repository(root: Path) -> bool:
    """Whether a folder is the source of bundles, not one that was packed."""
    return (root / "bundle" / "contents.py").is_file()


def shared_files(root: Path) -> tuple[list[str], list[str]]:
    """The files that every bundle of a repository has: all but weights.

    In a git work tree these are tracked files alone, as they are on the disk.

    Args:
        root: the bundle's root.

    Returns:
        Their names from the root, sorted, and those of the files beside them that are left out. Caches and hidden files
        are not mentioned.

    Raises:
        SettingsError: if there is a git work tree, and git cannot list its files; or if a file that would be packed is
            a link, or has a name that not every system can have.
    """
    known = _tracked(root)
    found = sorted(_walk(root))
    packed = [name for name in found if belongs(name) and (known is None or name in known)]
    for name in packed:
        _check_file(root, name)
    return packed, sorted(set(found) - set(packed))


def _check_file(root: Path, name: str) -> None:
    # What is no UTF-8 became surrogates, which cannot be seen.
    if not name.isprintable() or any(sign in name for sign in FORBIDDEN):
        raise SettingsError(printable(name), "has a name that not every system can have", "Give it a plain name.")
    path = PurePosixPath(name)
    if any((root / part).is_symlink() for part in (path, *path.parents[:-1])):
        raise SettingsError(name, "is a link, or in a folder that is one", "Put the file itself there.")


def _walk(root: Path) -> Iterator[str]:
    for folder in SUFFIXES:
        for path in (root / folder).rglob("*"):
            name = path.relative_to(root)
            if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in name.parts):
                yield name.as_posix()
    yield from (name for name in SINGLE if (root / name).is_file())


def _tracked(root: Path) -> set[str] | None:
    if not (root / ".git").exists():
        return None
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = os.fsdecode(getattr(error, "stderr", None) or str(error))
        raise SettingsError(
            root, f"git cannot list its files ({reason.strip()})", "Make `git ls-files` work there."
        ) from error
    return set(os.fsdecode(listed.stdout).split("\0"))
