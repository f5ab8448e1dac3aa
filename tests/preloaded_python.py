"""The program that stands for Python where tests fork commands (``tests/preloaded.py``).

It asks for a command to be forked, hands on signals, and ends as the command does. What gains nothing by it is run by
Python itself. It has to start in hundredths of a second: nothing of the tests is imported here.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ask", "main", "request"]

SPAWNED = "from multiprocessing.spawn import spawn_main"
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def request(
    arguments: Sequence[str], environment: Mapping[str, str], folder: str, leads_session: bool
) -> dict[str, Any] | None:
    """What to ask for, or None where the arguments are not those of a command that gains from it."""
    left = list(arguments)
    while left and left[0] in ("-u", "-B"):
        del left[0]
    is_spawned = left[:1] == ["-c"] and left[1].startswith(SPAWNED)
    if not left or not (is_spawned or left[0] in ("-m", "-") or not left[0].startswith("-")):
        return None
    ignored = [int(number) for number in HANDED_ON if signal.getsignal(number) == signal.SIG_IGN]
    told = {"arguments": left, "environment": dict(environment), "folder": folder}
    return {**told, "leads_session": leads_session, "ignored": ignored}


def ask(address: str, told: Mapping[str, Any], fds: Mapping[int, int]) -> socket.socket:
    """The connection on which the process's id comes, and then its exit code."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    connection.connect(address)
    packed = array.array("i", list(fds.values()))
    content = json.dumps({**told, "fds": list(fds)}).encode()
    connection.sendmsg([content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
    return connection


def open_fds() -> dict[int, int]:
    """Those that this process was given."""
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    return {number: number for number in numbers if os.path.exists(f"/proc/self/fd/{number}")}


def main(address: str, python: str) -> None:
    told = request(sys.argv[1:], dict(os.environ), os.getcwd(), os.getsid(0) == os.getpid())
    if told is None:
        os.execv(python, [python, *sys.argv[1:]])
    fds = open_fds()
    for _ in range(6000):
        if os.path.exists(address):
            break
        time.sleep(0.02)
    connection = ask(address, told, fds)
    for number in fds:
        if number > 2:
            os.close(number)
    child = int(connection.recv(64))
    # Also where a shell that started this in the background had it ignored: the command may have changed that.
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    code = int(connection.recv(64) or -signal.SIGKILL)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
