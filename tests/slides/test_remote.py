"""Addresses of slides: which are read, what they are known as, and that their secrets stay inside."""

import sys

import pytest

from scripts.core.errors import DatalistError, SettingsError, SlideError
from scripts.slides import remote
from scripts.slides.remote import copy_of, ends, file_name, is_remote, known_as, num_bytes, place
from tests.servers import serving


@pytest.fixture
def server(tmp_path):
    remote.num_bytes.cache_clear()
    (tmp_path / "a slide.svs").write_bytes(bytes(range(256)) * 40)
    with serving(tmp_path) as files:
        yield files


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("https://user:geheim@host:8443/a/s1.svs?sig=geheim#geheim", "https://host:8443/a/s1.svs"),
        ("HTTPS://host/s1.svs?X-Amz-Signature=geheim", "https://host/s1.svs"),
        ("s3://geheim:geheim@bucket/a/s1.svs", "s3://bucket/a/s1.svs"),
        ("s3://bucket/a#1/who?.svs", "s3://bucket/a#1/who?.svs"),
        ("gs://bucket/a/s1.svs", "gs://bucket/a/s1.svs"),
        ("/slides/s1.svs", "/slides/s1.svs"),
        ("s1", "s1"),
    ],
)
def test_a_slide_is_known_by_its_address_without_what_is_secret(given, known):
    assert known_as(given) == known
    assert "geheim" not in known_as(known)


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://host/s1.svs", "simplecache::s3://bucket/s1.svs", "smb://u:geheim@h/s1.svs"]
)
def test_other_protocols_are_refused(address):
    with pytest.raises(
        DatalistError, match=r"slides are not read from .*://. Use one of https://, http://, s3://,"
    ) as told:
        known_as(address)
    assert "geheim" not in str(told.value)


@pytest.mark.parametrize("name", ["s1.mrxs", "s1.dcm", "S1.VMS"])
def test_slides_of_several_files_are_refused(name):
    with pytest.raises(DatalistError, match="is one of several files, and an address names only one"):
        known_as(f"https://host/{name}?sig=1")


@pytest.mark.parametrize("address", ["https://host/", "https://u:p@host/slides/?sig=1", "s3://bucket/slides/"])
def test_a_folder_is_refused(address):
    with pytest.raises(DatalistError, match="/: names a folder, whose slides cannot be listed"):
        known_as(address)


def test_what_is_no_address_is_refused_without_showing_it():
    with pytest.raises(DatalistError, match="an address of https://: is none") as told:
        known_as("https://u:geheim@[host/s1.svs")
    assert "geheim" not in str(told.value)


def test_an_address_is_told_from_a_path():
    assert is_remote("s3://bucket/a.svs")
    assert not any(map(is_remote, ["/a/b.svs", "b.svs", "C:\\a.svs", "a::b.svs"]))


def test_the_file_behind_an_address_has_a_name_that_leads_nowhere_else():
    assert file_name("https://host/a/my%20slide.svs") == "my slide.svs"
    assert file_name("https://host/a/..%2f..%2fetc%2fpasswd") == "passwd"
    assert file_name("https://host/a/%2e%2e") == "slide"
    assert file_name("https://host/") == "slide"
    assert file_name("s3://bucket/a/b%20c.svs") == "b%20c.svs"
    assert place("s3://bucket/a/b.svs") == "bucket/a/b.svs"


def test_a_file_is_copied_whole_and_counted(server, tmp_path):
    address, counts = known_as(f"{server.url}/a%20slide.svs"), []
    copy_of(address, tmp_path / "copy.svs", counts.append)
    assert (tmp_path / "copy.svs").read_bytes() == (tmp_path / "a slide.svs").read_bytes()
    assert num_bytes(address) == counts[-1] == 10240


def test_the_ends_of_a_file_are_asked_for_alone(server):
    size, start, end = ends(f"{server.url}/a%20slide.svs", 300)
    content = bytes(range(256)) * 40
    assert (size, start, end) == (10240, content[:300], content[-300:])
    assert server.asked == []
    server.sends_parts = False
    assert ends(f"{server.url}/a%20slide.svs", 300) is None


def test_a_server_that_is_not_there_is_named_without_the_secrets_of_the_address():
    address = known_as("http://user:geheim@127.0.0.1:9/s1.svs?sig=geheim")
    with pytest.raises(
        SlideError, match=r"^http://127.0.0.1:9/s1.svs: cannot be read \(ConnectionRefusedError"
    ) as told:
        num_bytes(address)
    assert "geheim" not in str(told.value)


def test_a_package_that_is_missing_is_named_with_what_to_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    remote._of_protocol.cache_clear()
    with pytest.raises(
        SettingsError, match=r"^s3://: slides behind such addresses need s3fs, .* pip install '\.\[remote\]'"
    ):
        num_bytes("s3://bucket/s1.svs")
