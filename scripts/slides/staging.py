"""Slides on slow storage, copied to a folder of limited size ahead of their turn and removed after it."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from scripts.core.errors import BundleError, SettingsError, SlideError, no_room
from scripts.core.files import output_folder
from scripts.core.settings import check_settings
from scripts.slides.checksums import stamp_of
from scripts.slides.dicom_series import slide_parts
from scripts.slides.remote import check_installed, copy_of, file_name, is_remote, num_bytes

__all__ = ["AHEAD", "SlideStaging", "pulled_ahead"]

AHEAD = 2
"""The number of slides that are copied while another is under way, if there is room."""

PREFIX = "mustmil-slides-"
# Formats whose files beside the one that is named are unknown here; they are read where they are.
OF_SEVERAL_FILES = (".mrxs", ".vms", ".vmu")
COPIED_BYTES = 4 << 20

logger = logging.getLogger(__name__)
T = TypeVar("T")


class _Bag:
    """The slides of one bag, which are copied, used and removed together."""

    def __init__(self, images: Iterable[str]) -> None:
        self.images = list(images)
        self.paths: dict[str, Path] = {}
        self.errors: dict[str, BundleError] = {}
        self.folder: Path | None = None
        self.num_bytes = 0
        self.is_ready = threading.Event()
        self.is_done = False  # the thread that copies them
        self.is_over = False


class SlideStaging:
    """Copies slides to a fast folder before they are read: those behind addresses, and others if a folder is given.

    :meth:`begin` starts copying the slides of a bag in the background, in the order of the calls, as far as there is
    room; :meth:`local` waits for one, and :meth:`end` removes them. Each process has a folder of its own in
    ``slide_cache``, and removes there what processes that were killed have left.

    Args:
        slide_cache: the folder; ``None`` is the system's for temporary files, for slides behind addresses alone.
        slide_cache_gb: the gigabytes that a process's copies may take together.

    Raises:
        SettingsError: if a setting has no such value.
    """

    def __init__(self, slide_cache: str | Path | None = None, slide_cache_gb: float = 50.0) -> None:
        check_settings(slide_cache=slide_cache, slide_cache_gb=slide_cache_gb)
        self._takes_all = slide_cache is not None
        self._parent = Path(tempfile.gettempdir() if slide_cache is None else slide_cache).expanduser().absolute()
        self._max_bytes, self._max_gb = int(slide_cache_gb * 1e9), slide_cache_gb
        self._bags: dict[str, _Bag] = {}
        self._waiting: deque[_Bag] = deque()
        self._held, self._count = 0, 0
        self._changed = threading.Condition()
        self._folder: Path | None = None
        self._lock = contextlib.ExitStack()

    def takes(self, entry: Mapping[str, Any]) -> bool:
        """Whether the slide of an entry is copied before it is read.

        Raises:
            SettingsError: if what its address needs is not installed.
        """
        image = str(entry["image"])
        if is_remote(image):
            check_installed(image)
            return True
        if not self._takes_all or image.lower().endswith(OF_SEVERAL_FILES) or not os.path.isfile(image):
            return False
        return len(slide_parts(image)) == 1

    def begin(self, *entries: Mapping[str, Any]) -> None:
        """Start copying the slides of a bag.

        Raises:
            SettingsError: if ``slide_cache`` cannot be written to.
        """
        images = [str(entry["image"]) for entry in entries if self.takes(entry)]
        if not images:
            return
        bag = _Bag(images)
        with self._changed:
            if self._folder is None:
                self._folder = _own_folder(self._parent, self._lock)
                atexit.register(self.close)
            self._bags.update(dict.fromkeys(images, bag))
            self._waiting.append(bag)
            self._count += 1
            bag.folder = self._folder / str(self._count)
        # An executor would wait at the end of the process for a server that does not answer.
        threading.Thread(target=self._copy, args=(bag,), daemon=True, name="staging").start()

    def local(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """The entry with the path of its slide's copy, once it is there; itself, if its slide is not copied.

        Raises:
            SlideError: if it cannot be copied, or is behind an address and was not begun.
            SettingsError: if copies have no room.
        """
        image = str(entry["image"])
        bag = self._bags.get(image)
        if bag is None and is_remote(image):
            cause = "is behind an address, and is here only while its features are made or its scores are predicted"
            raise SlideError(image, cause, "For anything else copy it to a folder.")
        if bag is None:
            return entry
        bag.is_ready.wait()
        if (error := bag.errors.get(image)) is not None:
            raise type(error)(error.subject, error.cause, error.remedy)
        return {**entry, "image": str(bag.paths[image])}

    def is_here(self, entry: Mapping[str, Any]) -> bool:
        """Whether there is a file of the entry's slide, or a copy."""
        bag = self._bags.get(str(entry["image"]))
        path = entry["image"] if bag is None else bag.paths.get(str(entry["image"]), "")
        return os.path.exists(path)

    def end(self, *entries: Mapping[str, Any]) -> None:
        """Remove the copies of the slides of a bag; one that is under way is given up."""
        for bag in {self._bags.pop(str(entry["image"]), None) for entry in entries} - {None}:
            assert bag is not None
            self._end(bag)

    @contextlib.contextmanager
    def holding(self, *entries: Mapping[str, Any]) -> Iterator[None]:
        """Copy the slides of a bag, and remove the copies when the block ends."""
        self.begin(*entries)
        try:
            yield
        finally:
            self.end(*entries)

    def named(self, error: SlideError) -> SlideError:
        """An error about a copy as one about the slide."""
        for image, bag in list(self._bags.items()):
            if str(error.subject) == str(bag.paths.get(image)):
                return SlideError(image, error.cause, error.remedy)
        return error

    def close(self) -> None:
        """Remove all copies, and the process's folder."""
        bags, self._bags = list(self._bags.values()), {}
        for bag in bags:
            self._end(bag)
        folder, self._folder = self._folder, None
        if folder is not None:
            atexit.unregister(self.close)
            shutil.rmtree(folder, ignore_errors=True)
            self._lock.close()

    def _end(self, bag: _Bag) -> None:
        with self._changed:
            bag.is_over = True
            for image in bag.images:
                if image not in bag.paths:  # whoever waits for it need not wait for a server that does not answer
                    bag.errors.setdefault(image, _given_up(image))
            bag.is_ready.set()
            self._changed.notify_all()
            if bag.is_done:
                self._remove(bag)

    def _remove(self, bag: _Bag) -> None:
        if bag.folder is not None:
            shutil.rmtree(bag.folder, ignore_errors=True)
        self._held, bag.num_bytes = self._held - bag.num_bytes, 0
        self._changed.notify_all()

    def _copy(self, bag: _Bag) -> None:
        """Copy the slides of a bag when it is its turn and there is room; in a thread of its own."""
        try:
            sizes = {image: size for image in bag.images if (size := self._size(image, bag)) is not None}
            if self._has_room(bag, sum(sizes.values())):
                for number, image in enumerate(sizes):
                    self._copy_one(bag, image, sizes[image], number)
        except Exception as error:  # a fault of the program must not leave the run waiting
            fault = SlideError(bag.images[0], f"cannot be copied ({type(error).__name__}: {error})", "Report it.")
            bag.errors |= {image: fault for image in bag.images if image not in bag.paths}
        finally:
            with self._changed:
                if bag in self._waiting:
                    self._waiting.remove(bag)
                bag.is_done = True
                bag.is_ready.set()
                if bag.is_over:
                    self._remove(bag)
                self._changed.notify_all()

    def _size(self, image: str, bag: _Bag) -> int | None:
        """The bytes to keep free for a slide; all, where nobody says how many. Of one that fails ``None``."""
        try:
            size = num_bytes(image) if is_remote(image) else os.path.getsize(image)
        except BundleError as error:
            bag.errors[image] = error
            return None
        except OSError as error:
            bag.errors[image] = SlideError(image, f"cannot be read ({error.strerror})", "Check its rights.")
            return None
        return self._max_bytes if size is None else size

    def _has_room(self, bag: _Bag, num_bytes: int) -> bool:
        """Wait for the bag's turn and for room; whether there can be any."""
        fits = num_bytes <= self._max_bytes
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    bag.is_over or (self._waiting[0] is bag and (not fits or self._held + num_bytes <= self._max_bytes))
                )
            )
            self._waiting.remove(bag)
            self._changed.notify_all()
            if bag.is_over:
                return False
            if fits:
                self._held, bag.num_bytes = self._held + num_bytes, num_bytes
                return True
        what = "is" if len(bag.images) == 1 else "and the other slides of its patient are"
        cause = f"{what} {num_bytes / 1e9:.3g} GB, and `slide_cache_gb` is {self._max_gb:g}"
        for image in bag.images:
            bag.errors.setdefault(image, SlideError(image, cause, "Raise `slide_cache_gb`, or copy it to a folder."))
        return False

    def _copy_one(self, bag: _Bag, image: str, size: int, number: int) -> None:
        assert bag.folder is not None

        def on_bytes(copied: int) -> None:
            if bag.is_over:
                raise CancelledError
            if copied > size:
                raise SlideError(image, f"is larger than the {size} bytes that were announced", "Try again later.")

        name = file_name(image) if is_remote(image) else os.path.basename(image)
        path = bag.folder / str(number) / name
        try:
            path.parent.mkdir(parents=True)
            if is_remote(image):
                copy_of(image, path, on_bytes)
            else:
                _copy_file(image, path, on_bytes)
            bag.paths[image] = path
        except BundleError as error:
            bag.errors[image] = error
        except OSError as error:
            if (full := no_room(error)) is not None:
                remedy = "Make room, or choose another folder."
                bag.errors[image] = SettingsError("slide_cache", f"{self._parent} cannot be written: {full}", remedy)
            else:
                cause = f"cannot be copied to {self._parent} ({error.strerror})"
                bag.errors[image] = SlideError(image, cause, "Check its rights, or copy it again.")
        except CancelledError:
            bag.errors[image] = _given_up(image)
        if image in bag.errors:
            path.unlink(missing_ok=True)


def pulled_ahead(items: Iterable[T], count: int, may: Callable[[], bool] = lambda: True) -> Iterator[T]:
    """The items, each after ``count`` more were taken; none is taken ahead of its turn while ``may`` gives False."""
    ahead: deque[T] = deque()
    for item in items:
        ahead.append(item)
        while ahead and (len(ahead) > count or not may()):
            yield ahead.popleft()
    yield from ahead


def _given_up(image: str) -> SlideError:
    return SlideError(image, "was not copied to its end", "Run the same command again.")


def _copy_file(image: str, path: Path, on_bytes: Callable[[int], None]) -> None:
    stamp, copied = stamp_of(image), 0
    with open(image, "rb") as source, open(path, "wb") as copy:
        for part in iter(partial(source.read, COPIED_BYTES), b""):
            copied += len(part)
            on_bytes(copied)
            copy.write(part)
    if stamp_of(image) != stamp:
        raise SlideError(image, "was changed while it was read", "Run again once it is complete.")


def _own_folder(parent: Path, lock: contextlib.ExitStack) -> Path:
    """A folder that is locked until ``lock`` is closed or the process ends; those that nobody locks are removed."""
    output_folder(parent)
    for left in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, in use, gone already, or no folder
            if left.is_symlink() or left.stat().st_uid != os.getuid():
                continue
            with _locked_folder(left):
                shutil.rmtree(left, ignore_errors=True)
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            cause = f"no folder can be made in {parent} ({error.strerror})"
            raise SettingsError("slide_cache", cause, "Choose a folder that you may write to.") from error
        try:
            lock.enter_context(_locked_folder(folder))
        except (BlockingIOError, FileNotFoundError):  # another process was just looking for what was left
            continue
        except OSError:
            logger.warning("%s: its file system has no locks, and copies that a killed run leaves stay there", parent)
        if folder.exists():
            return folder


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder itself; raises an OSError if it is locked, or cannot be."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)
