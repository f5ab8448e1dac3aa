"""The process that has torch and MONAI loaded, and from which tests fork commands: see ``tests/preloaded.py``.

Run by its path, so that nothing of the tests is in it. It ends when its input does.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing.process
import multiprocessing.spawn
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import types
from multiprocessing.synchronize import SemLock
from typing import Any, NoReturn

from itk.support.lazy import ITKLazyLoadLock

MODULES = (
    "albumentations", "cv2", "efficientnet_lite_pytorch", "fire", "h5py", "ignite.handlers", "imagecodecs",
    "matplotlib.pyplot", "monai.bundle", "monai.engines", "monai.handlers", "openslide", "pydicom", "sklearn.metrics",
    "tensorboard", "tifffile", "torch.utils.tensorboard",
)  # fmt: skip
MOST_FDS, MOST_BYTES, ABOVE_ALL = 64, 1 << 20, 1000


class Server:
    """Forks a process for each connection; tells its id there, and then how it ended; kills it if nobody waits."""

    def __init__(self, address: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(f"{address}.part")
        self.listener.listen(64)
        self.children: dict[int, socket.socket] = {}
        self.woken, self.wakes = socket.socketpair()
        for end in (self.woken, self.wakes):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakes.fileno())
        self.selector = selectors.DefaultSelector()
        for source in (self.listener, self.woken, sys.stdin):
            self.selector.register(source, selectors.EVENT_READ)
        os.rename(f"{address}.part", address)  # from now on it answers

    def next_command(self) -> dict[str, Any] | None:
        """Returns in the process that is to run a command, and None in this one, in the end."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    told = self.fork(self.listener.accept()[0])
                    if told is not None:
                        return told
                elif key.fileobj is sys.stdin:
                    for child in self.children:
                        os.kill(child, signal.SIGKILL)
                    return None
                elif key.fileobj is self.woken:
                    self.reap()
                else:  # whoever waited has gone
                    self.selector.unregister(key.fileobj)
                    for child in [child for child, waits in self.children.items() if waits is key.fileobj]:
                        os.kill(child, signal.SIGKILL)

    def fork(self, connection: socket.socket) -> dict[str, Any] | None:
        content, ancillary, _, _ = connection.recvmsg(MOST_BYTES, socket.CMSG_SPACE(MOST_FDS * 4))
        given = array.array("i")
        for _, _, data in ancillary:
            given.frombytes(data)
        told: dict[str, Any] = json.loads(content)
        child = os.fork()
        if child == 0:
            if told["leads_session"]:
                os.setsid()
            connection.send(str(os.getpid()).encode())
            self.leave(connection)
            _take(dict(zip(told["fds"], given, strict=True)))
            return told
        for fd in given:
            os.close(fd)
        self.children[child] = connection
        self.selector.register(connection, selectors.EVENT_READ)
        return None

    def reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.woken.recv(4096)
        for child, connection in list(self.children.items()):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                del self.children[child]
                with contextlib.suppress(KeyError):
                    self.selector.unregister(connection)
                with contextlib.suppress(BrokenPipeError):
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
                connection.close()

    def leave(self, connection: socket.socket) -> None:
        """In a child: nothing of the server stays."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for end in (self.listener, self.woken, self.wakes, connection, *self.children.values()):
            end.close()


def _take(given: dict[int, int]) -> None:
    """Give files the numbers that they had, whatever these are here."""
    above = {number: fcntl.fcntl(fd, fcntl.F_DUPFD, ABOVE_ALL) for number, fd in given.items()}
    for fd in given.values():
        os.close(fd)
    for number, fd in above.items():
        os.dup2(fd, number)
        os.close(fd)


def _share_no_locks() -> None:
    """Take the lock between processes out of ITK's lazy loading: whoever was killed in it would lock it for all.

    Raises:
        RuntimeError: if there is another lock that commands would share.
    """
    for lock in [found for found in gc.get_objects() if isinstance(found, ITKLazyLoadLock)]:
        lock.locks = [own for own in lock.locks if not isinstance(own, SemLock)]
    ITKLazyLoadLock.mp_lock = None
    gc.collect()
    shared = [found for found in gc.get_objects() if isinstance(found, SemLock)]
    if shared:
        raise RuntimeError(f"commands would share {shared}")


def _become(told: dict[str, Any], python: str, own_path: list[str]) -> None:
    """Make this process what a new interpreter would be."""
    import numpy as np

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in told["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    random.seed()
    np.random.seed()  # noqa: NPY002
    tempfile.tempdir = None
    sys.executable = python
    multiprocessing.spawn.set_executable(python)
    multiprocessing.process.ORIGINAL_DIR = told["folder"]  # type: ignore[attr-defined]
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = ["", *more, *own_path]
    sys.modules["__main__"] = types.ModuleType("__main__")


def _run(arguments: list[str]) -> None:
    first, *rest = arguments
    if first == "-m":
        sys.path[0] = os.getcwd()
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first in ("-c", "-"):
        sys.argv[:] = [first, *rest[first == "-c" :]]
        exec(rest[0] if first == "-c" else sys.stdin.read(), sys.modules["__main__"].__dict__)
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(first))
        sys.argv[:] = arguments
        runpy.run_path(first, run_name="__main__")


def _code_of(arguments: list[str]) -> int:
    """Run a command; the exit code that the interpreter would give it."""
    try:
        _run(arguments)
    except SystemExit as ended:
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(code: int) -> NoReturn:
    """End as the interpreter does, but for taking apart what was loaded, which takes longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def main(address: str, python: str, bytecode: str) -> None:
    own_path = sys.path[1:]
    for name in MODULES:
        importlib.import_module(name)
    _share_no_locks()
    # What commands import of the bundle is compiled once.
    sys.dont_write_bytecode, sys.pycache_prefix = False, bytecode
    told = Server(address).next_command()
    if told is None:
        os._exit(0)
    _become(told, python, own_path)
    _end(_code_of(told["arguments"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
