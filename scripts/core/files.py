"""Writing files so that a killed run or a full disk leaves the old one or the new one, never a part."""

from __future__ import annotations

import atexit
import contextlib
import csv
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import socket
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.core.errors import SettingsError, no_room

__all__ = [
    "file_sha256",
    "lock",
    "locked",
    "output_folder",
    "refuse_special",
    "replacing",
    "unlock",
    "write_csv",
    "write_json",
]

# Process numbers are those of one machine.
MACHINE = f"{zlib.crc32(socket.gethostname().encode()):08x}"
PART = re.compile(r"\..*\.([0-9a-f]{8})-([0-9]+)\.part(\.[^.]*)?", re.DOTALL)
FORGOTTEN_AFTER_S = 24 * 3600
PROBE_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes its name when the block ends, or goes if it fails.

    The first time that a process writes into a folder, it removes the temporary files there of processes that were
    killed.

    Raises:
        SettingsError: if the folder cannot be made or written to, or has no room.
    """
    path = Path(path)
    _remove_left_parts(output_folder(path.parent).resolve())
    # The suffix stays last, since many writers choose the format by it.
    part = path.with_name(f".{path.stem}.{MACHINE}-{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        cause = _why_full(error, part)
        if cause is None:
            raise
        remedy = "Make room, or choose another folder; what was there before is as it was."
        raise SettingsError(path, f"cannot be written: {cause}", remedy) from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write plain values as indented JSON, in one step; raises as :func:`replacing`."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path: str | Path, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a table with a header, in one step; raises as :func:`replacing`.

    A file's name, which may be a cell, need not be UTF-8: other bytes are written as escapes.
    """
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([columns, *lines])


@functools.cache
def _remove_left_parts(folder: Path) -> None:
    for part in folder.glob(".*.part*"):
        found = PART.fullmatch(part.name)
        if found and _is_left(part, found[1], int(found[2])):
            part.unlink(missing_ok=True)


def _is_left(part: Path, machine: str, process: int) -> bool:
    try:
        if machine == MACHINE:
            os.kill(process, 0)
            return False
        # Only the time of the last write is known of a process on another machine.
        return time.time() - part.stat().st_mtime > FORGOTTEN_AFTER_S
    except ProcessLookupError:
        return True
    except (FileNotFoundError, PermissionError):
        return False


def _why_full(error: OSError | RuntimeError, part: Path) -> str | None:
    """Why there was no room for what was being written; ``None`` if that was not what failed."""
    if no_room(error) is not None:
        return no_room(error)
    # Libraries hide the reason, or say something of their own: the file system is asked, with a part that goes.
    try:
        with open(part, "ab") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as asked:
        return no_room(asked)
    return None


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


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Lock a folder for this process until the block ends, or the process does.

    Raises:
        SettingsError: if another process has locked it, or it cannot be made or written to.
    """
    path = Path(folder).absolute()
    with contextlib.ExitStack() as stack:
        lock_file = output_folder(path) / ".lock"
        while True:
            file = stack.enter_context(open(lock_file, "w", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SettingsError(
                    folder, "another process is writing into it", "Wait for it to end, or choose another folder."
                ) from error
            except OSError as error:  # a file system without locks
                logger.warning("%s: nothing keeps another process from writing into it (%s)", folder, error.strerror)
            # The previous owner may have removed the file since; the next process would then lock another file.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(lock_file)):
                    break
        _locked.add(path)
        try:
            yield
        finally:
            _locked.discard(path)
            lock_file.unlink(missing_ok=True)


_locked: set[Path] = set()
_locks: dict[Path, contextlib.ExitStack] = {}


def lock(folder: str | Path) -> None:
    """Lock a folder for this process until :func:`unlock`, or until the process ends.

    A folder that this process has locked already, by this or by :func:`locked`, stays as it is.

    Raises:
        SettingsError: as :func:`locked`.
    """
    path = Path(folder).absolute()
    if path not in _locked:
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(path))
            _locks[path] = stack.pop_all()


def unlock(folder: str | Path) -> None:
    """Unlock a folder that :func:`lock` has locked; others stay as they are."""
    stack = _locks.pop(Path(folder).absolute(), None)
    if stack is not None:
        stack.close()


@atexit.register
def _unlock_all() -> None:
    # Later, modules that this needs are gone.
    for folder in list(_locks):
        unlock(folder)


def refuse_special(path: str | Path) -> None:
    """Refuse a pipe, a device or a socket in the place of a file: reading one may never end.

    What is not there, and folders, are left to the reader, who knows what to say of them.

    Raises:
        SettingsError: if it is one.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise SettingsError(path, "is a pipe, a device or a socket, not a file", "Give the path of a file.")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        SettingsError: if it cannot be read, or is no file.
    """
    refuse_special(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SettingsError(path, f"cannot be read ({error.strerror})", "Check the path.") from error
