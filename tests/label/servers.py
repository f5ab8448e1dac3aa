"""A real MONAI Label server in a process of its own, and the commands of the guide that start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "serving.md"
START_S = 120
REQUEST_S = 300


def guide_commands() -> dict[str, str]:
    """The shell commands of the guide by the name in the comment before each block."""
    text = GUIDE.read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- run: ([\w-]+) -->\n```sh\n(.*?)```", text, flags=re.DOTALL))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Shell:
    """Runs commands of the guide as a user does: from the repository's root, in the activated environment.

    Args:
        names: the names that the guide asks the user to set.
        env: further environment variables.
    """

    def __init__(self, names: Mapping[str, str], **env: str) -> None:
        self.names = dict(names)
        # As `. .venv-label/bin/activate` leaves it. Nothing of this process's own tests may leak in.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.env = {**kept, "PATH": path, **names, **env}
        self.commands = guide_commands()

    def run(self, name: str) -> str:
        """Run a block; its output. Anything but success fails the test with all that it said."""
        call = ["bash", "-euo", "pipefail", "-c", self.commands[name]]
        done = subprocess.run(call, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{self.commands[name]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


class Server:
    """A server that runs, and requests to it.

    Args:
        url: its address.
        log: the file with its output.
        process: what was started.
    """

    def __init__(self, url: str, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.url, self.log, self.process = url, log, process

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Any request; the answer, whatever it is."""
        return requests.request(method, self.url + path, timeout=REQUEST_S, **options)

    def ok(self, method: str, path: str, **options: Any) -> requests.Response:
        """A request that has to succeed; else the test fails with the answer and the end of the server's log."""
        answer = self.request(method, path, **options)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}\n{self.log_tail()}"
        return answer

    def infer(self, model: str, image: str, **params: Any) -> dict[str, Any]:
        """The reply to a plain request."""
        data = {"params": json.dumps(params)} if params else None
        return dict(self.ok("POST", f"/infer/{model}?image={image}&output=json", data=data).json())

    def wsi(self, model: str, image: str, output: str = "json", **wsi: Any) -> requests.Response:
        """The answer to a whole-slide request of the second version."""
        data = {"wsi": json.dumps(wsi)} if wsi else None
        return self.request("POST", f"/infer/wsi_v2/{model}?image={image}&output={output}", data=data)

    def refusal(self, method: str, path: str, **options: Any) -> tuple[int, str]:
        """The status and the reason of a request that has to fail."""
        answer = self.request(method, path, **options)
        assert answer.status_code >= 400, answer.text[:500]
        return answer.status_code, str(answer.json()["detail"])

    def train(self, shell: Shell) -> dict[str, Any]:
        """Train by the commands of the guide, and wait for the end; the task as the server tells it."""
        shell.run("train")
        end = time.monotonic() + REQUEST_S
        while time.monotonic() < end:
            task = json.loads(shell.run("progress"))
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return dict(task)
            time.sleep(1)
        raise AssertionError(f"training did not end\n{self.log_tail()}")

    def logs(self, text: str) -> bool:
        """Whether a text stands in the log, or comes within seconds: an error is logged after it was answered."""
        end = time.monotonic() + 5
        while text not in self.log.read_text(encoding="utf-8", errors="replace"):
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def log_tail(self) -> str:
        """The end of the server's output."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-6000:]


@contextmanager
def served(shell: Shell, name: str, log: Path) -> Iterator[Server]:
    """Start a server by a block of the guide, and stop it, come what may; whether it answers yet is :func:`wait_for`'s.

    Args:
        shell: whose commands these are.
        name: of the block.
        log: the file for the server's output.
    """
    call = ["bash", "-euo", "pipefail", "-c", shell.commands[name]]
    with log.open("wb") as output:
        process = subprocess.Popen(
            call, cwd=ROOT, env=shell.env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield Server(f"http://127.0.0.1:{shell.names['PORT']}", log, process)
        finally:
            # The session is the server's own: its trainings and workers go with it.
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(timeout=20)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def wait_for(server: Server) -> None:
    """Wait until a server answers; if it never does, the test fails with what it said."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        code = server.process.poll()
        assert code is None, f"the server ended with {code}\n{server.log_tail()}"
        try:
            if server.request("GET", "/info/").status_code == 200:
                return
        except requests.ConnectionError:
            time.sleep(0.3)
    raise AssertionError(f"the server did not start\n{server.log_tail()}")
