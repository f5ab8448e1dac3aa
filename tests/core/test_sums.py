"""The list of checksums in a packed bundle: what is compared when weights are loaded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from scripts.core.errors import SettingsError
from scripts.core.sums import SUMS, check_sum, format_sums, read_sums, unlist

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


def test_without_a_list_nothing_is_compared(root: Path) -> None:
    (root / SUMS).unlink()
    (root / "models" / "model.pt").write_bytes(b"of a training")
    check_sum(root / "models" / "model.pt")


def test_where_a_training_wrote_weights_nothing_is_compared(root: Path) -> None:
    (root / "models" / "model.pt").write_bytes(b"of a training")
    with pytest.raises(SettingsError, match="it is not the file that was packed"):
        check_sum(root / "models" / "model.pt")
    (root / "models" / "last.ckpt").write_bytes(b"its checkpoint")
    check_sum(root / "models" / "model.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc  x\n", "has the line 'abc  x', which is not a checksum and a name"),
        (b"0" * 64 + b" *x\n", "which is not a checksum and a name"),
        (b"\n", "has the line '', which is not a checksum and a name"),
        ((b"0" * 64 + b"  x\n") * 2, "lists x more than once"),
        (b"\xff", "cannot be read ('utf-8' codec"),
    ],
)
def test_a_list_of_another_form_is_refused_not_passed_over(root: Path, content: bytes, message: str) -> None:
    (root / SUMS).write_bytes(content)
    with pytest.raises(SettingsError) as refusal:
        check_sum(root / "models" / "model.pt")
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


def test_weights_that_are_unlisted_may_be_others_and_the_rest_stays_listed(root: Path) -> None:
    unlist(root / "models" / "model.pt")
    (root / "models" / "model.pt").write_bytes(b"Weights")
    check_sum(root / "models" / "model.pt")
    listed = {name: content for name, content in PACKED.items() if name != "models/model.pt"}
    assert read_sums(root / SUMS) == {name: hashlib.sha256(content).hexdigest() for name, content in listed.items()}
    (root / "models" / "model_5x.pt").write_bytes(b"Others")
    with pytest.raises(SettingsError, match="is not the file that was packed"):
        check_sum(root / "models" / "model_5x.pt")


def test_weights_outside_of_a_packed_bundle_have_nothing_to_be_unlisted_from(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(b"weights")
    unlist(tmp_path / "models" / "model.pt")
    assert not (tmp_path / SUMS).exists()
