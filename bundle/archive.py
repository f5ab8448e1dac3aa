"""The zip of a bundle: written so that the same files give the same bytes, unpacked so that it can do no harm."""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from bundle.contents import NAME, SUMS
from scripts.errors import SettingsError
from scripts.files import replacing

__all__ = ["unpack", "write_archive"]

# The earliest time that a zip can hold.
TIME = (1980, 1, 1, 0, 0, 0)
PERMISSIONS = stat.S_IFREG | 0o644
LEVEL = 9

REMEDY = "Give a zip that `python -m bundle pack` made."


def write_archive(files: Mapping[str, bytes], path: str | Path) -> str:
    """Write a bundle's zip, with the checksums of its files inside, and its own checksum beside it.

    Args:
        files: contents by name from the bundle's root.
        path: the zip to write; ``path`` with ``.sha256`` appended gets its checksum, as ``sha256sum -c`` reads it.

    Returns:
        The zip's SHA-256, in hexadecimal.

    Raises:
        SettingsError: if the folder cannot be made or written to.
    """
    path = Path(path)
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    with replacing(path) as part:
        with zipfile.ZipFile(part, "w") as archive:
            for name, content in sorted({**files, SUMS: sums.encode()}.items()):
                member = zipfile.ZipInfo(f"{NAME}/{name}", TIME)
                member.create_system, member.external_attr = 3, PERMISSIONS << 16
                archive.writestr(member, content, zipfile.ZIP_DEFLATED, LEVEL)
        sha256 = hashlib.sha256(part.read_bytes()).hexdigest()
    with replacing(path.with_name(f"{path.name}.sha256")) as part:
        part.write_text(f"{sha256}  {path.name}\n", encoding="utf-8")
    return sha256


def unpack(path: Path, folder: Path) -> Path:
    """Unpack a zip.

    Args:
        path: the zip.
        folder: where to; nothing is written outside of it.

    Returns:
        Its one top folder.

    Raises:
        SettingsError: if it is damaged, a name in it leads outside, it holds a link, or has not one top folder.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                _check_member(path, member)
            names = [member.filename.rstrip("/") for member in members]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise SettingsError(path, f"holds {min(twice)} more than once", REMEDY)
            tops = sorted({PurePosixPath(name).parts[0] for name in names})
            if len(tops) != 1 or tops == names:
                found = ", ".join(tops[:5]) or "nothing"
                raise SettingsError(path, f"must hold one top folder and nothing beside it, got {found}", REMEDY)
            archive.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SettingsError(path, f"is damaged, or no zip ({error})", REMEDY) from error
    return folder / tops[0]


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    # zipfile repairs such names in silence; other programs that unpack the zip may follow them.
    name = member.orig_filename
    parts = name.removesuffix("/").split("/")
    if any(sign in name for sign in "\\:\0") or any(part in ("", ".", "..") for part in parts):
        raise SettingsError(path, f"holds the name {name!r}, which may lead out of its folder", REMEDY)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise SettingsError(path, f"holds {name}, which is a link or no plain file", REMEDY)
