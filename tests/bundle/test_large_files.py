"""``large_files.yml`` as the Model Zoo reads it, and its limit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from bundle.large_files import over_limit, read_large_files
from scripts.core.errors import SettingsError
from tests.bundles import write
from tests.conftest import ROOT

ENTRY = "large_files:\n- path: models/model.pt\n  url: https://example.org/model.pt\n"


def test_the_limit_is_25_mb() -> None:
    assert over_limit({"b": 25 * 1024 * 1024 + 1, "a": 30_000_000, "c": 25 * 1024 * 1024}) == ["a", "b"]


def test_the_shipped_file_is_read_as_monai_reads_it() -> None:
    assert read_large_files(ROOT) == ConfigParser.load_config_file(ROOT / "large_files.yml")["large_files"]


def test_there_may_be_none(tmp_path: Path) -> None:
    write(tmp_path, "large_files.yml", "large_files: []\n")
    assert read_large_files(tmp_path) == []


@pytest.mark.parametrize("more", ["", '  hash_val: ""\n  hash_type: ""\n', f"  hash_val: {'a' * 32}\n"])
def test_an_entry_has_a_path_and_an_address_and_may_have_a_checksum(tmp_path: Path, more: str) -> None:
    write(tmp_path, "large_files.yml", ENTRY + more)
    (entry,) = read_large_files(tmp_path)
    assert (entry["path"], entry["url"]) == ("models/model.pt", "https://example.org/model.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("large_files: [", "cannot be read"),
        ("", "has no list `large_files`"),
        ("large_files:\n  path: a\n", "has no list `large_files`"),
        ("large_files:\n- path: a\n", "its entry 1 has not both `path` and `url`"),
        (ENTRY + "- text\n", "its entry 2 has not both"),
        ("large_files:\n- path: ../a\n  url: https://a.org\n", "leads out of the bundle"),
        ("large_files:\n- path: /a\n  url: https://a.org\n", "leads out of the bundle"),
        ("large_files:\n- path: a\n  url: a.org\n", "is not on the web"),
        (ENTRY + "  sha256: abc\n", "the unknown key 'sha256'"),
        (ENTRY + f"  hash_val: {'a' * 32}\n  hash_type: crc32\n", "the zoo knows md5, sha1, sha256, sha512"),
        (ENTRY + "  hash_type: [md5]\n", "has hash_type ['md5']; the zoo knows"),
        (ENTRY + f"  hash_val: {'1' * 32}\n", "has a hash_val that is no text"),
        ("[" * 5000, "cannot be read"),
        (ENTRY + f"  hash_val: {'a' * 64}\n", "a hash_val of 64 digits, where md5 has 32"),
    ],
)
def test_another_form_is_refused_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        write(tmp_path, "large_files.yml", text)
    with pytest.raises(SettingsError, match=re.escape(message)) as error:
        read_large_files(tmp_path)
    assert "\n" not in str(error.value)
