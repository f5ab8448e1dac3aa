"""The list of checksums in a packed bundle: what is compared when weights are loaded, and how training goes on."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.core.errors import SettingsError
from scripts.core.sums import SUMS, check_sum, drop_sum, format_sums, read_sums

PACKED = {"LICENSE": b"free\n", "models/model.pt": b"weights", "models/model_5x.pt": b"others"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a bundle with a list that was worked out without the code that is tested."""
    folder = tmp_path / "bundle"
    for name, content in PACKED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in PACKED.items()]
    (folder / SUMS).write_text("".join(lines))
    return folder


def test_a_list_is_written_sorted_and_read_back(root: Path) -> None:
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in reversed(PACKED.items())}
    assert format_sums(sums) == (root / SUMS).read_text()
    assert read_sums(root / SUMS) == sums


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_reads_what_is_left_of_a_list(root: Path) -> None:
    drop_sum(root / "models" / "model.pt")
    (root / "models" / "model.pt").write_bytes(b"of a training")
    checked = subprocess.run(["sha256sum", "-c", SUMS], cwd=root, capture_output=True, text=True, check=True)
    assert checked.stdout.splitlines() == ["LICENSE: OK", "models/model_5x.pt: OK"]


def test_packed_weights_pass_from_wherever_they_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_sum(root / "models" / "model.pt")
    monkeypatch.chdir(root / "models")
    check_sum("model.pt")


def test_other_weights_are_refused_with_the_start_of_both_sums(root: Path) -> None:
    path = root / "models" / "model.pt"
    path.write_bytes(b"Weights")
    found, packed = (hashlib.sha256(content).hexdigest()[:12] for content in (b"Weights", b"weights"))
    with pytest.raises(SettingsError) as refusal:
        check_sum(path)
    assert str(refusal.value) == (
        f"{path}: its SHA-256 begins with {found}, and {root / SUMS} has {packed}, so it is not the file that was "
        f"packed. Unpack the bundle again; or, if you put this file there yourself, remove its line from {SUMS}."
    )


def test_weights_are_known_through_a_link_to_their_folder(root: Path) -> None:
    (root / "models" / "model.pt").write_bytes(b"Weights")
    (root.parent / "weights").symlink_to(root / "models")
    with pytest.raises(SettingsError, match=r"weights/model\.pt: its SHA-256 begins with"):
        check_sum(root.parent / "weights" / "model.pt")


@pytest.mark.parametrize("name", ["models/model_10x.pt", "output/model.pt", "models/deep/model.pt", "models/gone.pt"])
def test_a_file_that_is_not_listed_passes(root: Path, name: str) -> None:
    if "gone" not in name:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"of a training")
    check_sum(root / name)


def test_listed_weights_that_are_gone_are_left_to_their_reader(root: Path) -> None:
    (root / "models" / "model.pt").unlink()
    check_sum(root / "models" / "model.pt")


def test_without_a_list_nothing_is_compared_or_written(root: Path) -> None:
    (root / SUMS).unlink()
    (root / "models" / "model.pt").write_bytes(b"of a training")
    check_sum(root / "models" / "model.pt")
    drop_sum(root / "models" / "model.pt")
    assert not (root / SUMS).exists()


def test_training_takes_the_weights_that_it_replaces_off_the_list_and_says_so(root: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        drop_sum(root / "models" / "model.pt")
    assert read_sums(root / SUMS).keys() == {"LICENSE", "models/model_5x.pt"}
    assert f"training replaces models/model.pt: it is no longer listed in {root / SUMS}" in caplog.text
    check_sum(root / "models" / "model.pt")  # the old weights of a run that was killed at this moment
    (root / "models" / "model.pt").write_bytes(b"of a training")
    check_sum(root / "models" / "model.pt")
    (root / "models" / "model_5x.pt").write_bytes(b"damaged")
    with pytest.raises(SettingsError, match="model_5x"):
        check_sum(root / "models" / "model_5x.pt")


def test_a_list_that_names_nothing_of_a_training_stays_as_it_is(root: Path) -> None:
    before = os.stat(root / SUMS)
    for name in ("models/last.ckpt", "output/model.pt"):
        drop_sum(root / name)
    assert os.stat(root / SUMS).st_ino == before.st_ino


def test_a_list_that_cannot_be_changed_stops_the_training_before_weights_are_written(root: Path, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(SettingsError, match=r"SHA256SUMS: cannot be changed, and it has the checksum of models/model"):
        drop_sum(root / "models" / "model.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc  x\n", "has the line 'abc  x', which is no checksum and name"),
        (b"0" * 64 + b" *x\n", "which is no checksum and name"),
        (b"\n", "has the line '', which is no checksum and name"),
        ((b"0" * 64 + b"  x\n") * 2, "lists x more than once"),
        (b"\xff", "cannot be read ('utf-8' codec"),
    ],
)
def test_a_list_of_another_form_is_refused_not_passed_over(root: Path, content: bytes, message: str) -> None:
    (root / SUMS).write_bytes(content)
    for use in (check_sum, drop_sum):
        with pytest.raises(SettingsError) as refusal:
            use(root / "models" / "model.pt")
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_folder_or_a_pipe_in_the_place_of_the_list_is_refused(root: Path) -> None:
    (root / SUMS).unlink()
    (root / SUMS).mkdir()
    with pytest.raises(SettingsError, match=r"SHA256SUMS: cannot be read .*directory"):
        check_sum(root / "models" / "model.pt")
    (root / SUMS).rmdir()
    os.mkfifo(root / SUMS)
    with pytest.raises(SettingsError, match=r"SHA256SUMS: is a pipe, a device or a socket"):
        check_sum(root / "models" / "model.pt")
