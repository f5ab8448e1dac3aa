"""The zip: the same bytes for the same files, checksums that coreutils agree with, and no way out when unpacking."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import stat
import struct
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from bundle.archive import unpack, write_archive
from bundle.contents import NAME
from scripts.core.errors import SettingsError

FILES = {"scripts/b.py": b"b = 1\n", "LICENSE": b"free\n", "models/model.pt": bytes(range(256)) * 40}

sha256sum = pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")


def make_zip(path: Path, *members: tuple[str, int]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in members:
            member = zipfile.ZipInfo("placeholder")
            member.filename, member.external_attr = name, mode << 16
            archive.writestr(member, b"x")
    return path


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_archive(FILES, tmp_path / "a" / "x.zip")
    time.sleep(0.01)
    second = write_archive(dict(reversed(FILES.items())), tmp_path / "b" / "x.zip")
    assert (tmp_path / "a" / "x.zip").read_bytes() == (tmp_path / "b" / "x.zip").read_bytes()
    assert first == second == hashlib.sha256((tmp_path / "a" / "x.zip").read_bytes()).hexdigest()
    assert write_archive({**FILES, "LICENSE": b"not\n"}, tmp_path / "x.zip") != first


def test_members_are_sorted_and_carry_neither_the_time_nor_the_rights_of_this_machine(tmp_path: Path) -> None:
    write_archive(FILES, tmp_path / "x.zip")
    members = zipfile.ZipFile(tmp_path / "x.zip").infolist()
    names = ["LICENSE", "SHA256SUMS", "models/model.pt", "scripts/b.py"]
    assert [member.filename for member in members] == [f"{NAME}/{name}" for name in names]
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    assert {member.external_attr >> 16 for member in members} == {stat.S_IFREG | 0o644}


def test_what_is_unpacked_is_what_was_packed(tmp_path: Path) -> None:
    write_archive(FILES, tmp_path / "x.zip")
    top = unpack(tmp_path / "x.zip", tmp_path / "out")
    assert top == tmp_path / "out" / NAME
    for name, content in FILES.items():
        assert (top / name).read_bytes() == content


@sha256sum
def test_sha256sum_agrees_with_the_checksums_inside_and_beside(tmp_path: Path) -> None:
    write_archive(FILES, tmp_path / "x.zip")
    top = unpack(tmp_path / "x.zip", tmp_path / "out")
    inside = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=top, capture_output=True, text=True, check=True)
    assert inside.stdout.splitlines() == [f"{name}: OK" for name in sorted(FILES)]
    subprocess.run(["sha256sum", "--quiet", "-c", "x.zip.sha256"], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    "name",
    ["../x", "b/../../x", "/etc/x", "b//x", "b/./x", "b\\..\\x", "C:/x", "b/x:y", "b/x\0y"],
)
def test_a_name_that_leads_out_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "x.zip", ("b/good", stat.S_IFREG | 0o644), (name, stat.S_IFREG | 0o644))
    with pytest.raises(SettingsError, match="may lead out of its folder"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    path = make_zip(tmp_path / "x.zip", ("b/good", 0), ("b/odd", kind | 0o777))
    with pytest.raises(SettingsError, match="holds b/odd, which is a link or no plain file"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/x", "b/x"], "one top folder and nothing beside it, got a, b"),
        (["a/x", "LICENSE"], "one top folder and nothing beside it, got LICENSE, a"),
        (["LICENSE"], "one top folder and nothing beside it, got LICENSE"),
        ([], "one top folder and nothing beside it, got nothing"),
        (["a/x", "a/x"], "holds a/x more than once"),
        (["a/x", "a/x/"], "holds a/x more than once"),
        (["a/x", "a/X"], "holds a/X more than once"),
        (["a/x", "a/x/y/z"], "holds a/x both as a file and as a folder"),
        (["a/y", "a/" + "x" * 300], "which is too long or deep"),
        (["a/" * 1500 + "x"], "which is too long or deep"),
        (["a/" * 20 + "x"], "which is too long or deep"),
        (["a/x\x1b[2J"], "or has signs that cannot be seen"),
        ([f"a/{number}" for number in range(5001)], "holds 5001 files, more than the 5000 of any bundle"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_there_has_to_be_one_top_folder_with_each_file_once(tmp_path: Path, names: list[str], message: str) -> None:
    path = make_zip(tmp_path / "x.zip", *((name, 0) for name in names))
    with pytest.raises(SettingsError, match=message):
        unpack(path, tmp_path / "out")


def test_folders_in_a_zip_do_no_harm(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", ("a/", stat.S_IFDIR | 0o755), ("a/b/", 0), ("a/b/x", 0))
    assert (unpack(path, tmp_path / "out") / "b" / "x").read_bytes() == b"x"


def test_what_is_no_zip_or_a_damaged_one_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 cut off")
    write_archive(FILES, tmp_path / "x.zip")
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[content.index(b"LICENSE") + 12] ^= 255
    (tmp_path / "damaged.zip").write_bytes(content)
    for name in ("no.zip", "damaged.zip"):
        with pytest.raises(SettingsError, match=f"{name}: is damaged, or no zip") as error:
            unpack(tmp_path / name, tmp_path / "out")
        assert "\n" not in str(error.value)


def patched(path: Path, offset: int, form: str, *values: int) -> Path:
    """A zip, after a change of its one member's entry in the directory at its end."""
    write_archive({}, path)
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.index(b"PK\x01\x02") + offset, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (6, 99, "cannot be unpacked .zip file version 9.9."),
        (8, 1, "which is encrypted, or compressed by another method"),
        (10, 99, "which is encrypted, or compressed by another method"),
        (10, zipfile.ZIP_BZIP2, "which is encrypted, or compressed by another method"),
    ],
)
def test_a_member_that_cannot_be_read_is_an_error_of_one_line(
    tmp_path: Path, offset: int, value: int, message: str
) -> None:
    path = patched(tmp_path / "x.zip", offset, "<H", value)
    with pytest.raises(SettingsError, match=message):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_zip_that_would_fill_the_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = patched(tmp_path / "x.zip", 24, "<I", 3 * 1024**3)
    with pytest.raises(SettingsError, match=r"unpacks to 3.0 GB, more than the 1 of any bundle"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_more_is_written_than_was_declared(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x", bytes(10_000_000))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 10)
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(SettingsError, match="is damaged, or no zip"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert (tmp_path / "out" / "a" / "x").stat().st_size <= 10


@pytest.mark.parametrize("name", ["x.zip", "x.zip.sha256"])
def test_a_folder_in_the_place_of_the_zip_is_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(SettingsError, match=f"{name}: is a folder, where a file is to be written"):
        write_archive(FILES, tmp_path / "x.zip")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_zip_of_which_any_byte_was_changed_is_unpacked_in_its_folder_or_refused(tmp_path: Path) -> None:
    write_archive({f"scripts/{index}.py": b"x" * index for index in range(4)}, tmp_path / "x.zip")
    whole = (tmp_path / "x.zip").read_bytes()
    rng = random.Random(0)
    unpacked = 0
    for number in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        changed, folder = tmp_path / "changed.zip", tmp_path / f"out{number}" / "deep"
        changed.write_bytes(content[: rng.randrange(len(content))] if number % 5 == 0 else content)
        with contextlib.suppress(SettingsError):
            unpack(changed, folder)
            unpacked += 1
        assert {path.name for path in tmp_path.iterdir()} <= {"x.zip", "x.zip.sha256", "changed.zip", f"out{number}"}
        assert all(path == folder for path in folder.parent.glob("*"))
        shutil.rmtree(folder.parent, ignore_errors=True)
    assert 0 < unpacked < 200
