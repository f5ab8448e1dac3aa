"""Writing files so that a killed run leaves the old one or the new one, never a part."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.errors import SettingsError

__all__ = ["claimed", "file_sha256", "output_folder", "replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes its name when the block ends, or goes if it fails.

    Raises:
        SettingsError: if the folder cannot be made or written to.
    """
    path = Path(path)
    output_folder(path.parent)
    # The suffix stays last, since many writers choose the format by it.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def output_folder(folder: str | Path) -> Path:
    """Make a folder for output.

    Raises:
        SettingsError: if it cannot be made or written to.
    """
    folder, remedy = Path(folder), "Choose a folder that you may write to."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(folder, f"cannot be made ({error.strerror})", remedy) from error
    if not os.access(folder, os.W_OK):
        raise SettingsError(folder, "is a folder that you may not write to", remedy)
    return folder


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Keep a folder for this process until the block ends, or the process does.

    Raises:
        SettingsError: if another process has it, or it cannot be made or written to.
    """
    with open(output_folder(folder) / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(
                folder, "another process is writing into it", "Wait for it to end, or choose another folder."
            ) from error
        yield


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        SettingsError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SettingsError(path, f"cannot be read ({error.strerror})", "Check the path.") from error
