"""A web server on this machine that serves a folder's files, slowly or wrongly if a test says so."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

__all__ = ["FileServer", "serving"]


class FileServer:
    """What is asked of the server, and how it answers.

    Args:
        folder: the files' folder.

    Attributes:
        url: of the folder, without a slash at the end.
        asked: each ``GET`` of a whole file, by the file's name.
        parts: each ``GET`` of a part of a file.
        before: called with the name of a file before it is sent as a whole; may wait.
        status: answers other than the file, by its name.
        sends_parts: whether parts can be asked for.
        cut: bytes by which each file is cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.asked: list[str] = []
        self.parts: list[str] = []
        self.secrets: list[str] = []
        self.before: Callable[[str], object] = lambda name: None
        self.status: dict[str, int] = {}
        self.sends_parts, self.cut = True, 0

    def answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        path, _, query = request.path.partition("?")
        self.secrets.append(query)
        name = unquote(path.rpartition("/")[2])
        file = self.folder / name
        status = self.status.get(name, 200 if file.is_file() else 404)
        if status != 200:
            request.send_error(status)
            return
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", "")) if self.sends_parts else None
        if asked is None:
            request.send_response(200)
            request.send_header("Accept-Ranges", "bytes" if self.sends_parts else "none")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            if with_body:
                self.asked.append(name)
                self.before(name)
                request.wfile.write(content[: len(content) - self.cut])
            return
        self.parts.append(name)
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        request.send_header("Content-Length", str(last + 1 - first))
        request.end_headers()
        request.wfile.write(content[first : last + 1])


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """Serve a folder until the block ends."""
    files = FileServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files.answer(self, with_body=True)

        def do_HEAD(self) -> None:
            files.answer(self, with_body=False)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    files.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
