"""The file of an encoder's INT8 network: it lies beside banks and beside trained weights, and is named by its hash."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.core.errors import SettingsError
from scripts.core.files import refuse_special, replacing

__all__ = [
    "INT8_FILES",
    "Int8Network",
    "copy_int8",
    "find_int8",
    "fitting_int8",
    "int8_name",
    "read_int8",
    "write_int8",
]

INT8_FILES = "encoder_int8_*.zip"
"""The names of such files."""

NAME_DIGITS = 16
ABOUT, XML, WEIGHTS = "about.json", "network.xml", "network.bin"
# The earliest time that a zip can hold: the same network gives the same file.
TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Int8Network:
    """An encoder in INT8, as OpenVINO computes it.

    Args:
        path: its file.
        sha256: of the file, in hexadecimal.
        about: ``encoder``, the settings of the backbone that was quantised; ``patch``, the height and width of its
            patches in pixels; ``patches`` and ``slides``, the numbers of those that its ranges come from; ``seed``,
            which chose them; and the ``versions`` of the libraries.
        xml: OpenVINO's description of the network.
        weights: its constants.
    """

    path: Path
    sha256: str
    about: Mapping[str, Any]
    xml: bytes
    weights: bytes

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of the patches that it takes, in pixels."""
        height, width = self.about["patch"]
        return height, width


def int8_name(sha256: str) -> str:
    """The name of the file with this SHA-256."""
    return INT8_FILES.replace("*", sha256[:NAME_DIGITS])


def write_int8(folder: Path, about: Mapping[str, Any], xml: bytes, weights: bytes) -> Int8Network:
    """Write a network into a folder that is there, in one step; arguments as :class:`Int8Network` has them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in ((ABOUT, json.dumps(about, sort_keys=True).encode()), (XML, xml), (WEIGHTS, weights)):
            archive.writestr(zipfile.ZipInfo(name, TIME), content)
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / int8_name(sha256)
    with replacing(path) as part:
        part.write_bytes(content)
    return Int8Network(path, sha256, json.loads(json.dumps(about)), xml, weights)


def copy_int8(network: Int8Network, folder: Path) -> None:
    """Write a network into another folder that is there, unless that has it, undamaged."""
    path = folder / int8_name(network.sha256)
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == network.sha256:
        return
    content = network.path.read_bytes()
    with replacing(path) as part:
        part.write_bytes(content)


def read_int8(path: Path, sha256: str | None = None) -> Int8Network:
    """Read a network.

    Args:
        path: its file.
        sha256: which it has to have; by default the one that its name begins with.

    Raises:
        SettingsError: if it cannot be read, or has another SHA-256.
    """
    remedy = "Copy it again from where it was made; or, if no weights or banks were made with it, delete it."
    refuse_special(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(path, f"cannot be read ({error.strerror})", "Check the file and its rights.") from error
    found = hashlib.sha256(content).hexdigest()
    wanted = path.stem.rpartition("_")[2] if sha256 is None else sha256
    if not wanted or not found.startswith(wanted):
        cause = f"its SHA-256 begins with {found[:NAME_DIGITS]}, not with {wanted[:64]}: it is damaged, or renamed"
        raise SettingsError(path, cause, remedy)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            about, xml, weights = json.loads(archive.read(ABOUT)), archive.read(XML), archive.read(WEIGHTS)
        network = Int8Network(path, found, about, xml, weights)
        _ = network.patch, about["encoder"]
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SettingsError(path, f"is no INT8 network of this bundle ({error})", remedy) from error
    return network


def find_int8(sha256: str, folders: Sequence[Path]) -> Int8Network:
    """The network with a SHA-256, from the first of some folders that has it.

    Raises:
        SettingsError: if none has, or its file is damaged.
    """
    for folder in folders:
        if (path := folder / int8_name(sha256)).is_file():
            return read_int8(path, sha256)
    cause = f"is int8, and the network {int8_name(sha256)} is not in {' or '.join(map(str, folders))}"
    remedy = "Copy it there from beside the weights, or from the `feature_dir` of their training."
    raise SettingsError("precision", cause, remedy)


def fitting_int8(folder: Path, encoder: Mapping[str, Any], patch: Sequence[int]) -> Int8Network | None:
    """The network in a folder that was made of an encoder for patches of a size; ``None`` if there is none.

    Args:
        folder: which need not exist.
        encoder: the settings of the backbone.
        patch: height and width, in pixels.

    Raises:
        SettingsError: if there are several, or a file is damaged.
    """
    wanted = json.loads(json.dumps([dict(encoder), list(patch)]))
    networks = [read_int8(path) for path in sorted(folder.glob(INT8_FILES))]
    fitting = [network for network in networks if [network.about["encoder"], list(network.patch)] == wanted]
    if len(fitting) > 1:
        names = ", ".join(network.path.name for network in fitting)
        remedy = "Keep the one whose SHA-256 is `int8_sha256` of the banks there, and delete the others."
        raise SettingsError(folder, f"contains several INT8 networks of {encoder['backbone']} ({names})", remedy)
    return fitting[0] if fitting else None
