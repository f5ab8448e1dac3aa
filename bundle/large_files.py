"""The Model Zoo's limit for single files, and ``large_files.yml``, which says where larger ones are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.core.errors import SettingsError

__all__ = ["HASH_DIGITS", "LARGE_FILES", "MAX_MB", "over_limit", "read_large_files"]

LARGE_FILES = "large_files.yml"
MAX_MB = 25
HASH_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
"""The kinds of checksums that the zoo takes, and how many hexadecimal digits each has."""

FORM = (
    "Write `large_files: []`, or under it an entry with `path` and `url` for each file, and if need be `hash_val` and "
    "`hash_type`."
)


def over_limit(sizes: Mapping[str, int]) -> list[str]:
    """The names of the files that are larger than the zoo allows, sorted, from sizes in bytes by name."""
    return sorted(name for name, size in sizes.items() if size > MAX_MB * 1024**2)


def read_large_files(root: Path) -> list[dict[str, Any]]:
    """The entries of a bundle's ``large_files.yml``.

    Raises:
        SettingsError: if there is none, or it has not the form that the zoo reads.
    """
    try:
        content = yaml.safe_load((root / LARGE_FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(LARGE_FILES, f"cannot be read ({reason})", FORM) from error
    entries = content.get("large_files") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise SettingsError(LARGE_FILES, "has no list `large_files`", FORM)
    for number, entry in enumerate(entries, start=1):
        problem = _problem(entry)
        if problem:
            raise SettingsError(LARGE_FILES, f"its entry {number} {problem}", FORM)
    return entries


def _problem(entry: Any) -> str | None:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("path", "url")):
        return "has not both `path` and `url`, as text"
    path, kind, value = entry["path"], entry.get("hash_type") or "", entry.get("hash_val") or ""
    if path.startswith("/") or ".." in Path(path).parts:
        return f"has the path {path!r}, which leads out of the bundle"
    if not entry["url"].startswith(("https://", "http://")):
        return f"has the address {entry['url']!r}, which is not on the web"
    if unknown := set(entry) - {"path", "url", "hash_val", "hash_type"}:
        return f"has the unknown key {min(map(str, unknown))!r}"
    if not isinstance(kind, str) or (kind and kind not in HASH_DIGITS):
        return f"has hash_type {kind!r}; the zoo knows {', '.join(HASH_DIGITS)}"
    if not isinstance(value, str):
        return "has a hash_val that is no text; put it in quotes"
    # MONAI takes a checksum without a type for MD5.
    if value and len(value) != HASH_DIGITS[kind or "md5"]:
        return f"has a hash_val of {len(value)} digits, where {kind or 'md5'} has {HASH_DIGITS[kind or 'md5']}"
    return None
