"""Checking a bundle: every rule, one line each, whatever it holds."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle.archive import write_archive
from bundle.checked import Bundle
from bundle.contents import NAME
from bundle.verify import FAILED, NOT_CHECKED, OK, RULES, SCHEMA, SUM_RULES, Finding, check, load_schema, verify
from scripts.core.errors import SettingsError
from tests.bundles import change_json, copied, write
from tests.conftest import ROOT


def test_a_packed_zip_keeps_every_rule(packed_zip: Path) -> None:
    findings = list(verify(packed_zip, load_schema()))
    assert [finding.rule for finding in findings] == ["checksum beside", "archive", *RULES]
    assert [str(finding) for finding in findings if finding.state != OK] == [
        "not checked  packages: a packed bundle has no constraints.txt to compare the versions with"
    ]


def test_this_repository_keeps_every_rule_that_needs_no_weights() -> None:
    assert [str(finding) for finding in verify(ROOT, load_schema()) if finding.state == FAILED] == []


def test_without_weights_a_folder_passes_and_a_zip_does_not(trained_repository: Path, tmp_path: Path) -> None:
    root = copied(trained_repository, tmp_path)
    shutil.rmtree(root / "models")
    write(root, "models/README.md", "# Weights\n")
    states = {finding.rule: finding.state for finding in verify(root, load_schema())}
    assert FAILED not in states.values()
    needing = {rule for rule, state in states.items() if state == NOT_CHECKED}
    assert {"weights file", "weights", "demonstration", "operating point", "TorchScript", "ONNX"} <= needing

    shutil.make_archive(str(tmp_path / "zip"), "zip", tmp_path, NAME)
    failed = [finding.rule for finding in verify(tmp_path / "zip.zip", load_schema()) if finding.state == FAILED]
    assert failed == ["weights file", "checksums", "weights", "demonstration", "operating point", "TorchScript", "ONNX"]


def test_a_zip_that_leads_out_of_its_folder_is_not_looked_into(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(f"{NAME}/../../x", "x")
    *_, finding = verify(tmp_path / "x.zip", load_schema())
    assert (finding.rule, finding.state) == ("archive", FAILED)
    assert "may lead out of its folder" in finding.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda zip_, sums: sums.write_text("0" * 64 + f"  {zip_.name}\n"), "x.zip.sha256 has 000000000000. Get both"),
        (lambda zip_, sums: sums.write_text("0" * 64 + "  y.zip\n"), "x.zip.sha256 does not name it."),
        (
            lambda zip_, sums: sums.write_text("<html>\n"),
            "x.zip.sha256: has the line '<html>', which is not a checksum and a name. Get both again, from where",
        ),
        (lambda zip_, sums: sums.write_bytes(b"\xff"), "codec can't decode byte 0xff in position 0"),
        (lambda zip_, sums: (sums.unlink(), sums.mkdir()), "Is a directory"),
        (lambda zip_, sums: (sums.unlink(), os.mkfifo(sums)), "x.zip.sha256: is a pipe, a device or a socket"),
        (lambda zip_, sums: zip_.write_bytes(zip_.read_bytes() + b"x"), "x.zip: its SHA-256 begins with"),
    ],
)
def test_a_zip_is_not_looked_into_if_it_is_not_the_one_that_the_checksum_beside_it_is_of(
    tmp_path: Path, change: Callable[[Path, Path], object], message: str
) -> None:
    write_archive({"LICENSE": b"free"}, tmp_path / "x.zip")
    assert [finding.state for finding in verify(tmp_path / "x.zip", {}, SUM_RULES)] == [OK, OK, OK, OK]
    change(tmp_path / "x.zip", tmp_path / "x.zip.sha256")
    (finding,) = verify(tmp_path / "x.zip", {}, SUM_RULES)
    assert (finding.rule, finding.state) == ("checksum beside", FAILED)
    assert message in finding.text
    assert finding.text.endswith(" Get both again, from where the bundle is published.")


def test_a_zip_without_the_checksum_beside_it_is_checked_and_says_that_it_was_not_compared(tmp_path: Path) -> None:
    write_archive({"LICENSE": b"free"}, tmp_path / "x.zip")
    (tmp_path / "x.zip.sha256").unlink()
    first, *others = verify(tmp_path / "x.zip", {}, SUM_RULES)
    assert str(first) == (
        "not checked  checksum beside: there is no x.zip.sha256. Get it, from where the bundle is published."
    )
    assert [finding.state for finding in others] == [OK, OK, OK]


@pytest.mark.parametrize("names", [(), ("a.tiff", "b.tiff"), ("LICENSE", "scripts/__init__.py")])
def test_a_folder_without_checksums_does_not_pass_where_nothing_else_is_checked(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        write(tmp_path, name, "x")
    (finding,) = verify(tmp_path, {}, SUM_RULES)
    assert (finding.rule, finding.state) == ("checksums", FAILED)
    assert finding.text == (
        f"{tmp_path}/SHA256SUMS: there is no such file, so nothing tells whether this is a whole bundle. "
        "Give the zip, or the folder that it was unpacked into; unpack it again if the file was removed."
    )


def test_a_repository_has_no_checksums_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "bundle/contents.py", "")
    assert [finding.state for finding in verify(tmp_path, {}, SUM_RULES)] == [NOT_CHECKED, NOT_CHECKED]


def test_where_there_is_nothing_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none.zip: there is no such file or folder. Give a bundle's"):
        list(verify(tmp_path / "none.zip", load_schema()))


def test_an_empty_folder_breaks_rules_and_nothing_else(tmp_path: Path) -> None:
    findings = list(verify(tmp_path, load_schema()))
    assert [finding.rule for finding in findings] == list(RULES)
    assert not any("\n" in str(finding) for finding in findings)
    lines = {finding.rule: str(finding) for finding in findings}
    assert lines["licence"] == "FAILED       licence: LICENSE: cannot be read (No such file or directory). Add it."


def test_a_form_that_no_rule_thought_of_breaks_that_rule_alone(trained_repository: Path, tmp_path: Path) -> None:
    root = copied(trained_repository, tmp_path)
    write(root, "configs/metadata.json", '{"version": "1.0.0", "changelog": {"1.0.0": ""}, "network_data_format": 3}')
    finding = check("data format", Bundle(root, "folder", load_schema()))
    assert finding.state == FAILED
    assert finding.text == (
        "the bundle's own code failed, or a file of it has a form that this rule does not expect "
        "(AttributeError: 'int' object has no attribute 'get'). "
        "Mend the other rules first; if this stays, run the bundle itself to see where it fails."
    )
    assert check("licence", Bundle(root, "folder")).state == OK


@pytest.mark.parametrize("text", ["$exit(0)", "$__import__('sys').exit()"])
def test_code_that_ends_the_process_breaks_its_rule_alone(trained_repository: Path, tmp_path: Path, text: str) -> None:
    root = copied(trained_repository, tmp_path)
    change_json(root, "configs/inference.json", lambda config: config.update(network_def=text))
    finding = check("network in and out", Bundle(root, "folder", load_schema()))
    assert (finding.state, "(SystemExit: " in finding.text) == (FAILED, True)


def test_an_error_that_is_its_own_cause_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(_: Bundle) -> None:
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    monkeypatch.setitem(RULES, "licence", rule)
    assert "(ValueError: second)" in check("licence", Bundle(tmp_path, "folder")).text


def test_a_finding_is_one_line_of_signs_that_can_be_seen() -> None:
    assert str(Finding("parts", FAILED, "a\udcff\x1b")) == r"FAILED       parts: a\udcff\x1b"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The web address of a folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_schema_comes_from_the_bundle_a_path_or_the_web(tmp_path: Path, address: str) -> None:
    shutil.copyfile(SCHEMA, tmp_path / "schema.json")
    assert load_schema() == load_schema(str(tmp_path / "schema.json")) == load_schema(f"{address}/schema.json")
    with pytest.raises(SettingsError, match=r"/gone.json: is no schema that can be read \(File not found\)"):
        load_schema(f"{address}/gone.json")


@pytest.mark.parametrize("place", ["http://a b", "http://127.0.0.1:abc/", "https://", "a\0b"])
def test_what_is_no_address_is_an_error_of_one_line(place: str) -> None:
    with pytest.raises(SettingsError, match=r"is no schema that can be read"):
        load_schema(place)


@pytest.mark.parametrize("text", [None, "{", '{"type": "no such type"}', "3", '{"$schema": [1]}', "[" * 100_000])
def test_what_is_no_schema_is_an_error_of_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        write(tmp_path, "schema.json", text)
    with pytest.raises(SettingsError, match=r"schema.json: is no schema that can be read") as error:
        load_schema(str(tmp_path / "schema.json"))
    assert "\n" not in str(error.value)
