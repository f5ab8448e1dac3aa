"""Slides behind addresses (URLs), reached with fsspec, which is imported where there is one.

An address may carry a password, or a query that is as good as one. Everything else knows a slide by its address
without them (:func:`known_as`); what was left out stays in this process's memory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from scripts.core.errors import BundleError, DatalistError, SettingsError, SlideError, no_room, reason_of

__all__ = [
    "PROTOCOLS",
    "check_installed",
    "copy_of",
    "ends",
    "file_name",
    "is_remote",
    "known_as",
    "num_bytes",
    "place",
    "sizes",
]

# What fsspec needs for each. Others are refused: a datalist may come from someone else.
PROTOCOLS = {"https": "aiohttp", "http": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
# Slides that are several files, of which an address names one.
OF_SEVERAL_FILES = (".mrxs", ".vms", ".vmu", ".dcm")
# Names there may contain any sign, `?` and `#` included.
STORES = ("s3", "gs")
# Of one connection or one read; a large slide as a whole may take longer.
WAIT_SECONDS = 60
LOOKS_AT_ONCE = 8

REMEDY = "Check the address and your rights there, or leave the slide out."

_given: dict[str, str] = {}


def is_remote(name: str | Path) -> bool:
    """Whether a slide's name is an address."""
    return "://" in str(name)


def known_as(name: str) -> str:
    """An address without user, password and, of the web, query; any other name as it is.

    Raises:
        DatalistError: if slides are not read from such an address.
    """
    if not is_remote(name):
        return name
    protocol = name.partition("://")[0].lower()
    try:
        address = _without_secrets(name)
    except ValueError as error:
        raise DatalistError(f"an address of {protocol}://", f"is none ({reason_of(error)})", REMEDY) from None
    if protocol not in PROTOCOLS:
        remedy = f"Use one of {', '.join(f'{known}://' for known in PROTOCOLS)}, or the path of a file."
        raise DatalistError(f"slide {address}", f"slides are not read from {protocol}://", remedy)
    if address.endswith("/"):
        cause = "names a folder, whose slides cannot be listed"
        raise DatalistError(f"slide {address}", cause, "Name each slide in a datalist.")
    if file_name(address).lower().endswith(OF_SEVERAL_FILES):
        remedy = "Copy all its files to a folder, or convert it to one pyramidal TIFF."
        raise DatalistError(f"slide {address}", "is one of several files, and an address names only one", remedy)
    _given[address] = name
    return address


def file_name(address: str) -> str:
    """The name of the file behind an address."""
    name = os.path.basename(unquote(urlsplit(address).path) if _is_web(address) else address)
    return name.replace("\0", "_") if name not in ("", ".", "..") else "slide"


def place(address: str) -> str:
    """An address as a relative path: ``bucket/folder/s1.svs``."""
    return address.partition("://")[2]


@functools.cache
def num_bytes(address: str) -> int | None:
    """The size of the file behind an address, asked for once; ``None`` if the server does not say it.

    Raises:
        SlideError: if there is none, or it may not be read.
        SettingsError: if what its protocol needs is not installed.
    """
    files = _file_system(address)
    with _naming(address):
        size = files.info(_given.get(address, address)).get("size")
        return None if size is None else int(size)


def sizes(addresses: Sequence[str]) -> dict[str, int]:
    """The sizes of files behind addresses, several asked for at once; 0 where it is not known.

    Raises:
        SettingsError: if what a protocol needs is not installed.
    """

    def size(address: str) -> int:
        with contextlib.suppress(SlideError):
            return num_bytes(address) or 0
        return 0

    with ThreadPoolExecutor(LOOKS_AT_ONCE) as threads:
        return dict(zip(addresses, threads.map(size, addresses), strict=True))


def ends(address: str, count: int) -> tuple[int, bytes, bytes] | None:
    """The size of the file behind an address, and its first and last bytes; ``None`` if the server sends no parts.

    Raises:
        SlideError: if it cannot be read.
        SettingsError: if what its protocol needs is not installed.
    """
    files = _file_system(address)
    with _naming(address):
        try:
            with files.open(_given.get(address, address), "rb", block_size=count, cache_type="none") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                start = file.read(min(count, size))
                file.seek(max(0, size - count))
                return size, start, file.read(min(count, size))
        except ValueError:  # fsspec's of servers that send a file whole or not at all
            return None


def copy_of(address: str, path: Path, on_bytes: Callable[[int], None]) -> None:
    """Copy the file behind an address.

    Args:
        address: as :func:`known_as` gives it.
        path: where to.
        on_bytes: called with the number of bytes so far; what it raises ends the copy.

    Raises:
        SlideError: if it cannot be read, or not to its end.
        SettingsError: if there is no room for it, or what its protocol needs is not installed.
    """
    files = _file_system(address)
    from fsspec.callbacks import Callback

    callback = Callback(hooks={"copied": lambda size, value, **_: on_bytes(value)})
    with _naming(address):
        files.get_file(_given.get(address, address), str(path), callback=callback)
    expected, copied = num_bytes(address), path.stat().st_size
    if expected not in (None, copied):
        raise SlideError(address, f"was cut off: {copied} of {expected} bytes came", "Run the same command again.")


def _is_web(address: str) -> bool:
    return address.lower().startswith("http")


def _without_secrets(name: str) -> str:
    scheme, rest = name.split("://", 1)
    if scheme.lower() in STORES:
        host, slash, path = rest.partition("/")
        return f"{scheme.lower()}://{host.rpartition('@')[2]}{slash}{path}"
    parts = urlsplit(f"http://{rest}")
    return urlunsplit((scheme.lower(), parts.netloc.rpartition("@")[2], parts.path, "", ""))


@functools.cache
def _of_protocol(protocol: str) -> Any:
    try:
        import fsspec

        if not _is_web(protocol):
            return fsspec.filesystem(protocol)
        import aiohttp

        # By default aiohttp ends whatever takes five minutes; and a compressed file has another size than is stated.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=WAIT_SECONDS, sock_read=WAIT_SECONDS)
        return fsspec.filesystem(
            protocol, headers={"Accept-Encoding": "identity"}, client_kwargs={"timeout": timeout, "trust_env": True}
        )
    except ImportError:
        cause = f"slides behind such addresses need {PROTOCOLS[protocol]}, which is not installed"
        raise SettingsError(f"{protocol}://", cause, "Run: pip install '.[remote]'") from None


def check_installed(address: str) -> None:
    """Refuse an address whose protocol needs what is not installed.

    Raises:
        SettingsError: if it does.
    """
    _file_system(address)


def _file_system(address: str) -> Any:
    return _of_protocol(address.partition("://")[0])


@contextlib.contextmanager
def _naming(address: str) -> Iterator[None]:
    """Turn the errors of all protocols into one that names the address, and nothing that is secret."""
    try:
        yield
    except (BundleError, CancelledError):
        raise
    except Exception as error:  # each protocol's library has kinds of its own
        if (full := no_room(error)) is not None:
            remedy = "Make room, or choose another `slide_cache`."
            raise SettingsError("slide_cache", f"cannot be written: {full}", remedy) from None
        raise SlideError(address, _cause(error, address), REMEDY) from None


def _cause(error: BaseException, address: str) -> str:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    statuses = [getattr(one, "status", None) for one in chain]
    status = next((one for one in statuses if isinstance(one, int)), None)
    shown = "" if status is None else f" (HTTP {status})"
    if status == 404 or (status is None and len(chain) == 1 and isinstance(error, FileNotFoundError)):
        return f"is not there{shown}"
    if status in (401, 403) or isinstance(error, PermissionError):
        return f"may not be read{shown}"
    if status is not None:
        return f"cannot be read{shown}"
    if type(error).__name__ == "ClientPayloadError":  # aiohttp's, of an answer that is shorter than it should be
        return "was cut off before its end"
    # The text of an error may have the address with all that is in it.
    given = urlsplit(_given.get(address, address))
    text = reason_of(chain[-1])
    for secret in (given.query, given.password, given.username):
        text = text.replace(secret, "...") if secret else text
    text = re.sub(r"\S*://\S*", "the address", text)
    return f"cannot be read ({type(chain[-1]).__name__}: {text})"
