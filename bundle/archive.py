"""The zip of a bundle: written so that the same files give the same bytes, unpacked so that it can do no harm."""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from bundle.contents import FORBIDDEN, NAME
from scripts.core.errors import SettingsError
from scripts.core.files import replacing
from scripts.core.sums import SUMS, format_sums

__all__ = ["unpack", "write_archive"]

# The earliest time that a zip can hold.
TIME = (1980, 1, 1, 0, 0, 0)
PERMISSIONS = stat.S_IFREG | 0o644
LEVEL = 9

REMEDY = "Give a zip that `python -m bundle pack` made."

# A bundle has about 100 files, of a few megabytes each, in folders of folders at most.
MAX_MEMBERS = 5000
MAX_GB = 1
MAX_LEVELS = 20
MAX_NAME_BYTES = 250
ENCRYPTED = 1
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def write_archive(files: Mapping[str, bytes], path: str | Path) -> str:
    """Write a bundle's zip, with the checksums of its files inside, and its own checksum beside it.

    Args:
        files: contents by name from the bundle's root.
        path: the zip to write; ``path`` with ``.sha256`` appended gets its checksum, as ``sha256sum -c`` reads it.

    Returns:
        The zip's SHA-256, in hexadecimal.

    Raises:
        SettingsError: if the folder cannot be made or written to, or one of the names is that of a folder.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.sha256")
    for target in (path, beside):
        if target.is_dir():
            raise SettingsError(target, "is a folder, where a file is to be written", "Move it, or choose another one.")
    try:
        return _write(files, path, beside)
    except OSError as error:
        raise SettingsError(
            path, f"cannot be written ({error.strerror})", "Choose a folder with room for it that you may write to."
        ) from error


def _write(files: Mapping[str, bytes], path: Path, beside: Path) -> str:
    sums = format_sums({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    with replacing(path) as part:
        with zipfile.ZipFile(part, "w") as archive:
            for name, content in sorted({**files, SUMS: sums.encode()}.items()):
                member = zipfile.ZipInfo(f"{NAME}/{name}", TIME)
                member.create_system, member.external_attr = 3, PERMISSIONS << 16
                archive.writestr(member, content, zipfile.ZIP_DEFLATED, LEVEL)
        sha256 = hashlib.sha256(part.read_bytes()).hexdigest()
    with replacing(beside) as part:
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
        SettingsError: if it is damaged or encrypted; if a name in it leads outside, or cannot be a file's everywhere;
            if it holds a link, or more than a bundle could; or if it has not one top folder.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            top = _check_members(path, members)
            # zipfile writes no more of a member than the size that was checked.
            archive.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError) as error:
        raise SettingsError(path, f"is damaged, or no zip ({error})", REMEDY) from error
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise SettingsError(path, f"cannot be unpacked ({error})", REMEDY) from error
    return folder / top


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> str:
    """Refuse what no bundle has; else the name of the one top folder."""
    if len(members) > MAX_MEMBERS:
        raise SettingsError(path, f"holds {len(members)} files, more than the {MAX_MEMBERS} of any bundle", REMEDY)
    size = sum(member.file_size for member in members)
    if size > MAX_GB * 1024**3:
        raise SettingsError(path, f"unpacks to {size / 1024**3:.1f} GB, more than the {MAX_GB} of any bundle", REMEDY)
    for member in members:
        _check_member(path, member)
    names: set[str] = set()
    folded: set[str] = set()
    for member in members:
        name = member.filename.removesuffix("/")
        # Some disks take names that differ in case alone for one.
        if name.casefold() in folded:
            raise SettingsError(path, f"holds {name} more than once", REMEDY)
        names.add(name)
        folded.add(name.casefold())
    plain = {member.filename for member in members if not member.is_dir()}
    for name in names:
        taken = plain.intersection(map(str, PurePosixPath(name).parents))
        if taken:
            raise SettingsError(path, f"holds {min(taken)} both as a file and as a folder", REMEDY)
    tops = sorted({PurePosixPath(name).parts[0] for name in names})
    if len(tops) != 1 or tops[0] in plain:
        found = ", ".join(tops[:5]) or "nothing"
        raise SettingsError(path, f"must hold one top folder and nothing beside it, got {found}", REMEDY)
    return tops[0]


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    # zipfile repairs such names in silence; other programs that unpack the zip may follow them.
    name = member.orig_filename
    parts = name.removesuffix("/").split("/")
    if any(sign in name for sign in FORBIDDEN) or any(part in ("", ".", "..") for part in parts):
        raise SettingsError(path, f"holds the name {name[:80]!r}, which may lead out of its folder", REMEDY)
    if not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES or len(parts) > MAX_LEVELS:
        raise SettingsError(
            path, f"holds the name {name[:80]!r}, which is too long or deep, or has signs that cannot be seen", REMEDY
        )
    if member.flag_bits & ENCRYPTED or member.compress_type not in METHODS:
        raise SettingsError(path, f"holds {name}, which is encrypted, or compressed by another method", REMEDY)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise SettingsError(path, f"holds {name}, which is a link or no plain file", REMEDY)
