"""Writing HDF5 so that a full disk is an error, not a crash."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

__all__ = ["writing_hdf5"]


@contextmanager
def writing_hdf5(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Open an HDF5 file for writing, replacing any file that is there.

    After a failed write HDF5 crashes the process, at the latest when it closes the file. So it never learns of a
    failure: what it writes from then on is discarded, and the error is raised here.

    Yields:
        the file, and a function that raises the error of a failed write; the end of the block calls it, too.

    Raises:
        OSError: of the first write that failed.
    """
    with _DeferringFile(path, "w+") as plain:
        try:
            with h5py.File(plain, "w") as file:
                yield file, plain.check
        finally:
            plain.check()


class _DeferringFile(io.FileIO):
    """A file whose writes raise nothing until :meth:`check`."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            # A write that reaches the end of the disk writes some of it.
            while done < len(view) and self.error is None:
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        if self.error is not None:
            raise self.error
