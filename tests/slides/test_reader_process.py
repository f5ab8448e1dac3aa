"""What native libraries print while they read: an error is one, whatever they return."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

from scripts.slides.reader_process import overhear


@pytest.fixture
def said_fd():
    fd = os.memfd_create("said")
    yield fd
    os.close(fd)


def puts(text, result=1):
    ctypes.CDLL(None).puts(text.encode())
    return result


def test_what_returned_is_the_answer(said_fd):
    assert overhear(said_fd, lambda a, b: a + b, 1, 2) == 3
    assert os.fstat(said_fd).st_size == 0


@pytest.mark.parametrize("write", [puts, lambda text: os.write(2, f"{text}\n".encode())])
def test_an_error_that_was_only_printed_is_a_failure(said_fd, write, capfd):
    with pytest.raises(ValueError, match="^ERROR in line 183 while reading JPEG header:$"):
        overhear(said_fd, write, "ERROR in line 183 while reading JPEG header:")
    assert overhear(said_fd, lambda: 5) == 5  # and not that of the next
    assert capfd.readouterr() == ("", "")


def test_what_is_printed_apart_from_a_request_is_passed_on_whatever_it_says(said_fd, capfd):
    assert overhear(said_fd, puts, "ERROR: no plugin", 7, judged=False) == 7
    sys.stderr.flush()
    assert capfd.readouterr() == ("", "ERROR: no plugin\n")


@pytest.mark.parametrize("text", ["Unknown field with tag 65420", "[Warning] Failed to find a GPU"])
def test_a_warning_is_passed_on(said_fd, capfd, text):
    assert overhear(said_fd, puts, text, 7) == 7
    sys.stderr.flush()
    assert capfd.readouterr() == ("", f"{text}\n")


def test_what_was_raised_says_more_than_what_was_printed(said_fd, capfd):
    def fail():
        puts("some error")
        raise ValueError("the tile at (0, 0) is damaged")

    with pytest.raises(ValueError, match=r"^the tile at \(0, 0\) is damaged$"):
        overhear(said_fd, fail)
    assert capfd.readouterr() == ("", "")
