"""A stamp tells whether a path still leads to the file that it led to."""

from __future__ import annotations

import os
import shutil

import pytest

from scripts.slides.stamp import stamp_of


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "s.tif"
    path.write_bytes(b"slide")
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_a_file_that_nobody_touches_keeps_its_stamp(slide):
    stamp = stamp_of(slide)
    slide.read_bytes()
    slide.chmod(0o444)
    assert stamp_of(str(slide)) == stamp


def test_another_file_of_the_same_name_size_and_time_has_another(slide, tmp_path):
    stamp = stamp_of(slide)
    other = tmp_path / "other.tif"
    shutil.copy2(slide, other)
    other.replace(slide)
    assert stamp_of(slide) != stamp


@pytest.mark.parametrize("content", [b"other", b"longer"])
def test_a_file_that_was_written_to_has_another(slide, content):
    stamp = stamp_of(slide)
    with open(slide, "r+b") as file:
        file.write(content)
    assert stamp_of(slide) != stamp


def test_a_file_that_is_gone_has_none(slide):
    slide.unlink()
    with pytest.raises(FileNotFoundError):
        stamp_of(slide)
