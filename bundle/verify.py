"""Checking a bundle: every rule, one finding each."""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from bundle import rules_configs, rules_files, rules_metadata, rules_network, rules_weights
from bundle.archive import unpack
from bundle.checked import Bundle, NotChecked
from scripts.core.errors import BundleError, SettingsError, printable
from scripts.core.files import file_sha256
from scripts.core.sums import SUMS, read_sums

__all__ = ["FAILED", "NOT_CHECKED", "OK", "RULES", "SCHEMA", "SUM_RULES", "Finding", "check", "load_schema", "verify"]

DOWNLOAD_SECONDS = 30

UNEXPECTED = "the bundle's own code failed, or a file of it has a form that this rule does not expect"
FIRST_OTHERS = "Mend the other rules first; if this stays, run the bundle itself to see where it fails."

OK, FAILED, NOT_CHECKED = "ok", "FAILED", "not checked"

SCHEMA = Path(__file__).with_name("zoo_metadata_schema.json")
"""What the Model Zoo asks of a bundle's metadata, in words of our own: the official schema is a download."""

SCHEMA_ERRORS = (OSError, ValueError, TypeError, RecursionError, http.client.HTTPException, jsonschema.SchemaError)

RULES: dict[str, Callable[[Bundle], None]] = {
    **rules_files.RULES,
    **rules_metadata.RULES,
    **rules_configs.RULES,
    **rules_network.RULES,
    **rules_weights.RULES,
}
"""The rules by name. A rule that is kept returns; else it raises :class:`NotChecked`, or an error with the reason."""

SUM_RULES = ("nothing else", "checksums")
"""Those that tell whether a bundle is whole. They run none of its code."""


@dataclass(frozen=True)
class Finding:
    """What came of a rule.

    Args:
        rule: its name.
        state: :data:`OK`, :data:`FAILED` or :data:`NOT_CHECKED`.
        text: the reason and the remedy, in one line; empty if the rule is kept.
    """

    rule: str
    state: str
    text: str = ""

    def __str__(self) -> str:
        return printable(f"{self.state:<12} {self.rule}" + (f": {self.text}" if self.text else ""))


def verify(path: Path, schema: Mapping[str, Any], rules: Collection[str] = tuple(RULES)) -> Iterator[Finding]:
    """Check a bundle. Its own code is run, unless nothing but :data:`SUM_RULES` is checked.

    Args:
        path: the repository, the folder of a bundle, or a zip.
        schema: the JSON schema of the metadata, see :func:`load_schema`.
        rules: the names of those that are checked.

    Yields:
        A finding for each rule, as soon as it is there. Of a zip first whether it is the one that the checksum beside
        it is of, and whether it can be unpacked: where it is not or cannot, nothing more. Where nothing but
        :data:`SUM_RULES` is checked, of a folder without checksums, that it has none, and nothing more; a repository
        needs none.

    Raises:
        SettingsError: if there is nothing at ``path``.
    """
    if path.is_dir():
        bundle = Bundle.of_folder(path, schema)
        if set(rules) <= set(SUM_RULES) and bundle.kind == "folder" and not (path / SUMS).is_file():
            cause = "there is no such file, so nothing tells whether this is a whole bundle"
            remedy = "Give the zip, or the folder that it was unpacked into; unpack it again if the file was removed."
            yield Finding("checksums", FAILED, str(SettingsError(path / SUMS, cause, remedy)))
            return
        yield from (check(rule, bundle) for rule in rules)
        return
    if not path.is_file():
        raise SettingsError(path, "there is no such file or folder", "Give a bundle's folder or zip.")
    beside = _finding("checksum beside", lambda: _check_beside(path))
    yield beside
    if beside.state == FAILED:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            bundle = Bundle(unpack(path, Path(folder)), "zip", schema)
        except SettingsError as error:
            yield Finding("archive", FAILED, str(error))
            return
        yield Finding("archive", OK)
        yield from (check(rule, bundle) for rule in rules)


def check(rule: str, bundle: Bundle) -> Finding:
    """What comes of one rule."""
    return _finding(rule, lambda: RULES[rule](bundle))


def _finding(rule: str, keep: Callable[[], None]) -> Finding:
    try:
        keep()
    except NotChecked as reason:
        return Finding(rule, NOT_CHECKED, str(reason))
    except BundleError as error:
        return Finding(rule, FAILED, str(error))
    except (Exception, SystemExit) as error:  # The bundle's own code, or a file of a form that nobody thought of.
        return Finding(rule, FAILED, _of_bundle(error))
    return Finding(rule, OK)


def load_schema(place: str | None = None) -> dict[str, Any]:
    """A JSON schema of the metadata.

    Args:
        place: a path or web address; by default :data:`SCHEMA`.

    Raises:
        SettingsError: if there is no such schema.
    """
    place = place or str(SCHEMA)
    remedy = "Give the path or web address of a JSON schema, or leave --schema out."
    try:
        if place.startswith(("https://", "http://")):
            with urllib.request.urlopen(place, timeout=DOWNLOAD_SECONDS) as answer:
                content = json.load(answer)
        else:
            content = json.loads(Path(place).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        jsonschema.validators.validator_for(content).check_schema(content)
    except SCHEMA_ERRORS as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise SettingsError(place, f"is no schema that can be read ({reason})", remedy) from error
    return content


def _check_beside(path: Path) -> None:
    """Compare a zip with the checksum that packing writes beside it, if it was downloaded, too."""
    beside, remedy = path.with_name(f"{path.name}.sha256"), "Get both again, from where the bundle is published."
    if not os.path.lexists(beside):
        raise NotChecked(f"there is no {beside.name}. Get it, from where the bundle is published.")
    try:
        wanted = read_sums(beside).get(path.name)
    except SettingsError as error:
        raise SettingsError(beside, error.cause, remedy) from error
    found = file_sha256(path)
    if wanted != found:
        listed = f"has {wanted[:12]}" if wanted else "does not name it"
        cause = f"its SHA-256 begins with {found[:12]}, and {beside.name} {listed}"
        raise SettingsError(path, cause, remedy)


def _of_bundle(error: BaseException) -> str:
    """What an error in the checked bundle's code says, in one line: its own kind of error, or else the first cause."""
    chain = [error]
    # Code may give an error itself as a cause.
    while (cause := error.__cause__ or error.__context__) is not None and not any(cause is link for link in chain):
        error = cause
        chain.append(error)
    # The bundle's class of errors is not the repository's, which the caller knows; as that one it says what to do.
    own = [str(link) for link in chain if any(kind.__name__ == BundleError.__name__ for kind in type(link).__mro__)]
    if own:
        return own[0]
    reason = " ".join(str(error).split()) or "no reason given"
    return f"{UNEXPECTED} ({type(error).__name__}: {reason}). {FIRST_OTHERS}"
