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
    """Make an HDF5 file.

    After a write that failed, HDF5 takes the process down when it ends, at the latest. So it is never told: the rest
    goes nowhere, and the error is raised here.

    Args:
        path: the file, replaced if it is there.

    Yields:
        the file, and what raises the error of a write that failed, to be called now and then; the end of the block
        calls it, too.

    Raises:
        OSError: what the file system said to a write.
    """
    with _DeferringFile(path, "w+") as plain:
        try:
            with h5py.File(plain, "w") as file:
                yield file, plain.check
        finally:
            plain.check()


class _DeferringFile(io.FileIO):
    """A file whose writes never fail, but for :meth:`check` afterwards."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            # A write that reaches the end of the disk takes a part.
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
