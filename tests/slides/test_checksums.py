"""Whether a slide's files are the ones that are meant."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest

from scripts.core.errors import SlideError
from scripts.slides.checksums import slide_sha256, stamp_of


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "a.svs"
    path.write_bytes(b"some slide")
    os.utime(path, ns=(10**18, 10**18))
    return path


@pytest.mark.parametrize("written", [str, str.upper, lambda text: f" {text}\n"])
def test_a_file_with_the_checksum_of_the_datalist_passes(slide, written):
    slide_sha256({"image": str(slide), "sha256": written(hashlib.sha256(b"some slide").hexdigest())})


def test_the_sum_comes_with_the_stamp_of_the_file_that_it_is_of(slide):
    assert slide_sha256({"image": str(slide)}) == (hashlib.sha256(b"some slide").hexdigest(), stamp_of(slide))


@pytest.mark.parametrize("given", [hashlib.sha256(b"other slide").hexdigest(), "abc", 12])
def test_another_file_is_refused_with_both_checksums(slide, given):
    found = hashlib.sha256(b"some slide").hexdigest()
    message = rf"a\.svs: its SHA-256 is {found}, the datalist says {given}\. Copy it again, or correct `sha256`\."
    with pytest.raises(SlideError, match=message):
        slide_sha256({"image": str(slide), "sha256": given})


def test_a_file_that_cannot_be_read_is_the_slides_failure(tmp_path):
    with pytest.raises(SlideError, match=r"gone\.svs: cannot be read \(No such file or directory\)\. Copy it again"):
        slide_sha256({"image": str(tmp_path / "gone.svs"), "sha256": "0" * 64})


def test_a_file_that_nobody_touches_keeps_its_stamp(slide):
    stamp = stamp_of(slide)
    slide.read_bytes()
    slide.chmod(0o444)
    assert stamp_of(str(slide)) == stamp


def test_another_file_of_the_same_name_size_and_time_has_another(slide, tmp_path):
    stamp = stamp_of(slide)
    other = tmp_path / "other.svs"
    shutil.copy2(slide, other)
    other.replace(slide)
    assert stamp_of(slide) != stamp


@pytest.mark.parametrize("content", [b"other", b"longer than it was"])
def test_a_file_that_was_written_to_has_another(slide, content):
    stamp = stamp_of(slide)
    with open(slide, "r+b") as file:
        file.write(content)
    assert stamp_of(slide) != stamp


def test_a_file_that_is_gone_has_none(slide):
    slide.unlink()
    with pytest.raises(FileNotFoundError):
        stamp_of(slide)
