import hashlib

import pytest

from scripts.core.errors import SlideError
from scripts.slides.checksums import check_sha256, slide_sha256
from scripts.slides.stamp import stamp_of


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "a.svs"
    path.write_bytes(b"some slide")
    return path


@pytest.mark.parametrize("written", [str, str.upper, lambda text: f" {text}\n"])
def test_a_file_with_the_checksum_of_the_datalist_passes(slide, written):
    check_sha256({"image": str(slide), "sha256": written(hashlib.sha256(b"some slide").hexdigest())})


def test_where_no_checksum_is_given_the_file_is_not_read():
    assert check_sha256({"image": "/no/such/file"}) is None
    assert check_sha256({"image": "/no/such/file", "sha256": None}) is None


def test_the_sum_comes_with_the_stamp_of_the_file_that_it_is_of(slide):
    assert slide_sha256({"image": str(slide)}) == (hashlib.sha256(b"some slide").hexdigest(), stamp_of(slide))


@pytest.mark.parametrize("given", [hashlib.sha256(b"other slide").hexdigest(), "abc", 12])
def test_another_file_is_refused_with_both_checksums(slide, given):
    found = hashlib.sha256(b"some slide").hexdigest()
    message = rf"a\.svs: its SHA-256 is {found}, the datalist says {given}\. Copy it again, or correct `sha256`\."
    with pytest.raises(SlideError, match=message):
        check_sha256({"image": str(slide), "sha256": given})


def test_a_file_that_cannot_be_read_is_the_slides_failure(tmp_path):
    with pytest.raises(SlideError, match=r"gone\.svs: cannot be read \(No such file or directory\)\. Copy it again"):
        check_sha256({"image": str(tmp_path / "gone.svs"), "sha256": "0" * 64})
