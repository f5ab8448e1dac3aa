"""What a runtime made of a network, kept on disk so that the next run need not make it again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from scripts.core.errors import SettingsError, reason_of
from scripts.core.files import replacing
from scripts.encoders.backbones import Backbone

__all__ = ["cache_folder", "file_name", "key_of", "read_prepared", "write_prepared"]

logger = logging.getLogger(__name__)

BUNDLE = "mustmil"
# That convert or compute networks, or contain their code.
LIBRARIES = ("openvino", "torch", "monai", "timm", "efficientnet_lite_pytorch")
DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder(runtime: str) -> Path | None:
    """The user's folder for what a runtime prepared: ``mustmil/<runtime>`` in the cache folder of the system.

    That is ``$XDG_CACHE_HOME``, else ``~/.cache``, on macOS ``~/Library/Caches``. ``None``, with a line in the log, if
    nothing can be kept there: it cannot be made or written to, or others may write there, whose code would be run.

    Args:
        runtime: the name of the folder.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    default = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    own = Path(given if os.path.isabs(given) else os.path.expanduser(default)) / BUNDLE
    folder = own / runtime
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        for made in (own, folder):
            made.mkdir(mode=0o700, exist_ok=True)
        is_private = all(_is_private(made) for made in (own, folder))
        cause = "" if is_private and os.access(folder, os.W_OK) else "others may write there, or you may not"
    except OSError as error:
        cause = reason_of(error)
    if cause:
        _tell_not_kept(folder, cause)
        return None
    return folder


def _is_private(folder: Path) -> bool:
    found = folder.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _tell_not_kept(folder: Path, cause: str) -> None:
    logger.info("what is prepared is not kept in %s (%s): the next run prepares it again", folder, cause)


def key_of(backbone: Backbone, **others: Any) -> bytes:
    """A checksum of all that decides what is made of a backbone: its weights and code, versions of libraries.

    Args:
        backbone: not the user's own, whose code may be anywhere.
        others: what else does, as plain values.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    versions = {name: _version(name) for name in LIBRARIES}
    plain: Mapping[str, Any] = {**backbone.settings(), "versions": versions, "modules": str(backbone), **others}
    digest.update(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def read_prepared(path: Path, key: bytes) -> bytes | None:
    """What :func:`write_prepared` wrote with this key; ``None`` if there is nothing, or it was damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    written_key, checksum = content[:DIGEST_BYTES], content[DIGEST_BYTES : 2 * DIGEST_BYTES]
    prepared = content[2 * DIGEST_BYTES :]
    return prepared if written_key == key and checksum == hashlib.sha256(prepared).digest() else None


def write_prepared(path: Path, key: bytes, prepared: bytes) -> None:
    """Write a file in place of that of another key, in one step; if that fails, the log says why."""
    try:
        with replacing(path) as part:
            part.write_bytes(key + hashlib.sha256(prepared).digest() + prepared)
    except (OSError, SettingsError) as error:
        _tell_not_kept(path.parent, reason_of(error))


def file_name(backbone: Backbone, *words: str) -> str:
    """The name of a backbone's file: one for each encoder and use, so that new versions take the place of old ones."""
    return re.sub(r"[^\w-]+", "_", "-".join([backbone.name, *words]))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
